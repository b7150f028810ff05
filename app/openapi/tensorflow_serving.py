"""The routes of app/dialects/tensorflow_serving.py.

Runs in:  worker.
"""

from app.dialects.tensorflow_serving import Classify, Regress
from app.openapi.operation import JSON, TEXT, Body, Errors, Example, Operation, Schema, prediction
from app.openapi.predict import forms
from app.openapi.tensors import Model, array, object_of

_TAG = "TensorFlow Serving"
ERROR = Errors(
    "Error",
    JSON,
    object_of({"error": TEXT}),
    lambda status, code, title: {"error": title},
)
_NAMED = ("", "/versions/{version}", "/labels/{label}")
_FEATURES: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "object", "array"]},
    "description": "Features by name, each a string, a number, bytes as {b64: …}, or a list of such.",
}
_SCORES: Schema = {
    "type": "array",
    "items": {
        "type": "array",
        "description": "a label and its score",
        "items": {"type": ["string", "object", "number"]},
        "minItems": 2,
        "maxItems": 2,
    },
}
_MODELS = object_of({"models": array(object_of({"name": TEXT}))})
_VERSION = object_of(
    {
        "version": TEXT,
        "state": {"enum": ["LOADING", "AVAILABLE", "END"]},
        "status": object_of({"error_code": TEXT, "error_message": TEXT}),
    }
)
_STATUS = object_of({"model_version_status": array(_VERSION)})
_METADATA = object_of(
    {
        "model_spec": {"type": "object", "properties": {"name": TEXT, "version": TEXT}},
        "metadata": {"type": "object", "properties": {"signature_def": {"type": "object"}}},
    }
)


def operations(model: Model) -> list[Operation]:
    """Predict, classify and regress where a signature allows it, status and metadata."""
    takes, gives = forms(model, lenient=True)
    verbs = {"predict": ("Predict, by rows or by columns", takes, gives)}
    for verb, summary, fits, result in (
        ("classify", "Labels with their scores", Classify().fits, _SCORES),
        ("regress", "A number for each example", Regress().fits, {"type": "number"}),
    ):
        names = [name for name, signature in model.card.signatures.items() if fits(signature)]
        if names:
            verbs[verb] = (summary, _examples(names, model), _results(result))
    found = [Operation(_TAG, "/v1/models", "The models that there are", {JSON: Body(_MODELS)})]
    for named in _NAMED:
        path = f"/v1/models/{{model}}{named}"
        found += [
            prediction(_TAG, f"{path}:{verb}", summary, {JSON: taken}, {JSON: given}, (ERROR,))
            for verb, (summary, taken, given) in verbs.items()
        ]
        for end, summary, schema in (("", "Status", _STATUS), ("/metadata", "Signatures", _METADATA)):
            about = {JSON: Body(schema)}
            found.append(Operation(_TAG, path + end, summary, about, errors=(ERROR,), statuses=(400, 404, 414, 503)))
    return found


def _examples(names: list[str], model: Model) -> Body:
    default = model.card.signature_name
    properties = {
        "examples": {**array(_FEATURES), "minItems": 1, "maxItems": model.max_rows},
        "context": _FEATURES,
        "signature_name": {"enum": names},
    }
    optional = ("context", "signature_name") if default in names else ("context",)
    named = {} if default in names else {"signature_name": names[0]}
    example = Example({**named, "examples": [{}]})
    return Body(object_of(properties, *optional), {"no features": example})


def _results(item: Schema) -> Body:
    return Body(object_of({"results": array(item)}))
