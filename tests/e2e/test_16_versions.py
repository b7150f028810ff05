"""New versions without a gap: they appear, are loaded and checked, and take over; or they change nothing."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from .conftest import ROOT, Server, ask, descendants, masters, reload, wait_until, write_model

# answers with its version, and has as much memory as its folder says
MODEL = """
from pathlib import Path

class Model:
    inputs = {{{input!r}: "string"}}
    outputs = {{"res": "string"}}
    batched = False

    def __init__(self, path):
        self.weights = b"w" * ({mib} << 20)
        {load}

    def predict(self, inputs):
        (text,) = inputs.values()
        if text == "die":
            import os
            os.kill(os.getpid(), 9)
        return {{"res": "{version} " + text}}
"""


def source(version, mib=1, load="pass", input="text"):
    return MODEL.format(version=version, mib=mib, load=load, input=input)


def write_version(model, version, answer=None, **options):
    """A version folder that appears as a whole."""
    new = write_model(model / f"new-{version}", source(version, **options))
    if answer is not None:
        (new / "answer.json").write_text(json.dumps({"res": answer}))
    return new.rename(model / str(version))


@pytest.fixture
def model(tmp_path):
    write_version(tmp_path / "model", 1)
    return tmp_path / "model"


def label(model, **labels):
    """Replace model.toml as a whole."""
    lines = ["[labels]", *(f"{name} = {version}" for name, version in labels.items())]
    (model / "new.toml").write_text("\n".join(lines))
    (model / "new.toml").rename(model / "model.toml")


@contextmanager
def load(server, *names, clients=4):
    """Clients that do not cease to ask for versions by these names, "" for none: which answered each.

    Each answer is that of the version which it says it is.
    """
    found = {name: Counter() for name in names}
    wrong = []
    over = threading.Event()

    def client(number, name):
        headers = {"X-Model-Version": name} if name else {}
        with closing(server.connect()) as connection:
            turn = 0
            while not over.is_set():
                turn += 1
                sent = f"{number}/{turn}"
                try:
                    answer = ask(connection, "POST", "/predict", json.dumps({"text": sent}).encode(), headers)
                    version = answer.headers.get("x-model-version")
                    if answer.status != 200 or answer.json != {"res": f"{version} {sent}"}:
                        wrong.append((name, sent, answer))
                    found[name][version] += 1
                except Exception as error:
                    wrong.append((name, sent, error))
                    connection.close()

    with ThreadPoolExecutor(clients * len(names)) as pool:
        running = [pool.submit(client, number, name) for name in names for number in range(clients)]
        try:
            wait_until(lambda: all(sum(of.values()) >= clients for of in found.values()) or wrong, "all clients ask")
            yield found
            counts = {name: sum(of.values()) for name, of in found.items()}
            wait_until(
                lambda: all(sum(of.values()) >= counts[name] + clients for name, of in found.items()) or wrong,
                "all clients still ask",
            )
        finally:
            over.set()
        for one in running:
            one.result()
    assert wrong == []


def versions(server):
    """The versions of the replicas that serve; [] while others are there."""
    ready = server.ready()
    return sorted(replica["version"] for replica in ready["replicas"] if replica["ready"])


def pids(server, version):
    """The replicas of a version that serve."""
    return [one["pid"] for one in server.ready()["replicas"] if one["ready"] and one["version"] == version]


def serves(server, *wanted):
    wait_until(lambda: versions(server) == sorted(wanted), f"the replicas serve {wanted}")


def named(server, name=None):
    """The answer of the version of this name."""
    return server.predict({"text": "x"}, **({"X_Model_Version": str(name)} if name is not None else {}))


def memory_mib(server):
    """What all of its processes use, PSS."""
    found = 0
    for pid in descendants(server.process.pid):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found / 1024


def test_a_version_that_appears_takes_over_by_itself_with_one_copy_more_at_the_most(start, model):
    write_version(model, 2, mib=200)
    server = start(MODEL=model, MULES=3, SERVING_VERSION_POLL_S=1).wait_ready()
    serves(server, 2, 2, 2)
    with load(server, "") as found:
        wait_until(lambda: sum(found[""].values()) > 500, "it is in its stride")
        before, most = memory_mib(server), 0.0
        write_version(model, 3, mib=200)

        def done():
            nonlocal most
            most = max(most, memory_mib(server))
            return "reloaded: model, version 3, 3 of 3 replicas" in server.output and versions(server) == [3, 3, 3]

        wait_until(done, "version 3 serves")
        assert set(found[""]) == {"2", "3"}
        after = wait_until(lambda: (now := memory_mib(server)) < before * 1.05 and now, "the memory is back", 20)
    assert after > before * 0.95
    assert most < before + 200 * 1.5
    assert server.stop() == 0, server.output


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"load": "raise RuntimeError('the weights are gone')"}, "the weights are gone"),
        ({"answer": "4 is what it should say"}, "output 'res' of the sample differs from answer.json"),
    ],
    ids=["does not load", "answers wrongly"],
)
def test_a_broken_version_changes_nothing_and_is_not_tried_again_until_it_changes(start, model, broken, told):
    server = start(MODEL=model, MULES=2, SERVING_VERSION_POLL_S=1).wait_ready()
    replicas = [replica["pid"] for replica in server.ready()["replicas"]]
    with load(server, ""):
        write_version(model, 4, **broken)
        refused = wait_until(lambda: server.ready()["refused"], "it is refused")
        assert set(refused) == {"4"} and told in refused["4"]
        wait_until(lambda: "not reloaded, and what served serves on: " in server.output, "it is told")
        assert told in server.output
        loads = server.log.count("cannot load the model")
        # some looks later
        label(model, stable=1)
        wait_until(lambda: server.ready()["versions"][0]["labels"] == ["stable"], "it has looked again")
        assert server.log.count("cannot load the model") == loads and set(server.ready()["refused"]) == {"4"}
        assert [replica["pid"] for replica in server.ready()["replicas"]] == replicas
        assert named(server).headers["x-model-version"] == "1"
        (model / "model.toml").unlink()
        # it changes
        write_model(model / "4", source(4))
        (model / "4" / "answer.json").unlink(missing_ok=True)
        serves(server, 4, 4)
    assert server.ready()["refused"] == {}


def test_labels_are_for_versions_and_a_request_may_name_either(start, model):
    write_version(model, 2)
    label(model, stable=1, canary=2)
    server = start(MODEL=model, MULES=3, SERVING_VERSION_POLICY="all", SERVING_VERSION_POLL_S=1).wait_ready()
    assert "version 1 (stable) and version 2 (canary) (python)" in server.output
    serves(server, 1, 1, 2)
    with load(server, "", "1", "2", "stable", "canary") as found:
        wait_until(lambda: min(sum(of.values()) for of in found.values()) > 50, "all are answered")
    assert {name: set(of) for name, of in found.items()} == {
        "": {"1"},
        "1": {"1"},
        "2": {"2"},
        "stable": {"1"},
        "canary": {"2"},
    }
    about = [(one["version"], one["labels"], one["default"]) for one in server.ready()["versions"]]
    assert about == [(1, ["stable"], True), (2, ["canary"], False)]
    for name in ("3", "x", "-1", "1.0", "²", "9" * 30):
        refusal = named(server, name.encode().decode("latin-1"))
        assert (refusal.status, refusal.json["code"]) == (404, "model_not_found"), name
    assert named(server, "x").json["detail"] == "no version 'x' of the model is served; there is 1, 2, canary, stable"
    # the labels move, and no model is loaded again
    replicas = [replica["pid"] for replica in server.ready()["replicas"]]
    with load(server, "", "1", "2"):
        label(model, stable=2, old=1)
        wait_until(lambda: {named(server).headers["x-model-version"] for _ in range(5)} == {"2"}, "the label has moved")
        wait_until(lambda: named(server, "old").status == 200, "the other has moved")
        # and the replicas with them: the default has most
        serves(server, 1, 2, 2)
    assert set(replicas) & {replica["pid"] for replica in server.ready()["replicas"]}
    wait_until(lambda: named(server, "canary").status == 404, "the name is gone")


def test_an_input_that_one_version_dies_of_is_refused_to_no_other(start, model):
    write_model(model / "1", source(1).replace('"die"', '"nothing"'))
    write_version(model, 2)
    label(model, stable=1, canary=2)
    server = start(MODEL=model, MULES=2, SERVING_VERSION_POLICY="all").wait_ready()
    serves(server, 1, 2)
    refusals = [server.predict({"text": "die"}, X_Model_Version=name) for name in ("canary", "2")]
    assert [(one.status, one.json["code"]) for one in refusals] == [(500, "replica_crashed")] * 2
    assert "is refused for now" in refusals[1].json["detail"]
    for headers in ({}, {"X_Model_Version": "stable"}, {"X_Model_Version": "1"}):
        answer = server.predict({"text": "die"}, **headers)
        assert (answer.status, answer.json) == (200, {"res": "1 die"})


@pytest.mark.parametrize("labels", [({}, {}), ({"stable": 2, "canary": 1}, {"stable": 3, "canary": 2})])
def test_a_version_answers_until_the_one_that_follows_it_is_loaded(start, model, labels):
    before, after = labels
    write_version(model, 2)
    label(model, **before)
    settings = {"SERVING_VERSION_POLICY": "latest 2", "SERVING_DEADLINE_MS": 1000}
    server = start(MODEL=model, MULES=2, **settings).wait_ready()
    serves(server, 1, 2)
    # longer than anybody waits
    write_version(model, 3, load="import time; time.sleep(3)")
    label(model, **after)
    names = ["", *after]
    with load(server, *names, clients=2) as found:
        assert named(server).headers["x-model-version"] == "2"
        assert reload(server)[0] == 0
        # by then all is as it is to be
        for name in names:
            expected = str(after.get(name, 3))
            assert named(server, name or None).headers["x-model-version"] == expected
    assert {*found[""]} == {"2", "3"}
    assert versions(server) == [2, 3]


def test_a_replica_that_dies_of_those_who_named_it_loses_nobody(start, model):
    write_version(model, 2)
    label(model, stable=1)
    settings = {"SERVING_VERSION_POLICY": "all", "SERVING_QUARANTINE_S": 1}
    server = start(MODEL=model, MULES=2, **settings).wait_ready()
    serves(server, 1, 2)
    with load(server, "", "1", "2"):
        for _ in range(3):
            (victim,) = pids(server, 2)
            os.kill(victim, signal.SIGKILL)
            wait_until(
                lambda pid=victim: len(found := pids(server, 2)) == 1 and found != [pid], "version 2 is there again"
            )
        dies = server.predict({"text": "die"}, X_Model_Version="2")
        assert (dies.status, dies.json["code"]) == (500, "replica_crashed")
        serves(server, 1, 2)


def test_the_way_back_is_one_command_and_holds_after_a_new_start(start, model, tmp_path):
    write_version(model, 2)
    server = start(MODEL=model, MULES=2).wait_ready()
    with load(server, ""):
        status, out, err = reload(server, "--version", "1")
        assert (status, err) == (0, "") and out.splitlines()[-1].endswith("model, version 1, 2 of 2 replicas")
        assert versions(server) == [1, 1]
        # a version that is not there changes neither what serves nor what is pinned
        status, _, err = reload(server, "--version", "7")
        assert status == 1 and "version_policy = 7: there is no version 7; there are 1, 2" in err
        assert reload(server)[0] == 0
        assert versions(server) == [1, 1]
    assert server.stop() == 0
    again = start(MODEL=model, MULES=2, RUN_DIR=server.run_dir, PORT=server.port).wait_ready()
    assert "pinned by `reload --version 1`; `reload --unpin` ends that" in again.output
    assert versions(again) == [1, 1]
    assert reload(again, "--unpin")[0] == 0
    assert versions(again) == [2, 2]


def test_other_inputs_or_outputs_are_refused_unless_everything_is_taken_anew(start, model):
    server = start(MODEL=model, MULES=1).wait_ready()
    before = masters(server, 1)
    with load(server, ""):
        write_version(model, 2, input="words")
        status, _, err = reload(server)
        assert status == 1 and masters(server, 1) == before
        assert "version 2 takes and gives words string → res string, and version 1, which was loaded before" in err
        assert "reload --all" in err
    status, out, _ = reload(server, "--all")
    assert status == 0 and out.endswith("uWSGI anew, model, version 2, 1 replicas\n")
    assert server.predict({"words": "x"}).json == {"res": "2 x"}


@pytest.mark.parametrize(
    ("policy", "toml", "mules", "told"),
    [
        ("newest", "", 1, "version_policy = newest: it is latest, latest and how many (latest 2), all, or the numbers"),
        ("3", "", 1, "version_policy = 3: there is no version 3; there are 1, 2"),
        ("all", "", 1, "version_policy = all serves 2 versions (1, 2), each by a replica of its own, and mules = 1"),
        (
            "latest",
            "[labels]\nstable = 1",
            1,
            "the label 'stable' is for version 1, and version_policy = latest serves 2",
        ),
        ("latest", "[labels]\n1a = 2", 1, "[labels] 1a = 2: a label begins with a letter"),
        ("latest", "[labels]\na = true", 1, "[labels] a = True: a label begins with a letter"),
    ],
)
def test_what_cannot_be_served_together_is_told_at_the_start(model, tmp_path, policy, toml, mules, told):
    write_version(model, 2)
    (model / "model.toml").write_text(toml)
    server = Server(MODEL=model, MULES=mules, SERVING_VERSION_POLICY=policy)
    try:
        assert server.process.wait(60) == 2
        assert told in server.output and server.output.count("\n") == 1
    finally:
        server.close()


@pytest.mark.parametrize("arguments", [["--version"], ["--version", "x"], ["--version", "2", "--unpin"], ["all"]])
def test_a_wrong_argument_is_told(arguments, tmp_path):
    environ = os.environ | {"RUN_DIR": str(tmp_path)}
    asked = subprocess.run(
        [ROOT / "entrypoint.sh", "reload", *arguments], env=environ, capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2 and "usage: muleteer" in asked.stderr


def test_a_load_may_be_asked_for_by_http_where_that_is_allowed(start, model):
    server = start(MODEL=model, MULES=2, SERVING_REPOSITORY_API="true").wait_ready()
    write_version(model, 2)
    with load(server, ""):
        answer = server.request("POST", "/v2/repository/models/model/load", b"{}")
        assert (answer.status, answer.json["detail"]) == (200, "reloaded: model, version 2, 2 of 2 replicas")
        assert versions(server) == [2, 2]
        write_version(model, 3, load="raise RuntimeError('the weights are gone')")
        refusal = server.request("POST", "/v2/repository/models/model/load", b"{}")
        assert (refusal.status, list(refusal.json)) == (500, ["error"])
        assert "the weights are gone" in refusal.json["error"] and versions(server) == [2, 2]
        told = server.request("POST", "/v2/repository/index").json
        assert [(one["version"], one["state"]) for one in told] == [("2", "READY"), ("3", "UNAVAILABLE")]
        assert "the weights are gone" in told[1]["reason"]
        assert len(server.request("POST", "/v2/repository/index", b'{"ready": true}').json) == 1
        unload = server.request("POST", "/v2/repository/models/model/unload")
        assert unload.status == 400 and "is the only one" in unload.json["error"]
        other = server.request("POST", "/v2/repository/models/digits/load", b"{}")
        assert other.status == 404 and "the model here is model, not 'digits'" in other.json["error"]


def test_a_load_by_http_is_forbidden_unless_the_settings_allow_it(start, model):
    server = start(MODEL=model, MULES=1).wait_ready()
    refusal = server.request("POST", "/v2/repository/models/model/load", b"{}")
    assert refusal.status == 403 and "repository_api" in refusal.json["error"]
    assert server.request("GET", "/v2/repository/models/model/load").status == 405


# the first load goes well, and the next does not
ONCE = """found = len(list(Path(path).glob("load-*")))
        (Path(path) / f"load-{found}").touch()
        if found:
            raise MemoryError("no room for another")"""


def test_a_version_that_only_some_replicas_can_load_goes_again_and_the_next_one_is_as_good_as_any(start, model):
    server = start(MODEL=model, MULES=3).wait_ready()
    serves(server, 1, 1, 1)
    with load(server, "") as found:
        write_version(model, 2, load=ONCE)
        status, _, err = reload(server)
        assert status == 1 and "no room for another" in err
        assert versions(server) == [1, 1, 1]
        assert set(server.ready()["refused"]) == {"2"}
        shutil.rmtree(model / "2")
        write_version(model, 3)
        assert reload(server)[0] == 0
        assert versions(server) == [3, 3, 3]
    assert set(found[""]) <= {"1", "2", "3"}


def test_a_broken_version_beside_others_is_refused_alone(start, model):
    write_version(model, 2)
    settings = {"SERVING_VERSION_POLICY": "all", "SERVING_VERSION_POLL_S": 1}
    server = start(MODEL=model, MULES=4, **settings).wait_ready()
    serves(server, 1, 1, 2, 2)
    with load(server, "1", "2"):
        write_version(model, 3, load="raise RuntimeError('the weights are gone')")
        wait_until(lambda: "not reloaded" in server.output, "it is refused")
        assert set(server.ready()["refused"]) == {"3"}
        # what is no model at all, neither
        (model / "4").mkdir()
        (model / "4" / "model.toml").write_text("nam = 'a'")
        wait_until(lambda: "4" in server.ready()["refused"], "it is refused as well")
        assert "'nam' is not one of" in server.ready()["refused"]["4"]
        serves(server, 1, 1, 2, 2)
        write_version(model, 5)
        serves(server, 1, 2, 5, 5)
    assert server.stop() == 0
    # nor are they tried after a new start
    again = start(MODEL=model, MULES=3, RUN_DIR=server.run_dir, **settings).wait_ready()
    serves(again, 1, 2, 5)


@pytest.mark.parametrize("broken", [1, 3], ids=["one of them", "the highest"])
@pytest.mark.parametrize(
    "how", ["raise RuntimeError('the weights are gone')", "raise SystemExit('the weights are gone')", "no model"]
)
def test_a_version_that_is_broken_at_the_start_is_refused_alone_and_not_tried_again(start, model, broken, how):
    for version in (1, 2, 3):
        shutil.rmtree(model / str(version), ignore_errors=True)
        write_version(model, version, load=how if version == broken and how != "no model" else "pass")
    if how == "no model":
        (model / str(broken) / "model.toml").write_text('"the weights are gone" = 1')
    highest, other = [version for version in (3, 2, 1) if version != broken]
    settings = {"SERVING_VERSION_POLICY": "all", "SERVING_LOAD_ATTEMPTS": 2, "SERVING_VERSION_POLL_S": 1}
    server = start(MODEL=model, MULES=5, **settings).wait_ready()
    serves(server, highest, highest, highest, other, other)
    refused = server.ready()["refused"]
    assert set(refused) == {str(broken)} and "the weights are gone" in refused[str(broken)]
    assert f"version {broken} is not served: " in server.output and "Traceback" not in server.output
    loads = server.log.count("cannot load the model")
    with load(server, "", str(other)) as found:
        # some looks later
        label(model, old=other)
        wait_until(lambda: named(server, "old").status == 200, "it has looked again")
        assert server.log.count("cannot load the model") == loads
    assert (set(found[""]), set(found[str(other)])) == ({str(highest)}, {str(other)})
    assert server.stop() == 0
    # nor after a new start
    again = start(MODEL=model, MULES=5, RUN_DIR=server.run_dir, LOG_DIR=server.run_dir, **settings).wait_ready()
    serves(again, highest, highest, highest, other, other)
    assert server.log.count("cannot load the model") == loads
    # it changes
    write_model(model / str(broken), source(broken))
    (model / str(broken) / "model.toml").unlink(missing_ok=True)
    wait_until(lambda: set(versions(again)) == {1, 2, 3}, "all are served")
    assert again.ready()["refused"] == {} and json.loads((server.run_dir / "refused.json").read_text()) == []


def test_a_broken_version_that_must_be_served_is_tried_again_with_pauses(start, model):
    write_version(model, 2, load="raise RuntimeError('the weights are gone')")
    settings = {"SERVING_VERSION_POLICY": "1, 2", "SERVING_LOAD_ATTEMPTS": 1}
    label(model, stable=1)
    server = start(MODEL=model, MULES=2, **settings).wait_ready()
    failed = wait_until(
        lambda: [one for one in server.ready()["replicas"] if one["failures"] > 1], "it has been tried again"
    )
    assert [(one["version"], one["state"] in ("failed", "loading")) for one in failed] == [(2, True)]
    assert server.ready()["refused"] == {} and named(server).headers["x-model-version"] == "1"
    write_model(model / "2", source(2))
    assert reload(server)[0] == 0
    assert versions(server) == [1, 2]


def test_what_was_refused_is_remembered_as_long_as_it_is_there(start, model):
    server = start(MODEL=model, MULES=1, SERVING_VERSION_POLL_S=1).wait_ready()

    def refused():
        return [version for version, _, _ in json.loads((server.run_dir / "refused.json").read_text())]

    for version in (2, 3):
        write_version(model, version, load="raise RuntimeError('the weights are gone')")
        wait_until(lambda version=version: str(version) in server.ready()["refused"], "it is refused")
    assert refused() == [2, 3]
    # a reload that fails, of whatever, clears nothing
    status, _, err = reload(server, "--version", "7")
    assert status == 1 and "there is no version 7" in err
    status, _, err = reload(server, "--all")
    assert status == 1 and "the weights are gone" in err
    assert refused() == [2, 3]
    # nor does one that succeeds clear what it has not loaded
    assert reload(server, "--version", "1")[0] == 0
    assert refused() == [2, 3] and set(server.ready()["refused"]) == {"2", "3"}
    shutil.rmtree(model / "3")
    wait_until(lambda: refused() == [2], "it is forgotten")
    write_model(model / "2", source(2))
    assert reload(server, "--unpin")[0] == 0
    assert (versions(server), refused()) == ([2], [])


def test_other_content_of_a_version_that_cannot_be_loaded_is_not_tried_again(start, model):
    server = start(MODEL=model, MULES=1, SERVING_VERSION_POLL_S=1).wait_ready()
    write_model(model / "1", source(1, load="raise RuntimeError('the weights are gone')"))
    wait_until(lambda: "1" in server.ready()["refused"], "it is refused")
    loads = server.log.count("cannot load the model")
    label(model, old=1)
    wait_until(lambda: named(server, "old").status == 200, "it has looked again")
    assert server.log.count("cannot load the model") == loads


# notes each load, before the rest of what source() makes of it
LOADS = """with (Path(path) / "loads").open("a") as loads:
            loads.write("x")
        self.word = (Path(path) / "word").read_text()
        while (Path(path) / "hold").exists():
            import time
            time.sleep(0.05)"""


def test_a_file_that_is_replaced_while_it_is_loaded_is_a_change_and_what_the_model_writes_is_none(start, model):
    shutil.rmtree(model / "1")
    write_version(model, 1, load=LOADS)
    (model / "1" / "hold").touch()
    (model / "1" / "word").write_text("one")
    server = start(MODEL=model, MULES=1, SERVING_VERSION_POLL_S=1)
    loads = model / "1" / "loads"
    wait_until(loads.exists, "it loads")
    # too late for this load
    (model / "1" / "new").write_text("two")
    (model / "1" / "new").rename(model / "1" / "word")
    (model / "1" / "hold").unlink()
    server.wait_ready()
    wait_until(lambda: server.output.count("reloaded: ") == 1, "it is loaded again")

    def looks(name):
        label(model, **{name: 1})
        wait_until(lambda: named(server, name).status == 200, "it has looked again")

    # which has appended to its file: that may be once more
    looks("first")
    wait_until(lambda: loads.read_text() == "xxx", "it is loaded once more")
    for name in ("second", "third"):
        looks(name)
    assert loads.read_text() == "xxx"


def test_a_good_version_ends_an_outage(start, model):
    server = start(MODEL=model, MULES=1, SERVING_LOAD_ATTEMPTS=1).wait_ready()
    (victim,) = pids(server, 1)
    write_model(model / "1", source(1, load="raise RuntimeError('the weights are gone')"))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: server.ready()["replicas"][0]["state"] == "failed", "it cannot be loaded again")
    write_version(model, 2)
    status, _, err = reload(server)
    assert (status, err) == (0, "")
    assert named(server).headers["x-model-version"] == "2"


def test_versions_that_differ_in_their_inputs_are_not_served_together(start, model):
    # the one that answers who names none goes first
    shutil.rmtree(model / "1")
    write_version(model, 1, input="words")
    write_version(model, 2, load="import time; time.sleep(2)")
    server = start(MODEL=model, MULES=2, SERVING_VERSION_POLICY="all").wait_ready()
    refused = wait_until(lambda: server.ready()["refused"], "one is refused")
    assert set(refused) == {"1"} and "clients may not expect that" in refused["1"]
    serves(server, 2, 2)


def test_a_pin_goes_before_labels_and_is_ended_without_a_server(start, model, tmp_path):
    write_version(model, 2)
    label(model, stable=2)
    server = start(MODEL=model, MULES=1).wait_ready()
    assert reload(server, "--version", "1")[0] == 0
    assert versions(server) == [1]
    assert server.stop() == 0
    (model / "1").rename(tmp_path / "1")
    run_dir = server.settings["RUN_DIR"]
    again = start(MODEL=model, MULES=1, RUN_DIR=run_dir)
    assert again.process.wait(60) == 2
    assert "it is pinned by `reload --version 1`, which `reload --unpin` ends" in again.output
    status, out, err = reload(server, "--unpin")
    assert (status, err) == (0, "") and out.endswith("serves what version_policy says\n")
    assert versions(start(MODEL=model, MULES=1, RUN_DIR=run_dir).wait_ready()) == [2]
