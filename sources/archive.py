"""Archives, unpacked inside their folder or not at all.

Only files and folders are taken.  Links and devices are refused, not followed, so that no name can lead elsewhere;
modes and owners are not taken over.  A bomb ends at max_bytes or MAX_FILES, whatever its headers say.

Raises:   SourceError, in one sentence.
"""

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from serving.errors import SourceError
from sources.source import ARCHIVES, FULL, inside

MAX_FILES = 100_000
# what a real model shrinks by is far less, however large it is
_MAX_RATIO = 100
_SMALL_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 20
# tarfile reads a header at once, and it may say that it has any size
_MAX_READ_BYTES = 16 << 20
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,  # zipfile's for a password
    UnicodeError,
)
# what systems and their archivers put beside the files
_LITTER = ("__MACOSX", ".DS_Store")


def unpack_lone(folder: Path, max_bytes: int) -> None:
    """Let a folder that holds one archive alone hold what that does."""
    files = list(folder.iterdir())
    if len(files) == 1 and files[0].is_file() and files[0].name.lower().endswith(ARCHIVES):
        packed = folder.with_name(f"{folder.name}.packed")
        folder.rename(packed)
        unpack(packed / files[0].name, folder, max_bytes)
        shutil.rmtree(packed)


def unpack(archive: Path, into: Path, max_bytes: int) -> None:
    """Unpack a file into a folder that is not there yet; a lone folder around the files is left out."""
    limit = min(max_bytes, max(_SMALL_BYTES, _MAX_RATIO * archive.stat().st_size))
    unpacked = into.with_name(f"{into.name}.unpacked")
    unpacked.mkdir()
    try:
        _write(archive, unpacked, limit)
    except _BROKEN as error:
        raise SourceError(
            f"{archive.name} cannot be unpacked: {str(error) or 'it ends too early'}; pack it anew"
        ) from error
    except OSError as error:
        if error.errno in FULL:
            raise
        # a name that is too long, or both a file's and a folder's
        raise SourceError(f"{archive.name} cannot be unpacked: {error.strerror}; pack it anew") from error
    root = unpacked
    while len(names := list(root.iterdir())) == 1 and names[0].is_dir():
        root = names[0]
    if not names:
        raise SourceError(f"{archive.name} holds no file; pack what the model's folder holds")
    if any(path.is_dir() and path.name.isdecimal() for path in names):
        versions = ", ".join(sorted(path.name for path in names if path.is_dir()))
        raise SourceError(
            f"{archive.name} holds the folders {versions}; an archive is one version: pack what one holds"
        )
    root.rename(into)
    if root != unpacked:
        _remove_empty(unpacked)


def _remove_empty(folder: Path) -> None:
    for child in folder.iterdir():
        _remove_empty(child)
    folder.rmdir()


def _write(archive: Path, folder: Path, limit: int) -> None:
    left, count = limit, 0
    for name, content in _files(archive):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise SourceError(
                f"{archive.name} holds {name!r}, which leads out of its folder; pack it with relative names"
            )
        if not parts or any(part in _LITTER or part.startswith("._") for part in parts):
            continue
        count += 1
        if count > MAX_FILES:
            raise SourceError(f"{archive.name} holds more than {MAX_FILES} files; pack them into fewer")
        path = inside(folder, "/".join(parts))
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while chunk := content.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise SourceError(
                        f"{archive.name} unpacks to more than {limit >> 20} MB, which no model of its size does;"
                        " fetch a folder instead"
                    )
                file.write(chunk)


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Each name with its content, None for a folder."""
    if archive.name.lower().endswith(".zip"):
        yield from _zipped(archive)
    else:
        yield from _tarred(archive)


def _zipped(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_file(archive, entry.filename)
            if entry.is_dir():
                yield entry.filename, None
            else:
                with opened.open(entry) as content:
                    yield entry.filename, content


def _tarred(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    with archive.open("rb") as file:
        magic = file.read(6)
    opener = next((opener for start, opener in _OPENERS.items() if magic.startswith(start)), Path.open)
    with opener(archive, "rb") as plain, tarfile.open(fileobj=cast("Any", _Reader(plain)), mode="r:") as opened:
        for member in opened:
            if not (member.isreg() or member.isdir()):
                raise _no_file(archive, member.name)
            yield member.name, opened.extractfile(member)
        # tarfile ends quietly where it finds no header: a whole archive ends with zeros, and its sum comes after them
        plain.seek(opened.offset)
        end, rest = plain.read(tarfile.BLOCKSIZE), plain.read(_MAX_READ_BYTES)
        if end != bytes(tarfile.BLOCKSIZE) or len(rest) == _MAX_READ_BYTES:
            raise tarfile.ReadError("it does not end as a tar does")


def _no_file(archive: Path, name: str) -> SourceError:
    return SourceError(
        f"{archive.name} holds {name!r}, a link or a device; pack files and folders alone (tar --dereference)"
    )


class _Reader:
    """A file of which nobody reads much at once."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size >> 20} MB")
        return bytes(self._file.read(size))
