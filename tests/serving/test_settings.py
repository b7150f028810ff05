"""Settings: read from small ini files as uWSGI reads them, and refused with a value that would do."""

import mmap
import re
import resource
from dataclasses import fields
from pathlib import Path

import pytest

from serving.errors import SettingsError
from serving.settings import Settings, memory_bytes, read_ini

from .ini import SHIPPED, shipped

PAGE = mmap.PAGESIZE
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
BACKLOG = int(Path("/proc/sys/net/core/somaxconn").read_text())
LOWS = {each.name: each.metadata["low"] for each in fields(Settings) if each.metadata["low"] is not None}


@pytest.fixture
def read(tmp_path):
    """Settings from a text, or from the shipped file with these values."""

    def read(text=None, environ=None, **values):
        file = tmp_path / "uwsgi.ini"
        file.write_text(shipped(**values) if text is None else text)
        return Settings.read(file, environ or {})

    return read


@pytest.fixture
def refused(read):
    """The sentence in which settings are refused."""

    def refused(*args, **values):
        with pytest.raises(SettingsError) as caught:
            read(*args, **values)
        return str(caught.value)

    return refused


def test_the_shipped_file_passes_and_every_number_of_it_is_read():
    text, settings = SHIPPED.read_text(), Settings.read(SHIPPED, {})
    for each in fields(Settings):
        name = each.name.removeprefix("cache_") if each.name.startswith("cache_") else each.name
        name = name if each.metadata["section"] == "serving" else name.replace("_", "-")
        found = re.search(rf"(^|,){name} ?= ?([^,\n]*)", text, re.MULTILINE)
        value = getattr(settings, each.name)
        assert (str(value).lower() if isinstance(value, bool) else str(value)) == found[2]


def test_what_serving_leaves_out_has_the_value_of_the_shipped_file(read):
    assert read(SHIPPED.read_text().partition("[serving]")[0]) == Settings.read(SHIPPED, {})


def test_numbers_that_follow_from_others(read):
    settings = read(threads=4, mules=2, replica_threads=3, queue=32, queue_blocksize=8192, max_reply_bytes=5000)
    assert (settings.prediction_workers, settings.seats, settings.threads_per_replica) == (2, 8, 3)
    assert settings.mule_processes == 3
    assert settings.mapped_bytes == 32 * 8192 + 8 * settings.max_frame_bytes + 8 * 3 * 8192 + 1024 * (64 + 64 + 88)
    assert read(mules=1000, max_reply_bytes=4096).threads_per_replica == 1
    assert read(mules=1).threads_per_replica >= 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        *(({name: low - 1}, f"it must be {low} or more") for name, low in LOWS.items()),
        *(({name: -7}, f"it must be {low} or more") for name, low in LOWS.items()),
        ({"grpc_port": 65536}, "65535 is the highest port"),
        ({"log_level": "loud"}, "it is one of debug, info, warning, error"),
        ({"queue": 513}, f"queue x queue-blocksize must be a multiple of the page size, {PAGE}"),
        ({"queue": 600, "queue_blocksize": PAGE + 1}, f"queue x queue-blocksize must be a multiple of .* {PAGE}"),
        ({"queue": 511}, "it must be 512 or more: four for each prediction thread"),
        ({"queue": 2, "threads": 9}, "it must be 72 or more: four for each prediction thread"),
        ({"max_attempts": 61}, "60 are the most"),
        ({"batch_wait_ms": 5000}, r"past deadline_ms \(= 5000\)"),
        ({"mules": 100_000, "max_reply_bytes": 4096}, "each is a process, and 1024 are the most"),
        *(
            ({name: value}, r"may take deadline_ms \(= 5000\) and needs a second more")
            for name in ("stop_timeout_s", "worker_reload_mercy", "mule_reload_mercy")
            for value in (5, 0, -1)
        ),
        ({"deadline_ms": 5001, "stop_timeout_s": 6}, r"deadline_ms \(= 5001\)"),
        ({"max_header_bytes": 64512, "buffer_size": 65535}, "uWSGI takes no more than 65535 bytes"),
        ({"max_header_bytes": 39937}, r"it must hold max_header_bytes \(= 39937\)"),
        ({"buffer_size": 65536}, "and be at most 65535"),
        ({"log_format": "xml"}, "it is one of auto, json, text"),
        ({"access_log_sample": 2}, "1 is all of them"),
        ({"prediction_log_sample": 1.5}, "1 is all of them"),
        ({"max_connections": 319}, "each of the 128 prediction threads takes two"),
        ({"max_connections": -1}, "each of the 128 prediction threads takes two"),
        (
            {"max_connections": FILES // 2 + 1},
            f"nginx may need two files for each, and `ulimit -Hn` allows {FILES} in all",
        ),
        ({"max_frame_bytes": 1 << 50}, "make this one, or how many there are of it, smaller"),
        ({"max_frame_bytes": memory_bytes() // 128}, "frames, replies and queue map up to"),
        ({"max_reply_bytes": 1 << 50}, "frames, replies and queue map up to"),
        ({"max_reply_bytes": memory_bytes() // 128}, "frames, replies and queue map up to"),
        ({"listen": BACKLOG + 1}, f"net.core.somaxconn allows {BACKLOG}"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_the_one_that_is_proposed_will_do(read, refused, values, reason):
    found = re.fullmatch(r"(.*?) = (.*?): (.*); (\w+) would do", refused(**values))
    shown, value, told, proposed = found.groups()
    assert re.search(reason, told)
    name = shown.removeprefix("[serving] ").replace("cache2 ", "cache_").replace("-", "_")
    assert value == str(values.get(name, getattr(Settings.read(SHIPPED, {}), name)))
    assert str(getattr(read(**values | {name: proposed}), name)) == proposed


def test_more_seats_than_a_ticket_can_name_are_refused(refused):
    told = r"threads = 40000: \(processes - 1\) x threads \(= 80000\) may be 65536 at the most; 32768 would do"
    assert re.fullmatch(told, refused(threads=40_000))


@pytest.mark.parametrize(
    "values",
    [
        {"deadline_ms": 60_000},
        {"max_frame_bytes": memory_bytes() // 128, "max_reply_bytes": 1 << 50},
        {"queue": 100, "queue_blocksize": 5000, "log_level": "", "processes": 0},
    ],
)
def test_several_values_that_cannot_be_are_refused_one_after_the_other(read, refused, values):
    for _ in range(4):
        shown, proposed = re.fullmatch(r"(.*?) = .*; (\w+) would do", refused(**values)).groups()
        values[shown.removeprefix("[serving] ").replace("cache2 ", "cache_").replace("-", "_")] = proposed
        try:
            read(**values)
            return
        except SettingsError:
            continue
    raise AssertionError("no end of it")


@pytest.mark.parametrize(
    ("values", "accepted"),
    [
        ({"deadline_ms": 7000}, {"stop_timeout_s": 9}),
        (
            {
                "queue": 4,
                "queue_blocksize": PAGE // 4,
                "cache_items": 64,
                "cache_blocksize": 64,
                "max_reply_bytes": 4096,
                "threads": 1,
                "processes": 2,
            },
            {},
        ),
        ({"queue": 512}, {"threads": 64, "processes": 3}),
        ({"queue": 516, "queue_blocksize": PAGE * 5 // 4}, {"queue_blocksize": PAGE * 5 // 4}),
        ({"listen": BACKLOG}, {"listen": BACKLOG}),
        ({"max_header_bytes": 64511, "buffer_size": 65535}, {}),
        ({"max_connections": 320}, {}),
        ({"max_connections": FILES // 2}, {}),
        ({"processes": 3, "threads": 1, "max_connections": 68}, {}),
        ({name: low for name, low in LOWS.items() if name not in ("queue", "queue_blocksize")}, {"processes": 2}),
    ],
)
def test_a_value_at_its_limit_is_accepted(read, values, accepted):
    settings = read(**values)
    assert {name: getattr(settings, name) for name in values | accepted} == values | accepted


@pytest.mark.parametrize(
    ("environ", "values"),
    [
        ({"MULES": "5"}, {"mules": 5}),
        ({"WORKERS": "7"}, {"processes": 7}),
        ({"THREADS": "9"}, {"threads": 9}),
        ({"QUEUE": "576"}, {"queue": 576}),
        ({"MULES": "1", "QUEUE": "512", "OTHER": "3"}, {"mules": 1, "queue": 512, "threads": 64}),
        ({"MODEL": "/models/a"}, {"model": "/models/a"}),
        ({"MODEL": ""}, {"model": "models/digits"}),
        ({"SERVING_MODEL": "b", "MODEL": "a"}, {"model": "b"}),
        ({"SERVING_DEADLINE_MS": "250", "SERVING_LOG_LEVEL": "debug"}, {"deadline_ms": 250, "log_level": "debug"}),
        ({"GRPC_PORT": "8081"}, {"grpc_port": 8081}),
        ({"SERVING_GRPC_PORT": "8082", "GRPC_PORT": "8081"}, {"grpc_port": 8082}),
        ({"GRPC_PORT": "tcp://10.0.0.1:80"}, {"grpc_port": 0}),
        ({"SERVING_BATCH_WAIT_MS": "2", "SERVINGS": "x"}, {"batch_wait_ms": 2}),
        ({"MULES": "-1"}, "mules = -1: it must be 1 or more; 1 would do"),
        ({"WORKERS": "1"}, "processes = 1: it must be 2 or more; 2 would do"),
        ({"THREADS": "many"}, "threads = many: it must be a whole number, for example 8"),
        ({"QUEUE": ""}, "[uwsgi] queue is missing; the shipped uwsgi.ini has it"),
        ({"SERVING_REFUSE_LATE": "false"}, {"refuse_late": False}),
        ({"SERVING_REFUSE_LATE": "no"}, "[serving] refuse_late = no: it is true or false; true would do"),
        ({"SERVING_TRACE_SAMPLE": "0.25"}, {"trace_sample": 0.25}),
        ({"SERVING_TRACE_SAMPLE": "0"}, {"trace_sample": 0.0}),
        ({"SERVING_TRACE_SAMPLE": "1e-2"}, "[serving] trace_sample = 1e-2: it must be a number, for example 0.01"),
        ({"SERVING_TRACE_SAMPLE": "1.5"}, "trace_sample = 1.5: it is a part of the requests"),
        ({"SERVING_TRACE_SAMPLE": "-0.5"}, "trace_sample = -0.5: it must be 0 or more"),
        ({"SERVING_OTLP_ENDPOINT": "https://tempo:4318/otlp"}, {"otlp_endpoint": "https://tempo:4318/otlp"}),
        ({"SERVING_OTLP_ENDPOINT": "tempo:4317"}, "it is the URL of a collector for OTLP over HTTP"),
        ({"SERVING_OTLP_ENDPOINT": "http://"}, "http://127.0.0.1:4318 would do"),
        # what it says is not said again
        ({"SERVING_OTLP_ENDPOINT": "http://me:mine@tempo"}, "otlp_endpoint = http://…: it is the URL of a collector"),
        ({"SERVING_CARBON": "graphite:2003"}, {"carbon": "graphite:2003"}),
        ({"SERVING_STATSD": "[::1]:8125"}, {"statsd": "[::1]:8125"}),
        ({"SERVING_CARBON": "graphite"}, "carbon = graphite: it is host:port, and empty for none; 127.0.0.1:2003"),
        ({"SERVING_STATSD": "::1:8125"}, "statsd = ::1:8125: it is host:port, and empty for none; 127.0.0.1:8125"),
        ({"SERVING_STATSD": "a:65536"}, "statsd = a:65536: it is host:port"),
        ({"QUEUE": "1_000"}, "queue = 1_000: it must be a whole number, for example 8"),
        ({"QUEUE": "9" * 5000}, "it must be a whole number, for example 8"),
        ({"SERVING_DEADLINE_MS": "5.5"}, "[serving] deadline_ms = 5.5: it must be a whole number, for example 8"),
        ({"SERVING_LOG_LEVEL": "LOUD"}, "[serving] log_level = LOUD: it is one of debug, info, warning, error"),
        ({"SERVING_DEADLIN_MS": "5"}, "deadlin_ms: there is no such setting; did you mean deadline_ms?"),
        (
            {"SERVING_X": "5"},
            "[serving] x: there is no such setting; the keys are model, version_policy, version_poll_s, ",
        ),
    ],
)
def test_the_environment_overrides_the_file(read, refused, environ, values):
    if isinstance(values, str):
        assert values in refused(environ=environ)
    else:
        settings = read(environ=environ)
        assert {name: getattr(settings, name) for name in values} == values


def test_a_secret_whose_name_is_mistyped_is_not_told(refused):
    secret = "https://topsecret@sentry.example/7"
    for told in (
        refused(environ={"SERVING_SENTRY_DSNN": secret}),
        refused(SHIPPED.read_text().replace("sentry_dsn =", f"sentry_dns = {secret}")),
    ):
        assert "there is no such setting; did you mean sentry_dsn?" in told and "topsecret" not in told


@pytest.mark.parametrize(
    ("values", "extra"),
    [
        ({"SENTRY_DSN": "https://key@sentry.example/7"}, "sentry"),
        ({"SERVING_PREDICTION_LOG_SAMPLE": "1", "SERVING_PREDICTION_LOG_DIR": "run/predictions"}, "media"),
    ],
)
def test_what_a_setting_lacks_is_installed_with_the_versions_that_were_tried(refused, monkeypatch, values, extra):
    # as where there is nothing of it
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert f"pip install -c constraints.txt '.[{extra}]'" in refused(environ=values)


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        (
            "max_batch_rows = 32",
            "max_batch_row = 32",
            "max_batch_row: there is no such setting; did you mean max_b",
        ),
        ("max_batch_rows = 32", "max_batch_rows 32", r":\d+: 'max_batch_rows 32' is not key = value"),
        ("max_batch_rows = 32", "max_batch_rows = 32 ; rows", "max_batch_rows = 32 ; rows: it must be a whole number"),
        ("max_batch_rows = 32", "max_batch_rows =", "max_batch_rows = : it must be a whole number"),
        ("max_batch_rows = 32", "max_batch_rows = ٣", "max_batch_rows = ٣: it must be a whole number"),
        ("listen = 1024", "", "listen is missing; the shipped uwsgi.ini has it"),
        ("listen = 1024", "listen = 1k", "listen = 1k: it must be a whole number"),
        ("listen = 1024", "listen = %(magic)", r"listen = %\(magic\): it must be a whole number"),
        ("items=1024,", "", "cache2 items is missing"),
        ("items=1024,", "items=many,", "cache2 items = many: it must be a whole number"),
        ("cache2 = ", "cache = ", "cache2 items is missing"),
        (
            "[uwsgi]",
            "[uWSGI]",
            "lock-engine = : with any other a killed process can freeze all the rest; ipcsem would do",
        ),
        ("lock-engine = ipcsem", "", "lock-engine = : .*; ipcsem would do"),
        ("lock-engine = ipcsem", "lock-engine = posix", "lock-engine = posix: .*; ipcsem would do"),
        ("master = true", "master = false", "master = false: .*; true would do"),
        ("keysize=64", "keysize=64,bitmap=1", "cache2 bitmap = 1: it may lose what is noted; leave it out"),
        ("processes = 3", "processor = 3", "processes is missing"),
        ("mules = 1", "", "mules = 2: the first line is for the replicas, and a second one, mules = 1, for the spare"),
        ("mules = 1", "mules = 2", "mules = 2 and 2: the first line is for the replicas"),
        ("mules = 1", "mules = 1\nmules = 1", "mules = 2 and 1 and 1: the first line is for the replicas"),
    ],
)
def test_a_line_that_is_wrong_is_told(refused, line, instead, told):
    text = SHIPPED.read_text()
    assert line in text
    assert re.search(told, refused(text.replace(line, instead)))


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda file: None, "No such file or directory; give the path of a uwsgi.ini"),
        (lambda file: file.mkdir(), "Is a directory; give the path of a uwsgi.ini"),
        (lambda file: file.write_bytes(b"\xff"), "it is not UTF-8; give the path of a uwsgi.ini"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, write, told):
    write(tmp_path / "uwsgi.ini")
    with pytest.raises(SettingsError, match=f"uwsgi.ini: {told}"):
        Settings.read(tmp_path / "uwsgi.ini", {})


def test_of_several_caches_the_first_counts_as_it_does_for_uwsgi(read):
    text = SHIPPED.read_text().replace("lock-engine", "cache2 = name=other,items=3,blocksize=4096\nlock-engine", 1)
    assert read(text).cache_items == 1024


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("a = 1\na = 2", {}, ["1", "2"]),
        ("  a=1  \n; a = 2\n# a = 3\n\n[other]\na = 4\n[uwsgi]\na = 5", {}, ["1", "5"]),
        ("a = b = c", {}, ["b = c"]),
        ("if-env = X\na = %(_)\nendif =\na = 2", {}, ["2"]),
        ("if-env = X\na = %(_)\nendif =\na = 2", {"X": "1"}, ["1", "2"]),
        ("if-env = X\na = <%(_)/%(_)>\nendif =\na = %(_)", {"X": "1"}, ["<1/1>", "%(_)"]),
        ("if-not-env = X\na = 1\nendif =\na = 2", {}, ["1", "2"]),
        ("if-not-env = X\na = 1\nendif =\na = 2", {"X": ""}, ["2"]),
        ("a = $(X)/$(Y)", {"X": "1"}, ["1/$(Y)"]),
    ],
)
def test_the_lines_count_that_count_for_uwsgi(tmp_path, text, environ, expected):
    file = tmp_path / "a.ini"
    file.write_text(f"[uwsgi]\n{text}\n")
    assert read_ini(file, environ)["uwsgi"]["a"] == expected


def test_what_kubernetes_sets_for_a_service_called_serving_is_no_setting():
    foreign = {"SERVING_SERVICE_HOST": "10.0.0.1", "SERVING_PORT": "tcp://10.0.0.1:80", "SERVING_PORT_80_TCP": "x"}
    assert Settings.read(SHIPPED, foreign) == Settings.read(SHIPPED, {})
