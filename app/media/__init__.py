"""Media types: which one a body is in, and which one an answer is wanted in.

What is not named is JSON.  Each file here turns bytes into inputs and outputs into bytes, and knows of no request.

Runs in:  worker.
Shapes:   tensors are (rows, *spec.shape).
Raises:   DecodeError, FrameTooLarge, NotAcceptable, SignatureMismatch, UnsupportedMedia.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial

from werkzeug.http import parse_options_header

from app import codec, forms
from app.dialects.dialect import JSON, Call, Encoded
from app.limits import need
from app.media import arrays, arrow, images, messages, tables
from serving.errors import NotAcceptable, UnsupportedMedia
from serving.signature import STRING, TensorSpec
from serving.task import Tensors

# outputs in the form of the request
Encode = Callable[[Tensors, forms.Encode], Encoded]

# JSON, as the clients name it that think of it: curl's -d, fetch's texts
PLAIN = {"", "application/json", "application/x-www-form-urlencoded", "text/plain", "text/plain;charset=UTF-8"}
ANY = {"", "*/*", "application/json"}
_JSON = {"", "application/json", "application/x-www-form-urlencoded", "text/json", "text/plain"}
_NAMES = {
    "application/x-npy": "npy",
    "application/x-npz": "npz",
    "application/octet-stream": "raw",
    "text/csv": "csv",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/vnd.msgpack": "msgpack",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "image/png": "image",
    "image/jpeg": "image",
    "image/webp": "image",
    "multipart/form-data": "form",
}
# of answers; the others are for bodies alone
_LIBRARIES = {
    "npy": "",
    "npz": "",
    "raw": "",
    "csv": "",
    "arrow": "pyarrow",
    "parquet": "pyarrow",
    "msgpack": "ormsgpack",
}


def decode(call: Call, content_type: str) -> tuple[Tensors, forms.Encode, str]:
    """The inputs in a body, the form that an answer in JSON has, and the signature, as codec.decode."""
    name, options = parsed(content_type)
    body, signature, rows, size = call.body, call.card.signature, call.max_rows, call.max_bytes
    match name:
        case "json":
            return codec.decode(body, signature, rows, call.card.signatures)
        case "msgpack":
            return messages.decode(body, signature, rows, call.card.signatures)
        case "npy":
            inputs = arrays.npy(body, signature, rows, size)
        case "npz":
            inputs = arrays.npz(body, signature, rows, size)
        case "raw":
            shape, dtype = (call.environ.get(f"HTTP_X_TENSOR_{what}") for what in ("SHAPE", "DTYPE"))
            inputs = arrays.raw(body, signature, rows, shape, dtype, size)
        case "csv":
            # RFC 4180
            header = {"present": True, "absent": False}.get(options.get("header", ""))
            inputs = tables.decode(body, signature, rows, size, header)
        case "arrow":
            inputs = arrow.stream(body, signature, rows, size)
        case "parquet":
            inputs = arrow.parquet(body, signature, rows, size)
        case "form":
            inputs = images.form(body, signature, rows, size, options.get("boundary", ""))
        case _:
            inputs = images.image(body, signature, size)
    return inputs, forms.encode_instances, ""


@lru_cache(256)
def parsed(content_type: str) -> tuple[str, dict[str, str]]:
    """What a Content-Type means here, and its parameters."""
    type, options = parse_options_header(content_type)
    type = type.lower()
    if type in _JSON or (type.startswith("application/") and type.endswith("+json")):
        return "json", {}
    name = _NAMES.get(type)
    if name is None:
        raise UnsupportedMedia(f"Content-Type is {type[:64]!r}; it may be {JSON[1]}, {', '.join(_NAMES)}")
    if options.get("charset", "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMedia(f"Content-Type has charset {options['charset'][:32]!r}; it may be utf-8")
    return name, options


@lru_cache(256)
def encoder(accept: str, outputs: tuple[TensorSpec, ...], header: bool = True) -> Encode | None:
    """How outputs are encoded as a client accepts them; None for JSON.  header: whether CSV names its columns."""
    given = [JSON[1], *(type for type, name in _NAMES.items() if name in _LIBRARIES and _has(name, outputs))]
    type = _wanted(accept, given)
    if type == JSON[1]:
        return None
    if type is None:
        raise NotAcceptable(f"Accept is {accept[:64]!r}; of this model's outputs there is {', '.join(given)}")
    name = _NAMES[type]
    try:
        if _LIBRARIES[name]:
            need(_LIBRARIES[name])
    except UnsupportedMedia as error:
        raise NotAcceptable(f"Accept is {accept[:64]!r}: {error}") from None
    return partial(_encoded, name, type, header)


def _wanted(accept: str, given: list[str]) -> str | None:
    """The media type of these that a client wants most, whatever parameters it names; None where it accepts none."""
    ranges: dict[str, float] = {}
    for item in accept.lower().split(","):
        type, *parameters = map(str.strip, item.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        with suppress(ValueError):
            ranges["*/*" if type == "*" else type] = float(quality)

    def wish(type: str) -> tuple[float, int]:
        # a range says more of a type the nearer it is to it
        ways = (type, type.partition("/")[0] + "/*", "*/*")
        return next(((ranges[way], -index) for index, way in enumerate(ways) if way in ranges), (0, 0))

    best = max(given, key=wish)
    return best if wish(best)[0] > 0 else None


def _has(name: str, outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether outputs can be told so."""
    if name in ("npy", "npz", "raw") and any(spec.dtype == STRING for spec in outputs):
        return False
    return len(outputs) == 1 or name not in ("npy", "raw")


def _encoded(name: str, type: str, header: bool, outputs: Tensors, form: forms.Encode) -> Encoded:
    headers = [("Content-Type", type)]
    match name:
        case "npy":
            return headers, arrays.npy_of(outputs)
        case "npz":
            return headers, arrays.npz_of(outputs)
        case "raw":
            told, body = arrays.raw_of(outputs)
            return headers + told, body
        case "csv":
            return headers, tables.encode(outputs, header)
        case "arrow":
            return headers, arrow.stream_of(outputs)
        case "parquet":
            return headers, arrow.parquet_of(outputs)
        case _:
            return headers, messages.encode(outputs, form)
