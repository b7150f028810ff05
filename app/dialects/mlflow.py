"""MLflow's scoring protocol: its four envelopes, and params, which are inputs that have defaults here.

    {"dataframe_split": {"columns": […], "data": [row, …]}}
    {"dataframe_records": [{column: value}, …]}
    {"instances": [row, …]}
    {"inputs": {name: rows}}, or rows               → {"predictions": rows}

Any of them may have "params": {name: value} beside it.  As there, columns and params that the model does not have are
ignored, null is NaN, and binary columns are in base64.  Unlike there, no number is changed to make it fit, and a table
of one column is answered by bare values, for an output does not tell whether it was one.

/invocations itself is in app/dialects/sagemaker.py, for both protocols share it.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, SignatureMismatch, FrameTooLarge.
Source:   mlflow 3.17, mlflow/pyfunc/scoring_server/__init__.py, utils/proto_json_utils.py, models/utils.py.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from flask import Blueprint, Response

from app import codec, forms
from app.dialects.dialect import JSON
from app.health import is_ready
from app.limits import check_bytes
from serving.errors import DecodeError, ServingError, SignatureMismatch, UnsupportedMedia
from serving.signature import Signature, TensorSpec
from serving.store import Board
from serving.task import Tensor, Tensors

ENVELOPES = ("dataframe_split", "dataframe_records", "instances", "inputs")
# of the server whose protocol this is: clients ask for it
VERSION = "3.17.2"
_REQUIRED = f"The input must be a JSON dictionary with exactly one of the input fields {ENVELOPES}"
# what else may be read has words of its own
_NOT_JSON = ("the body is not JSON", "the body is not UTF-8", "the body is empty; expected JSON")
_CODES = {
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# values by the name of their input: those of rows that have any
Columns = dict[str, Any]


def decode(value: dict[str, Any], body: bytes, signature: Signature, max_rows: int, max_bytes: int) -> Tensors:
    """The inputs in what a body says that has one of the envelopes; of params, max_bytes with all rows."""
    form = next(name for name in ENVELOPES if name in value)
    within = value[form]
    codec.check_rows(within.get("data") if form == "dataframe_split" and isinstance(within, dict) else within, max_rows)
    columns = _READ[form](within, signature)
    read = _Reader(body)
    found = {spec.name: read(spec, columns[spec.name]) for spec in signature.inputs if spec.name in columns}
    if missing := [spec.name for spec in signature.inputs if spec.name not in found and spec.default is None]:
        raise SignatureMismatch(f"Model is missing inputs {missing}; the model takes {signature}")
    if not found:
        raise SignatureMismatch(f"none of the model's inputs is there; the model takes {signature}")
    rows = signature.rows(found)
    params = value.get("params")
    if isinstance(params, dict):
        for spec in signature.inputs:
            if spec.name in params and spec.name not in columns:
                param = read(spec, [params[spec.name]])
                size = param.nbytes if param.dtype.kind != "O" else sum(map(len, param.ravel().tolist()))
                check_bytes(size * rows, max_bytes, f"the param {spec.name!r} in each row")
                found[spec.name] = np.repeat(param, rows, axis=0)
    elif params is not None:
        raise DecodeError(f"Parameters must be a dictionary. Got type '{type(params).__name__}'.")
    return signature.completed({spec.name: found[spec.name] for spec in signature.inputs if spec.name in found})


def refuse_envelope(value: Mapping[str, Any]) -> DecodeError:
    """That there is none of the envelopes, or several."""
    fields = [name[:64] for name in list(value)[:16]]
    return DecodeError(f"{_REQUIRED}. Received dictionary with input fields: {fields}")


def _told(name: str, tensor: Tensor) -> Any:
    if tensor.dtype.kind != "O":
        return tensor
    return forms.nested([_text(item) for item in tensor.ravel().tolist()], tensor.shape)


def _text(item: bytes) -> str:
    try:
        return str(item, "utf-8")
    except UnicodeDecodeError:
        return base64.encodebytes(item).decode()


def encode(outputs: Tensors, told: forms.Told = _told, dump: forms.Dump = forms.dump) -> bytes:
    """As the answer to an envelope: bare values of one output, records of several."""
    return forms.encode_instances(outputs, told, dump)


def problem(status: int, text: str) -> bytes:
    """The body that tells of an error."""
    return orjson.dumps({"error_code": _CODES.get(status, "BAD_REQUEST"), "message": text})


def _body(error: ServingError) -> bytes:
    text = str(error)
    if isinstance(error, DecodeError) and text.startswith(_NOT_JSON):
        text = f"Invalid input. Ensure that input is a valid JSON formatted string. Error: '{text}'"
    elif isinstance(error, SignatureMismatch):
        text = f"Invalid input. Data is not compatible with model signature. {text}"
    return problem(error.status, text)


def refuse(error: ServingError) -> tuple[int, str, bytes]:
    """The status, the media type and the body that tell of an error."""
    if isinstance(error, UnsupportedMedia):
        # the one that is no JSON there
        return error.status, "text/plain", str(error).encode()
    return error.status, JSON[1], _body(error)


class _Reader:
    """Makes a tensor of values."""

    def __init__(self, body: bytes) -> None:
        self._words = codec.has_words(body)
        self._nulls = b"null" in body

    def __call__(self, spec: TensorSpec, rows: list[Any]) -> Tensor:
        if self._nulls and spec.dtype.startswith("float"):
            rows = _with_nan(rows, len(spec.shape))
        elif spec.binary:
            rows = [_bytes(spec, item) for item in rows]
        return codec.tensor(spec, rows, self._words)


def _with_nan(value: Any, axes: int) -> Any:
    if isinstance(value, list) and axes >= 0:
        return [_with_nan(item, axes - 1) for item in value]
    return np.nan if value is None else value


def _bytes(spec: TensorSpec, item: Any) -> Any:
    if not isinstance(item, str):
        return item
    try:
        # with the line breaks that Python's encodebytes makes
        return {"b64": base64.b64encode(base64.b64decode("".join(item.split()), validate=True)).decode()}
    except (binascii.Error, ValueError):
        raise SignatureMismatch(f"input {spec.name!r} is binary, and found a string that is not base64") from None


def _split(value: Any, signature: Signature) -> Columns:
    if not isinstance(value, dict):
        raise DecodeError(f"Dataframe split format must be a dictionary. Got {_kind(value)}.")
    if "data" not in value or not value.keys() <= {"columns", "index", "data"}:
        raise DecodeError(
            "Dataframe split format must have 'data' field and optionally 'columns' and 'index' fields."
            f" Got {[name[:64] for name in list(value)[:16]]}."
        )
    names, rows = value.get("columns"), value["data"]
    if not isinstance(rows, list):
        raise _no_frame("split", "'data' is not a list of rows")
    if names is None:
        return _table("split", None, rows, signature)
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise _no_frame("split", "'columns' is not a list of names")
    return _table("split", [str(name) for name in names], rows, signature)


def _records(value: Any, signature: Signature) -> Columns:
    if not isinstance(value, list):
        raise DecodeError(f"Dataframe records format must be a list of records. Got {_kind(value)}.")
    if not all(isinstance(row, dict) for row in value):
        return _table("records", None, value, signature)
    names = list(dict.fromkeys(name for row in value for name in row))
    if _is_matrix(names, signature):
        if any(len(row) != len(names) for row in value):
            raise _no_frame("records", "the records differ in their columns")
        return _table("records", names, [[row[name] for name in names] for row in value], signature)
    return {
        spec.name: [row.get(spec.name, np.nan if spec.dtype.startswith("float") else None) for row in value]
        for spec in signature.inputs
        if spec.name in names
    }


def _table(form: str, names: list[str] | None, rows: list[Any], signature: Signature) -> Columns:
    """The columns of a table of rows; all of them are one input, where that is a matrix."""
    if _is_matrix(names or (), signature):
        assert signature.main is not None
        return {signature.main.name: rows}
    if names is None:
        names = [spec.name for spec in signature.inputs if spec.default is None]
    if not all(isinstance(row, list) for row in rows):
        raise _no_frame(form, "a row is not a list")
    for row in rows:
        if len(row) != len(names):
            raise _no_frame(form, f"{len(names)} columns, and a row of {len(row)} values")
    known = {spec.name for spec in signature.inputs}
    return {name: [row[place] for row in rows] for place, name in enumerate(names) if name in known}


def _instances(value: Any, signature: Signature) -> Columns:
    if not isinstance(value, list):
        return _inputs(value, signature)
    if not value or not codec.is_instance(value[0]):
        return _bare(value, signature)
    if not all(isinstance(row, dict) for row in value):
        raise SignatureMismatch("'instances' has objects, and others beside them")
    names = [spec.name for spec in signature.inputs if spec.name in value[0]]
    for row in value:
        if any((spec.name in row) != (spec.name in names) for spec in signature.inputs):
            raise SignatureMismatch("The length of values for each input/column name are not the same")
    return {name: [row[name] for row in value] for name in names}


def _inputs(value: Any, signature: Signature) -> Columns:
    if isinstance(value, list):
        return _instances(value, signature) if value and codec.is_instance(value[0]) else _bare(value, signature)
    if codec.is_instance(value):
        return {name: rows if isinstance(rows, list) else [rows] for name, rows in value.items()}
    return _bare([value], signature)


def _bare(rows: list[Any], signature: Signature) -> Columns:
    spec = signature.main
    if spec is None:
        raise SignatureMismatch(f"the rows have no names; the model takes {signature}")
    return {spec.name: rows}


_READ = {"dataframe_split": _split, "dataframe_records": _records, "instances": _instances, "inputs": _inputs}


def _is_matrix(names: Any, signature: Signature) -> bool:
    """Whether a table with columns of these names is the rows of the only input."""
    spec = signature.main
    return spec is not None and len(spec.shape) == 1 and spec.name not in names


def _no_frame(form: str, reason: str) -> DecodeError:
    return DecodeError(
        f"Provided dataframe_{form} field is not a valid dataframe representation in '{form}' format. Error: '{reason}'"
    )


def _kind(value: Any) -> str:
    names: dict[type, str] = {list: "list", dict: "dictionary"}
    return names.get(type(value), f"type {type(value).__name__}")


def blueprint(board: Board) -> Blueprint:
    """GET /version and GET /health."""
    found = Blueprint("mlflow", __name__)

    @found.get("/version")
    def version() -> Response:
        return Response(VERSION, mimetype=JSON[1])

    @found.get("/health")
    def health() -> Response:
        return Response("\n", 200 if is_ready(board) else 503, mimetype=JSON[1])

    return found
