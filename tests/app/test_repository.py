"""POST /v2/repository/models/NAME/load: who may have the server look for versions, and what they are told."""

import gzip

import pytest

from serving.plan import Plan, PlanFile, Release

LOAD = "/v2/repository/models/double/load"
DONE = "reloaded: double, version 4 (stable), 2 of 2 replicas"


def check_error(response, status, told=""):
    """An error as the protocol has it; returns its words."""
    assert (response.status_code, response.content_type) == (status, "application/json"), response.data
    assert list(response.json) == ["error"] and told in response.json["error"]
    return response.json["error"]


class Loads:
    """Stands for the supervisor, which does it: tells how it went, and counts how often it was asked."""

    def __init__(self, well=True, told=DONE):
        self.asked = 0
        self._answer = well, told

    def __call__(self):
        self.asked += 1
        return self._answer


@pytest.fixture
def loads():
    return Loads()


@pytest.fixture
def chain(make_chain, loads):
    return make_chain(loads=loads, repository_api=True).ready()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"parameters": {"config": "{}"}}', b"no JSON"])
def test_a_load_is_answered_when_it_is_done_and_tells_what_happened(chain, loads, body):
    response = chain.get(LOAD, "POST", data=body, headers={"X-Request-ID": "a-1"})
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert response.json == {"name": "double", "detail": DONE}
    assert response.headers["X-Request-ID"] == "a-1"
    assert loads.asked == 1


def test_each_load_asks_anew(chain, loads):
    for _ in range(3):
        assert chain.get(LOAD, "POST").status_code == 200
    assert loads.asked == 3


def test_a_load_that_fails_says_why_and_what_served_serves_on(make_chain):
    told = "not reloaded, and what served serves on: the model in models/double/4 cannot be loaded: the file is gone"
    chain = make_chain(loads=Loads(False, told), repository_api=True).serve()
    assert check_error(chain.get(LOAD, "POST"), 500) == told
    assert chain.post(b'{"x": [1]}').headers["X-Model-Version"] == "3"


def test_a_load_that_breaks_tells_nothing_of_what_is_inside(make_chain, caplog):
    def loads():
        raise OSError("the secret is 42")

    chain = make_chain(loads=loads, repository_api=True).ready()
    detail = check_error(chain.get(LOAD, "POST"), 500)
    assert "secret" not in detail and "the secret is 42" in caplog.text


@pytest.mark.parametrize("path", [LOAD, "/v2/repository/models/another/load"])
def test_nobody_may_load_unless_the_settings_allow_it(make_chain, loads, path):
    # nor learn what the model is called
    refusal = check_error(make_chain(loads=loads).ready().get(path, "POST"), 403, "`muleteer reload`")
    assert refusal.startswith("repository_api = false in uwsgi.ini") and "double" not in refusal
    assert loads.asked == 0


@pytest.mark.parametrize("name", ["another", "Double", "doubles", "ž🐎", "x" * 999])
def test_another_model_is_not_loaded(chain, loads, name):
    refusal = chain.get(f"/v2/repository/models/{name}/load", "POST")
    assert check_error(refusal, 404) == f"the model here is double, not {name[:64]!r}"
    assert loads.asked == 0


def test_nothing_is_loaded_before_the_model_is_known(make_chain, loads):
    refusal = make_chain(loads=loads, repository_api=True).get(LOAD, "POST")
    check_error(refusal, 404, "the model here is being loaded, not 'double'")
    assert loads.asked == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_a_load_is_a_post(chain, loads, method):
    refusal = chain.get(LOAD, method)
    assert refusal.status_code == 405 and set(refusal.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    assert loads.asked == 0


@pytest.mark.parametrize("path", ["/v2/repository/models/double", "/v2/repository/models/a/b/load", f"{LOAD}/"])
def test_what_lies_beside_it_is_not_there(chain, loads, path):
    check_error(chain.get(path, "POST"), 404, "there is nothing at")
    assert loads.asked == 0


def test_an_unload_says_what_to_do_instead(chain):
    check_error(chain.get(LOAD.replace("load", "unload"), "POST"), 400, "stop that instead")


def test_the_index_tells_what_serves_and_what_does_not_and_why(make_chain, tmp_path):
    plan = PlanFile(tmp_path / "plan.json")
    plan.write(Plan((Release(1, 3, tmp_path, tmp_path, 1),), {9: "it is broken"}))
    chain = make_chain(plan=plan)
    assert chain.get("/v2/repository/index", "POST").json == []
    three = {"name": "double", "version": "3", "state": "READY", "reason": ""}
    nine = {"name": "double", "version": "9", "state": "UNAVAILABLE", "reason": "it is broken"}
    chain.ready()
    assert chain.get("/v2/repository/index", "POST").json == [three, nine]
    assert chain.get("/v2/repository/index", "POST", data=b'{"ready": true}').json == [three]
    check_error(chain.get("/v2/repository/index", "POST", data=b"[1]"), 400, "not a JSON object")
    check_error(chain.get("/v2/repository/index", "POST", data=b"{"), 400, "not JSON")


def test_what_asks_for_the_index_may_be_packed(make_chain):
    chain = make_chain().serve()
    packed = {"Content-Encoding": "gzip"}
    sent = gzip.compress(b'{"ready": true}')
    assert len(chain.get("/v2/repository/index", "POST", data=sent, headers=packed).json) == 1
    check_error(chain.get("/v2/repository/index", "POST", data=b"{}", headers=packed), 400, "the body is not gzip")
    bomb = gzip.compress(bytes(9 << 20))
    check_error(chain.get("/v2/repository/index", "POST", data=bomb, headers=packed), 413, "max_body_bytes")
