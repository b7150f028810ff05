"""TensorFlow Serving's messages, as its own package has them; TensorFlow comes with it.

Imported where a test runs: TensorFlow is not to come into this process before other libraries.
"""

import json

import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from .conftest import DIGITS

SAMPLE = json.loads((DIGITS / "sample.json").read_text())
Predictions = prediction_service_pb2_grpc.PredictionServiceStub
Models = model_service_pb2_grpc.ModelServiceStub
Multi = inference_pb2.MultiInferenceRequest
Classification = classification_pb2.ClassificationRequest
Regression = regression_pb2.RegressionRequest
Metadata = get_model_metadata_pb2.GetModelMetadataRequest
Signatures = get_model_metadata_pb2.SignatureDefMap
Status = get_model_status_pb2.GetModelStatusRequest
# by the names that they have in the server, where those are others
SPOKEN = [
    ("", model_pb2.ModelSpec),
    ("", predict_pb2.PredictRequest),
    ("", predict_pb2.PredictResponse),
    ("ExamplesRequest", Classification),
    ("ExamplesRequest", Regression),
    ("", input_pb2.Input),
    ("", classification_pb2.ClassificationResponse),
    ("", regression_pb2.RegressionResponse),
    ("", Metadata),
    ("", get_model_metadata_pb2.GetModelMetadataResponse),
    ("", Signatures),
    ("", Status),
    ("", get_model_status_pb2.GetModelStatusResponse),
]
tensor = tf.make_tensor_proto
array = tf.make_ndarray
float32 = tf.float32


def request(model="digits", version=None, label="", signature="", kind=predict_pb2.PredictRequest, **inputs):
    made = kind()
    made.model_spec.name, made.model_spec.signature_name = model, signature
    if version is not None:
        made.model_spec.version.value = version
    if label:
        made.model_spec.version_label = label
    for name, one in inputs.items():
        made.inputs[name].CopyFrom(one)
    return made


def image(rows=1):
    return tensor([SAMPLE["image"]] * rows, tf.float32)


def example(**features):
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made
