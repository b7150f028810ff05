"""TensorFlow Serving over gRPC: the messages of its own package, made and read as its clients do."""

import grpc
import numpy as np
import pytest

from app.grpc.messages import message

from ..app.grpc.test_messages import compare
from .conftest import DIGITS, Server, free_port, write_model
from .test_27_grpc import MIXED, address, channel, mixed_rows, serve

EXAMPLES = """
import numpy as np

class Model:
    inputs = {"examples": "string"}
    outputs = {"scores": "float32[2]", "classes": "string[2]", "outputs": "float32[1]"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        sizes = np.array([len(one) for one in inputs["examples"]], np.float32).reshape(-1, 1)
        classes = np.array([[b"size", "hälfte".encode()]] * len(sizes), object)
        return {"scores": np.concatenate([sizes, sizes / 2], 1), "classes": classes, "outputs": sizes}
"""


@pytest.fixture(scope="module")
def digits():
    server = Server(MODEL=DIGITS, GRPC_PORT=free_port())
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def service(digits, tfs):
    with grpc.insecure_channel(address(digits)) as opened:
        yield tfs.Predictions(opened)


@pytest.fixture(scope="module")
def tfs():
    from . import serving_messages

    return serving_messages


def told(call, asked):
    with pytest.raises(grpc.RpcError) as raised:
        call(asked)
    return raised.value.code().name, raised.value.details()


def test_fields_have_the_numbers_and_types_of_the_protocol(tfs):
    for name, one in tfs.SPOKEN:
        compare(message(f"tensorflow.serving.{name or one.DESCRIPTOR.name}").DESCRIPTOR, one.DESCRIPTOR, set())


def test_predict_is_answered_with_the_same_numbers_as_over_http(tfs, digits, service):
    expected = digits.predict(tfs.SAMPLE).json
    for asked in (
        tfs.request(image=tfs.image()),
        tfs.request(version=1, signature="serving_default", image=tfs.image()),
    ):
        found = service.Predict(asked)
        assert (found.model_spec.name, found.model_spec.version.value) == ("digits", 1)
        # in the fields of their types, as clients read them
        assert list(found.outputs["digit"].int64_val) == [expected["digit"]]
        assert list(found.outputs["probabilities"].float_val) == np.float32(expected["probabilities"]).tolist()
        assert tfs.array(found.outputs["probabilities"]).shape == (1, 10)
    asked = tfs.request(image=tfs.image(3))
    asked.output_filter.append("digit")
    found = service.Predict(asked)
    assert list(found.outputs) == ["digit"] and len(found.outputs["digit"].int64_val) == 3


def test_one_element_stands_for_all_that_are_left_out(tfs, digits, service):
    zeros = {"image": np.zeros((8, 8)).tolist()}
    tensor = tfs.tensor(0.0, tfs.float32, (2, 8, 8))
    assert len(tensor.float_val) == 1
    assert (
        list(service.Predict(tfs.request(image=tensor)).outputs["digit"].int64_val)
        == [digits.predict(zeros).json["digit"]] * 2
    )
    tensor.tensor_shape.dim[0].size = 1 << 40
    code, words = told(service.Predict, tfs.request(image=tensor))
    assert code == "RESOURCE_EXHAUSTED" and "max_request_rows in uwsgi.ini" in words
    tensor.tensor_shape.dim[0].size = 2
    # the last one is of no tensor that there could be
    for size, code in ((1 << 30, "RESOURCE_EXHAUSTED"), (1 << 40, "INVALID_ARGUMENT")):
        tensor.tensor_shape.dim[1].size = size
        assert told(service.Predict, tfs.request(image=tensor))[0] == code


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (lambda tfs: tfs.request("none", image=tfs.image()), "NOT_FOUND", "the model here is 'digits', not 'none'"),
        (
            lambda tfs: tfs.request(version=7, image=tfs.image()),
            "NOT_FOUND",
            "no version '7' of the model is served; there is 1",
        ),
        (lambda tfs: tfs.request(label="stable", image=tfs.image()), "NOT_FOUND", "no version 'stable'"),
        (
            lambda tfs: tfs.request(signature="none", image=tfs.image()),
            "INVALID_ARGUMENT",
            "not found in signature def",
        ),
        (lambda tfs: tfs.request(), "INVALID_ARGUMENT", "there are no inputs"),
        (lambda tfs: tfs.request(x=tfs.image()), "INVALID_ARGUMENT", "'image' is missing"),
        (lambda tfs: tfs.request(image=tfs.tensor("x")), "INVALID_ARGUMENT", "is a scalar"),
        (lambda tfs: tfs.request(image=tfs.tensor([["x"] * 8] * 8)), "INVALID_ARGUMENT", "one row"),
        (
            lambda tfs: tfs.request(image=tfs.tensor([[[0.5] * 7] * 8], tfs.float32)),
            "INVALID_ARGUMENT",
            "has shape [8, 7]",
        ),
        (lambda tfs: tfs.request(image=tfs.tensor([[[1j] * 8] * 8])), "INVALID_ARGUMENT", "has dtype 18"),
    ],
)
def test_errors_have_a_code_and_words(tfs, service, asked, code, words):
    found = told(service.Predict, asked(tfs))
    assert found[0] == code and words in found[1], found


def test_tensors_that_lie_are_refused(tfs, service):
    short = tfs.image()
    short.tensor_content = short.tensor_content[:-1]
    many = tfs.tensor(0.0, tfs.float32, (1, 8, 8))
    many.float_val.extend([0.0] * 64)
    unknown = tfs.image()
    unknown.tensor_shape.Clear()
    unknown.tensor_shape.unknown_rank = True
    negative = tfs.image()
    negative.tensor_shape.dim[0].size = -1
    for tensor, words in (
        (short, "has 255 bytes in tensor_content"),
        (many, "has 65 elements in float_val"),
        (unknown, "has no shape"),
        (negative, "has no shape"),
    ):
        code, said = told(service.Predict, tfs.request(image=tensor))
        assert code == "INVALID_ARGUMENT" and words in said, said


def test_metadata_and_status_are_told(tfs, digits, service):
    asked = tfs.request(kind=tfs.Metadata)
    assert told(service.GetModelMetadata, asked)[0] == "INVALID_ARGUMENT"
    asked.metadata_field.append("signature_def")
    found = service.GetModelMetadata(asked)
    assert (found.model_spec.name, found.model_spec.version.value) == ("digits", 1)
    signatures = tfs.Signatures()
    assert found.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert signature.inputs["image"].dtype == tfs.float32.as_datatype_enum
    assert [dim.size for dim in signature.inputs["image"].tensor_shape.dim] == [-1, 8, 8]
    with grpc.insecure_channel(address(digits)) as opened:
        status = tfs.Models(opened).GetModelStatus
        asked = tfs.request(kind=tfs.Status)
        for version in (None, 1):
            asked = tfs.request(version=version, kind=tfs.Status)
            (only,) = status(asked).model_version_status
            assert (only.version, only.state, only.status.error_code) == (1, only.AVAILABLE, 0)
        asked.model_spec.version.value = 7
        assert told(status, asked)[0] == "NOT_FOUND"


def test_what_is_not_spoken_is_told(tfs, service):
    assert told(service.MultiInference, tfs.Multi())[0] == "UNIMPLEMENTED"


def test_tensors_of_all_kinds_come_back_as_they_were_sent(tfs, start, tmp_path):
    server = serve(start, MODEL=write_model(tmp_path / "mixed", MIXED), MULES=1)
    rows = mixed_rows()
    with channel(server) as opened:
        predict = tfs.Predictions(opened).Predict
        found = predict(tfs.request("mixed", **{kind: tfs.tensor(tensor) for kind, tensor in rows.items()}))
        for kind, tensor in rows.items():
            np.testing.assert_array_equal(tfs.array(found.outputs[kind]), tensor, strict=kind != "string")
        # and in the fields of their types
        again = {kind: found.outputs[kind] for kind in rows}
        assert not any(tensor.tensor_content for tensor in again.values())
        assert predict(tfs.request("mixed", **again)).outputs["int64"].int64_val == found.outputs["int64"].int64_val
        again["int8"].int_val[0] = 300
        code, words = told(predict, tfs.request("mixed", **again))
        assert code == "INVALID_ARGUMENT" and "is DT_INT8" in words


def test_examples_are_classified_and_regressed(tfs, start, tmp_path):
    server = serve(start, MODEL=write_model(tmp_path / "examples", EXAMPLES), MULES=1)
    both = [tfs.example(a=1.0), tfs.example(a=1.0, longer=2.0)]
    sizes = [float(len(one.SerializeToString())) for one in both]
    with channel(server) as opened:
        service = tfs.Predictions(opened)
        asked = tfs.Classification()
        asked.model_spec.name = "examples"
        assert told(service.Classify, asked) == ("INVALID_ARGUMENT", "the input has no examples")
        asked.input.example_list.examples.extend(both)
        found = service.Classify(asked)
        assert [[(one.label, one.score) for one in row.classes] for row in found.result.classifications] == [
            [("size", size), ("hälfte", size / 2)] for size in sizes
        ]
        asked = tfs.Regression(input=asked.input)
        found = service.Regress(asked)
        assert [one.value for one in found.result.regressions] == sizes
        assert (found.model_spec.name, found.model_spec.version.value) == ("examples", 1)
        # what all have in common is part of each
        context = tfs.example(common=3.0)
        asked.input.example_list_with_context.examples.extend(both)
        asked.input.example_list_with_context.context.CopyFrom(context)
        more = float(len(context.SerializeToString()))
        assert [one.value for one in service.Regress(asked).result.regressions] == [size + more for size in sizes]


def test_a_model_that_takes_no_examples_says_so(tfs, service):
    asked = tfs.Regression()
    asked.input.example_list.examples.append(tfs.example(a=1.0))
    code, words = told(service.Regress, asked)
    assert code == "INVALID_ARGUMENT" and "tensorflow/serving/regress needs one string input" in words
