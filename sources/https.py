"""A model at a web address: an archive, or the one file of a model.

`#sha256=…` at the end of the URL says which bytes are meant.  Then what is kept is served without asking again, and the
bytes may come over plain http.  User and password come from the URL or ~/.netrc, proxies and certificates from where
requests looks for them.

Raises:   SourceError, SourceUnavailable.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from sources.logs import told
from sources.source import (
    ATTEMPTS,
    CONNECT_TIMEOUT_S,
    PAUSE_S,
    READ_TIMEOUT_S,
    Say,
    Source,
    Versions,
    digest,
    inside,
    reason,
)

_AGAIN = (429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 30
_MAX_REDIRECTS = 10
_CHUNK_BYTES = 1 << 20
_SUM = re.compile(r"sha256=([0-9a-fA-F]{64})")


class Https(Source):
    """One file on a web server, version 1."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        self._address, fragment = urldefrag(url)
        found = _SUM.fullmatch(fragment)
        if fragment and not found:
            raise self.error("after # comes sha256= with 64 hexadecimal digits, as sha256sum prints them")
        self._sha256 = found[1].lower() if found else None
        self._check(self._address)

    def versions(self) -> Versions:
        if self._sha256:
            return Versions({1: self._sha256})
        with self._get({}) as response:
            return Versions({1: _identity(response)})

    def size(self, version: int) -> int | None:
        with self._get({}) as response:
            return _length(response)

    def fetch(self, version: int, into: Path, max_bytes: int) -> None:
        file = into / "1" / _file_name(self._address)
        file.parent.mkdir(exist_ok=True)
        self._bring(file, max_bytes)
        with file.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if self._sha256 is None:
            self.say(f"{self.url} may change: append #sha256={found} to accept nothing else")
        elif found != self._sha256:
            # what an earlier attempt brought may be of another file
            file.unlink()
            raise self.error(
                f"its sha256 is {found}, and not {self._sha256}; correct #sha256=, or ask whoever serves it why"
            )

    def _bring(self, file: Path, max_bytes: int) -> None:
        """All of the file, going on where an earlier attempt broke off if the server can."""
        mark = file.with_name(f"{file.name}.etag")
        have = file.stat().st_size if file.exists() and mark.exists() else 0
        etag = mark.read_text() if have else ""
        with self._get({"Range": f"bytes={have}-", "If-Range": etag} if have else {}) as response:
            mark.unlink(missing_ok=True)
            if response.status_code != requests.codes.partial_content:
                # the server cannot, or has another file by now
                have = 0
            elif (response.headers.get("ETag"), _start(response)) != (etag, have):
                raise self.unavailable("another part than the one that is missing")
            if strong := _strong_mark(response):
                mark.write_text(strong)
            with file.open("ab" if have else "wb") as written:
                for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                    have += len(chunk)
                    if have > max_bytes:
                        raise self.error(
                            f"it is larger than {max_bytes >> 20} MB, which is all that the store may hold"
                        )
                    written.write(chunk)
        mark.unlink(missing_ok=True)

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """The answer with its body unread; requests, as they are, hold it back."""
        with told(self.say, self.url), requests.Session() as session:
            session.max_redirects = _MAX_REDIRECTS
            retry = urllib3.Retry(
                ATTEMPTS - 1,
                backoff_factor=PAUSE_S / 2,
                status_forcelist=_AGAIN,
                raise_on_status=False,
                # a server may ask for hours
                retry_after_max=_LONGEST_PAUSE_S,
                backoff_max=_LONGEST_PAUSE_S,
            )
            session.mount("https://", HTTPAdapter(max_retries=retry))
            session.mount("http://", _Plain(self, max_retries=retry))
            try:
                with session.get(
                    self._address,
                    # bytes as they are, not packed for the way
                    headers={"Accept-Encoding": "identity", **headers},
                    timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                    stream=True,
                ) as response:
                    self._check_answer(response)
                    yield response
            except requests.TooManyRedirects as error:
                raise self.error(
                    f"it redirects more than {_MAX_REDIRECTS} times; give the address that it ends at"
                ) from error
            except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
                raise self.error("it is, or redirects to, no address of a web server; correct it") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise self.unavailable(reason(error)) from error

    def _check_answer(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (401, 403):
            raise self.error(
                f"the server refuses it with {status}; put user and password into ~/.netrc, or sign the URL"
            )
        if status in _AGAIN or status >= 500:
            raise self.unavailable(f"HTTP {status}")
        if status not in (200, 206):
            raise self.error(f"the server answers {status}; correct the address")

    def _check(self, url: str) -> None:
        """Refuse what anybody on the way could change."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise self.error("it names no host; an address is https://host/path")
        if parts.scheme.lower() == "http" and self._sha256 is None and not _is_loopback(parts.hostname):
            raise self.error("anybody on the way can change what comes over http; use https, or append #sha256=…")


class _Plain(HTTPAdapter):
    """http, also where a redirect leads to it, where it is allowed."""

    def __init__(self, source: Https, **options: Any) -> None:
        super().__init__(**options)
        self._source = source

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        self._source._check(str(request.url))
        return super().send(request, *args, **options)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _file_name(address: str) -> str:
    name = unquote(urlsplit(address).path).rpartition("/")[2]
    try:
        return inside(Path(), name).name
    except ValueError:
        return "model"


def _identity(response: requests.Response) -> str:
    names = ("ETag", "Last-Modified", "Content-Length")
    return digest([response.headers.get(name) for name in names])


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _start(response: requests.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _strong_mark(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else None
