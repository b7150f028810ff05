"""GET /healthz and GET /readyz."""

import pytest

from serving.model import ModelCard
from serving.plan import Plan, PlanFile, Release
from serving.store import State

from .conftest import Chain, check_problem

FIELDS = {
    *("id", "pid", "state", "ready", "reason", "version", "labels", "default", "release", "heartbeat_age_s", "busy_s"),
    *("tasks", "rss_mb", "failures", "crashes", "last_error", "last_death"),
}


@pytest.fixture
def chain():
    return Chain()


@pytest.fixture
def records(chain):
    return chain.board.records


def ready(chain):
    response = chain.get("/readyz")
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return response.status_code, response.json


def test_healthz_says_that_the_process_is_up_whatever_the_replicas_do(chain):
    response = chain.get("/healthz")
    assert (response.status_code, response.json) == (200, {"status": "up"})


def test_readyz_is_503_before_anything_has_started(chain):
    status, body = ready(chain)
    assert (status, body["status"], body["ready_replicas"], body["model"]) == (503, "not ready", 0, None)
    # the spare is no replica
    assert len(body["replicas"]) == 2 and body["spare"] is None
    for id, replica in enumerate(body["replicas"], start=1):
        assert set(replica) == FIELDS
        assert (replica["id"], replica["state"], replica["version"]) == (id, "starting", None)
        assert (replica["heartbeat_age_s"], replica["last_error"]) == (None, "")


def test_readyz_is_200_with_one_ready_replica(chain, records):
    records[1].start(pid=4711)
    records[1].describe(ModelCard("double", 3, "python", chain.signature, 32))
    records[1].beat()
    records[1].succeed()
    status, body = ready(chain)
    assert (status, body["status"], body["ready_replicas"]) == (200, "ready", 1)
    replica = body["replicas"][1]
    assert (replica["id"], replica["pid"], replica["state"], replica["version"]) == (2, 4711, "ready", 3)
    assert replica["ready"] is True and replica["heartbeat_age_s"] >= 0
    assert body["model"]["name"] == "double"
    assert body["model"]["signature"]["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1]}]


@pytest.mark.parametrize("state", [state for state in State if state is not State.READY])
def test_readyz_is_503_in_any_other_state(chain, records, state):
    for record in records:
        record.start(pid=1)
        record.state = state
    status, body = ready(chain)
    assert (status, body["status"]) == (503, "not ready")
    assert {replica["state"] for replica in body["replicas"]} == {state.name.lower()}


def test_readyz_is_503_when_a_ready_replica_has_lost_its_heartbeat(chain, records):
    # its process is gone and its memory, which still says ready, is not
    records[0].succeed()
    assert ready(chain)[0] == 503


def test_readyz_shows_why_a_load_failed(chain, records):
    records[0].fail("the file is gone", pause_s=60)
    replica = ready(chain)[1]["replicas"][0]
    assert (replica["last_error"], replica["failures"]) == ("the file is gone", 1)


@pytest.mark.parametrize(
    ("first", "once_ready", "status"),
    [(State.FAILED, False, "failed"), (State.PAUSED, False, "not ready"), (State.FAILED, True, "not ready")],
)
def test_the_pool_has_failed_when_all_have_and_none_was_ever_ready(chain, records, first, once_ready, status):
    if once_ready:
        records[0].succeed()
    for record, state in zip(records, (first, State.FAILED), strict=False):
        record.fail("the file is gone", 60, for_good=state is State.FAILED)
        # and is being tried again
        record.state = State.LOADING
    assert ready(chain)[1]["status"] == status


def test_the_spare_is_shown_by_itself(chain, records):
    records[2].start(pid=4711)
    records[2].beat()
    records[2].state = State.SPARE
    status, body = ready(chain)
    assert (status, body["ready_replicas"]) == (503, 0)
    assert (body["spare"]["id"], body["spare"]["pid"], body["spare"]["state"]) == (3, 4711, "spare")
    assert [replica["id"] for replica in body["replicas"]] == [1, 2]


def test_a_spare_that_took_a_post_is_a_replica_and_the_dead_one_is_shown_no_more(chain, records):
    records[2].post = 1
    records[2].beat()
    records[2].succeed()
    records[0].last_death = "was killed by signal 9 (SIGKILL)"
    records[0].retire()
    status, body = ready(chain)
    assert (status, body["ready_replicas"], body["spare"]) == (200, 1, None)
    assert [replica["id"] for replica in body["replicas"]] == [2, 3]


def test_readyz_shows_how_the_last_process_of_a_place_died(chain, records):
    records[0].succeed()
    records[0].last_death = "was killed by signal 9 (SIGKILL), out of memory at 700 MiB"
    records[0].crash(1)
    replica = ready(chain)[1]["replicas"][0]
    assert (replica["state"], replica["crashes"]) == ("paused", 1)
    assert replica["last_death"] == "was killed by signal 9 (SIGKILL), out of memory at 700 MiB"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_read_with_get_and_head_alone(chain, path):
    assert chain.get(path, "HEAD").data == b""
    refusal = chain.get(path, "POST")
    check_problem(refusal, 405, "method_not_allowed", f"POST is not for {path}")
    assert "GET" in refusal.headers["Allow"]


def test_readyz_tells_what_is_to_be_served_and_what_cannot_be(tmp_path):
    file = PlanFile(tmp_path / "plan.json")
    chain = Chain(plan=file)
    here = {"path": tmp_path, "root": tmp_path}
    releases = (Release(5, 2, replicas=3, labels=("stable",), **here), Release(6, 3, replicas=1, default=False, **here))
    file.write(Plan(releases, {4: "the weights are gone"}))
    _, body = ready(chain)
    assert body["versions"] == [
        {"version": 2, "labels": ["stable"], "default": True, "replicas": 3, "release": 5},
        {"version": 3, "labels": [], "default": False, "replicas": 1, "release": 6},
    ]
    assert body["refused"] == {"4": "the weights are gone"}


def test_readyz_is_503_when_nobody_answers_who_names_no_version(chain, records):
    for record in records:
        record.default = 0
        record.beat()
        record.succeed()
    status, body = ready(chain)
    assert (status, body["status"], body["ready_replicas"]) == (503, "not ready", 2)
