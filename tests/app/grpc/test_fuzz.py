"""Whatever comes as a call: it is answered or refused, and never a fault of the server."""

import random
import tracemalloc

import pytest
from werkzeug.test import Client

from app.grpc import CALLS, call
from app.grpc.messages import message

from ..conftest import Chain

INFER = "/inference.GRPCInferenceService/ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture(scope="module")
def ask():
    """Asks for a call; gives its status and its body."""
    chain = Chain(grpc_port=1).serve()
    client = Client(chain.app.wsgi_app)

    def ask(path, body):
        answer = client.post(path, data=body, headers={"TE": "trailers"})
        assert answer.status_code == 200 and answer.content_type == "application/grpc"
        return int(answer.headers["Grpc-Status"]), answer.headers.get("Grpc-Message"), answer.data

    yield ask
    chain.close()


def infer():
    made = message("inference.ModelInferRequest")(model_name="double", id="7")
    made.inputs.add(name="x", datatype="FP32", shape=[2, 3])
    made.raw_input_contents.append(bytes(24))
    made.parameters["timeout"].int64_param = 10**7
    made.outputs.add(name="sum")
    return made


def predict():
    made = message("tensorflow.serving.PredictRequest")()
    made.model_spec.name = "double"
    made.inputs["x"].dtype = 1
    for size in (2, 3):
        made.inputs["x"].tensor_shape.dim.add(size=size)
    made.inputs["x"].float_val.extend([1.0, 2.0])
    return made


SEEDS = {INFER: infer(), PREDICT: predict()}


def test_what_is_sound_is_answered(ask):
    status, _, body = ask(INFER, call.frame(SEEDS[INFER]))
    assert status == call.OK
    (only,) = message("inference.ModelInferResponse").FromString(body[5:]).outputs
    assert (only.name, only.datatype, only.shape) == ("sum", "FP32", [2])
    status, _, body = ask(PREDICT, call.frame(SEEDS[PREDICT]))
    assert status == call.OK
    found = message("tensorflow.serving.PredictResponse").FromString(body[5:]).outputs
    assert list(found["y"].float_val) == [2.0, 4.0, 4.0, 4.0, 4.0, 4.0] and list(found["sum"].float_val) == [5.0, 6.0]


def test_an_error_of_the_model_is_told_without_what_it_says(ask):
    made = predict()
    made.inputs["x"].float_val[:] = [13.0]
    status, told, _ = ask(PREDICT, call.frame(made))
    assert status == call.INTERNAL and "secret" not in told


@pytest.mark.parametrize("path", sorted(CALLS))
def test_bytes_that_were_changed_are_never_a_fault(ask, path):
    rng = random.Random(path)
    seed = SEEDS.get(path, SEEDS[INFER]).SerializeToString()
    for _ in range(400):
        body = bytearray(seed)
        for _ in range(rng.randint(1, 4)):
            match rng.randint(0, 2):
                case 0:
                    place = rng.randrange(len(body) + 1)
                    body[place : place + 1] = [rng.randrange(256)]
                case 1:
                    place = rng.randrange(len(body) + 1)
                    del body[place : place + rng.randint(1, 5)]
                case 2:
                    body.insert(rng.randrange(len(body) + 1), rng.choice([0, 1, 10, 18, 127, 128, 255]))
            status, told, _ = ask(path, b"\0" + len(body).to_bytes(4) + bytes(body))
        assert status != call.INTERNAL, (told, bytes(body))


def many(kind, field, count, tag):
    """A message with so many empty ones in a field."""
    number = message(kind).DESCRIPTOR.fields_by_name[field].number
    assert tag == bytes([number << 3 | 2, 0])
    body = tag * count
    return b"\0" + len(body).to_bytes(4) + body


@pytest.mark.parametrize(
    ("path", "kind", "field", "tag"),
    [
        (INFER, "inference.ModelInferRequest", "inputs", b"\x2a\0"),
        (INFER, "inference.ModelInferRequest", "outputs", b"\x32\0"),
        (INFER, "inference.ModelInferRequest", "raw_input_contents", b"\x3a\0"),
        (PREDICT, "tensorflow.serving.PredictRequest", "output_filter", b"\x1a\0"),
    ],
)
def test_millions_of_empty_parts_are_refused_before_each_is_looked_at(ask, path, kind, field, tag):
    body = many(kind, field, 2_000_000, tag)
    tracemalloc.start()
    try:
        assert ask(path, body)[0] == 8
        # the body a few times over, and nothing of Python's for each part
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_shape_of_a_million_axes_is_refused(ask):
    made = infer()
    made.inputs[0].shape.extend([1 << 62] * 900_000)
    assert ask(INFER, call.frame(made))[0] == 3
    made.ClearField("raw_input_contents")
    made.inputs[0].contents.fp32_contents.append(1.0)
    assert ask(INFER, call.frame(made))[0] == 3
    made = predict()
    for code in (3, 8):
        # past so many fields nobody looks what they are
        for _ in range(50_000):
            made.inputs["x"].tensor_shape.dim.add(size=1 << 62)
        assert ask(PREDICT, call.frame(made))[0] == code
    made = predict()
    for sizes in ([1, 0, 1 << 62], [1, 1 << 62, 0]):
        made.inputs["x"].tensor_shape.Clear()
        for size in sizes:
            made.inputs["x"].tensor_shape.dim.add(size=size)
        made.inputs["x"].ClearField("tensor_content")
        assert ask(PREDICT, call.frame(made))[0] == 3


@pytest.mark.parametrize("name", ["", "a//b", "..", "a/../double", "double/versions", "a\nb", "ä", "double?x=1", "%2f"])
def test_names_that_are_no_part_of_a_path_are_not_found(ask, name):
    asked = message("inference.ModelMetadataRequest")(name=name)
    assert ask("/inference.GRPCInferenceService/ModelMetadata", call.frame(asked))[0] == 5
    asked = message("tensorflow.serving.GetModelStatusRequest")()
    asked.model_spec.name = name
    assert ask("/tensorflow.serving.ModelService/GetModelStatus", call.frame(asked))[0] == 5
