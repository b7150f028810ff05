"""Whether a server speaks its protocols as their documents say: the cases of conform/ asked of it, and a table of them.

What a case needs to know is asked of the server first: its model, that model's inputs, outputs and version.

Runs in:  a process of its own; the server may be anybody's.
Shapes:   a sample is one instance, {input: value}; tensors on the wire are (1, *one row).
Units:    seconds.
Raises:   ConformError.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

import cases
from cases import Answer, Case, Request
from placeholders import DATATYPES, Input, filled

# what is longer is no version
_MOST_VERSION_BYTES = 32
PASS, FAIL, SKIP = "pass", "FAIL", "-"
# of a probe: nothing is there
_ABSENT = (404, 405, 501)
_OF_TENSORFLOW = {
    "DT_BOOL": "BOOL",
    "DT_HALF": "FP16",
    "DT_FLOAT": "FP32",
    "DT_DOUBLE": "FP64",
    "DT_STRING": "BYTES",
} | {f"DT_{name}": name for name in DATATYPES if "INT" in name}
_USER = re.compile("//[^/]*@")
_NO_TABLE = "an input is more than one cell of a table"
# why a case is not asked that needs what not every server or model has
_WITHOUT = {
    "VERSION": "the server tells no version",
    "OUTPUT": "the server tells no outputs",
    "CSV": "the inputs are not the cells of one line",
    "CSV_NAMED": _NO_TABLE,
    "NAMES": _NO_TABLE,
    "CELLS": _NO_TABLE,
    "RECORDS": _NO_TABLE,
    "RAW": "a raw request is for one input, with one size that may be any at the most",
    "NO_RAW": "an input of any size may have no bytes",
    "MORE_RAW": "an input of any size may have more bytes",
    "NPY": "the inputs are not one array",
    "PARQUET": "an input is more than one cell of a table, or pyarrow is not installed",
}
_NO_MODEL = "it tells no model's name; give --model NAME"
_NO_SAMPLE = "it tells no inputs; give --sample FILE with one instance, {input: value}"
_NOTHING_THERE = "there is nothing at its paths"
_NOTHING_TOLD = "there is nothing at its paths, or no model's name is told: check the URL, or give --model NAME"


class ConformError(Exception):
    """Nothing could be asked, in one sentence."""


@dataclass
class Told:
    """What came of one case."""

    name: str
    request: str
    claim: str
    result: str
    # what was wrong, or why it was not asked
    reason: str = ""


@dataclass
class Spoken:
    """What came of one dialect."""

    dialect: str
    # why it was not asked at all
    reason: str = ""
    cases: list[Told] = field(default_factory=list)

    def count(self, result: str) -> int:
        return sum(case.result == result for case in self.cases)


@dataclass
class Report:
    """What came of all."""

    url: str
    server: str
    model: str | None
    dialects: list[Spoken]

    @property
    def failed(self) -> bool:
        return any(spoken.count(FAIL) for spoken in self.dialects)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """One for each case, and the sums."""
        yield self._head()
        for spoken in self.dialects:
            yield from ("", spoken.dialect) if spoken.cases else ()
            for case in spoken.cases:
                reason = f": {case.reason}" if case.reason else ""
                yield f"  {case.result:4}  {case.name} ({case.request}){reason}"
        yield ""
        for name, *counts, reason in self._sums():
            passed, failed, skipped = counts
            yield f"{name:20}  {reason or f'{passed} passed, {failed} failed, {skipped} not asked'}"

    def markdown(self) -> Iterator[str]:
        """The same as tables."""
        yield self._head()
        yield from ("", "| dialect | passed | failed | not asked | |", "|---|---|---|---|---|")
        yield from (f"| {' | '.join(map(str, row))} |" for row in self._sums())
        yield from ("", "| dialect | case | request | says | result |", "|---|---|---|---|---|")
        for spoken in self.dialects:
            for case in spoken.cases:
                cells = (spoken.dialect, case.name, case.request, case.claim, f"{case.result} {case.reason}".strip())
                yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    def _head(self) -> str:
        return f"{self.url}: {self.server or 'a server that does not tell its name'}, model {self.model or 'unknown'}"

    def _sums(self) -> list[tuple[Any, ...]]:
        return [
            (one.dialect, one.count(PASS), one.count(FAIL), one.count(SKIP), one.reason and f"not asked: {one.reason}")
            for one in self.dialects
        ]


def ask(url: str, dialects: Sequence[str], model: str | None, sample: Path | None, timeout: float) -> Report:
    """Ask a server; without dialects all that it speaks."""
    if unknown := sorted(set(dialects) - set(cases.DIALECTS)):
        raise ConformError(f"there is no dialect {unknown[0]}; there are {', '.join(cases.DIALECTS)}")
    server = Server(url, timeout)
    known = server.known(model, _read(sample) if sample else None)
    found = [_of_dialect(server, cases.read(name), known, bool(dialects)) for name in dialects or cases.DIALECTS]
    # without a password
    shown = _USER.sub("//", server.url)
    report = Report(shown, server.name, known.get("MODEL"), found)
    if not any(case.result != SKIP for spoken in found for case in spoken.cases):
        reasons = {spoken.reason for spoken in found}
        why = _NO_SAMPLE if _NO_SAMPLE in reasons else _NOTHING_TOLD if _NO_MODEL in reasons else _NOTHING_THERE
        raise ConformError(f"nothing could be asked: {why}")
    return report


def _of_dialect(server: "Server", dialect: cases.Dialect, known: Mapping[str, Any], wanted: bool) -> Spoken:
    missing = dialect.places - known.keys() - _WITHOUT.keys()
    reason = (_NO_MODEL if "MODEL" in missing else _NO_SAMPLE) if missing else ""
    if reason and wanted:
        raise ConformError(f"{dialect.name} cannot be asked: {reason}")
    asked = not wanted and dialect.probe.places <= known.keys()
    if asked and server.status(dialect.probe.request(known)) in _ABSENT:
        reason = _NOTHING_THERE
    return Spoken(dialect.name, reason, [] if reason else [_of_case(server, case, known) for case in dialect.cases])


def _of_case(server: "Server", case: Case, known: Mapping[str, Any]) -> Told:
    told = Told(case.name, case.told["request"], case.told["claim"], SKIP)
    needs = case.told.get("needs")
    if needs and needs not in server.extensions:
        told.reason = f"the server does not offer {needs}"
        return told
    if missing := sorted(case.places - known.keys()):
        told.reason = _WITHOUT[missing[0]]
        return told
    request = case.request(known)
    told.request = f"{request.method} {request.path}"
    try:
        told.reason = case.complaint(server.send(request), known)
    except requests.RequestException as error:
        told.reason = f"no answer: {_words(error)}"
    told.result = FAIL if told.reason else PASS
    return told


About = tuple[list[Input], list[str], str | None]


class Server:
    """The one that is asked."""

    def __init__(self, url: str, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            host = re.sub(".*(://|@)", "", url)
            raise ConformError(f"{host} does not say how to ask it: write http://{host}")
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        self._session.headers["Accept-Encoding"] = "identity"
        try:
            first = self.send(Request("GET", "/v2", {}, b""))
        except (requests.RequestException, ValueError) as error:
            raise ConformError(f"{_USER.sub('//', self.url)} does not answer: {_words(error)}") from error
        about = _json(first)
        told = about if isinstance(about, dict) else {}
        extensions = told.get("extensions")
        self.extensions: list[Any] = extensions if isinstance(extensions, list) else []
        self.name = " ".join(str(told[name]) for name in ("name", "version") if told.get(name))
        if (
            not self.name
            and (version := self._get("/version")).status == 200
            and len(version.body) < _MOST_VERSION_BYTES
        ):
            self.name = f"version {version.body.decode('ascii', 'replace').strip()}"
        if header := first.headers.get("server"):
            self.name = f"{self.name} behind {header}" if self.name else header

    def send(self, request: Request) -> Answer:
        """The answer to a request, and not what it may lead to."""
        answer = self._session.request(
            request.method,
            self.url + request.path,
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
            timeout=self._timeout,
        )
        headers = {name.lower(): text for name, text in answer.headers.items()}
        return Answer(answer.status_code, headers, answer.content)

    def status(self, request: Request) -> int:
        """That of the answer, 0 where there is none."""
        try:
            return self.send(request).status
        except requests.RequestException:
            return 0

    def known(self, model: str | None, sample: Mapping[str, Any] | None) -> dict[str, Any]:
        """What placeholders are filled in with."""
        model = model or self._model()
        found: dict[str, Any] = {}
        inputs: list[Input] = []
        if model:
            found["MODEL"] = model
            told = self._of_open_inference(model) or self._of_tensorflow(model)
            if told is None and (own := self._model()) not in (None, model):
                raise ConformError(f"the server tells nothing of a model {model!r}; it has {own!r}")
            if told is not None:
                inputs, outputs, version = told
                found |= {"VERSION": version} if version else {}
                found |= {"OUTPUT": outputs[0]} if outputs else {}
        if sample is not None:
            told_of = {one.name: one for one in inputs}
            try:
                return found | filled([Input.of(name, value, told_of.get(name)) for name, value in sample.items()])
            except (ValueError, TypeError, OverflowError) as error:
                raise ConformError(f"the sample is not what the model takes: {_words(error)}") from error
        return found | (filled(inputs) if inputs else {})

    def _model(self) -> str | None:
        """The first that the server lists."""
        with suppress(requests.RequestException, KeyError, TypeError, IndexError):
            return str(_json(self._get("/v1/models"))["models"][0]["name"])
        with suppress(requests.RequestException, KeyError, TypeError, IndexError):
            index = Request("POST", "/v2/repository/index", {"Content-Type": "application/json"}, b"{}")
            return str(_json(self.send(index))[0]["name"])
        return None

    def _of_open_inference(self, model: str) -> About | None:
        with suppress(requests.RequestException, KeyError, TypeError, ValueError):
            told = _json(self._get(f"/v2/models/{quote(model, '')}"))
            inputs = [_input(one["name"], one["datatype"], one["shape"]) for one in told["inputs"]]
            if any(one.datatype not in DATATYPES for one in inputs):
                return None
            versions = [str(version) for version in told.get("versions", ())]
            return inputs, [one["name"] for one in told["outputs"]], versions[-1] if versions else None
        return None

    def _of_tensorflow(self, model: str) -> About | None:
        with suppress(requests.RequestException, KeyError, TypeError, ValueError, StopIteration):
            told = _json(self._get(f"/v1/models/{quote(model, '')}/metadata"))
            signatures = told["metadata"]["signature_def"]["signature_def"]
            signature = signatures.get("serving_default") or next(iter(signatures.values()))
            inputs = [
                _input(name, _OF_TENSORFLOW[one["dtype"]], [int(dim["size"]) for dim in one["tensor_shape"]["dim"]])
                for name, one in signature["inputs"].items()
            ]
            return inputs, list(signature["outputs"]), told["model_spec"].get("version")
        return None

    def _get(self, path: str) -> Answer:
        return self.send(Request("GET", path, {}, b""))


def _input(name: str, datatype: str, sizes: list[int]) -> Input:
    """One that a server tells of; the first axis is the rows, and a size that may be any is one."""
    sizes = sizes[1:]
    return Input(name, datatype, tuple(max(1, size) for size in sizes), open=sum(size < 0 for size in sizes))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise ConformError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise ConformError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ConformError(f"{file} is not one instance, {{input: value}}")
    return found


def _json(answer: Answer) -> Any:
    with suppress(ValueError):
        return json.loads(answer.body) if answer.status == 200 else None
    return None


def _words(error: BaseException) -> str:
    """Why there was no answer: what was raised first of all."""
    while within := error.__cause__ or error.__context__:
        error = within
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
