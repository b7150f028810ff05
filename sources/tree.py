"""A folder of files as the store keeps it: a manifest of names, sizes and sums, whose own sum is the folder's address.

Raises:   Damaged, with the file.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A file is not what the manifest says."""


def seal(folder: Path) -> str:
    """Write the manifest, make sure that all of it outlives a power cut, and give the sum of the manifest."""
    manifest = {}
    for parent, folders, names in os.walk(folder, topdown=False):
        for name in sorted(names):
            file = Path(parent, name)
            with file.open("rb") as content:
                sum = hashlib.file_digest(content, "sha256").hexdigest()
                os.fsync(content.fileno())
            manifest[str(file.relative_to(folder))] = [file.stat().st_size, sum]
        for name in folders:
            sync(Path(parent, name))
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    write(folder / MANIFEST, text)
    sync(folder)
    return hashlib.sha256(text).hexdigest()


def check(folder: Path, address: str) -> None:
    """Raise Damaged unless every file is there with its size, and the manifest is the one of this address."""
    for name, (size, _) in _manifest(folder, address).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise Damaged(f"{file} is missing or cut off")


def verify(folder: Path, address: str) -> None:
    """Raise Damaged unless every file has its sum: reads all of it."""
    for name, (_, sum) in _manifest(folder, address).items():
        file = folder / name
        try:
            with file.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(f"{file} cannot be read: {error.strerror}") from error
        if found != sum:
            raise Damaged(f"{file} has changed")


def size(folder: Path) -> int:
    """Bytes below a folder, also while it changes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).lstat().st_size
    return total


def write(file: Path, content: bytes) -> None:
    """A small file, whole or not at all, also after a power cut."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())
    part.replace(file)
    sync(file.parent)


def sync(folder: Path) -> None:
    """Let the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest(folder: Path, address: str) -> dict[str, tuple[int, str]]:
    file = folder / MANIFEST
    try:
        text = file.read_bytes()
    except OSError as error:
        raise Damaged(f"{file} cannot be read: {error.strerror}") from error
    if hashlib.sha256(text).hexdigest() != address:
        raise Damaged(f"{file} has changed")
    manifest: dict[str, tuple[int, str]] = json.loads(text)
    return manifest
