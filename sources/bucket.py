"""A model in an object store: version folders, one version's files, an archive or the one file of a model.

The last part of the URL is looked for as a folder and as an object; what looks like an archive, as an object first.
Version folders are those that ModelFolder knows, `1/`, `2/`; files beside them, as model.toml, come with each version.

Raises:   SourceError, SourceUnavailable.
"""

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sources.source import ARCHIVES, Say, Source, Versions, digest, inside


class Entry(NamedTuple):
    """One object: its key, its size in bytes, and a tag that changes with its content."""

    key: str
    size: int
    tag: str


class Bucket(Source):
    """What S3 and Google's storage have in common."""

    def __init__(self, url: str, say: Say) -> None:
        super().__init__(url, say)
        # a key may hold ? and #
        self.bucket, _, key = url.partition("://")[2].partition("/")
        self.prefix = key.strip("/")
        if not self.bucket:
            raise self.error(f"it names no bucket; an address is {url.partition(':')[0]}://bucket/key")
        self._files: dict[int, dict[str, Entry]] | None = None

    @abstractmethod
    def entries(self, prefix: str) -> Iterable[Entry]:
        """All objects whose keys begin so."""

    @abstractmethod
    def entry(self, key: str) -> Entry | None:
        """The object of this very key, or None."""

    @abstractmethod
    def download(self, entry: Entry, file: Path) -> None:
        """Bring an object, the one that was listed, whole or not at all."""

    def versions(self) -> Versions:
        self._files = self._find()
        identities = {
            version: digest([(name, entry.size, entry.tag) for name, entry in sorted(files.items())])
            for version, files in self._files.items()
        }
        return Versions(identities)

    def size(self, version: int) -> int | None:
        return sum(entry.size for entry in self._of(version).values())

    def fetch(self, version: int, into: Path, max_bytes: int) -> None:
        for name, entry in self._of(version).items():
            try:
                file = inside(into, name)
            except ValueError as error:
                raise self.error(f"the key {entry.key!r} is no path of a file; rename the object") from error
            if not (file.exists() and file.stat().st_size == entry.size):
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                except (FileExistsError, NotADirectoryError) as error:
                    raise self.error(f"the key {entry.key!r} lies below another object; rename one") from error
                self.download(entry, file)

    def _of(self, version: int) -> dict[str, Entry]:
        """Where each object of a version belongs."""
        if self._files is None:
            self.versions()
        assert self._files is not None
        if version not in self._files:
            raise self.error(f"version {version} is not there any more")
        return self._files[version]

    def _find(self) -> dict[int, dict[str, Entry]]:
        looks_like_file = self.prefix.lower().endswith(ARCHIVES)
        lone = self.entry(self.prefix) if looks_like_file else None
        entries = [] if lone else self._folder()
        if not entries and not looks_like_file and self.prefix:
            lone = self.entry(self.prefix)
        if lone:
            return {1: {f"1/{self.prefix.rpartition('/')[2]}": lone}}
        if not entries:
            raise self.error(f"there is nothing in bucket {self.bucket} under {self.prefix!r}; correct the key")
        return _by_version(entries)

    def _folder(self) -> list[tuple[str, Entry]]:
        """What lies under the key, by its path there; a console's mark of a folder is no file."""
        prefix = f"{self.prefix}/" if self.prefix else ""
        return [(entry.key[len(prefix) :], entry) for entry in self.entries(prefix) if not entry.key.endswith("/")]


def _by_version(entries: Iterable[tuple[str, Entry]]) -> dict[int, dict[str, Entry]]:
    files = dict(entries)
    folders = {name.partition("/")[0] for name in files if "/" in name}
    # 7, or 007 as some exporters write it, the first of which is ModelFolder's as well
    numbered = {int(folder): folder for folder in sorted(folders, reverse=True) if folder.isdecimal()}
    if not numbered:
        return {1: {f"1/{name}": entry for name, entry in files.items()}}
    beside = {name: entry for name, entry in files.items() if "/" not in name}
    return {
        version: beside
        | {
            f"{version}/{name.partition('/')[2]}": entry
            for name, entry in files.items()
            if name.startswith(f"{folder}/")
        }
        for version, folder in numbered.items()
    }
