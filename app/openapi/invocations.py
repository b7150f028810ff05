"""The routes of app/dialects/sagemaker.py, mlflow.py and torchserve.py.

Runs in:  worker.
"""

from typing import Any

from app.openapi import media
from app.openapi.operation import JSON, TEXT, Body, Errors, Example, Operation, prediction
from app.openapi.predict import forms
from app.openapi.tensors import Model, array, by_name, object_of, one, row
from serving.signature import STRING

_SAGEMAKER, _TORCHSERVE = "SageMaker and MLflow", "TorchServe"
_CODES = {404: "RESOURCE_DOES_NOT_EXIST", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}
MLFLOW = Errors(
    "ErrorCode",
    JSON,
    object_of({"error_code": TEXT, "message": TEXT}),
    lambda status, code, title: {"error_code": _CODES.get(status, "BAD_REQUEST"), "message": title},
)
# as MLflow tells of a media type that it does not take
TOLD = Errors("Text", "text/plain", TEXT, lambda status, code, title: title)
TORCHSERVE = Errors(
    "Exception",
    JSON,
    object_of({"code": {"type": "integer"}, "type": TEXT, "message": TEXT}),
    lambda status, code, title: {"code": status, "type": "BadRequestException", "message": title},
)
_STATUS = object_of({"status": TEXT})
_LIMITS = object_of(
    {
        "MaxConcurrentTransforms": {"type": "integer"},
        "BatchStrategy": TEXT,
        "MaxPayloadInMB": {"type": "integer"},
    }
)
_DESCRIPTION = """\
A JSON object that has one of MLflow's envelopes, with `params` beside it if there are any, is answered as MLflow does;
any other body as SageMaker's containers do. `Accept` says in which media type the answer is to be.
"""


def operations(model: Model) -> list[Operation]:
    """Both protocols at /invocations, TorchServe's predictions, and what they ask beside that."""
    taken, given = _invocations(model)
    found = [
        prediction(
            _SAGEMAKER,
            "/invocations",
            "Invoke",
            taken,
            given,
            (MLFLOW, TOLD),
            _DESCRIPTION,
            media.ASKS,
            tells=media.ASKS,
            negotiates=True,
        ),
        Operation(_SAGEMAKER, "/ping", "Whether it can predict", {JSON: Body(_STATUS)}, not_ready=503),
        Operation(_SAGEMAKER, "/execution-parameters", "Of a batch transform", {JSON: Body(_LIMITS)}),
        Operation(_SAGEMAKER, "/version", "MLflow's version", {JSON: Body({})}),
        Operation(_SAGEMAKER, "/health", "Whether it can predict", {JSON: Body({})}, not_ready=503),
    ]
    taken, given = _predictions(model)
    for path in ("/predictions/{model}", "/predictions/{model}/{version}"):
        found += [
            prediction(_TORCHSERVE, path, "Predict", taken, given, (TORCHSERVE,), "", media.ASKS, method)
            for method in ("post", "put")
        ]
    return found


def _invocations(model: Model) -> tuple[dict[str, Body], dict[str, Body]]:
    signature = model.card.signature
    inputs, outputs = model.inputs(signature), model.outputs(signature)
    envelopes, answers = forms(model, lenient=True)
    values = {name: one(tensor) for name, tensor in inputs.items()}
    records = {**array(by_name(signature.inputs)), "minItems": 1, "maxItems": model.max_rows}
    split = object_of({"columns": array(TEXT), "data": array(array({}))}, "columns")
    schemas = [object_of({"dataframe_records": records}), object_of({"dataframe_split": split})]
    examples = {
        **envelopes.examples,
        **_of(model, "records", {"dataframe_records": [values]}),
        **_of(model, "split", {"dataframe_split": {"columns": [*values], "data": [[*values.values()]]}}),
    }
    taken = Body({"anyOf": [*envelopes.schema["anyOf"], *schemas, by_name(signature.inputs)]}, examples)
    rows = answers.schema["anyOf"][0]["properties"]["predictions"]
    given = Body(
        _or_nan({"anyOf": [*answers.schema["anyOf"], by_name(signature.outputs), rows]}),
        {"rows": answers.examples["rows"], "one row": Example({name: one(tensor) for name, tensor in outputs.items()})},
    )
    return {JSON: taken, **media.taken(model)}, {JSON: given, **media.given(model)}


def _or_nan(schema: Any) -> Any:
    """With NaN, which null in a table becomes, and which no type of JSON Schema has."""
    if isinstance(schema, list):
        return [_or_nan(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        return {"description": f"A number ({schema.get('format', 'number')}), or NaN."}
    return {name: _or_nan(part) for name, part in schema.items()}


def _predictions(model: Model) -> tuple[dict[str, Body], dict[str, Body]]:
    signature = model.card.signature
    envelopes, answers = forms(model)
    values = (
        [row(spec) for spec in signature.outputs[:1]] if len(signature.outputs) == 1 else [by_name(signature.outputs)]
    )
    rows = answers.schema["anyOf"][0]["properties"]["predictions"]
    gives = {JSON: Body({"anyOf": [*answers.schema["anyOf"], rows, *values]})}
    if [(spec.dtype, spec.shape) for spec in signature.outputs] == [(STRING, ())]:
        gives["text/plain"] = Body(TEXT)
    return {JSON: envelopes, **media.taken(model)}, gives


def _of(model: Model, form: str, value: object) -> dict[str, Example]:
    return {f"{form}, of {name}": example for name, example in model.example(value).items()}
