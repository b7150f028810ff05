"""What the server tells of itself: an OpenAPI 3.1 document of the model that is loaded, and of each route to it.

A file here for each dialect, and in it the operations as data; this one puts them together.  Examples are rows that
the model takes.  Those that are bytes, or too long to be read, stand beside the document, each under a name of its own.

Runs in:  worker.
Source:   spec.openapis.org/oas/v3.1.1.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson

from app.openapi import control, invocations, open_inference, predict, tensorflow_serving
from app.openapi.operation import TEXT, Body, Errors, Example, Operation, Schema
from app.openapi.tensors import Model
from serving.errors import ClientGone, ServingError, tree
from serving.signature import NUMBERS

DIALECTS = (predict, tensorflow_serving, open_inference, invocations, control)
# of an example in the document, which a browser shows whole
_LONG_BYTES = 16384
_SIZE: Schema = {"type": "integer", "minimum": 0}
_REQUEST_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:+=@-]{1,64}$"}
_HEADERS = {
    "X-Request-ID": ("The client's, if that was a sound one; the logs have more under it.", _REQUEST_ID),
    "X-Model-Version": ("The version that answered.", {"type": "integer", "minimum": 1}),
    "Server-Timing": ("Milliseconds of decode, queue, predict and encode.", TEXT),
    "X-Tensor-Shape": ("Of raw bytes: sizes, the rows first.", TEXT),
    "X-Tensor-Dtype": ("Of raw bytes.", {"enum": [*NUMBERS]}),
    "Inference-Header-Content-Length": ("Bytes of JSON in front of binary tensors.", _SIZE),
    "Retry-After": ("Seconds after which the same request may succeed.", {"type": "integer", "minimum": 1}),
}
# the others are of some answers to an operation
_ALWAYS = {"X-Request-ID", "X-Model-Version", "Server-Timing"}
_PARAMETERS = {
    "X-Request-Timeout-Ms": ("Lowers the deadline of this request.", {"type": "integer", "minimum": 1}),
    "X-Model-Version": ("A version or a label, for this one to answer.", TEXT),
    "X-Request-ID": ("What to call this request: up to 64 letters, digits or ._:+=@-", TEXT),
    "X-Tensor-Shape": ("Of raw bytes: sizes, the rows first.", TEXT),
    "X-Tensor-Dtype": ("Of raw bytes, where they are not the model's.", {"enum": [*NUMBERS]}),
    "Inference-Header-Content-Length": ("Bytes of JSON in front of binary tensors.", _SIZE),
}
_MAY_RETRY = (500, 503)
# what nginx refuses by itself, as nginx.conf has it
_OF_NGINX = {
    414: {"too_large": "The request line is too long"},
    502: {"bad_gateway": "The worker that held the request died, and so did the next two"},
    503: {"queue_full": "All threads are taken", "unavailable": "The workers are starting"},
}


class Document(NamedTuple):
    """The document, and the examples that stand beside it."""

    text: bytes
    examples: dict[str, tuple[str, bytes]]  # media type and body, by name


def document(model: Model) -> Document:
    """All that there is to tell."""
    operations = [operation for dialect in DIALECTS for operation in dialect.operations(model)]
    maker = _Maker(model)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = maker.operation(operation)
    card = model.card
    found = {
        "openapi": "3.1.1",
        "info": {"title": card.name, "version": str(card.version), "description": _about(model)},
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
        "paths": paths,
        "components": maker.components(operations),
    }
    return Document(dumped(found), maker.beside)


def dumped(value: Any) -> bytes:
    """JSON in which tensors stand."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _about(model: Model) -> str:
    card = model.card
    told = "\n".join(f"    {name}: {signature}" for name, signature in card.signatures.items())
    rows = f"a request takes up to {model.max_rows} rows, and a replica predicts up to {card.max_batch_rows} at once"
    return f"Served by the engine {card.engine}; {rows}.\n\n{told}\n"


class _Maker:
    """Makes operations, and keeps what they share."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._names: dict[tuple[str, bytes], str] = {}
        self._made: dict[str, Any] = {}
        self.beside: dict[str, tuple[str, bytes]] = {}

    def operation(self, operation: Operation) -> dict[str, Any]:
        parameters = [_ref("parameters", name) for name in (*operation.names, *operation.asks)]
        responses: dict[str, Any] = {"200": self._answer(operation, 200)}
        if operation.not_ready:
            responses[str(operation.not_ready)] = self._answer(operation, operation.not_ready)
        for status in operation.statuses:
            responses[str(status)] = _ref("responses", _name(operation.errors, status))
        found: dict[str, Any] = {
            "tags": [operation.tag],
            "operationId": operation.id,
            "summary": operation.summary,
            "description": operation.description,
            "parameters": parameters,
            "responses": responses,
        }
        if operation.takes:
            found["description"] += self._links(operation.takes)
            found["requestBody"] = {"required": True, "content": self._content(operation.takes)}
        return {key: value for key, value in found.items() if value not in ("", [])}

    def _answer(self, operation: Operation, status: int) -> dict[str, Any]:
        headers = {name: _ref("headers", name) for name in operation.tells}
        return {
            "description": HTTPStatus(status).phrase,
            "headers": headers,
            "content": self._content(operation.gives),
        }

    def _content(self, bodies: Mapping[str, Body]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for media_type, body in bodies.items():
            found[media_type] = {"schema": body.schema} if body.schema else {}
            for name, example in body.examples.items():
                made = self._example(media_type, example)
                # Swagger UI fetches them, and takes minutes over text that is long; of a form it makes one itself
                form = media_type.startswith("multipart/")
                kept = "value" in self._made[made] or (isinstance(example.value, bytes) and not form)
                found[media_type].setdefault("examples" if kept else "x-examples", {})[name] = _ref("examples", made)
        return found

    def _example(self, media_type: str, example: Example) -> str:
        """The name of an example."""
        value = example.value
        content = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else dumped(value)
        name = self._names.setdefault((media_type, content), f"example{len(self._names) + 1}")
        if name not in self._made:
            told: dict[str, Any] = {"value": value}
            if isinstance(value, bytes) or len(content) > _LONG_BYTES:
                self.beside[name] = media_type, content
                told = {"externalValue": f"/docs/examples/{name}"}
            if example.headers:
                told["x-headers"] = dict(example.headers)
            self._made[name] = told
        return name

    def _links(self, bodies: Mapping[str, Body]) -> str:
        """Where the examples are that are not in the document."""
        found = []
        for media_type, body in bodies.items():
            for example in body.examples.values():
                name = self._example(media_type, example)
                where = self._made[name].get("externalValue")
                if where:
                    needs = "".join(f", with `{header}: {text}`" for header, text in example.headers.items())
                    size = len(self.beside[name][1])
                    found.append(f"- `{media_type}`: [{where}]({where}), {size} bytes{needs}")
        return "\n".join(["\n\nExamples to fetch:\n", *found]) if found else ""

    def components(self, operations: list[Operation]) -> dict[str, Any]:
        card = self._model.card
        parameters = {
            **{name: _header_parameter(name) for name in _PARAMETERS},
            "model": _path_parameter("model", {"enum": [card.name]}, card.name),
            "version": _path_parameter("version", TEXT, str(card.version)),
            "label": _path_parameter("label", TEXT, *card.labels[:1]),
        }
        kinds = {errors for operation in operations for errors in operation.errors}
        refusals = {(operation.errors, status) for operation in operations for status in operation.statuses}
        return {
            "schemas": {errors.name: errors.schema for errors in sorted(kinds, key=lambda errors: errors.name)},
            "responses": {
                _name(*refusal): _refusal(*refusal) for refusal in sorted(refusals, key=lambda one: _name(*one))
            },
            "parameters": parameters,
            "headers": {
                name: {"description": told, "required": name in _ALWAYS, "schema": schema}
                for name, (told, schema) in _HEADERS.items()
            },
            "examples": self._made,
        }


def _header_parameter(name: str) -> dict[str, Any]:
    told, schema = _PARAMETERS[name]
    return {"name": name, "in": "header", "description": told, "schema": schema}


def _path_parameter(name: str, schema: Schema, *example: str) -> dict[str, Any]:
    found = {"name": name, "in": "path", "required": True, "schema": schema}
    return {**found, "example": example[0]} if example else found


def _name(errors: tuple[Errors, ...], status: int) -> str:
    return "Or".join(one.name for one in errors) + str(status)


def _refusal(errors: tuple[Errors, ...], status: int) -> dict[str, Any]:
    headers = ["X-Request-ID", *(["Retry-After"] if status in _MAY_RETRY else [])]
    ours = (error for error in tree(ServingError) if error.status == status and error is not ClientGone)
    titles = {error.code: error.title for error in ours} | _OF_NGINX.get(status, {})
    code, title = next(iter(titles.items()))
    return {
        "description": " ".join(f"{title} (`{code}`)." for code, title in titles.items()),
        "headers": {header: _ref("headers", header) for header in headers},
        "content": {
            one.media_type: {"schema": _ref("schemas", one.name), "example": one.example(status, code, title)}
            for one in errors
        },
    }


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
