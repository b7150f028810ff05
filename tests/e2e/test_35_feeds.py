"""What is sent to a Graphite and a StatsD: Debian's carbon-cache and collectd, which take it as they take all else."""

import csv
import hashlib
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress

import pytest

from .conftest import FANCY, Server, free_port, reload, wait_until

CARBON = """
[cache]
STORAGE_DIR = {folder}
LOCAL_DATA_DIR = {folder}
LOG_DIR = {folder}
PID_DIR = {folder}
CONF_DIR = {folder}
USER =
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = {port}
PICKLE_RECEIVER_INTERFACE = 127.0.0.1
PICKLE_RECEIVER_PORT = {pickle_port}
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = {query_port}
ENABLE_TAGS = False
MAX_CREATES_PER_MINUTE = inf
MAX_UPDATES_PER_SECOND = inf
ENABLE_LOGROTATION = False
"""
SCHEMAS = "[all]\npattern = .*\nretentions = 1s:10m\n"
COLLECTD = """
Hostname "here"
FQDNLookup false
BaseDir "{folder}"
PIDFile "{folder}/pid"
Interval 1
LoadPlugin statsd
LoadPlugin csv
<Plugin statsd>
  Host "127.0.0.1"
  Port "{port}"
</Plugin>
<Plugin csv>
  DataDir "{folder}"
  StoreRates false
</Plugin>
"""
# twice the period, and a machine that has more to do
PATIENCE_S = 45


class Carbon:
    """A Graphite's part that takes metrics, and the files that it keeps."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        ports = {"port": self.port, "pickle_port": free_port(), "query_port": free_port()}
        (folder / "carbon.conf").write_text(CARBON.format(folder=folder, **ports))
        (folder / "storage-schemas.conf").write_text(SCHEMAS)
        command = ["carbon-cache", "--nodaemon", f"--config={folder}/carbon.conf", "start"]
        self.process = spawn(command, folder)
        wait_until(lambda: accepts(self.port), "carbon listens")

    def last(self, name, **tags):
        """The newest value of a series; None where there is none."""
        series = ";".join([name, *(f"{key}={value}" for key, value in sorted(tags.items()))])
        # as its tagged series are filed
        digest = hashlib.sha256(series.encode()).hexdigest()
        file = self.folder / "_tagged" / digest[:3] / digest[3:6] / f"{digest}.wsp"
        if not file.exists():
            return None
        since = str(int(time.time()) - 120)
        told = subprocess.run(["whisper-fetch", "--from", since, file], capture_output=True, text=True, check=True)
        values = [line.split()[1] for line in told.stdout.splitlines()]
        return next((float(value) for value in reversed(values) if value != "None"), None)


class Collectd:
    """A StatsD, and what it has counted."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        folder.mkdir()
        (folder / "collectd.conf").write_text(COLLECTD.format(folder=folder, port=self.port))
        self.process = spawn(["collectd", "-f", "-C", folder / "collectd.conf"], folder)
        wait_until(lambda: "Listening on" in (folder / "out").read_text(), "collectd listens")

    def last(self, kind, name):
        """The newest value of a gauge, or of what it adds up (derive)."""
        (file,) = list((self.folder / "here" / "statsd").glob(f"{kind}-{name}-2*")) or [None]
        if file is None:
            return None
        *_, last = csv.reader(file.read_text().splitlines())
        return float(last[1])


def spawn(command, folder):
    with (folder / "out").open("wb") as out:
        environ = os.environ | {"PATH": os.environ["PATH"] + ":/usr/sbin"}
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environ)


def accepts(port):
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@contextmanager
def ended(receiver):
    yield receiver
    receiver.process.terminate()
    receiver.process.wait(30)


@pytest.fixture(scope="module")
def carbon(tmp_path_factory):
    with ended(Carbon(tmp_path_factory.mktemp("graphite") / "carbon")) as carbon:
        yield carbon


@pytest.fixture(scope="module")
def statsd(tmp_path_factory):
    with ended(Collectd(tmp_path_factory.mktemp("statsd") / "collectd")) as statsd:
        yield statsd


@pytest.fixture
def server(carbon, statsd):
    server = Server(MODEL=FANCY, SERVING_CARBON=f"127.0.0.1:{carbon.port}", SERVING_STATSD=f"127.0.0.1:{statsd.port}")
    try:
        yield server.wait_ready()
    finally:
        server.close()


def tag(server):
    return f"{re.sub('[^A-Za-z0-9_-]', '_', socket.gethostname())}_{server.port}"


def answered(carbon, server):
    about = {"model": "fancy", "route": "_predict", "server": tag(server), "status": "200", "version": "1"}
    return carbon.last("muleteer_requests_total", **about)


def counted(statsd, server, status="200", code="none", version="1"):
    name = f"requests_total.code.{code}.route._predict.status.{status}.version.{version}"
    return statsd.last("derive", f"muleteer.{tag(server)}.{name}")


def ask(server, count):
    assert {server.predict({"text": "hello"}).status for _ in range(count)} == {200}


def test_both_are_told_what_is_counted_and_the_rest_at_a_stop(server, carbon, statsd):
    ask(server, 7)
    assert server.predict({}).status == 400
    wait_until(lambda: (answered(carbon, server), counted(statsd, server)) == (7, 7), "both have counted 7", PATIENCE_S)
    assert counted(statsd, server, "400", "signature", "none") == 1
    # gauges, sizes, times: whatever there is
    assert carbon.last("muleteer_queue_capacity", server=tag(server)) == 128
    stage = {"model": "fancy", "server": tag(server), "stage": "predict", "version": "1"}
    assert carbon.last("muleteer_stage_duration_seconds_bucket", le="_Inf", **stage) == 7
    assert carbon.last("muleteer_stage_duration_seconds_sum", **stage) >= 7 * 0.005
    prefix = f"muleteer.{tag(server)}."
    assert statsd.last("gauge", f"{prefix}queue_capacity") == 128
    assert statsd.last("derive", f"{prefix}stage_duration_ms_count.stage.predict.version.1") == 7
    assert statsd.last("derive", f"{prefix}stage_duration_ms_sum.stage.predict.version.1") >= 7 * 5
    # the model takes five
    assert 5 <= statsd.last("gauge", f"{prefix}stage_duration_ms.stage.predict.version.1.p50") <= 25
    ask(server, 5)
    assert server.stop() == 0
    wait_until(lambda: (answered(carbon, server), counted(statsd, server)) == (12, 12), "both have the rest", 15)


def test_what_was_told_is_not_told_again_by_the_worker_that_follows(server, carbon, statsd):
    ask(server, 4)
    wait_until(lambda: (answered(carbon, server), counted(statsd, server)) == (4, 4), "both have counted 4", PATIENCE_S)
    control = ({*server.processes()["worker"]} - {*server.prediction_workers()}).pop()
    os.kill(control, signal.SIGKILL)
    wait_until(
        lambda: control not in server.processes()["worker"] and len(server.processes()["worker"]) == 3, "another"
    )
    assert server.request("GET", "/healthz").status == 200
    ask(server, 3)
    wait_until(lambda: (answered(carbon, server), counted(statsd, server)) == (7, 7), "both have counted 7", PATIENCE_S)


def test_what_was_told_is_not_told_again_by_the_uwsgi_that_follows(server, carbon, statsd):
    ask(server, 4)
    wait_until(lambda: (answered(carbon, server), counted(statsd, server)) == (4, 4), "both have counted 4", PATIENCE_S)
    assert reload(server, "--all")[0] == 0
    ask(server, 3)
    assert server.stop() == 0
    wait_until(lambda: answered(carbon, server) == 7 and counted(statsd, server) >= 7, "both have the rest", PATIENCE_S)
    assert counted(statsd, server) == 7


def test_who_takes_nothing_is_told_of_once_and_keeps_nobody_waiting(start):
    # one that never reads, nor accepts
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        server = start(
            MODEL=FANCY,
            SERVING_CARBON=f"127.0.0.1:{deaf.getsockname()[1]}",
            # nobody is there
            SERVING_STATSD=f"127.0.0.1:{free_port()}",
        ).wait_ready()
        ask(server, 3)
        assert server.request("GET", "/metrics").status == 200
        assert server.stop() == 0
    gone = start(MODEL=FANCY, SERVING_CARBON=f"127.0.0.1:{free_port()}", SERVING_STATSD="nobody.invalid:8125")
    gone.wait_ready()
    for name in ("carbon", "statsd"):
        line = f"{name} takes no metrics ({name} in uwsgi.ini)"
        wait_until(lambda line=line: line in gone.log, f"it is told: {line}", 15)
    ask(gone, 3)
    assert gone.stop() == 0
    assert gone.log.count("takes no metrics") == 2
