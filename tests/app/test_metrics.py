"""GET /metrics, as a scraper reads it."""

import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from serving.ledger import Ticket
from serving.store import Death

OPEN = "application/openmetrics-text; version=1.0.0"
LABELS = {"model": "double", "route": "/predict", "version": "3"}


def scrape(chain, parse=prometheus, **headers):
    """All samples, by their names and labels."""
    response = chain.get("/metrics", headers=headers)
    assert response.status_code == 200
    families = parse(response.text)
    return {(one.name, frozenset(one.labels.items())): one for family in families for one in family.samples}


def value(samples, name, **labels):
    return samples["muleteer_" + name, frozenset(labels.items())].value


@pytest.fixture
def chain(make_chain):
    return make_chain().serve()


def test_a_request_is_counted_once_by_either_door(chain):
    for door in ("flask", "short cut"):
        assert chain.post(b'{"x": [1, 2]}', door).status_code == 200
    assert chain.post(b'{"instances": [[1], [2], [3]]}').status_code == 200
    assert chain.post(b'{"x": "no"}').status_code == 400
    assert chain.post(b'{"x": [13]}').status_code == 500
    assert chain.post(b"{}", path="/v2/models/none/infer").status_code == 404
    samples = scrape(chain)
    counted = {
        (labels["route"], labels["status"], labels["code"], labels["version"]): one.value
        for (name, _), one in samples.items()
        if name == "muleteer_requests_total" and (labels := one.labels)
    }
    assert counted == {
        ("/predict", "200", "", "3"): 3,
        ("/predict", "400", "signature", ""): 1,
        ("/predict", "500", "engine", "3"): 1,
        ("/v2/models/{model}/infer", "404", "model_not_found", ""): 1,
    }
    assert value(samples, "rows_total", **LABELS) == 5
    assert value(samples, "request_duration_seconds_count", **LABELS) == 4
    for stage in ("accept", "decode", "queue", "predict", "encode"):
        assert value(samples, "stage_duration_seconds_count", stage=stage, model="double", version="3") == 3


def test_what_is_no_prediction_is_counted_too(chain):
    for path in ("/healthz", "/healthz", "/nothing", "/v2/models/double"):
        chain.get(path)
    samples = scrape(chain)
    for route, status, count in [("/healthz", "200", 2), ("other", "404", 1), ("/v2/models/<model>", "200", 1)]:
        labels = {"route": route, "status": status, "model": "double", "version": "", "code": ""}
        assert value(samples, "requests_total", **labels) == count


def test_no_request_is_counted_twice_or_not_at_all(chain):
    asked = [("/v1/models/double/versions/abc:predict", "short cut"), ("/predictions/double", "flask")]
    for path, door in asked:
        chain.post(b'{"x": [1]}', door, path=path)
    samples = scrape(chain)
    counted = sum(one.value for (name, _), one in samples.items() if name == "muleteer_requests_total")
    assert counted == len(asked)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"", "400", "bad_body"), (b"\0\0\0\0\3\n\1x", "404", "model_not_found"), (b"\1\0\0\0\1x", "415", "media_type")],
)
def test_a_call_is_counted_wherever_it_ends(make_chain, body, status, code):
    chain = make_chain(grpc_port=8081).serve()
    path = "/inference.GRPCInferenceService/ModelInfer"
    answer = chain.post(body, path=path, TE="trailers")
    assert answer.status_code == 200 and answer.headers["Grpc-Status"] != "0"
    samples = scrape(chain)
    counted = [(key, one.value) for key, one in samples.items() if key[0] == "muleteer_requests_total"]
    labels = {"route": path, "model": "double", "version": "", "status": status, "code": code}
    assert counted == [(("muleteer_requests_total", frozenset(labels.items())), 1)]


def test_the_wait_before_a_thread_took_it_counts(chain):
    assert chain.post(b'{"x": [1]}', X_Passed_On=str(time.time() - 3)).status_code == 200
    assert chain.post(b'{"x": [1]}', X_Passed_On=str(time.time() - 60)).status_code == 504
    samples = scrape(chain)
    assert 3 < value(samples, "request_duration_seconds_sum", **LABELS) < 4
    labels = {"model": "double", "route": "/predict", "version": ""}
    assert 60 < value(samples, "request_duration_seconds_sum", **labels) < 61


def test_what_waits_behind_a_task_that_nobody_awaits_is_queued(make_chain):
    chain = make_chain(deadline_ms=200).ready()
    assert chain.post(b'{"x": [1]}').status_code == 504
    chain.transport.start_replica(1)
    ticket = Ticket(bytes(15) + b"1", 1, chain.transport.seat())
    chain.transport.offer(ticket, b"frame")
    (taken,) = chain.transport.take(0, 8)
    assert chain.transport.queue(time.monotonic())[1:3] == (1, 0)
    # its client has gone, and the next one sits there
    chain.transport._seats.leave(ticket.seat)
    chain.transport.offer(ticket._replace(uuid=bytes(15) + b"2"), b"frame")
    queue = chain.transport.queue(time.monotonic() + 1)
    assert (queue.waiting, queue.queued) == (1, 1) and 0.9 < queue.oldest_s < 60
    chain.transport.drop(taken)


def test_a_histogram_sums_up_and_has_the_ids_of_requests(chain):
    chain.post(b'{"x": [1]}', X_Request_ID="the-first")
    samples = scrape(chain, open_metrics, Accept=OPEN)
    buckets = [
        one
        for (name, _), one in samples.items()
        if name == "muleteer_request_duration_seconds_bucket" and one.labels["route"] == "/predict"
    ]
    counts = [one.value for one in buckets]
    assert counts == sorted(counts) and counts[-1] == 1 and buckets[-1].labels["le"] == "+Inf"
    (told,) = [one for one in buckets if one.exemplar]
    assert told.exemplar.labels == {"request_id": "the-first"}
    assert told.exemplar.value == value(samples, "request_duration_seconds_sum", **LABELS)
    assert told.exemplar.value <= float(told.labels["le"])


def test_replicas_are_told_as_the_board_has_them(chain):
    record = chain.board.records[1]
    record.bury(Death.OUT_OF_MEMORY, "died")
    record.bury(Death.KILLED, "died")
    record.bury(Death.KILLED, "died")
    record.fail("no model", 1.0)
    samples = scrape(chain)
    assert value(samples, "replica_ready", replica="1") == 1
    assert value(samples, "replica_state", replica="1", state="ready") == 1
    assert value(samples, "replica_state", replica="2", state="paused") == 1
    assert value(samples, "replica_deaths_total", replica="2", reason="killed") == 2
    assert value(samples, "replica_deaths_total", replica="2", reason="out_of_memory") == 1
    assert value(samples, "replica_deaths_total", replica="1", reason="killed") == 0
    assert value(samples, "replica_loads_total", replica="2", result="failed") == 1
    assert value(samples, "queue_capacity") == 64
    assert value(samples, "requests_in_flight") == value(samples, "queue_depth") == 0
    assert ("muleteer_replica_heartbeat_age_seconds", frozenset({("replica", "2")})) not in samples


def test_requests_that_wait_are_told(make_chain):
    chain = make_chain(deadline_ms=300).ready()
    assert chain.post(b'{"x": [1]}').status_code == 504
    samples = scrape(chain)
    labels = {"model": "double", "route": "/predict", "version": ""}
    assert value(samples, "requests_total", status="504", code="deadline", **labels) == 1
    assert value(samples, "queue_oldest_seconds") == 0


def test_a_scrape_before_there_is_a_model_says_so(make_chain):
    samples = scrape(make_chain())
    assert value(samples, "replica_ready", replica="1") == 0
    (about,) = [one for (name, _), one in samples.items() if name == "muleteer_info"]
    assert about.labels["model"] == "" and about.labels["version"]
