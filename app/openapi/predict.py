"""POST /predict, and the forms of JSON that it shares with TensorFlow Serving.

Runs in:  worker.
"""

from collections.abc import Callable
from typing import Any

import orjson

from app import problems
from app.openapi import media
from app.openapi.operation import JSON, Body, Errors, Example, Operation, Schema, prediction
from app.openapi.tensors import Model, array, by_name, named, object_of, one, row
from serving.signature import Signature
from serving.task import Tensors

PROBLEM = Errors(
    "Problem",
    problems.MEDIA_TYPE,
    {
        "type": "object",
        "description": "RFC 9457; code is stable, detail says what to do.",
        "properties": {
            "type": {"const": "about:blank"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
        },
        "required": ["type", "title", "status", "code", "detail", "request_id"],
    },
    lambda status, code, title: orjson.loads(problems.body(status, code, title, "…", "…")),
)
_DESCRIPTION = """\
JSON in one of three forms, answered in the same. `NaN`, `Infinity` and `-Infinity` are numbers, both ways, though no
JSON Schema can say so. Other media types are rows alone; `Accept`
says in which of them the answer is to be. A body may be packed: `Content-Encoding: gzip`, `deflate` or `zstd`.
"""


def operations(model: Model) -> list[Operation]:
    """POST /predict."""
    card = model.card
    signature = card.signature
    takes, gives = forms(model)
    inputs, outputs = model.inputs(signature), model.outputs(signature)
    # inputs that are called like a form of the body are taken in rows alone
    if not {"instances", "inputs"} & inputs.keys():
        takes = Body(
            {"anyOf": [by_name(signature.inputs), *takes.schema["anyOf"]]},
            {**_renamed(model.example(_instance(inputs)), "one row"), **takes.examples},
        )
    gives = Body(
        {"anyOf": [by_name(signature.outputs), *gives.schema["anyOf"]]},
        {"one row": Example(_instance(outputs)), **gives.examples},
    )
    taken, given = {JSON: takes, **media.taken(model)}, {JSON: gives, **media.given(model)}
    return [
        prediction(
            "predict",
            "/predict",
            "Predict",
            taken,
            given,
            (PROBLEM,),
            _DESCRIPTION,
            media.ASKS,
            tells=media.ASKS,
            negotiates=True,
        )
    ]


def forms(model: Model, lenient: bool = False) -> tuple[Body, Body]:
    """What is sent and answered in rows and in columns.

    lenient: as TensorFlow Serving has it, with anything beside them, and the columns of a single output without its
    name.
    """
    card = model.card
    others = {} if lenient else {"additionalProperties": False}
    taken: list[Schema] = []
    for name, signature in card.signatures.items():
        for form, schema in (("instances", _rows(signature, model.max_rows)), ("inputs", _columns(signature, model))):
            properties = {form: schema, "signature_name": {"const": name}}
            optional = ("signature_name",) if name == card.signature_name else ()
            taken.append({**object_of(properties, *optional), **others})
    signature = card.signature
    inputs, outputs = model.inputs(signature), model.outputs(signature)
    examples = {
        **_renamed(model.example({"instances": [_bare(inputs)]}), "rows"),
        **_renamed(model.example({"inputs": _listed(inputs)}), "columns"),
    }
    given = [
        {**object_of({key: make(one)}), "additionalProperties": False}
        for one in card.signatures.values()
        for key, make in (("predictions", _given_rows), ("outputs", _given_columns(lenient)))
    ]
    columns = _listed(outputs)
    if lenient and len(outputs) == 1:
        (columns,) = columns.values()
    answers = {"rows": Example({"predictions": [_bare(outputs)]}), "columns": Example({"outputs": columns})}
    return Body({"anyOf": taken}, examples), Body({"anyOf": given}, answers)


def _rows(signature: Signature, max_rows: int) -> Schema:
    items = [by_name(signature.inputs), *([] if signature.only is None else [row(signature.only)])]
    return {"anyOf": [{**array(item), "minItems": 1, "maxItems": max_rows} for item in items]}


def _columns(signature: Signature, model: Model) -> Schema:
    columns = {spec.name: {**array(row(spec)), "minItems": 1, "maxItems": model.max_rows} for spec in signature.inputs}
    found = {**named(columns, signature.inputs), "minProperties": 1}
    return found if signature.only is None else {"anyOf": [found, columns[signature.only.name]]}


def _given_rows(signature: Signature) -> Schema:
    specs = signature.outputs
    return array(row(specs[0]) if len(specs) == 1 else by_name(specs))


def _given_columns(bare: bool) -> Callable[[Signature], Schema]:
    def made(signature: Signature) -> Schema:
        columns = {spec.name: array(row(spec)) for spec in signature.outputs}
        return columns[signature.outputs[0].name] if bare and len(columns) == 1 else named(columns, signature.outputs)

    return made


def _renamed(examples: dict[str, Example], form: str) -> dict[str, Example]:
    return {f"{form}, of {name}": example for name, example in examples.items()}


def _instance(tensors: Tensors) -> dict[str, Any]:
    return {name: one(tensor) for name, tensor in tensors.items()}


def _bare(tensors: Tensors) -> Any:
    found = _instance(tensors)
    return next(iter(found.values())) if len(found) == 1 else found


def _listed(tensors: Tensors) -> dict[str, Any]:
    return {name: [one(tensor)] for name, tensor in tensors.items()}
