"""A model folder: its versions, what model.toml says of one, and the card a replica publishes of it.

A folder holds the model itself, or version folders as TensorFlow Serving has them (`1/`, `2/`).  Nothing here imports
an ML framework: what the files mean is for mules/engines/.

Runs in:  both, and in the supervisor.
Raises:   ModelError, in one sentence.
"""

import base64
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from serving.errors import ModelError, SignatureMismatch
from serving.signature import SERVING_DEFAULT, Signature, TensorSpec
from serving.task import Tensors

_KEYS = {
    "name": str,
    "engine": str,
    "signature": str,
    "sample": str,
    "answer": str,
    "max_batch_rows": int,
    "trusted": list,
    "batched": bool,
    "content_type": str,
    "inputs": dict,
    "outputs": dict,
    "labels": dict,
}
_MAX_NAME_BYTES = 128
# of a version: it travels in 63 bits
_MAX_DIGITS = 19
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class ModelFolder:
    """One version of a model on disk."""

    name: str
    version: int
    path: Path  # where the model's files are
    root: Path  # where model.toml and the sample are looked for, after path
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, root: Path) -> "ModelFolder":
        """The highest version there is."""
        found = versions(root)
        highest = max(found)
        return cls.open(found[highest], root, highest)

    @classmethod
    def open(cls, path: Path, root: Path, version: int) -> "ModelFolder":
        """The version whose files are in path."""
        with _readable(path):
            if not any(path.iterdir()):
                raise ModelError(f"the model folder {path} is empty; put the files of a model into it")
            options = _read_options(path, root)
            name = options.get("name", root.resolve().name)
            if not name.isprintable() or not name.strip(".") or "/" in name:
                raise ModelError(
                    f"the model is called {name!r}, which nobody could ask for in a path: set name in model.toml to"
                    " printable characters without /, and others than dots among them"
                )
            return cls(name, version, path, root, options)

    def artifact(self, *patterns: str) -> Path:
        """The one file that matches; ModelError when there is none, or more than one."""
        found = sorted({file for pattern in patterns for file in self.path.glob(pattern)})
        if len(found) != 1:
            names = f" ({', '.join(file.name for file in found)})" if found else ""
            raise ModelError(f"{self.path} holds {len(found)} files {' or '.join(patterns)}{names}; it needs one")
        return found[0]

    def narrowed(self, table: str, found: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """What an artifact says of its inputs or outputs, as model.toml narrows it.

        That may order them, leave outputs out, and say a size that is any.
        """
        declared = self.declared(table)
        if declared is None:
            return found
        by_name = {spec.name: spec for spec in found}
        narrowed = []
        for spec in declared:
            own = by_name.get(spec.name)
            if own is None:
                raise ModelError(f"model.toml [{table}] {spec.name!r} is unknown; the model has {', '.join(by_name)}")
            if (
                spec.dtype != own.dtype
                or len(spec.shape) != len(own.shape)
                or any(want not in (-1, size) for want, size in zip(own.shape, spec.shape, strict=True))
            ):
                raise ModelError(f"model.toml [{table}] {spec.name} = {str(spec)!r}; the model has {own}")
            narrowed.append(replace(own, shape=spec.shape).with_sample(own.sample))
        if table == "inputs" and len(declared) != len(found):
            raise ModelError(f"model.toml [inputs] must name all inputs: {', '.join(by_name)}")
        return tuple(narrowed)

    def declared(self, table: str) -> tuple[TensorSpec, ...] | None:
        """The inputs or outputs that model.toml declares, None when it does not."""
        return specs(self.options.get(table), f"model.toml [{table}]")

    def sample(self, signature: Signature) -> Tensors:
        """One row to warm up with: the sample of the folder, or the model's own."""
        file = self.sample_file()
        return signature.samples() if file is None else _instance(file, signature)

    def sampled(self, signature: Signature) -> Signature:
        """The same signature, the sample of the folder being that of its inputs."""
        file = self.sample_file()
        if file is None:
            return signature
        value = _object(file)
        inputs = tuple(spec.with_sample(value.get(spec.name, spec.sample)) for spec in signature.inputs)
        return Signature(inputs, signature.outputs)

    def answer(self, signature: Signature) -> Tensors | None:
        """What the model must answer to the sample, one row; None when the folder does not say."""
        file = self._file("answer")
        return None if file is None else _instance(file, Signature(signature.outputs, signature.outputs))

    def sample_file(self) -> Path | None:
        """The file that holds one instance, {input name: value}, or None."""
        return self._file("sample")

    def _file(self, key: str) -> Path | None:
        name = str(self.options.get(key, f"{key}.json"))
        for folder in (self.path, self.root):
            if (folder / name).is_file():
                return folder / name
        if key in self.options:
            raise ModelError(f"model.toml says {key} = {name!r}, and there is no such file in {self.root}")
        return None


def versions(root: Path) -> dict[int, Path]:
    """Where the files of each version are; version 1 is the folder itself where it has no version folders."""
    with _readable(root):
        if not root.is_dir():
            reason = "is not a folder" if root.exists() else "does not exist"
            raise ModelError(f"the model folder {root} {reason}; set MODEL to a folder that holds a model")
        # 7, or 007 as some exporters write it: the shorter one where there are both
        folders = sorted((folder for folder in root.iterdir() if _is_version(folder)), key=lambda one: -len(one.name))
    return {int(folder.name): folder for folder in folders} or {1: root}


def contents(path: Path, root: Path) -> dict[str, object]:
    """What the identity of a version is made of: the sizes and times of its files, and what lies beside them."""
    with _readable(path):
        found: dict[str, object] = {}
        for file in path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                about = file.stat()
                found[str(file.relative_to(path))] = (about.st_size, about.st_mtime_ns)
        if path != root:
            for name in ("sample.json", "answer.json"):
                if (root / name).is_file():
                    found[f"../{name}"] = (root / name).stat().st_mtime_ns
        try:
            options = _read_options(path, root)
        except ModelError as error:
            options = {"wrong": str(error)}
        # these may move without a change of what they are for
        options.pop("labels", None)
        # no file has such a name
        found[""] = sorted(options.items())
    return found


def identity(contents: Mapping[str, object]) -> str:
    """What changes when the files of a version do, or what model.toml says of it."""
    return hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()[:16]


def labels(root: Path) -> dict[str, int]:
    """The labels that model.toml, beside the version folders, gives to versions."""
    with _readable(root):
        found: dict[str, int] = _read_options(root).get("labels", {})
    for label, version in found.items():
        if not _LABEL.fullmatch(label) or type(version) is not int:
            raise ModelError(
                f"{root / 'model.toml'} [labels] {label} = {version!r}: a label begins with a letter, goes on with"
                " letters, digits, - or _, and is for the number of a version; stable = 1 would do"
            )
    return found


def _is_version(folder: Path) -> bool:
    return folder.name.isascii() and folder.name.isdecimal() and len(folder.name) < _MAX_DIGITS and folder.is_dir()


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"the model folder {folder} cannot be read: {error.strerror} ({error.filename})") from error


@dataclass(frozen=True)
class ModelCard:
    """What workers and operators have to know of the model that replicas have loaded."""

    name: str
    version: int
    engine: str
    signature: Signature
    max_batch_rows: int
    labels: tuple[str, ...] = ()
    # of those who name no signature, and those that are there beside it
    signature_name: str = SERVING_DEFAULT
    others: dict[str, Signature] = field(default_factory=dict)

    @cached_property
    def signatures(self) -> dict[str, Signature]:
        """All of them by name, the default first."""
        return {self.signature_name: self.signature, **self.others}

    def told(self, name: str) -> str:
        """One of its signatures in words."""
        found = self.signatures.get(name)
        told = "nothing" if found is None else str(found)
        return told if [name] == list(self.signatures) else f"{told} by the signature {name!r}"

    def as_dict(self, samples: bool = True) -> dict[str, Any]:
        """For JSON; samples may be of somebody's data."""
        left_out = () if samples else ("sample",)

        def told(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value for key, value in items if value not in (None, {}) and key not in left_out}

        return asdict(self, dict_factory=told)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "ModelCard":
        others = {name: _signature(other) for name, other in value.get("others", {}).items()}
        found = {"signature": _signature(value["signature"]), "labels": tuple(value["labels"]), "others": others}
        return cls(**{**value, **found})


def _signature(value: dict[str, Any]) -> Signature:
    inputs, outputs = (
        tuple(
            TensorSpec(**{**spec, "shape": tuple(spec["shape"]), "sample": None}).with_sample(spec.get("sample"))
            for spec in value[side]
        )
        for side in ("inputs", "outputs")
    )
    return Signature(inputs, outputs)


def _instance(file: Path, signature: Signature) -> Tensors:
    try:
        return signature.instance(_object(file))
    except SignatureMismatch as error:
        raise ModelError(f"{file}: {error}") from error


def _object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: it is one JSON object, {{name: value}}")
    return value


def specs(table: object, where: str) -> tuple[TensorSpec, ...] | None:
    """The specs of {name: "dtype[sizes]"}, None for None."""
    if table is None:
        return None
    if not isinstance(table, dict) or not table:
        raise ModelError(f'{where}: expected names with their types, for example image = "float32[8, 8]"')
    try:
        return tuple(TensorSpec.parse(_checked(name), str(text)) for name, text in table.items())
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error


def _checked(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
        raise ValueError(f"{name!r} is no name of 1 to {_MAX_NAME_BYTES} bytes")
    return name


def _read_options(*folders: Path) -> dict[str, Any]:
    file = next((folder / "model.toml" for folder in folders if (folder / "model.toml").is_file()), None)
    if file is None:
        return {}
    try:
        options = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: {error}") from error
    for key, value in options.items():
        if key not in _KEYS:
            raise ModelError(f"{file}: {key!r} is not one of {', '.join(_KEYS)}")
        if type(value) is not _KEYS[key]:
            raise ModelError(f"{file}: {key} = {value!r} is not a {_KEYS[key].__name__}")
    if options.get("max_batch_rows", 1) < 1:
        raise ModelError(f"{file}: max_batch_rows = {options['max_batch_rows']} must be 1 or more")
    return options


def request_body(row: Mapping[str, Any]) -> bytes:
    """One row, {name: value}, as POST /predict takes it: values as JSON or tensors have them."""
    # a model whose inputs are called like the forms of a body takes rows alone
    told = {"instances": [row]} if {"instances", "inputs"} & row.keys() else row
    return orjson.dumps(told, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    """What orjson does not write: strings as tensors hold them, and tensors of these."""
    if not isinstance(value, bytes):
        return value.tolist()
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
