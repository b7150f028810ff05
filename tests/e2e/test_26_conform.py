"""`muleteer conform`: our server passes its cases, MLflow's passes MLflow's, and one that says yes to all does not."""

import json
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import mlflow.pyfunc
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema

from cases import DIALECTS, read

from .conftest import PATIENCE_S, free_port, wait_until, write_model
from .test_17_commands import muleteer

SPOKEN = [name for name in DIALECTS if name == "predict" or find_spec(f"app.dialects.{name}")]
ROWS = """
class Model:
    inputs = {"x": "%s"}
    outputs = {"y": "float32"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        return {"y": [0.5] * len(inputs["x"])}
"""
PRODUCT = """
import mlflow.models
import mlflow.pyfunc

class Product(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input["x"] * model_input["n"]

mlflow.models.set_model(Product())
"""


def conform(url, *arguments):
    """What was found, and the exit status."""
    out, err, status = muleteer("conform", url, "--json", *arguments)
    assert err == "" and status in (0, 1), err
    return json.loads(out), status


def results(found, result):
    """The reasons, by the names of the cases."""
    cases = [case for spoken in found["dialects"] for case in spoken["cases"]]
    return {case["name"]: case["reason"] for case in cases if case["result"] == result}


def test_our_server_speaks_what_it_should(digits):
    found, status = conform(digits.url)
    assert (results(found, "FAIL"), status) == ({}, 0)
    assert (found["server"], found["model"]) == ("muleteer 0.1.0 behind nginx", "digits")
    asked = {spoken["dialect"]: len(spoken["cases"]) for spoken in found["dialects"] if spoken["cases"]}
    assert asked == {name: len(read(name).cases) for name in SPOKEN}


@pytest.mark.parametrize("dialect", SPOKEN)
def test_each_dialect_is_asked_by_itself(fancy, dialect):
    # its input is a string, and a cell of a table
    found, status = conform(fancy.url, "--dialect", dialect)
    assert (results(found, "FAIL"), status) == ({}, 0)
    assert [spoken["dialect"] for spoken in found["dialects"]] == [dialect]
    # and no array of numbers
    unasked = {reason for reason in results(found, "-").values() if "does not offer" not in reason}
    assert unasked <= {"the inputs are not one array"} and len(results(found, "pass")) > len(unasked)


def test_what_is_printed_is_for_a_bug_report(digits):
    out, err, status = muleteer("conform", digits.url, "--dialect", "open_inference", "--dialect", "predict")
    lines = out.splitlines()
    assert (err, status) == ("", 0)
    assert lines[0] == f"{digits.url}: muleteer 0.1.0 behind nginx, model digits"
    assert "  pass  flat data (POST /v2/models/digits/infer)" in lines
    found, _ = conform(digits.url, "--dialect", "predict")
    # an image is no cell of a table
    left_out = len(results(found, "-"))
    passed = len(read("predict").cases) - left_out
    assert lines[-1] == f"predict               {passed} passed, 0 failed, {left_out} not asked" and passed > left_out
    out, _, status = muleteer("conform", digits.url, "--dialect", "predict", "--markdown")
    lines = out.splitlines()
    assert status == 0 and "| predict | healthz | GET /healthz | README, Requests | pass |" in lines
    assert {line.count("|") for line in lines[6:]} == {6}


@pytest.fixture
def scoring(tmp_path):
    """MLflow's own server, with a model of two columns."""
    (tmp_path / "product.py").write_text(PRODUCT)
    signature = ModelSignature(Schema([ColSpec("double", "x"), ColSpec("long", "n")]))
    with warnings.catch_warnings():
        # of comparisons in MLflow
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(tmp_path / "product.py"), signature=signature)
    port = free_port()
    command, environ = scoring_server.get_cmd(str(tmp_path / "model"), port=port, host="127.0.0.1")
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()], env=environ, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        answers = lambda: muleteer("conform", url)[1].count("refused") == 0  # noqa: E731
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or answers(), "MLflow's server answers")
        assert process.poll() is None, (tmp_path / "out").read_text()
        yield url
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def test_mlflows_own_server_passes_mlflows_cases(scoring, tmp_path):
    (tmp_path / "sample.json").write_text('{"x": 1.5, "n": 2}')
    found, status = conform(scoring, "--dialect", "mlflow", "--sample", tmp_path / "sample.json")
    assert (results(found, "FAIL"), status) == ({}, 0)
    assert results(found, "pass").keys() == {case.name for case in read("mlflow").cases}
    assert found["server"] == f"version {mlflow.__version__} behind uvicorn"
    out, err, status = muleteer("conform", scoring, "--dialect", "mlflow")
    assert (out, status) == ("", 2) and err.count("\n") == 1
    assert "mlflow cannot be asked: it tells no inputs" in err and "--sample FILE" in err


@pytest.mark.parametrize("spec", ["float32[-1]", "uint8[-1, 3]", "uint8[-1, -1, 3]", "string[-1]"])
def test_a_model_whose_sizes_may_be_any_fails_nothing(start, tmp_path, spec):
    server = start(MODEL=write_model(tmp_path / "rows", ROWS % spec), MULES=1, WORKERS=2, THREADS=2).wait_ready()
    found, status = conform(server.url)
    assert (results(found, "FAIL"), status) == ({}, 0)
    for url, arguments, told in (
        (f"{server.url}/predict", (), "there is nothing at its paths"),
        (f"{server.url}/predict", ("--model", "rows"), "there is nothing at its paths"),
        (server.url, ("--model", "my%20model"), "the server tells nothing of a model 'my%20model'; it has 'rows'"),
    ):
        out, err, status = muleteer("conform", url, *arguments)
        assert (out, status) == ("", 2) and told in err and err.count("\n") == 1


class Yes(BaseHTTPRequestHandler):
    """Answers 200 {} to everything."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *arguments):
        pass


@pytest.fixture
def yes():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Yes)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_says_yes_to_all_fails_and_the_cases_are_named(yes, tmp_path):
    (tmp_path / "sample.json").write_text('{"x": 1.5}')
    arguments = ("--model", "m", "--sample", tmp_path / "sample.json")
    found, status = conform(yes, *arguments)
    assert status == 1 and [spoken["dialect"] for spoken in found["dialects"]] == list(DIALECTS)
    failed = results(found, "FAIL")
    for name in DIALECTS:
        told = [case.told for case in read(name).cases]
        refused = {one["name"] for one in told if one["status"] != 200 and 200 not in one.get("or", ())}
        assert refused & results(found, "pass").keys() == set()
    assert failed["rows"].startswith("expected predictions, $: 'predictions' is a required property, got 200")
    out, err, status = muleteer("conform", yes, "--dialect", "predict", *arguments)
    assert (err, status) == ("", 1)
    told = [line for line in out.splitlines() if line.startswith("  FAIL  ")]
    assert "  FAIL  predict by GET (GET /predict): expected 405, got 200 application/json {}" in told
    assert f"{len(told)} failed" in out.splitlines()[-1]


def test_what_cannot_be_asked_is_told_in_one_sentence(yes, tmp_path):
    (tmp_path / "ragged.json").write_text('{"x": [[1], [1, 2]]}')
    for arguments, told in (
        ((f"http://127.0.0.1:{free_port()}",), "does not answer: Connection refused"),
        (("127.0.0.1:8080/",), "127.0.0.1:8080/ does not say how to ask it: write http://127.0.0.1:8080/"),
        (("me:secret@nowhere",), "nowhere does not say how to ask it: write http://nowhere"),
        ((yes,), "it tells no inputs; give --sample FILE"),
        ((yes, "--dialect", "torchserve"), "torchserve cannot be asked: it tells no model's name; give --model NAME"),
        ((yes, "--model", "m"), "it tells no inputs; give --sample FILE"),
        ((yes, "--dialect", "smoke"), "there is no dialect smoke; there are mlflow, open_inference"),
        ((yes, "--sample", "/nowhere"), "/nowhere: No such file or directory"),
        ((yes, "--sample", tmp_path / "ragged.json"), "the sample is not what the model takes: "),
        (("http://me:secret@127.0.0.1:1",), "http://127.0.0.1:1 does not answer: Connection refused"),
    ):
        out, err, status = muleteer("conform", *arguments)
        assert (out, status) == ("", 2), arguments
        assert "secret" not in err and err.startswith("muleteer: ") and err.count("\n") == 1 and told in err, err
