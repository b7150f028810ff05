"""The routes of app/dialects/open_inference.py.

Runs in:  worker.
"""

from typing import Any

import orjson

from app.dialects.datatypes import DATATYPES, raw
from app.dialects.open_inference import LENGTH
from app.openapi.operation import BINARY, JSON, TEXT, Body, Example, Operation, Schema, prediction
from app.openapi.tensorflow_serving import ERROR
from app.openapi.tensors import Model, array, object_of
from serving.signature import TensorSpec
from serving.task import Tensor

_TAG = "Open Inference"
_OCTETS = "application/octet-stream"
_NAMED = ("", "/versions/{version}")
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_DESCRIPTION = f"""\
Tensors may stand behind the JSON, in binary: then `{LENGTH}` says how long the JSON is, and `binary_data_size` in the
parameters of each how long it is. With 0 there is no JSON, and the body is one row of the only input. `timeout` is in
microseconds.
"""


def operations(model: Model) -> list[Operation]:
    """Infer, health and metadata."""
    takes, gives = _requests(model), _answers(model)
    live, ready = (object_of({key: {"type": "boolean"}}) for key in ("live", "ready"))
    found = [
        Operation(_TAG, "/v2", "The server", {JSON: Body(_SERVER)}),
        Operation(_TAG, "/v2/health/live", "Whether the server is up", {JSON: Body(live)}),
        Operation(_TAG, "/v2/health/ready", "Whether it can predict", {JSON: Body(ready)}, not_ready=503),
    ]
    found.append(_stats("/v2/models"))
    for named in _NAMED:
        path = f"/v2/models/{{model}}{named}"
        found.append(_stats(path))
        found += [
            prediction(
                _TAG, f"{path}/infer", "Infer", takes, gives, (ERROR,), _DESCRIPTION, (LENGTH,), tells=(LENGTH,)
            ),
            Operation(
                _TAG,
                path,
                "Inputs and outputs",
                {JSON: Body(_METADATA)},
                errors=(ERROR,),
                statuses=(400, 404, 414, 503),
            ),
            Operation(
                _TAG,
                f"{path}/ready",
                "Whether it is ready",
                {JSON: Body(object_of({"name": TEXT, "ready": {"type": "boolean"}}))},
                errors=(ERROR,),
                statuses=(400, 404, 414),
                not_ready=503,
            ),
        ]
    return found


def _stats(path: str) -> Operation:
    told = "What the model has done since the server started"
    return Operation(_TAG, f"{path}/stats", told, {JSON: Body(_STATS)}, errors=(ERROR,), statuses=(400, 404, 414, 503))


_DURATION = object_of({key: {"type": "integer", "minimum": 0} for key in ("count", "ns")})
_COMPUTE = {f"compute_{part}": _DURATION for part in ("input", "infer", "output")}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STATS = object_of(
    {
        "model_stats": array(
            object_of(
                {
                    "name": TEXT,
                    "version": TEXT,
                    "last_inference": _COUNT,
                    "inference_count": _COUNT,
                    "execution_count": _COUNT,
                    "inference_stats": object_of(
                        dict.fromkeys(("success", "fail", "queue", "cache_hit", "cache_miss"), _DURATION) | _COMPUTE
                    ),
                    "batch_stats": array(object_of({"batch_size": _COUNT, **_COMPUTE})),
                    "memory_usage": array({"type": "object"}),
                }
            )
        )
    }
)
_SERVER = object_of({"name": TEXT, "version": TEXT, "extensions": array(TEXT)})
_TENSOR = object_of({"name": TEXT, "datatype": {"enum": [*DATATYPES.values()]}, "shape": array({"type": "integer"})})
_METADATA = object_of(
    {"name": TEXT, "versions": array(TEXT), "platform": TEXT, "inputs": array(_TENSOR), "outputs": array(_TENSOR)}
)


def _requests(model: Model) -> dict[str, Body]:
    signature = model.card.signature
    least = sum(spec.default is None for spec in signature.inputs)
    inputs = {**array({"anyOf": [_tensor(spec) for spec in signature.inputs]}), "minItems": max(1, least)}
    known = {"enum": [spec.name for spec in signature.outputs]}
    wanted = object_of({"name": known, "parameters": _PARAMETERS}, "parameters")
    parameters = {
        **_PARAMETERS,
        "properties": {
            "timeout": {"type": "integer", "minimum": 0},
            "priority": {"type": "integer"},
            "binary_data_output": {"type": "boolean"},
        },
    }
    about = {"id": TEXT, "parameters": parameters, "inputs": inputs, "outputs": array(wanted)}
    schema = object_of(about, "id", "parameters", "outputs")
    row = model.inputs(signature)
    listed = [_told(spec, row[spec.name]) for spec in signature.inputs]
    sent = b"".join(raw(tensor) for tensor in row.values())
    sized = [{**one, **_size(row[one["name"]])} for one in listed]
    head = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": sized})
    takes = {JSON: Body(schema), _OCTETS: Body(BINARY, model.example(head + sent, **{LENGTH: str(len(head))}))}
    # which has no JSON form
    if not any(spec.dtype == "float16" for spec in signature.inputs):
        plain = {"inputs": [{**one, "data": _flat(row[one["name"]])} for one in listed]}
        takes[JSON] = Body(schema, model.example(plain))
    return takes


def _answers(model: Model) -> dict[str, Body]:
    signature = model.card.signature
    schema = object_of(
        {
            "model_name": {"const": model.card.name},
            "model_version": TEXT,
            "id": TEXT,
            "outputs": array({"anyOf": [_tensor(spec) for spec in signature.outputs]}),
        },
        "id",
    )
    row = model.outputs(signature)
    outputs = [{**_told(spec, row[spec.name]), "data": _flat(row[spec.name])} for spec in signature.outputs]
    about = {"model_name": model.card.name, "model_version": str(model.card.version)}
    return {JSON: Body(schema, {"zeros": Example({**about, "outputs": outputs})}), _OCTETS: Body(BINARY)}


def _tensor(spec: TensorSpec) -> Schema:
    return object_of(
        {
            "name": {"const": spec.name},
            "shape": {
                "type": "array",
                "description": str([-1, *spec.shape]),
                "items": {"type": "integer", "minimum": 0},
                "minItems": 1 + len(spec.shape),
                "maxItems": 1 + len(spec.shape),
            },
            "datatype": {"type": "string"},
            "data": {"type": "array", "description": f"rows of {spec}, nested or flat"},
            "parameters": _PARAMETERS,
        },
        "data",
        "parameters",
    )


def _told(spec: TensorSpec, tensor: Tensor) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(tensor.shape), "datatype": DATATYPES[spec.dtype]}


def _size(tensor: Tensor) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": len(raw(tensor))}}


def _flat(tensor: Tensor) -> Any:
    # a string of bytes that are not UTF-8 has no JSON form here
    if tensor.dtype.kind == "O":
        return [str(item, "utf-8", "replace") for item in tensor.ravel().tolist()]
    return tensor.reshape(-1)
