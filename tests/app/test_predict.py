"""POST /predict, through both doors, down to a real replica and back."""

import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from app import predict, problems
from app.traces import Trace, Traces
from serving.errors import ReplicaCrashed
from serving.ledger import ANY, Ticket
from serving.memory_transport import MemoryTransport
from serving.plan import Plan, PlanFile, Release
from serving.quarantine import digest
from serving.spans import Spans
from serving.store import State
from serving.task import Reply
from serving.wire import decode_task, encode_reply

from .conftest import DOORS, Chain, Double, check_problem

GOOD = b'{"x": [1, 2]}'
LIMITS = {"max_request_rows": 3, "max_body_bytes": 4096}


@pytest.fixture(scope="module")
def chain():
    chain = Chain(transport=MemoryTransport(max_frame_bytes=2048, max_reply_bytes=1024), **LIMITS).serve()
    yield chain
    chain.close()


GOOD_BODIES = [
    (b'{"instances": [[1, 2], [3, 4]]}', b'{"predictions":[{"y":[2.0,4.0],"sum":3.0},{"y":[6.0,8.0],"sum":7.0}]}'),
    (b'{"inputs": {"x": [[1], [0.1]]}}', b'{"outputs":{"y":[[2.0],[0.2]],"sum":[1.0,0.1]}}'),
    (GOOD, b'{"y":[2.0,4.0],"sum":3.0}'),
    (b'{"x": [NaN, Infinity]}', b'{"y":[NaN,Infinity],"sum":NaN}'),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("body", "answer"), GOOD_BODIES)
def test_a_good_request_is_answered(chain, door, body, answer):
    response = chain.post(body, door, X_Request_ID="a-1")
    assert (response.status, response.data) == ("200 OK", answer)
    assert response.content_type == "application/json"
    assert response.headers["Content-Length"] == str(len(answer))
    assert response.headers["X-Request-ID"] == "a-1"
    assert response.headers["X-Model-Version"] == "3"


def long(count):
    return b'{"x": [' + b",".join([b"1"] * count) + b"]}"


REFUSED = [
    (b"", {}, {}, 400, "bad_body", "the body is empty"),
    (b'{"x": [1,]}', {}, {}, 400, "bad_body", "at offset 9"),
    (b'{"instances": [], "inputs": []}', {}, {}, 400, "bad_body", "one of three forms"),
    (b'{"x": ["1"]}', {}, {}, 400, "signature", "found the string '1'; one row is float32[-1]"),
    (b'{"y": [1]}', {}, {}, 400, "signature", "'x' is missing"),
    (GOOD, {}, {"CONTENT_LENGTH": "five"}, 400, "bad_body", "Content-Length is 'five'"),
    (GOOD, {}, {"CONTENT_LENGTH": "9" * 5000}, 400, "bad_body", "Content-Length is '999"),
    (GOOD, {}, {"CONTENT_LENGTH": "50"}, 400, "bad_body", "ends after 13 of 50 bytes"),
    (b'{"instances": [[1], [2], [3], [4]]}', {}, {}, 413, "too_large", "4 rows and the limit is 3: max_request_rows"),
    (GOOD + b" " * 4096, {}, {}, 413, "too_large", "4109 bytes and the limit is 4096: max_body_bytes"),
    (long(800), {}, {}, 413, "too_large", "the limit is 2048: max_frame_bytes"),
    (long(400), {}, {}, 500, "reply_too_large", "the limit is 1024: max_reply_bytes"),
    (GOOD, {"Content_Encoding": "br"}, {}, 415, "media_type", "Content-Encoding is 'br'"),
    (GOOD, {"Content_Encoding": "gzip"}, {}, 400, "bad_body", "the body is not gzip"),
    (GOOD, {"Content_Type": "text/html"}, {}, 415, "media_type", "Content-Type is 'text/html'; it may be"),
    (GOOD, {"Accept": "text/html"}, {}, 406, "not_acceptable", "Accept is 'text/html'"),
    (GOOD, {"X_Request_Timeout_Ms": "soon"}, {}, 400, "bad_request", "X-Request-Timeout-Ms is 'soon'"),
    (GOOD, {"X_Request_Timeout_Ms": "0"}, {}, 400, "bad_request", "expected a whole number of milliseconds"),
    (GOOD, {"X_Request_Timeout_Ms": "-5"}, {}, 400, "bad_request", "'-5'"),
    (GOOD, {"X_Request_Timeout_Ms": "1.5"}, {}, 400, "bad_request", "'1.5'"),
    (GOOD, {"X_Request_Timeout_Ms": "000"}, {}, 400, "bad_request", "X-Request-Timeout-Ms"),
    (b'{"x": [13]}', {}, {}, 500, "engine", "the model raised ValueError; the log has more under this request id"),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("body", "headers", "environ", "status", "code", "told"), REFUSED, ids=[told for *_, told in REFUSED]
)
def test_a_bad_request_is_refused_and_says_why(chain, door, body, headers, environ, status, code, told):
    check_problem(chain.post(body, door, environ, **headers), status, code, told)


@pytest.mark.parametrize(
    ("body", "headers", "environ"),
    [(body, {}, {}) for body, _ in GOOD_BODIES] + [request[:3] for request in REFUSED],
    ids=[body.decode() for body, _ in GOOD_BODIES] + [told for *_, told in REFUSED],
)
def test_both_doors_give_the_same_bytes(chain, body, headers, environ):
    def seen(door):
        response = chain.post(body, door, environ, X_Request_ID="same", **headers)
        return (
            response.status,
            [(name, re.sub(r"dur=[\d.]+", "dur=", value)) for name, value in response.headers],
            response.data,
        )

    assert seen("flask") == seen("short cut")


def test_server_timing_tells_where_the_time_went(chain):
    timing = chain.post(GOOD).headers["Server-Timing"]
    assert re.fullmatch(r"decode;dur=[\d.]+, queue;dur=[\d.]+, predict;dur=[\d.]+, encode;dur=[\d.]+", timing)


@pytest.mark.parametrize("body", [GOOD, b""])
@pytest.mark.parametrize("id", ["a", "A.b_c:d+e=f@g-1", "x" * 64, "7b0e5a4e-5b0c-4f53-8f3c-0d1d3e2a9a10"])
def test_a_sound_request_id_is_kept(chain, id, body):
    assert chain.post(body, X_Request_ID=id).headers["X-Request-ID"] == id


@pytest.mark.parametrize("id", [None, "", "x" * 65, "two words", 'quote"', "né", "a/b", "line\x0bfeed"])
def test_any_other_request_id_is_replaced_by_a_uuid(chain, id):
    given = {} if id is None else {"HTTP_X_REQUEST_ID": id}
    echoed = [chain.post(GOOD, environ=given).headers["X-Request-ID"] for _ in range(2)]
    assert echoed[0] != echoed[1]
    assert all(uuid.UUID(text).version == 4 and str(uuid.UUID(text)) == text for text in echoed)


class Meet(Double):
    """Answers once two rows are being predicted at a time."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=30)

    def predict(self, inputs):
        self.barrier.wait()
        return super().predict(inputs)


def test_two_requests_at_once_with_the_same_id_get_their_own_answers(make_chain):
    chain = make_chain(Meet()).serve(replicas=2, max_batch_rows=1)
    with ThreadPoolExecutor(2) as clients:
        bodies = [b'{"x": [1]}', b'{"x": [2]}']
        answers = list(clients.map(lambda body: chain.post(body, X_Request_ID="same").json, bodies))
    assert [answer["sum"] for answer in answers] == [1.0, 2.0]


class Kept(MemoryTransport):
    """Keeps what was offered."""

    def __init__(self):
        super().__init__()
        self.frames = []

    def offer(self, ticket, frame):
        self.frames.append(frame)
        super().offer(ticket, frame)

    @property
    def tasks(self):
        return [decode_task(frame) for frame in self.frames]


@pytest.mark.parametrize(("header", "limit_ms"), [(None, 40), ("20", 20), ("60000", 40), ("999999999", 40)])
def test_the_timeout_header_lowers_the_deadline_and_never_raises_it(make_chain, header, limit_ms):
    chain = make_chain(transport=Kept(), deadline_ms=40).ready()
    before = time.monotonic()
    check_problem(chain.post(GOOD, **({"X_Request_Timeout_Ms": header} if header else {})), 504, "deadline")
    (task,) = chain.transport.tasks
    # it counts from the arrival, which is between before and offered
    assert before + limit_ms / 1000 <= task.deadline <= task.offered + limit_ms / 1000


def test_the_deadline_counts_from_when_nginx_passed_the_request_on(make_chain):
    chain = make_chain(transport=Kept(), deadline_ms=5000).ready()
    check_problem(
        chain.post(GOOD, environ={"HTTP_X_PASSED_ON": f"{time.time() - 6:.3f}"}), 504, "deadline", "no thread was free"
    )
    assert not chain.transport.tasks
    before = time.monotonic()
    environ = {"HTTP_X_PASSED_ON": f"{time.time() - 4.9:.3f}"}
    check_problem(chain.post(GOOD, environ=environ), 504, "deadline", "no reply came")
    (task,) = chain.transport.tasks
    assert task.deadline < before + 0.2


class Gate(Double):
    def __init__(self):
        self.open = threading.Event()

    def predict(self, inputs):
        assert self.open.wait(30)
        return super().predict(inputs)


def test_a_reply_that_comes_too_late_is_not_given_to_the_next_request(make_chain):
    chain = make_chain(model := Gate()).serve()
    check_problem(chain.post(b'{"x": [1]}', X_Request_Timeout_Ms="30"), 504, "deadline")
    model.open.set()
    assert chain.post(b'{"x": [2]}').json["sum"] == 2.0


def wait(chain, rows, seat=60, version=ANY):
    """A request of another thread waits."""
    chain.transport.offer(Ticket(bytes([seat]) * 16, rows, seat, version=version), b"another")


@pytest.mark.parametrize(("rows", "retry_after"), [(1, "1"), (31, "2"), (95, "5")])
def test_half_of_what_waits_is_done_when_it_says_to_come_back(make_chain, rows, retry_after):
    chain = make_chain(deadline_ms=100 * rows).ready()
    chain.board.records[0].row_s = 0.1
    wait(chain, rows)
    response = chain.post(GOOD)
    check_problem(response, 503, "overloaded")
    assert response.headers["Retry-After"] == retry_after


@pytest.mark.parametrize("door", DOORS)
def test_what_would_come_too_late_is_refused_at_once_and_says_when_to_come_back(make_chain, door):
    chain = make_chain(transport=Kept(), deadline_ms=5000).ready()
    chain.board.records[0].overhead_s, chain.board.records[0].row_s = 1.0, 0.1
    # three batches of 32, and the rows
    wait(chain, 80)
    chain.transport.frames.clear()
    response = chain.post(GOOD, door)
    check_problem(response, 503, "overloaded", "what waits takes 11100 ms, or a quarter more, and the deadline leaves ")
    assert response.headers["Retry-After"] == "6"
    assert chain.transport.frames == []


def test_the_rows_of_a_request_count_themselves(make_chain):
    chain = make_chain(transport=Kept(), deadline_ms=1000).ready()
    wait(chain, 1)
    chain.transport.frames.clear()
    chain.board.records[0].row_s = 0.3
    check_problem(chain.post(b'{"instances": [[1], [2], [3]]}'), 503, "overloaded", "what waits takes 1200 ms")
    assert chain.transport.frames == []
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="1"), 503, "overloaded", "what waits takes 600 ms")
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="700"), 503, "overloaded", "or a quarter more")
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="800"), 504, "deadline")


def test_those_who_came_since_the_last_look_count_where_a_deadline_is_near(make_chain, monkeypatch):
    monkeypatch.setattr(predict, "_LOOK_S", 1000)
    chain = make_chain(transport=Kept(), deadline_ms=1000).ready()
    chain.board.records[0].row_s = 0.1
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="1"), 504, "deadline")
    wait(chain, 20)
    check_problem(chain.post(GOOD), 503, "overloaded", "what waits takes 2100 ms")


def test_nobody_counts_where_even_a_row_at_each_seat_is_in_time(make_chain, monkeypatch):
    monkeypatch.setattr(predict, "_LOOK_S", 1000)
    chain = make_chain().serve()
    # a second for all 128 seats, and a quarter more
    chain.board.records[0].row_s = 1 / 128
    assert chain.post(GOOD).status_code == 200
    chain.transport.waiting_rows = None
    assert chain.post(GOOD, X_Request_Timeout_Ms="1300").status_code == 200
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="1200"), 500, "internal")


@pytest.mark.parametrize(("look_s", "ends"), [(0, [True, False, True, True]), (1000, [True, False, False, False])])
@pytest.mark.parametrize("body", [GOOD, b"{"])
def test_a_worker_with_too_many_requests_ends_one_connection_at_each_look(make_chain, monkeypatch, body, look_s, ends):
    monkeypatch.setattr(predict, "_LOOK_S", look_s)
    chain = make_chain().serve()
    looks = iter([True, False, True, True])
    monkeypatch.setattr(chain.transport, "crowded", lambda: next(looks))
    assert [chain.post(body).headers.get("Connection") == "close" for _ in ends] == ends


def test_where_nobody_waits_it_is_tried_in_any_case(make_chain):
    # only that tells that the model is faster again
    chain = make_chain(deadline_ms=40).ready()
    chain.board.records[0].row_s = 100.0
    check_problem(chain.post(GOOD), 504, "deadline")


def test_nobody_is_refused_for_being_late_when_that_is_switched_off(make_chain):
    chain = make_chain(deadline_ms=40, refuse_late=False).ready()
    wait(chain, 1)
    chain.board.records[0].row_s = 100.0
    check_problem(chain.post(GOOD), 504, "deadline")


def test_nobody_is_refused_for_being_late_while_nobody_knows_the_pace(make_chain):
    chain = make_chain(deadline_ms=40).ready()
    wait(chain, 1)
    chain.board.records[0].row_s = 100.0
    chain.board.records[0].state = State.LOADING
    check_problem(chain.post(GOOD), 504, "deadline")


def test_waiting_for_replicas_that_all_failed_to_load_is_refused_at_once(make_chain):
    chain = make_chain().ready()
    for record in chain.board.posts():
        record.fail("the file is gone", 60)
    response = chain.post(GOOD)
    check_problem(response, 503, "model_loading", "/readyz shows how far they are, and why not")
    assert response.headers["Retry-After"] == "2"
    # one that loads, or will before the deadline, is worth waiting for
    chain.board.records[1].not_before = time.monotonic()
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="1"), 504, "deadline")
    chain.board.records[1].not_before = time.monotonic() + 60
    chain.board.records[1].state = State.LOADING
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="1"), 504, "deadline")


@pytest.mark.parametrize("door", DOORS)
def test_an_input_that_killed_its_processes_is_refused_at_the_door(make_chain, door):
    chain = make_chain(transport=Kept()).ready()
    chain.post(GOOD, X_Request_Timeout_Ms="1")
    chain.quarantine.refuse(digest(chain.transport.frames.pop()))
    response = chain.post(GOOD, door)
    check_problem(response, 500, "replica_crashed", "is refused for now (quarantine_s)")
    assert 50 < int(response.headers["Retry-After"]) <= 60
    assert chain.transport.frames == []
    # another input is not
    check_problem(chain.post(b'{"x": [3]}', X_Request_Timeout_Ms="20"), 504, "deadline")


def test_a_suspect_is_offered_as_one_that_is_predicted_alone(make_chain):
    chain = make_chain(transport=Kept()).ready()
    chain.post(GOOD, X_Request_Timeout_Ms="1")
    frame = chain.transport.frames[0]
    chain.quarantine.suspect(digest(frame))
    chain.serve()
    assert chain.post(GOOD).status_code == 200
    # and did no harm
    assert chain.quarantine.admit(frame) is False


def test_an_input_that_was_being_predicted_when_its_thread_left_is_remembered(make_chain):
    chain = make_chain(model := Gate()).serve()
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="200"), 504, "deadline")
    held = chain.transport._held[0]
    assert [held.left_digest(place, ticket.uuid) is not None for place, ticket, busy in held.tickets()] == [True]
    model.open.set()


def test_an_input_that_was_only_queued_when_its_thread_left_is_not(make_chain):
    chain = make_chain(transport=Kept()).ready()
    check_problem(chain.post(GOOD, X_Request_Timeout_Ms="20"), 504, "deadline")
    (taken,) = chain.transport.take(0, 1) or [None]
    assert taken is None and chain.transport._held[0].left_digest(0, chain.transport.tasks[0].uuid) is None


class Crashed(MemoryTransport):
    """Its replica dies of whatever it is given, and another gives the verdict."""

    def offer(self, ticket, frame):
        super().offer(ticket, frame)
        error = ReplicaCrashed("the process that predicted it died; 2 attempts were made")
        for _ in range(2):
            self.begin(self.take(0, 1))
            with self.locked():
                self.recover(1, lambda ticket, frame: encode_reply(Reply(ticket.uuid, 0, error=error)))


def test_an_input_that_crashes_its_process_is_told_so(make_chain):
    chain = make_chain(transport=Crashed()).ready()
    check_problem(chain.post(GOOD), 500, "replica_crashed", "2 attempts were made")


@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_accepted_before_a_replica_has_loaded_the_model(make_chain, door):
    chain = make_chain()
    response = chain.post(GOOD, door)
    check_problem(response, 503, "model_loading", "/readyz")
    assert response.headers["Retry-After"] == "2"
    assert not chain.transport.waiting()


def test_what_a_model_raised_is_in_the_log_under_the_request_id_and_not_in_the_answer(chain, caplog):
    response = chain.post(b'{"x": [13]}', X_Request_ID="raising-1")
    check_problem(response, 500, "engine")
    assert b"secret" not in response.data
    record = next(record for record in caplog.records if record.exc_info)
    assert record.request_id == "raising-1"
    assert "Traceback" in caplog.text and "ValueError: the secret is 42" in caplog.text


class Broken(MemoryTransport):
    def offer(self, ticket, frame):
        raise RuntimeError("the secret is 42")


def test_a_fault_of_the_server_is_answered_and_logged_under_the_request_id(make_chain, caplog):
    chain = make_chain(transport=Broken()).ready()
    response = chain.post(GOOD, X_Request_ID="broken-1")
    check_problem(response, 500, "internal")
    assert b"secret" not in response.data
    assert [record.request_id for record in caplog.records] == ["broken-1"]
    assert "RuntimeError: the secret is 42" in caplog.text


def test_a_refusal_that_cannot_be_told_is_answered_too(chain, monkeypatch, caplog):
    of_error = problems.of_error

    def broken(error, request_id):
        if error.status < 500:
            raise TypeError("it cannot be told")
        return of_error(error, request_id)

    monkeypatch.setattr(problems, "of_error", broken)
    check_problem(chain.post(b"{"), 500, "internal")
    assert "TypeError: it cannot be told" in caplog.text


@pytest.fixture
def plan(tmp_path):
    """Version 3 serves, and version 4, the canary, is to."""
    file = PlanFile(tmp_path / "plan.json")
    here = {"path": tmp_path, "root": tmp_path, "replicas": 1}
    file.write(Plan((Release(1, 3, **here), Release(2, 4, default=False, labels=("canary",), **here))))
    return file


@pytest.mark.parametrize("door", DOORS)
def test_a_request_may_name_its_version(make_chain, plan, door):
    chain = make_chain(plan=plan).serve()
    answer = chain.post(b'{"x": [1]}', door, X_Model_Version="3")
    assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, "3")
    for name in ("5", "-1", "stable", "", "3.0", "9" * 30, "x" * 999):
        detail = check_problem(chain.post(b'{"x": [1]}', door, X_Model_Version=name), 404, "model_not_found")
        assert detail == f"no version {name[:64]!r} of the model is served; there is 3, 4, canary"


@pytest.mark.parametrize("name", ["4", "canary"])
def test_who_names_a_version_whose_replicas_died_waits_and_one_that_is_not_loaded_yet_is_told(make_chain, plan, name):
    chain = make_chain(plan=plan).ready()
    chain.transport.serve(3, True, lambda version: True)
    check_problem(chain.post(b'{"x": [1]}', X_Model_Version=name), 503, "model_loading", "has loaded version 4")
    # it has served, and its process is gone: another will be there soon
    record = chain.board.records[1]
    record.describe(replace(chain.board.records[0].card(), version=4))
    check_problem(chain.post(b'{"x": [1]}', X_Model_Version=name, X_Request_Timeout_Ms="50"), 504, "deadline")
    # unless there is no hope: its replica pauses for longer
    record.default = 0
    record.fail("the weights are gone", pause_s=60)
    check_problem(chain.post(b'{"x": [1]}', X_Model_Version=name), 503, "model_loading", "/readyz")
    # which is nothing to the others
    check_problem(chain.post(b'{"x": [1]}', X_Request_Timeout_Ms="50"), 504, "deadline")


@pytest.mark.parametrize("refuse_late", [True, False])
def test_what_waits_for_another_version_makes_nobody_late(make_chain, plan, refuse_late):
    chain = make_chain(plan=plan, deadline_ms=1000, refuse_late=refuse_late).ready()
    stable, canary = chain.board.records[:2]
    canary.describe(replace(stable.card(), version=4, labels=("canary",)))
    canary.default = 0
    canary.beat()
    canary.succeed()
    stable.row_s = canary.row_s = 0.1

    def late(told="what waits takes 2100 ms", **name):
        if refuse_late:
            check_problem(chain.post(GOOD, **name), 503, "overloaded", told)

    def in_time(timeout_ms="200", **name):
        # it is offered, and nobody is there to answer it
        check_problem(chain.post(GOOD, X_Request_Timeout_Ms=timeout_ms, **name), 504, "deadline")

    wait(chain, 20, version=4)
    in_time()
    in_time(X_Model_Version="3")
    late(X_Model_Version="4")
    late(X_Model_Version="canary")
    chain.transport._seats.leave(60)
    for version in (ANY, 3):
        wait(chain, 20, version=version)
        # one replica of two has nothing to do with it
        late()
        late(X_Model_Version="3")
        in_time(X_Model_Version="canary")
    # each version has its own queue, and its own pace
    wait(chain, 40, seat=61, version=4)
    canary.row_s = 0.01
    late()
    in_time("600", X_Model_Version="4")
    canary.row_s = 1.0
    late("what waits takes 41000 ms", X_Model_Version="4")


def test_a_label_that_moves_while_its_task_waits_is_followed(make_chain, plan):
    chain = make_chain(plan=plan).serve()
    # whoever is asked for 4 is told that it is gone, as its last replica tells those who still wait
    chain.transport.serve(3, True, lambda version: version != 4)
    card = chain.board.records[0].card()
    chain.board.records[1].describe(replace(card, version=4, labels=("moving",)))
    chain.board.records[1].succeed()
    chain.board.records[1].beat()
    check_problem(chain.post(b'{"x": [1]}', X_Model_Version="4"), 404, "model_not_found", "version 4 of the model")
    given = chain.transport.offer

    def offer(ticket, frame):
        if ticket.version == 4:
            # in this moment
            chain.board.records[0].describe(replace(card, labels=("moving",)))
            chain.board.records[1].retire()
        given(ticket, frame)

    chain.transport.offer = offer
    answer = chain.post(b'{"x": [1]}', X_Model_Version="moving")
    assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, "3")


def test_who_names_no_version_is_refused_where_none_by_default_will_come(make_chain, plan):
    chain = make_chain(plan=plan).ready()
    chain.board.records[0].default = 0
    chain.board.records[1].fail("the weights are gone", pause_s=60)
    check_problem(chain.post(b'{"x": [1]}'), 503, "model_loading")


def test_a_label_is_for_the_version_that_says_so_until_the_plan_knows_another(make_chain, plan):
    chain = make_chain(plan=plan).serve()
    card = chain.board.records[0].card()
    chain.board.records[0].describe(replace(card, labels=("stable", "canary")))
    for name in ("stable", "canary"):
        assert chain.post(b'{"x": [1]}', X_Model_Version=name).headers["X-Model-Version"] == "3"


@pytest.mark.parametrize("door", DOORS)
def test_a_fault_before_a_trace_begins_is_a_problem_that_is_told_and_counted(make_chain, monkeypatch, caplog, door):
    monkeypatch.setattr(Traces, "begin", lambda *_: {}["a fault"])
    chain = make_chain(traces=Traces(Spans("http://127.0.0.1:9", 1.0))).serve()
    check_problem(chain.post(GOOD, door, X_Request_ID="a-9"), 500, "internal", "the server failed")
    assert "the handler failed" in caplog.text and "KeyError: 'a fault'" in caplog.text
    assert b'code="internal"' in chain.get("/metrics").data


@pytest.mark.parametrize("door", DOORS)
def test_a_fault_when_a_trace_ends_costs_nobody_an_answer(make_chain, monkeypatch, caplog, door):
    monkeypatch.setattr(Trace, "end", lambda *_: {}["a fault"])
    chain = make_chain(traces=Traces(Spans("http://127.0.0.1:9", 1.0))).serve()
    assert chain.post(GOOD, door, X_Request_ID="a-9").status == "200 OK"
    (told,) = [record for record in caplog.records if record.message == "a request was not traced"]
    assert told.request_id == "a-9" and told.exc_info
