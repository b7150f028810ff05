"""What a source of models is, and what its kinds share: names, safe paths, and errors without secrets.

Raises:   SourceError: asking again would not help.  SourceUnavailable: there was no answer.
"""

import errno
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from serving.errors import SourceError, SourceUnavailable

Say = Callable[[str], None]
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
# how often a library asks, the pause after its second failure, which doubles, and how long each call may take
ATTEMPTS = 5
PAUSE_S = 2.0
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
# nothing more can be written
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Versions:
    """What a source has: each version's identity, in hexadecimal digits, and names for versions.

    An identity changes with the content.
    """

    identities: dict[int, str]
    labels: dict[str, int] = field(default_factory=dict)


class Source(ABC):
    """One model in one place.  Versions are numbers, and what is not numbered is version 1."""

    def __init__(self, url: str, say: Say) -> None:
        self.say = say
        self.url = shown(url)
        # what is known of the place is kept under it; not the user's name and password, which change
        self.key = urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
        self.name = model_name(url)

    @abstractmethod
    def versions(self) -> Versions:
        """What there is now, without a download; SourceError when there is nothing."""

    @abstractmethod
    def size(self, version: int) -> int | None:
        """Bytes that fetch() brings, or None when nobody knows before."""

    @abstractmethod
    def fetch(self, version: int, into: Path, max_bytes: int) -> None:
        """Bring into/version/…, and what lies beside version folders into into/.

        into: a folder, empty, or with what an earlier attempt at the same version brought before it broke.
        """

    def error(self, reason: str) -> SourceError:
        return SourceError(f"{self.url}: {reason}")

    def unavailable(self, why: str) -> SourceUnavailable:
        return SourceUnavailable(f"{self.url} gives no good answer: {why}")


def shown(url: str) -> str:
    """A URL without what may be secret: user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def model_name(url: str) -> str:
    """The last part of a URL's path, without the suffix of a file: digits of …/digits.onnx, v1.2 of …/v1.2."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    last = path.rstrip("/").rpartition("/")[2] or parts.netloc
    archive = next((suffix for suffix in ARCHIVES if last.lower().endswith(suffix)), "")
    if archive:
        last = last[: -len(archive)]
    elif not path.endswith("/"):
        last = re.sub(r"(?<=.)\.(?!v\d)[A-Za-z]\w*$", "", last)
    return folder_name(last)


def folder_name(text: str) -> str:
    """The text as the name of a folder."""
    name = re.sub(r"[\x00-\x1f/]", "-", text)
    return "model" if name in ("", ".", "..") else name


def inside(folder: Path, name: str) -> Path:
    """The path of a relative name in a folder; ValueError for a name that leads out of it, or nowhere."""
    parts = name.split("/")
    if "\0" in name or not set(parts).isdisjoint(("", ".", "..")):
        raise ValueError(f"{name!r} is no path inside a folder")
    return folder.joinpath(*parts)


def digest(value: Any) -> str:
    """The identity of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def library(name: str, extra: str, url: str) -> ModuleType:
    """Import what a kind of source needs, or say how it is installed."""
    try:
        return import_module(name)
    except ImportError as error:
        missing = (error.name or name).partition(".")[0]
        raise SourceError(
            f"{url} needs {missing}, which is not installed: .venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
        ) from error


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException, otherwise: str = "") -> str:
    """Why, in the system's words where it has some.  A library's own may hold a signed URL."""
    for cause in reversed(list(chain(error))):
        if isinstance(cause, OSError) and cause.strerror:
            # that of a certificate tells more than its number
            return str(getattr(cause, "verify_message", "") or cause.strerror)
    return otherwise or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(list(chain(error))[-1]).__name__).lower()
