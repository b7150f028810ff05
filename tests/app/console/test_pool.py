"""GET /console: the page, its files, and the state that it asks for."""

from dataclasses import replace

import pytest

from app import front
from app.console.history import Look
from app.console.pool import TITLES
from serving.errors import CODES
from serving.ledger import Ticket
from serving.memory_transport import MemoryTransport
from serving.signature import TensorSpec
from serving.store import Death
from tests.app.conftest import SETTINGS


@pytest.fixture
def make(make_chain):
    """A chain whose transport has the seats and replicas of the settings."""
    return lambda **settings: make_chain(transport=MemoryTransport(seats=SETTINGS.seats, replicas=3), **settings)


@pytest.fixture
def chain(make):
    return make().serve()


def state(chain):
    answer = chain.get("/console/state.json")
    assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
    return answer.json


def test_each_code_has_its_words():
    assert {*CODES, *front.CODES, "other"} == {*TITLES}


def test_before_there_is_a_model_the_page_is_told_so(make):
    told = state(make())
    assert (told["ready"], told["model"], told["requests"]) == (False, None, 0)


def test_what_ended_is_told_by_either_door(chain):
    for door in ("flask", "short cut"):
        assert chain.post(b'{"x": [1, 2]}', door).status_code == 200
    assert chain.post(b'{"x": [13]}', X_Request_ID="raised").status_code == 500
    assert chain.post(b"{", path="/v2/models/double/infer", X_Request_ID="broken").status_code == 400
    assert chain.get("/nowhere", headers={"X-Request-ID": "lost"}).status_code == 404
    assert chain.get("/healthz").status_code == 200
    told = state(chain)
    assert (told["requests"], told["answered"], told["rows"]) == (4, 2, 2)
    refused = {(one["route"], one["status"], one["code"]): one["count"] for one in told["refused"]}
    assert refused == {("/predict", 500, "engine"): 1, ("/v2/models/{model}/infer", 400, "bad_body"): 1}
    failures = [(one["id"], one["route"], one["status"], one["code"]) for one in told["failures"]]
    assert failures == [
        ("lost", "other", 404, "not_found"),
        ("broken", "/v2/models/{model}/infer", 400, "bad_body"),
        ("raised", "/predict", 500, "engine"),
    ]
    assert all(one["title"] and one["took_ms"] >= 0 and one["at"] <= told["at"] for one in told["failures"])


def test_a_call_is_a_prediction_too(make):
    chain = make(grpc_port=8081).serve()
    path = "/inference.GRPCInferenceService/ModelInfer"
    chain.post(b"", path=path, TE="trailers", X_Request_ID="called")
    told = state(chain)
    assert [(one["route"], one["code"], one["count"]) for one in told["refused"]] == [(path, "bad_body", 1)]
    assert told["failures"][0]["id"] == "called"


def test_a_look_has_the_whole_and_each_stage(chain):
    for _ in range(3):
        chain.post(b'{"x": [1]}')
    chain.post(b"{")
    look = Look.take(chain.metrics, chain.transport)
    assert look.latency.sum(axis=1).tolist() == [4, 3, 3, 3, 3, 3]
    assert sum(look.ends.values()) == 4 and look.rows == 3 and look.in_flight == 0


def test_a_mule_is_told_as_the_board_has_it(chain):
    record = chain.board.records[1]
    record.bury(Death.HUNG, "hung for 9 s")
    record.bury(Death.KILLED, "was killed")
    told = state(chain)
    states = [(mule["id"], mule["state"], mule["post"]) for mule in told["mules"]]
    assert states == [(1, "ready", True), (2, "starting", True), (3, "starting", False)]
    assert [mule["deaths"] for mule in told["mules"]] == [{}, {"hung": 1, "killed": 1}, {}]
    assert told["mules"][1]["last_death"] == "was killed"


def test_what_a_mule_holds_is_told(make):
    chain = make().ready()
    chain.transport.start_replica(1)
    chain.transport.offer(Ticket(bytes(15) + b"1", 3, chain.transport.seat()), b"frame")
    assert state(chain)["queue"]["queued"] == 1
    (taken,) = chain.transport.take(0, 8)
    told = state(chain)
    assert told["mules"][0]["held"] == {"tasks": 1, "rows": 3, "predicting": 0}
    assert (told["queue"]["waiting"], told["queue"]["queued"]) == (1, 0)
    assert sum(worker["waiting"] for worker in told["workers"]) == 1
    chain.transport.drop(taken)


def test_notes_are_counted(chain):
    chain.quarantine.refuse(b"0" * 24)
    assert state(chain)["cache"] == {"notes": 1, "capacity": 1023}


def test_a_sample_is_shown_where_it_may_be_and_its_ink_in_any_case(make):
    for public in (False, True):
        chain = make(public_sample=public).ready()
        record = chain.board.records[0]
        card = record.card()
        image = TensorSpec.parse("image", "float32[2, 2]").with_sample([[0, 3], [12, 0]])
        record.describe(replace(card, signature=replace(card.signature, inputs=(image,))))
        model = state(chain)["model"]
        assert ("sample" in model["signature"]["inputs"][0]) == public
        assert model["inks"] == {"image": 16}


def test_the_page_has_no_folder(chain):
    answer = chain.get("/console/")
    assert (answer.status_code, answer.headers["Location"]) == (308, "../console")


def test_the_page_has_its_files_and_no_others(chain):
    page = chain.get("/console")
    assert page.status_code == 200 and page.mimetype == "text/html"
    for name, media_type in [
        ("console.js", "text/javascript"),
        ("console.css", "text/css"),
        ("icon.svg", "image/svg+xml"),
    ]:
        part = chain.get(f"/console/{name}")
        assert part.status_code == 200 and part.mimetype == media_type and part.headers["ETag"]
        again = chain.get(f"/console/{name}", headers={"If-None-Match": part.headers["ETag"]})
        assert again.status_code == 304
    for name in ("index.html", "none.js", "__init__.py", "..%2fpool.py"):
        assert chain.get(f"/console/{name}").status_code == 404


def test_points_are_told_once_there_are_some(chain):
    told = chain.get("/console/history.json").json
    assert told == {"every_s": 5.0, "points": []}
    (start,) = chain.metrics.in_control
    for _ in range(2):
        chain.post(b'{"x": [1]}')
        start.__self__.add(Look.take(chain.metrics, chain.transport))
    (point,) = chain.get("/console/history.json").json["points"]
    assert point["answered"] > 0 and point["latency_ms"]["predict"]["p50"] > 0
