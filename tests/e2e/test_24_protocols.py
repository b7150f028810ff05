"""Clients of other servers, as they are: the same answer to the same row in each protocol, and errors in its form."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode

import numpy as np
import ormsgpack
import pyarrow.parquet
import pytest
from PIL import Image
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from .conftest import DIGITS, wait_until, write_model

ECHO = """
class Model:
    inputs = {"x": "float32"}
    outputs = {"y": "float32"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""
SAMPLE = json.loads((DIGITS / "sample.json").read_text())
IMAGE = np.array([SAMPLE["image"]], np.float32)


def check_form(answer, status, told):
    """An error as both protocols have it."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), answer.body
    assert list(answer.json) == ["error"] and told in answer.json["error"]


@pytest.fixture
def client(digits):
    with triton.InferenceServerClient(f"127.0.0.1:{digits.port}") as client:
        yield client


TWICE = """
class Model:
    inputs = {"x": "float32[1]"}
    outputs = {"y": "float32[1]"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        if (inputs["x"] == 13).any():
            raise ValueError("13")
        return {"y": inputs["x"] * 2}
"""


def post(server, path, value, **headers):
    return server.request("POST", path, json.dumps(value).encode(), headers)


def test_all_dialects_answer_the_same_row_with_the_same_numbers(digits, client):
    expected = digits.predict(SAMPLE).json
    image = SAMPLE["image"]
    for path in ("/v1/models/digits:predict", "/v1/models/digits/versions/1:predict"):
        # as curl -d sends it
        answer = post(digits, path, {"instances": [image]}, **{"Content-Type": "application/x-www-form-urlencoded"})
        assert answer.json == {"predictions": [expected]} and answer.headers["x-model-version"] == "1"
        columns = {name: [value] for name, value in expected.items()}
        assert post(digits, path, {"signature_name": "serving_default", "inputs": [image]}).json == {"outputs": columns}
    for binary in (True, False):
        tensor = triton.InferInput("image", IMAGE.shape, "FP32")
        tensor.set_data_from_numpy(IMAGE, binary_data=binary)
        for wanted in (None, [triton.InferRequestedOutput(name, binary_data=binary) for name in expected]):
            found = client.infer("digits", [tensor], outputs=wanted)
            assert found.as_numpy("digit").tolist() == [expected["digit"]]
            # to the bit, as JSON has the shortest digits of each
            np.testing.assert_array_equal(
                found.as_numpy("probabilities"), np.array([expected["probabilities"]], np.float32)
            )


def image_file(form):
    """The sample as an image: its pixels are small integers."""
    file = io.BytesIO()
    Image.fromarray(IMAGE[0].astype(np.uint8)).save(file, form, lossless=True)
    return file.getvalue()


def npy(tensor):
    file = io.BytesIO()
    np.save(file, tensor)
    return file.getvalue()


def npz(**tensors):
    file = io.BytesIO()
    np.savez(file, **tensors)
    return file.getvalue()


TABLE = pyarrow.table({f"pixel{place}": [float(value)] for place, value in enumerate(IMAGE.ravel())})


def arrow():
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, TABLE.schema) as stream:
        stream.write_table(TABLE)
    return sink.getvalue().to_pybytes()


def parquet():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(TABLE, sink)
    return sink.getvalue().to_pybytes()


RAW = {"X-Tensor-Shape": "1,8,8", "X-Tensor-Dtype": "float32"}
BODIES = {
    "application/x-npy": npy(IMAGE),
    "application/x-npz": npz(image=IMAGE),
    "application/octet-stream": IMAGE.tobytes(),
    "text/csv": ",".join(str(value) for value in IMAGE.ravel()).encode(),
    "application/vnd.apache.arrow.stream": arrow(),
    "application/vnd.apache.parquet": parquet(),
    "application/vnd.msgpack": ormsgpack.packb({"instances": [SAMPLE["image"]]}),
    "image/png": image_file("PNG"),
    "image/webp": image_file("WEBP"),
}


@pytest.mark.parametrize("media_type", BODIES)
def test_the_same_row_in_any_media_type_has_the_same_numbers(digits, media_type):
    expected = digits.predict(SAMPLE).json
    headers = {"Content-Type": media_type, **RAW}
    for path in ("/predict", "/invocations", "/predictions/digits"):
        answer = digits.request("POST", path, BODIES[media_type], headers)
        assert answer.status == 200, answer.body
        rows = (
            answer.json["predictions"]
            if isinstance(answer.json, dict) and "predictions" in answer.json
            else answer.json
        )
        assert (rows if isinstance(rows, list) else [rows]) == [expected]


def test_the_same_row_in_other_forms_has_the_same_numbers(digits):
    expected, image = digits.predict(SAMPLE).json, SAMPLE["image"]
    columns = {name: [value] for name, value in expected.items()}
    assert post(digits, "/predict", {"instances": [image]}).json == {"predictions": [expected]}
    assert post(digits, "/predict", {"inputs": {"image": [image]}}).json == {"outputs": columns}
    # MLflow's envelopes, then SageMaker's bodies
    for envelope in ({"instances": [image]}, {"inputs": {"image": [image]}}, {"dataframe_records": [SAMPLE]}):
        assert post(digits, "/invocations", envelope).json == {"predictions": [expected]}
    split = {"columns": ["image"], "data": [[image]]}
    assert post(digits, "/invocations", {"dataframe_split": split}).json == {"predictions": [expected]}
    assert post(digits, "/invocations", [image]).json == [expected]
    assert post(digits, "/invocations", image).json == post(digits, "/invocations", SAMPLE).json == expected
    for path in ("/predictions/digits", "/predictions/digits/1.0"):
        assert post(digits, path, image).json == post(digits, path, SAMPLE).json == expected
        assert post(digits, path, {"instances": [image]}).json == {"predictions": [expected]}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    sent = urlencode({"data": json.dumps(image)}).encode()
    assert digits.request("POST", "/predictions/digits", sent, form).json == expected


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_an_answer_in_another_media_type_has_the_same_numbers(digits, path):
    expected = digits.predict(SAMPLE).json
    wanted = {name: np.array([value], np.int64 if name == "digit" else np.float32) for name, value in expected.items()}

    def answered(media_type):
        answer = digits.request("POST", path, json.dumps(SAMPLE).encode(), {"Accept": media_type})
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, media_type)
        return answer.body

    with np.load(io.BytesIO(answered("application/x-npz"))) as found:
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor)
    tables = (
        pyarrow.ipc.open_stream(answered("application/vnd.apache.arrow.stream")).read_all(),
        pyarrow.parquet.read_table(io.BytesIO(answered("application/vnd.apache.parquet"))),
    )
    for table in tables:
        assert table.to_pylist() == [{name: tensor.tolist()[0] for name, tensor in wanted.items()}]
    told = ormsgpack.unpackb(answered("application/vnd.msgpack"))
    assert told.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(np.array([told[name]], tensor.dtype), tensor)
    cells = answered("text/csv").decode().splitlines()[-1].split(",")
    assert [float(cell) for cell in cells] == [value for item in expected.values() for value in np.ravel(item).tolist()]


def test_a_client_with_its_default_settings_finds_its_way(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1") and "binary_tensor_data" in client.get_server_metadata()["extensions"]
    told = client.get_model_metadata("digits")
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}]
    assert told["versions"] == ["1"]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_packed_both_ways(client, coding):
    rows = np.repeat(IMAGE, 64, axis=0)
    tensor = triton.InferInput("image", rows.shape, "FP32").set_data_from_numpy(rows)
    packed = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    found = client.infer("digits", [tensor], model_version="1", request_id="some id", **packed)
    assert found.get_response()["id"] == "some id"
    assert found.as_numpy("digit").tolist() == client.infer("digits", [tensor]).as_numpy("digit").tolist()


def test_errors_reach_a_client_in_words(client, digits):
    tensor = triton.InferInput("image", [1, 8, 7], "FP32").set_data_from_numpy(IMAGE[:, :, 1:])
    for model, version, told in (
        ("digits", "", "one row has shape [8, 7]"),
        ("none", "", "the model here is 'digits', not 'none'"),
        ("digits", "7", "no version '7' of the model is served; there is 1"),
    ):
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, [tensor], model_version=version)
        assert told in error.value.message()
    assert not client.is_model_ready("digits", "7")
    check_form(post(digits, "/v1/models/none:predict", {"instances": []}), 404, "Latest(none)")


def test_statistics_are_those_of_the_requests(start, tmp_path):
    model = write_model(tmp_path / "twice", TWICE)
    server = start(MODEL=model, MULES=1).wait_ready()
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        tensor = triton.InferInput("x", [3, 1], "FP32").set_data_from_numpy(np.ones((3, 1), np.float32))
        for _ in range(4):
            client.infer("twice", [tensor])
        tensor = triton.InferInput("x", [1, 1], "FP32").set_data_from_numpy(np.full((1, 1), 13, np.float32))
        with pytest.raises(InferenceServerException):
            client.infer("twice", [tensor])
        (told,) = client.get_inference_statistics("twice")["model_stats"]
        assert client.get_inference_statistics() == client.get_inference_statistics("twice", "1")
    assert (told["name"], told["version"], told["inference_count"], told["execution_count"]) == ("twice", "1", 12, 4)
    assert abs(told["last_inference"] / 1000 - time.time()) < 60
    found = {name: duration["count"] for name, duration in told["inference_stats"].items()}
    assert found == {
        **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 4),
        **{"fail": 1, "cache_hit": 0, "cache_miss": 0},
    }
    assert 0 < told["inference_stats"]["compute_infer"]["ns"] < told["inference_stats"]["success"]["ns"]
    (batch,) = told["batch_stats"]
    assert batch["batch_size"] == 3 and batch["compute_infer"]["count"] == 4
    check_form(server.request("GET", "/v2/models/none/stats"), 404, "none")
    check_form(server.request("GET", "/v2/models/twice/versions/7/stats"), 404, "version 7")


def test_the_words_of_a_path_may_be_in_any_case(digits):
    sample = {"instances": [SAMPLE["image"]]}
    expected = post(digits, "/v1/models/digits:predict", sample).json
    for path in ("/V1/models/digits:predict", "/v1/Models/digits/Versions/1:PREDICT"):
        # as a prediction, by the workers that are for those
        answer = post(digits, path, sample)
        assert (answer.status, answer.json) == (200, expected) and "predict" in answer.timing
        headers = {"X-Model-Version": "77"} if "1:" not in path else {"X-Request-Timeout-Ms": "no"}
        assert post(digits, path, sample, **headers).status in (400, 404)
    for path in ("/V1/models/digits", "/v1/MODELS/digits/VERSIONS/1/Metadata", "/V1/models"):
        assert digits.request("GET", path).json == digits.request("GET", path.lower()).json
        assert digits.request("GET", path).status == 200
    # names are what they are
    check_form(post(digits, "/v1/models/Digits:predict", sample), 404, "Digits")
    check_form(digits.request("GET", "/V1/none"), 400, "Malformed request: GET /v1/none")


@pytest.mark.parametrize("name", ["my model@1+é", "a:b?c#d%41%"])
def test_a_name_is_quoted_in_a_path(start, tmp_path, name):
    server = start(MODEL=write_model(tmp_path / name, ECHO), MULES=1, WORKERS=2, THREADS=2).wait_ready()
    quoted = quote(name, "")
    body = {"instances": [1.5]}
    for version in ("", "/versions/1"):
        assert post(server, f"/v1/models/{quoted}{version}:predict", body).json == {"predictions": [1.5]}
        assert server.request("GET", f"/v1/models/{quoted}{version}").json["model_version_status"][0]["version"] == "1"
        told = server.request("GET", f"/v1/models/{quoted}{version}/metadata").json
        assert told["model_spec"]["name"] == name
    assert post(server, f"/predictions/{quoted}", 1.5).json == 1.5
    assert server.request("GET", "/v1/models").json == {"models": [{"name": name}]}
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_model_ready(name) and client.get_model_metadata(name)["name"] == name
        tensor = triton.InferInput("x", [1], "FP32").set_data_from_numpy(np.array([1.5], np.float32))
        assert client.infer(name, [tensor]).as_numpy("y").tolist() == [1.5]


def test_what_nginx_refuses_has_the_form_of_the_protocol(digits):
    for path in ("/v1/models/digits:predict", "/v2/models/digits/infer"):
        check_form(digits.request("POST", path, bytes(9 << 20)), 413, "max_body_bytes in uwsgi.ini")
    for path in ("/v1/models/a//b", "/v2/../v2"):
        check_form(digits.request("GET", path), 404, "")


def test_what_is_asked_with_a_method_that_does_not_fit_is_told_in_the_form_of_the_protocol(digits):
    answer = digits.request("GET", "/v2/models/digits/infer")
    check_form(answer, 405, "GET is not for /v2/models/digits/infer; it takes")
    assert "POST" in answer.headers["allow"]
    check_form(digits.request("GET", "/v1/models/digits:predict"), 400, "Malformed request: GET")
    check_form(digits.request("GET", "/v2/none"), 404, "there is nothing at /v2/none")
    check_form(digits.request("POST", "/v1/models/digits:none", b"{}"), 400, "Malformed request: POST /v1/models/")


def test_a_full_server_says_so_in_the_form_of_the_protocol(start, tmp_path):
    source = """
import time

class Model:
    inputs = {"x": "float32"}
    outputs = {"y": "float32"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        time.sleep(float(inputs["x"].max()))
        return {"y": inputs["x"]}
"""
    server = start(MODEL=write_model(tmp_path / "slow", source), MULES=1, WORKERS=2, THREADS=2).wait_ready()
    body = {"instances": [1]}
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: post(server, "/v1/models/slow:predict", body), range(8)))
    refused = [answer for answer in answers if answer.status != 200]
    assert refused and len(refused) < 8
    for answer in refused:
        check_form(answer, 503, "")
        assert answer.headers["retry-after"]
    wait_until(lambda: post(server, "/v1/models/slow:predict", {"instances": [0]}).status == 200, "it predicts again")
