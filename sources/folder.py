"""A folder of this machine, which is served where it is.

Raises:   SourceError.
"""

import os
from pathlib import Path

from sources.source import Say, Source, Versions, digest


class Folder(Source):
    """Version folders, or the model itself as version 1; nothing is fetched."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        self.path: Path = Path(url)
        self.url = self.key = url
        self.name = self.path.resolve().name

    def versions(self) -> Versions:
        try:
            return Versions({version: _identity(self.path, folder) for version, folder in self._folders().items()})
        except OSError as error:
            raise self.error(f"it cannot be read: {error.strerror} ({error.filename})") from error

    def size(self, version: int) -> int | None:
        return 0

    def fetch(self, version: int, into: Path, max_bytes: int) -> None:
        raise self.error("a folder is served where it is")

    def _folders(self) -> dict[int, Path]:
        if not self.path.is_dir():
            reason = "is not a folder" if self.path.exists() else "does not exist"
            raise self.error(f"it {reason}; set MODEL to a folder that holds a model, or to a URL")
        folders = sorted(self.path.iterdir(), reverse=True)
        return {int(folder.name): folder for folder in folders if folder.name.isdecimal() and folder.is_dir()} or {
            1: self.path
        }


def _identity(root: Path, folder: Path) -> str:
    """Names, sizes and times of a version's files, and of those beside it."""
    found = [_stamp(file) for file in root.iterdir() if file.is_file()] if folder != root else []
    for parent, _, names in os.walk(folder):
        found += [_stamp(Path(parent, name)) for name in names]
    return digest(sorted(found))


def _stamp(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns
