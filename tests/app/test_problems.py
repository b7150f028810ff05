"""Problem bodies for what Flask refuses."""

import json
import uuid

import pytest

from app import problems
from serving import errors

from .conftest import Chain, check_problem


@pytest.fixture(scope="module")
def chain():
    return Chain()


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/problem"), ("POST", "/predict/"), ("POST", "/predict/x"), ("GET", "/ž🐎")],
)
def test_an_unknown_path_is_404_and_says_where_predictions_are(chain, method, path):
    detail = check_problem(chain.get(path, method), 404, "not_found", "predictions are POST /predict")
    assert path in detail


def test_a_path_that_is_not_utf8_is_404(chain):
    check_problem(chain.get("/", environ_overrides={"PATH_INFO": "/\xff"}), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_a_wrong_method_is_405_with_allow(chain, method):
    response = chain.get("/predict", method)
    assert response.status_code == 405
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    if method != "HEAD":
        check_problem(response, 405, "method_not_allowed", f"{method} is not for /predict; it takes ")


@pytest.mark.parametrize("path", ["/nowhere", "/predict"])
def test_a_request_id_is_kept_when_sound_and_else_replaced(chain, path):
    assert chain.get(path, headers={"X-Request-ID": "a-1"}).headers["X-Request-ID"] == "a-1"
    assert uuid.UUID(chain.get(path, headers={"X-Request-ID": "a b"}).headers["X-Request-ID"]).version == 4


@pytest.mark.parametrize("error", errors.tree(errors.ServingError))
def test_every_error_has_its_problem_body(error):
    problem = json.loads(problems.of_error(error("what was wrong"), "a-1"))
    assert problem == {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "code": error.code,
        "detail": "what was wrong",
        "request_id": "a-1",
    }
    assert problems.status_line(error.status).startswith(f"{error.status} ")
