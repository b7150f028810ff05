"""Models that were fetched, each kept once under the sum of what it holds, and served from there.

    objects/SUM/NAME/VERSION/…   a model folder with one version; its manifest is beside NAME
    seen/URL.json                what a source had when it last answered
    fetched/URL/VERSION,IDENTITY   the object that it was
    tmp/…, locks/…               a fetch under way, and who does it

A model appears by one rename when all of it is on the disk, so that what broke off never becomes a version.  Processes
share a store: who holds an object keeps a lock on its folder, which ends with the process, and evict() leaves it alone.

Runs in:  any process, several at once.
Raises:   SourceError, SourceUnavailable.
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from serving.errors import SourceError, SourceUnavailable
from sources import tree
from sources.archive import unpack_lone
from sources.lock import alone, lock
from sources.source import FULL, Source, digest

# between attempts at a fetch that broke off
PAUSES_S = (1.0, 2.0, 4.0)
PROGRESS_S = 2.0
_MB = 1 << 20


@dataclass(frozen=True)
class Found:
    """The versions that a source has; stale when it gave no answer, and this is what it had before."""

    identities: dict[int, str]
    labels: dict[str, int]
    stale: bool = False
    reason: str = ""


class Fetched(NamedTuple):
    """A model folder in the store with one version, and the identity that its content had when it came."""

    path: Path
    identity: str


def default_root(environ: Mapping[str, str], run_dir: Path) -> Path:
    """Where a store is when nobody says: the user's cache, or the run folder where that cannot be written."""
    if environ.get("MULETEER_STORE"):
        return Path(environ["MULETEER_STORE"]).absolute()
    cache = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or os.devnull, ".cache"), "muleteer")
    with suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
    return cache if os.access(cache, os.W_OK) else run_dir / "store"


class Store:
    """Objects below one folder, of max_bytes together."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        # the locks of what this process uses, one for each hold
        self._held: dict[Path, list[int]] = {}
        self._objects, self._seen, self._fetched, self._tmp, self._locks = (
            root / name for name in ("objects", "seen", "fetched", "tmp", "locks")
        )
        try:
            for folder in (self._objects, self._seen, self._fetched, self._tmp, self._locks):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if folder.stat().st_uid not in (0, os.geteuid()):
                    # whoever owns it can change a model, and so run code
                    raise SourceError(
                        f"the store {root} belongs to another user; set MULETEER_STORE to a folder of yours"
                    )
        except OSError as error:
            raise self._cannot_write(error) from error

    # ---- what there is

    def look(self, source: Source) -> Found:
        """Ask the source, and remember what it says; while it gives no answer, what it said last."""
        try:
            found = source.versions()
        except SourceUnavailable as error:
            known = self.recall(source)
            if known is None:
                raise
            return Found(known.identities, known.labels, True, str(error))
        text = {"url": source.url, "identities": found.identities, "labels": found.labels}
        try:
            tree.write(self._seen_file(source), json.dumps(text).encode())
        except OSError as error:
            raise self._cannot_write(error) from error
        return Found(found.identities, found.labels)

    def recall(self, source: Source) -> Found | None:
        """What the source said last, perhaps to another process; None where it never did."""
        try:
            text = json.loads(self._seen_file(source).read_bytes())
            return Found({int(version): identity for version, identity in text["identities"].items()}, text["labels"])
        except (OSError, ValueError, KeyError):
            return None

    def kept(self, source: Source) -> list[tuple[int, str]]:
        """The versions of it that are here, with the identities that they had; what was used last comes first."""
        found = []
        # a file whose name ends otherwise is being written
        for file in self._record(source).glob("*,*[0-9a-f]"):
            with suppress(OSError):
                if self._object(file).is_dir():
                    found.append((file.stat().st_mtime_ns, file.name))
        names = [name.partition(",") for _, name in sorted(found, reverse=True)]
        return [(int(version), identity) for version, _, identity in names]

    def _seen_file(self, source: Source) -> Path:
        return self._seen / f"{digest(source.key)}.json"

    def _record(self, source: Source, *version: int | str) -> Path:
        """Which object a version with an identity was; without these, the folder of all of the source's."""
        folder = self._fetched / digest([source.key, source.name])
        return folder / ",".join(map(str, version)) if version else folder

    def _object(self, record: Path) -> Path:
        """The model folder that a record names, which may be gone."""
        address, _, name = record.read_text().partition("/")
        return self._objects / address / name

    # ---- a model

    def fetch(self, source: Source, version: int, identity: str) -> Fetched:
        """A model folder with this version, of this identity unless it has changed since somebody looked.

        It is held until release(), or the end of this process.
        """
        what = f"{source.name} version {version}"
        record = self._record(source, version, identity)
        key = digest(str(record.relative_to(self.root)))
        try:
            with alone(self._locks / key, lambda: source.say(f"waiting for another process, which fetches {what}")):
                path = self._whole(source, record)
                return Fetched(path, identity) if path else self._bring(source, version, what, key)
        except OSError as error:
            if error.errno not in FULL:
                raise self._cannot_write(error) from error
            raise SourceError(
                f"the disk of the store {self.root} is full, and {what} is not fetched; free some of it, or set"
                " MULETEER_STORE to a folder on a larger one"
            ) from error

    def hold(self, path: Path) -> None:
        """Keep a path that fetch() gave, perhaps to another process, until release() or the end of this one."""
        descriptor = lock(path.parent, fcntl.LOCK_SH)
        if descriptor is None:
            raise SourceError(f"{path} is not in the store any more; fetch it again")
        self._held.setdefault(path.parent, []).append(descriptor)
        os.utime(path.parent)

    def release(self, path: Path) -> None:
        """Let a path go, once for each time that it was held: when the store is full it may be removed then."""
        if descriptors := self._held.get(path.parent):
            with suppress(OSError):
                os.utime(path.parent)
            os.close(descriptors.pop())

    def verify(self, path: Path) -> None:
        """Read all of it; what is damaged is told, and fetched anew the next time."""
        try:
            tree.verify(path.parent, path.parent.name)
        except tree.Damaged as error:
            (path.parent / tree.MANIFEST).unlink(missing_ok=True)
            raise SourceError(f"the store is damaged: {error}; fetch it again, and look after the disk") from error

    def _whole(self, source: Source, record: Path) -> Path | None:
        """What was fetched before, if it is still there and whole."""
        try:
            path = self._object(record)
            os.utime(record)
        except OSError:
            return None
        try:
            self.hold(path)
            tree.check(path.parent, path.parent.name)
        except SourceError:
            return None
        except tree.Damaged as error:
            source.say(f"the store is damaged: {error}; it is fetched anew")
            self.release(path)
            return None
        return path

    def _bring(self, source: Source, version: int, what: str, key: str) -> Fetched:
        work = self._tmp / key
        try:
            self._sweep()
            size = source.size(version)
            with alone(self._locks / "objects"):
                self._make_room(size or 0, what)
            shutil.rmtree(work, ignore_errors=True)
            identity = self._download(source, version, work / source.name, size, what)
            unpack_lone(work / source.name / str(version), self.max_bytes)
            path = self._commit(work, source.name, what)
            record = self._record(source, version, identity)
            record.parent.mkdir(exist_ok=True, mode=0o700)
            tree.write(record, f"{path.parent.name}/{path.name}".encode())
            return Fetched(path, identity)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _download(self, source: Source, version: int, into: Path, size: int | None, what: str) -> str:
        """Bring the files, and give the identity that they have: the one from before and after."""
        source.say(f"fetching {what} from {source.url}")
        for pause_s in (*PAUSES_S, None):
            identity = source.versions().identities.get(version)
            if identity is None:
                raise source.error(f"version {version} is not there any more")
            into.mkdir(parents=True, exist_ok=True)
            try:
                with _progress(source, into, size, what):
                    source.fetch(version, into, self.max_bytes)
                if source.versions().identities.get(version) == identity:
                    return identity
                shutil.rmtree(into)
                raise SourceUnavailable(f"{source.url}: version {version} changed while it was fetched")
            except SourceUnavailable as error:
                if pause_s is None:
                    raise
                source.say(f"{error}; once more in {pause_s:.0f} s")
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _commit(self, work: Path, name: str, what: str) -> Path:
        """Give the work its address, and hold it."""
        address = tree.seal(work)
        target = self._objects / address
        with alone(self._locks / "objects"):
            try:
                tree.check(target, address)
            except tree.Damaged:
                # not there, or not whole
                if target.exists():
                    target.rename(self._tmp / f"{address}.{os.getpid()}.damaged")
                # in one step with the rename: another may fetch into the same room
                self._make_room(tree.size(work), what)
                work.rename(target)
                tree.sync(self._objects)
            self.hold(target / name)
        return target / name

    # ---- room

    def _make_room(self, size: int, what: str) -> None:
        """Evict what nobody holds, the longest unused first, until so many bytes more are within the bound.  Locked."""
        if size > self.max_bytes:
            raise SourceError(
                f"{what} has {_mb(size)} MB, and the store may hold {_mb(self.max_bytes)} MB; raise store_max_gb"
            )
        sizes = {folder: tree.size(folder) for folder in self._objects.iterdir()}
        for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime_ns):
            if sum(sizes.values()) + size <= self.max_bytes:
                return
            if self._evict(folder):
                del sizes[folder]
        if (held := sum(sizes.values())) + size > self.max_bytes:
            raise SourceError(
                f"{what} has {_mb(size)} MB, and models in use take {_mb(held)} of the {_mb(self.max_bytes)} MB that"
                " the store may hold; raise store_max_gb"
            )

    def _evict(self, folder: Path) -> bool:
        descriptor = lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is None:
            return False
        try:
            # out of sight first: whoever gets the lock afterwards finds another folder there, or none
            gone = self._tmp / f"{folder.name}.{os.getpid()}.evicted"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(descriptor)
        return True

    def _sweep(self) -> None:
        """Remove what fetches left behind that were killed."""
        for name in {path.name for path in (*self._tmp.iterdir(), *self._locks.iterdir())}:
            if name.endswith((".evicted", ".damaged")):
                shutil.rmtree(self._tmp / name, ignore_errors=True)
                continue
            file = self._locks / name
            file.touch(mode=0o600)
            descriptor = lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if descriptor is not None:
                shutil.rmtree(self._tmp / name, ignore_errors=True)
                file.unlink()
                os.close(descriptor)

    def _cannot_write(self, error: OSError) -> SourceError:
        return SourceError(
            f"the store {self.root} cannot be written: {error.strerror} ({error.filename}); set MULETEER_STORE to"
            " another folder"
        )


@contextmanager
def _progress(source: Source, folder: Path, size: int | None, what: str) -> Iterator[None]:
    """Meanwhile, say how much has come, as the disk tells."""
    ended = threading.Event()

    def watch() -> None:
        of = f" of {_mb(size)}" if size is not None else ""
        while not ended.wait(PROGRESS_S):
            source.say(f"fetching {what}: {_mb(tree.size(folder))}{of} MB")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _mb(size: int) -> str:
    return f"{size / _MB:.{0 if size >= 10 * _MB else 1}f}"
