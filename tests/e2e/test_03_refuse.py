"""Bad requests: refused with a problem body that says what was wrong, and the pool is untouched."""

import json
import socket

import pytest

from .conftest import wait_until, write_model

TYPED = """
import numpy as np

class Model:
    inputs = {"count": "int32", "weights": "float32[3]", "flag": "bool", "name": "string"}
    outputs = {"total": "float32", "echo": "string"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        if "raise" in inputs["name"]:
            raise RuntimeError("the secret is 42")
        return {"total": inputs["weights"].sum(axis=1) * inputs["count"], "echo": inputs["name"]}
"""
GOOD = {"count": 2, "weights": [1, 2, 3.5], "flag": True, "name": "a"}


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    from .conftest import Server

    server = Server(MODEL=write_model(tmp_path_factory.mktemp("models") / "typed", TYPED), MULES=1)
    try:
        yield server.wait_ready()
    finally:
        server.close()


def check(answer, status, code):
    """A problem body (RFC 9457), whoever made it."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "code", "detail", "request_id"}
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem["detail"]


def body(**changes):
    return json.dumps({**GOOD, **changes}).encode()


@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (b"", "bad_body", "the body is empty"),
        (b"{'count': 1}", "bad_body", "at offset 1"),
        (b'{"count": 1,}', "bad_body", "at offset 12"),
        (b'{"name": "\xff"}', "bad_body", "not UTF-8: invalid start byte at offset 10"),
        (b"[1, 2]", "bad_body", "the body is a list"),
        (b"3", "bad_body", "the body is a bare value"),
        (b'{"instances": [1], "inputs": {}}', "bad_body", "one of three forms"),
        (b'{"instances": [1], "count": 2}', "bad_body", "'count' beside it"),
        (b'{"instances": []}', "signature", "there are no rows"),
        (b'{"inputs": {"count": [], "weights": [], "flag": [], "name": []}}', "signature", "there are no rows"),
        (body(weights=[[1], [1, 2]]), "signature", "'weights'"),
        (body(weights=[1, [2], 3]), "signature", "ragged"),
        (body(weights=[1, 2]), "signature", "one row has shape [2]; one row is float32[3]"),
        (body(weights=1), "signature", "one row is float32[3]"),
        (body(weights=[1, "2", 3]), "signature", "found the string '2'; one row is float32[3]"),
        (body(weights=[1, None, 3]), "signature", "found null"),
        (body(weights=[1, True, 3]), "signature", "found true"),
        (body(weights=[1, 1e300, 3]), "signature", "1e+300 overflows"),
        (body(count=1.5), "signature", "1.5 is not an integer; one row is int32"),
        (body(count=2**31), "signature", "2147483648 overflows it; one row is int32"),
        (body(count=float("nan")), "signature", "nan is not an integer"),
        (body(flag=1), "signature", "found the number 1; one row is bool"),
        (body(name=1), "signature", "found the number 1; one row is string"),
        (body(other=1), "signature", "'other' is unknown; the model takes 'count' (int32), 'weights' (float32[3])"),
        (b'{"count": 1}', "signature", "'weights', 'flag', 'name' is missing"),
        (b"[" * 10_000 + b"]" * 10_000, "bad_body", "nested too deep"),
        (b'{"count": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "bad_body", "nested too deep"),
        (b'{"count": ' + b"9" * 10_000 + b"}", "bad_body", "number"),
    ],
)
def test_a_bad_body_is_refused_and_says_why(typed, sent, code, told):
    assert told in check(typed.request("POST", "/predict", sent), 400, code)
    assert typed.predict(GOOD).json == {"total": 13.0, "echo": "a"}


def test_nan_and_infinity_are_numbers_both_ways(typed):
    answer = typed.predict({**GOOD, "weights": [float("nan"), 1, 1]})
    assert b'"total":NaN' in answer.body
    assert typed.predict({**GOOD, "weights": [float("-inf"), 1, 1]}).json["total"] == float("-inf")


def test_a_body_over_the_limit_is_refused_by_nginx_with_the_limit_named(typed):
    detail = check(typed.request("POST", "/predict", b" " * (8 << 20) + b"{}"), 413, "too_large")
    assert "8388608" in detail and "max_body_bytes" in detail


def test_more_rows_than_the_limit_are_refused(typed):
    detail = check(typed.predict({"instances": [GOOD] * 1025}), 413, "too_large")
    assert "1025 rows" in detail and "max_request_rows" in detail


def test_a_request_that_is_too_large_once_decoded_is_refused(typed):
    detail = check(typed.predict({**GOOD, "name": "x" * (1 << 20)}), 413, "too_large")
    assert "max_frame_bytes" in detail


def test_a_reply_that_does_not_fit_a_block_is_an_error_at_once(typed):
    detail = check(typed.predict({**GOOD, "name": "x" * 600_000}), 500, "reply_too_large")
    assert "max_reply_bytes" in detail


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/predict/", 404, "not_found"),
        ("GET", "/problem", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("DELETE", "/predict", 405, "method_not_allowed"),
        ("POST", "/readyz", 405, "method_not_allowed"),
        ("TRACE", "/predict", 405, "method_not_allowed"),
    ],
)
def test_wrong_paths_and_methods_are_refused(typed, method, path, status, code):
    answer = typed.request(method, path)
    check(answer, status, code)
    if status == 405 and method != "TRACE":
        assert ("POST" if path == "/predict" else "GET") in answer.headers["allow"]


@pytest.mark.parametrize("timeout", ["soon", "0", "-5", "1.5", "²"])
def test_a_timeout_that_is_no_number_is_refused(typed, timeout):
    assert "X-Request-Timeout-Ms" in check(typed.predict(GOOD, X_Request_Timeout_Ms=timeout), 400, "bad_request")


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", "/predict"), ("HEAD", "/readyz"), ("GET", "/healthz"), ("GET", "/nowhere")]
)
def test_every_answer_names_its_request(typed, method, path):
    assert typed.request(method, path, headers={"X-Request-ID": "named-1"}).headers["x-request-id"] == "named-1"


@pytest.mark.parametrize(
    ("sent", "status", "told"),
    [
        (b'{"instances": [' + b'"",' * 2_000_000 + b'""]}', 413, "2000001 rows and the limit is 1024"),
        (b'{"inputs": {"name": [' + b"1," * 2_000_000 + b"1]}}", 413, "2000001 rows and the limit is 1024"),
        (body(weights=[1] * 2_000_000), 400, "a list of 2000000 elements where 3 belong"),
    ],
)
def test_a_flood_is_refused_before_it_is_looked_at(typed, sent, status, told):
    assert told in check(typed.request("POST", "/predict", sent), status, "too_large" if status == 413 else "signature")


def test_a_body_that_is_compressed_in_another_way_is_refused(typed):
    assert "gzip" in check(typed.predict(GOOD, Content_Encoding="br"), 415, "media_type")


def test_a_model_that_raises_is_told_in_the_log_and_not_in_the_answer(typed):
    answer = typed.predict({**GOOD, "name": "raise"}, X_Request_ID="raising-1")
    detail = check(answer, 500, "engine")
    assert "secret" not in detail and "RuntimeError" in detail
    wait_until(lambda: "the secret is 42" in typed.log, "the traceback is in the log", 5)
    log = typed.log
    assert log.index('"request_id": "raising-1"') < log.index("Traceback") < log.index("the secret is 42")


@pytest.mark.parametrize("how", ["raise SystemExit(3)", "raise KeyboardInterrupt", "__import__('sys').exit('bye')"])
def test_a_model_that_exits_has_failed_and_its_replica_goes_on(start, tmp_path, how):
    source = TYPED.replace('raise RuntimeError("the secret is 42")', how)
    server = start(MODEL=write_model(tmp_path / "exits", source), MULES=1).wait_ready()
    mules = server.processes()["mule"]
    check(server.predict({**GOOD, "name": "raise"}, X_Request_ID="exits-1"), 500, "engine")
    wait_until(
        lambda: '"request_id": "exits-1"' in server.log and "Traceback" in server.log, "the traceback is in the log", 5
    )
    assert server.predict(GOOD).status == 200
    assert server.processes()["mule"] == mules


def raw(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\nhello", b"400"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", b"400"),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", b"505"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n{}", b"501"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"400"),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"414"),
    ],
)
def test_what_is_not_http_is_answered_by_nginx_in_our_words(typed, data, status):
    answer = raw(typed, data)
    head, _, problem = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status, answer
    assert b"application/problem+json" in head
    assert json.loads(problem)["status"] == int(status)


def test_headers_as_large_as_nginx_takes_them_reach_the_app(typed):
    headers = b"".join(b"%s: %s\r\n" % (name, b"a" * 8000) for name in (b"Content-Encoding", b"X-Request-Timeout-Ms"))
    answer = raw(
        typed, b"POST /predict HTTP/1.1\r\nHost: x\r\n" + headers + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert answer.startswith(b"HTTP/1.1 400 ") and b"expected a whole number of milliseconds" in answer


def test_a_body_that_never_ends_harms_nobody(typed):
    with socket.create_connection(("127.0.0.1", typed.port)) as connection:
        connection.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"count"')
        assert typed.predict(GOOD).status == 200
    assert typed.predict(GOOD).status == 200


def test_headers_that_the_app_does_not_use_are_not_passed_on(typed):
    answer = typed.predict(GOOD, Authorization="Bearer hush", Cookie="a=b", X_Request_ID="hush-1")
    assert answer.status == 200
    typed.access("hush-1")
    assert 'hush"' not in typed.log and "Bearer" not in typed.log + (typed.run_dir / "access.log").read_text()
