"""The cases of a protocol: what is sent, what may come back, and who says so; for each dialect a file in conform/.

    probe = "GET /v2"                   asked first: 404, 405 or 501 say that the dialect is not spoken
    [schemas.error]                     JSON Schemas, for the cases to name, and for each other: "#/$defs/error"

    [[case]]
    name = "what it is about"
    claim = "inference_rest.md"         the document, or the server's code, that says so
    request = "POST /v2/models/$MODEL/infer"
    headers = {Content-Type = ""}       "" for none; with json it is application/json
    json = {inputs = "$INPUTS"}         or text; or form, its fields; or parts: JSON, texts, $BYTES, in this order
    encoding = "gzip"                   or deflate, zstd
    needs = "binary_tensor_data"        an extension: not asked where GET /v2 does not list it
    status = 200                        or all that it may be; or = [422], those of servers that differ, with any body
    type = "application/json"           or all that it may be
    has = ["Allow"]                     headers
    shape = "error"                     a schema's name
    says = "not found"                  a regular expression in the body

$MODEL and the like are filled in with what is known of the server (conform.py), $HEAD with the bytes of the first part.

Raises:   Missing.
Units:    bytes.
"""

import gzip
import json
import re
import tomllib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import zstandard
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

FOLDER = Path(__file__).parent / "conform"
DIALECTS = tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))
HEAD = "Inference-Header-Content-Length"
_PLACE = re.compile(r"\$([A-Z][A-Z0-9_]*)")
_REFERENCE = re.compile(r'"#/\$defs/(\w+)"')
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.compress,
}
# of a body or a complaint that is told
_TOLD = 200


class Missing(Exception):
    """Nothing is known that a placeholder could be filled in with; its name."""


@dataclass(frozen=True)
class Request:
    """What is sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What came back; the names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def __str__(self) -> str:
        told = self.body.decode("utf-8", "backslashreplace")
        return f"{self.status} {self.type or 'without a Content-Type'} {_short(told)}".rstrip()


@dataclass(frozen=True)
class Case:
    """One of them, as it stands in its file."""

    told: Mapping[str, Any]
    schemas: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.told["name"])

    @property
    def places(self) -> set[str]:
        """The names of the placeholders."""
        return set(_PLACE.findall(json.dumps([self.told, self._schemas]))) - {"HEAD"}

    @property
    def _schemas(self) -> dict[str, Any]:
        """Those that it refers to, and that they refer to."""
        found: dict[str, Any] = {}
        names = {self.told["shape"]} if "shape" in self.told else set()
        while names := names - found.keys():
            found |= {name: self.schemas[name] for name in names}
            names = set(_REFERENCE.findall(json.dumps(found)))
        return found

    def request(self, values: Mapping[str, Any]) -> Request:
        """What to send."""
        method, _, path = self.told["request"].partition(" ")
        quoted = {name: quote(value, "") for name, value in values.items() if isinstance(value, str)}
        body, head, media_type = self._body(values)
        headers = {"Content-Type": media_type} if media_type else {}
        headers |= fill(self.told.get("headers", {}), {**values, "HEAD": str(head)})
        if encoding := self.told.get("encoding"):
            body, headers["Content-Encoding"] = _PACK[encoding](body), encoding
        return Request(method, fill(path, quoted), {name: text for name, text in headers.items() if text}, body)

    def _body(self, values: Mapping[str, Any]) -> tuple[bytes, int, str]:
        """The body, how much of it is its first part, and its media type."""
        told = self.told
        if "json" in told:
            body = json.dumps(fill(told["json"], values)).encode()
            return body, len(body), "application/json"
        if "form" in told:
            fields = {name: _text(value) for name, value in fill(told["form"], values).items()}
            return urlencode(fields).encode(), 0, "application/x-www-form-urlencoded"
        parts = [_bytes(fill(part, values)) for part in told.get("parts", [told.get("text", "")])]
        return b"".join(parts), len(parts[0]), ""

    def complaint(self, answer: Answer, values: Mapping[str, Any]) -> str:
        """What is wrong with an answer, "" where nothing is."""
        told = self.told
        if answer.status in told.get("or", ()):
            return ""
        if answer.status not in (statuses := _several(told["status"])):
            return f"expected {' or '.join(map(str, statuses))}, got {answer}"
        if answer.type not in (types := _several(told.get("type", answer.type))):
            return f"expected {' or '.join(types)}, got {answer}"
        if absent := [name for name in told.get("has", ()) if name.lower() not in answer.headers]:
            return f"expected the header {', '.join(absent)}, got {answer}"
        if "says" in told and not re.search(fill(told["says"], values), answer.body.decode("utf-8", "replace")):
            return f"expected a body with /{told['says']}/, got {answer}"
        wrong = self._mismatch(answer.body, answer.headers.get(HEAD.lower()), values) if "shape" in told else ""
        return f"expected {told['shape']}, {wrong}, got {answer}" if wrong else ""

    def _mismatch(self, body: bytes, head: str | None, values: Mapping[str, Any]) -> str:
        """How a body differs from the schema."""
        size = len(body) if head is None else int(head) if head.isdecimal() and len(head) < 19 else -1
        if not 0 <= size <= len(body):
            return f"{HEAD} is {head}, and the body has {len(body)} bytes"
        try:
            found = json.loads(body[:size])
        except (ValueError, RecursionError) as error:
            return f"it is not JSON: {error}"
        schema = fill({"$ref": f"#/$defs/{self.told['shape']}", "$defs": self._schemas}, values)
        worst = best_match(Draft202012Validator(schema).iter_errors(found))
        if worst is not None:
            return f"{worst.json_path}: {_short(worst.message)}"
        if head is not None and (sizes := _sizes(found)) != len(body) - size:
            return f"binary_data_size of all outputs is {sizes}, and {len(body) - size} bytes follow the JSON"
        return ""


@dataclass(frozen=True)
class Dialect:
    """The cases of one protocol."""

    name: str
    # what is asked to know whether it is spoken
    probe: Case
    cases: list[Case]

    @property
    def places(self) -> set[str]:
        """The names of the placeholders of all cases."""
        return set().union(*(case.places for case in self.cases))


def read(name: str) -> Dialect:
    """A dialect, from its file."""
    found = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    schemas = found.get("schemas", {})
    cases = [Case(case, schemas) for case in found["case"]]
    return Dialect(name, Case({"name": "probe", "request": found["probe"]}, {}), cases)


def fill(template: Any, values: Mapping[str, Any]) -> Any:
    """A template with its placeholders filled in; one that is a whole string may become anything."""
    if isinstance(template, dict):
        return {fill(name, values): fill(within, values) for name, within in template.items()}
    if isinstance(template, list):
        return [fill(within, values) for within in template]
    if not isinstance(template, str):
        return template
    if match := _PLACE.fullmatch(template):
        return _value(match, values)
    return _PLACE.sub(lambda match: _text(_value(match, values)), template)


def _value(match: re.Match[str], values: Mapping[str, Any]) -> Any:
    if match[1] not in values:
        raise Missing(match[1])
    return values[match[1]]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else _text(value).encode()


def _sizes(answer: Any) -> Any:
    """That of all binary outputs; None where it cannot be told."""
    try:
        return sum(one.get("parameters", {}).get("binary_data_size", 0) for one in answer["outputs"])
    except (AttributeError, KeyError, TypeError):
        return None


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _short(text: str) -> str:
    line = "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))
    return line if len(line) <= _TOLD else f"{line[:_TOLD]}…"
