"""TensorFlow Serving's REST API: rows, columns and examples in, status and metadata out, and its words for errors."""

import base64
import json

import numpy as np
import pytest

from app.dialects import example, find
from app.dialects.dialect import Call
from serving.errors import EngineError, ServingError
from serving.model import ModelCard
from serving.plan import Plan, PlanFile, Release
from serving.signature import Signature, TensorSpec
from serving.task import Reply

PREDICT = "/v1/models/double:predict"


def signature(outputs, **inputs):
    sides = (inputs, outputs)
    return Signature(*(tuple(TensorSpec.parse(name, text) for name, text in side.items()) for side in sides))


def answered(body, taken, reply=None, verb="predict", others=None):
    """What is asked for; with the outputs of a reply, what is answered."""
    route = find(f"/v1/models/m:{verb}")
    card = ModelCard("m", 3, "tensorflow", taken, 32, others=others or {})
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = route.dialect.decode(Call({}, route, card, body, 64, 8 << 20))
    if reply is None:
        return asked
    headers, told = asked.encode(Reply(b"", 3, outputs={name: np.array(item) for name, item in reply.items()}))
    assert headers == [("Content-Type", "application/json")]
    return json.loads(told)


def told(body, taken, verb="predict"):
    """The words of a refusal."""
    route = find(f"/v1/models/m:{verb}")
    with pytest.raises(ServingError) as error:
        answered(body, taken, verb=verb)
    status, media_type, text = route.dialect.refuse(error.value, "id", route)
    assert media_type == "application/json" and status < 500
    problem = json.loads(text)
    assert list(problem) == ["error"]
    return problem["error"]


ONE = signature({"y": "float32[2]"}, x="float32[2]")
TWO = signature({"y": "float32[2]", "n": "int64"}, x="float32[2]", k="int8")
TEXT = signature({"text": "string", "raw_bytes": "string"}, s="string")


@pytest.mark.parametrize(
    ("taken", "body", "expected"),
    [
        (ONE, {"instances": [[1, 2], [3, 4]]}, {"x": [[1, 2], [3, 4]]}),
        (ONE, {"instances": [{"x": [1, 2]}]}, {"x": [[1, 2]]}),
        (ONE, {"inputs": [[1, 2]]}, {"x": [[1, 2]]}),
        (ONE, {"inputs": {"x": [[1, 2]]}, "signature_name": "serving_default", "junk": [1]}, {"x": [[1, 2]]}),
        (TWO, {"instances": [{"x": [1, 2], "k": 3}]}, {"x": [[1, 2]], "k": [3]}),
        (TWO, {"inputs": {"x": [[1, 2]], "k": [3]}}, {"x": [[1, 2]], "k": [3]}),
        (TWO, {"inputs": {"x": [[1, 2]], "other": "ignored", "k": [3]}}, {"x": [[1, 2]], "k": [3]}),
        (TEXT, {"instances": ["a", {"b64": "/w=="}]}, {"s": [b"a", b"\xff"]}),
    ],
)
def test_rows_and_columns_are_read(taken, body, expected):
    asked = answered(body, taken)
    assert {name: tensor.tolist() for name, tensor in asked.inputs.items()} == expected


def test_rows_are_answered_by_rows_and_columns_by_columns():
    y, n = [[1.5, 2]], [7]
    assert answered({"instances": [[1, 2]]}, ONE, {"y": y}) == {"predictions": y}
    # the name of the only output is left out
    assert answered({"inputs": [[1, 2]]}, ONE, {"y": y}) == {"outputs": y}
    rows = {"instances": [{"x": [1, 2], "k": 3}]}
    assert answered(rows, TWO, {"y": y, "n": n}) == {"predictions": [{"y": [1.5, 2], "n": 7}]}
    columns = {"inputs": {"x": [[1, 2]], "k": [3]}}
    assert answered(columns, TWO, {"y": y, "n": n}) == {"outputs": {"y": y, "n": n}}


def test_an_output_whose_name_ends_in_bytes_is_in_base64():
    outputs = {"text": np.array([b"a"], object), "raw_bytes": np.array([b"a"], object)}
    row = {"text": "a", "raw_bytes": {"b64": base64.b64encode(b"a").decode()}}
    assert answered({"instances": ["a"]}, TEXT, outputs) == {"predictions": [row]}
    nested = np.array([[b"a", b"b"]], object)
    only = {"outputs": [[{"b64": "YQ=="}, {"b64": "Yg=="}]]}
    assert answered({"inputs": ["a"]}, TEXT, {"raw_bytes": nested}) == only


@pytest.mark.parametrize("size", [2, 3000])
def test_a_signature_is_named(size):
    other = signature({"z": "float32"}, w=f"float32[{size}]")
    body = {"signature_name": "other", "instances": [[0.5] * size] * 2}
    asked = answered(body, ONE, others={"other": other})
    assert asked.signature == "other" and asked.inputs["w"].tolist() == body["instances"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b'{"instances": [1,]}', "JSON Parse error: "),
        (b"{", " at offset: 1"),
        ([1], "the body is not a JSON object"),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"x": [1, 2]}, "Missing 'inputs' or 'instances' key"),
        (
            {"inputs": [], "instances": []},
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist",
        ),
        ({"instances": []}, "there are no rows"),
        ({"instances": {}}, "expected a list of rows"),
        ({"instances": [[1, "2"]]}, "found the string '2'"),
        ({"instances": [[1, 2], [1]]}, "ragged"),
        (
            {"instances": [[1, 2]], "signature_name": "none"},
            'Serving signature name: "none" not found in signature def',
        ),
        ({"inputs": {"z": [[1, 2]]}}, "Missing named input: x in 'inputs' object; the model takes"),
        ({"instances": [{"x": [1, 2]}, {}]}, "Failed to process element: 1 of 'instances' list. Error: 'x' is missing"),
        ({"instances": [[1, 2]] * 65}, "has 65 rows and the limit is 64"),
    ],
)
def test_what_is_wrong_is_told_in_its_words(body, words):
    assert words in told(body, ONE)


def test_base64_that_is_none_is_told_in_its_words():
    assert told({"instances": [{"b64": "?"}]}, TEXT).startswith("Unable to base64 decode; ")
    names = told({"signature_name": "none", "instances": [""]}, TEXT)
    assert names.endswith("; the model has serving_default")


@pytest.mark.parametrize("size", [2, 3000])
def test_a_signature_without_a_name_is_the_default(size):
    body = {"signature_name": "", "instances": [[0.5] * size] * 2}
    asked = answered(body, signature({"y": "float32"}, x=f"float32[{size}]"))
    assert asked.signature == "" and asked.inputs["x"].tolist() == body["instances"]


def test_examples_are_those_of_tensorflow():
    from mules.engines.tensorflow import tf

    features = {
        "ä": "ü",
        "b": {"b64": "/w=="},
        "i": [1, -1, 2**63 - 1, -(2**63)],
        "f": [0.5, -1e-30, float("nan")],
        "none": [],
        "long": "x" * 300,
    }
    (serialized,) = example.decode({"examples": [features]}, 1, 1024)
    found = tf.train.Example.FromString(serialized).features.feature
    assert set(found) == set(features)
    assert found["ä"].bytes_list.value == ["ü".encode()] and found["b"].bytes_list.value == [b"\xff"]
    assert found["i"].int64_list.value == features["i"]
    np.testing.assert_array_equal(found["f"].float_list.value, np.array(features["f"], np.float32))
    assert found["none"].WhichOneof("kind") is None and found["long"].bytes_list.value == [b"x" * 300]


CLASSIFY = signature({"classes": "string[2]", "scores": "float32[2]"}, inputs="string")
REGRESS = signature({"outputs": "float32[1]"}, inputs="string")


def test_examples_are_classified_and_regressed():
    body = {"context": {"a": 1}, "examples": [{"b": "x"}, {"b": "y"}]}
    scores, classes = [[0.5, 0.25], [1, 0]], np.array([[b"u", b"v"], [b"w", b"\xc3\xa4"]], object)
    asked = answered(body, CLASSIFY, verb="classify")
    alike = example.decode({"examples": [{"a": 1, "b": name} for name in "xy"]}, 2, 1024)
    assert asked.inputs["inputs"].tolist() == alike.tolist()
    both = answered(body, CLASSIFY, {"classes": classes, "scores": scores}, "classify")
    assert both == {"results": [[["u", 0.5], ["v", 0.25]], [["w", 1], ["ä", 0]]]}
    alone = signature({"scores": "float32[2]"}, inputs="string")
    assert answered(body, alone, {"scores": scores}, "classify") == {
        "results": [[["", 0.5], ["", 0.25]], [["", 1], ["", 0]]]
    }
    assert answered(body, REGRESS, {"outputs": [[1.5], [2]]}, "regress") == {"results": [1.5, 2]}
    assert answered({**body, "signature_name": "r"}, ONE, verb="regress", others={"r": REGRESS}).signature == "r"


def test_a_model_that_gives_something_else_than_classes_failed():
    body = {"examples": [{"b": "x"}]}
    with pytest.raises(EngineError, match="shape"):
        answered(body, CLASSIFY, {"classes": np.array([b"a"], object), "scores": [[1.0]]}, "classify")
    with pytest.raises(EngineError, match="shape"):
        answered(body, REGRESS, {"outputs": [[1.0, 2.0]]}, "regress")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "not a JSON object"),
        ({}, "'examples' is missing"),
        ({"examples": [1]}, "'examples'[0] is not an object"),
        ({"examples": [{}], "context": 1}, "'context' is not an object"),
        ({"examples": [{"a": 1}], "context": {"a": 2}}, "both have the feature 'a'"),
        ({"examples": [{"a": [1, 0.5]}]}, "values of several kinds"),
        ({"examples": [{"a": ["x", 1]}]}, "values of several kinds"),
        ({"examples": [{"a": ["x", {"b": "eA=="}]}]}, "values of several kinds"),
        ({"examples": [{"a": True}]}, "or others than strings and numbers"),
        ({"examples": [{"a": [[1]]}]}, "or others than strings and numbers"),
        ({"examples": [{"a": 2**63}]}, "more than 64 bits"),
        ({"examples": [{"a": 1e39}]}, "no float32 can hold"),
        ({"examples": [{"a": {"b64": "!"}}]}, "Unable to base64 decode"),
        ({"examples": [{"a": 1}], "signature_name": 1}, "'signature_name' is not a string"),
        ({"examples": [{"a": 1}], "signature_name": "n"}, 'Serving signature name: "n" not found in signature def'),
        ({"examples": [{}] * 65}, "has 65 rows and the limit is 64"),
        ({"examples": [{}] * 64, "context": {"a": "x" * (1 << 17)}}, "'context' in each of the examples would be 838"),
        ({"examples": [{"a": [-1] * (1 << 19)}] * 2}, "the examples would be 104"),
    ],
)
def test_wrong_examples_are_told(body, words):
    assert words in told(body, REGRESS, "regress")


def test_a_model_without_examples_is_told_before_a_body_is_read():
    assert "tensorflow/serving/regress needs one string input" in told(b"{", ONE, "regress")
    assert "tensorflow/serving/classify needs one string input" in told({"examples": [{}]}, ONE, "classify")
    assert "needs one string input" in told({"examples": [{}]}, CLASSIFY, "regress")


@pytest.mark.parametrize("named", ["", "/versions/7", "/labels/stable"])
@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
def test_paths_name_the_model_the_version_or_a_label_and_the_verb(named, verb):
    path = f"/v1/models/m{named}:{verb}"
    route = find(path)
    assert (route.model, route.version) == ("m", named.rpartition("/")[2])
    # as theirs
    assert find(path.upper().replace("/M", "/m")).dialect is route.dialect
    for wrong in (f"{path}s", path.replace("m", "m/m"), path + "/", path.replace("versions/7", "versions/x")):
        assert find(wrong) is None or "x" not in wrong


@pytest.fixture
def chain(make_chain, tmp_path):
    """Two versions are planned, the second is not loaded yet, and a third one is refused."""
    plan = PlanFile(tmp_path / "plan.json")
    one = Release(1, 3, tmp_path, tmp_path, 1, True, ("stable",))
    plan.write(Plan((one, Release(2, 4, tmp_path, tmp_path, 1, False, ("next",))), {9: "it is broken"}))
    return make_chain(plan=plan).serve()


def test_a_request_is_answered_through_both_doors(chain):
    for door in ("short cut", "flask"):
        for path in (PREDICT, "/v1/models/double/versions/3:predict"):
            answer = chain.post(b'{"instances": [[1, 2]]}', door, path=path)
            assert answer.json == {"predictions": [{"y": [2, 4], "sum": 3}]}
            assert answer.headers["X-Model-Version"] == "3"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/models/none:predict", "Servable not found for request: Latest(none)"),
        ("/v1/models/double/versions/9:predict", "Servable not found for request: Specific(double, 9)"),
        ("/v1/models/double/labels/x:predict", "Servable not found for request: Label(double, x)"),
    ],
)
def test_what_is_not_served_is_told(chain, path, words):
    answer = chain.post(b'{"instances": [[1, 2]]}', path=path)
    assert (answer.status_code, answer.content_type) == (404, "application/json")
    assert words in answer.json["error"]


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
@pytest.mark.parametrize(
    "body",
    [
        rb'{"signature_name": "\ud800", "examples": [{}]}',
        rb'{"signature_name": "\ud800", "instances": [[1, 2]]}',
        rb'{"inputs": {"\ud800": [[1, 2]]}}',
        rb'{"instances": ["\ud800"]}',
    ],
)
def test_half_of_a_surrogate_pair_is_refused_at_once(chain, verb, body):
    answer = chain.post(body, path=f"/v1/models/double:{verb}")
    assert answer.status_code == 400 and list(answer.json) == ["error"]


def test_status_tells_each_version(chain):
    def states(path):
        found = chain.get(path).json["model_version_status"]
        return {status["version"]: (status["state"], status["status"]["error_code"]) for status in found}

    everything = {"3": ("AVAILABLE", "OK"), "4": ("LOADING", "OK"), "9": ("END", "INTERNAL")}
    assert states("/v1/models/double") == everything
    assert states("/v1/models/double/versions/9") == {"9": everything["9"]}
    assert states("/v1/models/double/labels/stable") == {"3": everything["3"]}
    assert chain.get("/v1/models").json == {"models": [{"name": "double"}]}
    for path, words in (
        ("none", "Could not find any versions of model none"),
        ("double/versions/8", "Could not find version 8 of model double"),
        ("double/labels/none", "Could not find label none of model double"),
        ("none/metadata", "Could not find any versions of model none"),
        ("double/versions/9/metadata", "Servable not found for request: Specific(double, 9); it is broken"),
    ):
        answer = chain.get(f"/v1/models/{path}")
        assert (answer.status_code, list(answer.json)) == (404, ["error"]) and words in answer.json["error"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v1/models/double:guess", "/v1/other", "/v1/models/double/versions/3:guess"])
def test_what_is_none_of_its_paths_is_told_in_its_words(chain, method, path):
    answer = chain.get(path, method)
    assert (answer.status_code, answer.content_type) == (400, "application/json")
    assert answer.json["error"].startswith(f"Malformed request: {method} {path}")


def test_a_version_that_was_refused_is_not_the_one_that_metadata_is_of(chain):
    assert chain.get("/v1/models/double/metadata").json["model_spec"]["version"] == "3"
    assert chain.get("/v1/models/double/labels/next/metadata").json["model_spec"]["version"] == "4"


def test_metadata_tells_the_signatures(chain):
    told = chain.get("/v1/models/double/versions/3/metadata").json
    assert told["model_spec"] == {"name": "double", "signature_name": "", "version": "3"}
    found = told["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert found["method_name"] == "tensorflow/serving/predict"
    assert found["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}] * 2, "unknown_rank": False},
        "name": "x:0",
    }


def test_before_a_model_is_loaded_it_is_not_available(make_chain):
    chain = make_chain()
    assert chain.get("/v1/models").json == {"models": []}
    assert chain.get("/v1/models/double").status_code == 503
    answer = chain.post(b'{"instances": [[1, 2]]}', path=PREDICT)
    assert (answer.status_code, list(answer.json)) == (503, ["error"]) and answer.headers["Retry-After"]
