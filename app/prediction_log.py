"""The prediction log: of a part of the requests, what was asked and what was answered, in Parquet files.

A request leaves its tensors in a list that is bounded, and goes on; a thread of the worker writes them.  What does not
fit into the list, or not onto the disk, is dropped and counted.  A file has its name when it is whole; until then it
has another, and a lock: one of that name without a lock is of a process that was killed, and is removed.

Runs in:  worker; nothing of it, and no pyarrow, where prediction_log_sample is 0.
Shapes:   a row of a file is a row of a request; the further axes of a tensor are lists within lists.
Units:    seconds; in files and their names, UTC.
"""

import atexit
import ctypes
import fcntl
import logging
import math
import os
import select
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.counts import Kept
from serving.settings import Settings
from serving.task import Reply, Task, Tensor

# how long rows wait for others, to be written together
_PAUSE_S = 1.0
# of tensors that wait to be written; from half of it on they wait for no others
_MOST_BYTES = 64 << 20
# what an entry, a tensor and a string take beside their bytes, about
_ENTRY_BYTES, _TENSOR_BYTES, _STRING_BYTES = 1024, 256, 64
# files that are open at once: versions and signatures may differ in their columns
_MOST_OPEN = 4
# all that are open in all workers may take this part of the whole
_OPEN_PART = 4
# at the end of a worker, for what is left
_LAST_S = 2.0
_WHOLE, _PART = ".parquet", ".part"

# what C calls must not be collected
_KEPT: list[object] = []

log = logging.getLogger("muleteer.prediction_log")


class Entry(NamedTuple):
    """One request that was answered."""

    time: float
    request_id: str
    model: str
    version: int
    task: Task
    reply: Reply

    def layout(self) -> tuple[Any, ...]:
        """What entries have in common that are written as one."""
        tensors = (self.task.inputs, self.reply.outputs)
        return tuple((name, one.dtype.str, one.shape[1:]) for side in tensors for name, one in side.items())


class PredictionLog:
    """That of one worker."""

    def __init__(self, settings: Settings, counts: Kept) -> None:
        self._below = int(settings.prediction_log_sample * 2**32)
        self._counts = counts
        self._folder = Folder(settings)
        self._entries: list[Entry] = []
        self._bytes = 0
        # of the list and of the counts
        self._lock = threading.Lock()
        self._ends = False
        # made after the fork, as the first would be one for all workers, and the second is known in none.
        # no lock: a worker may end wherever its threads are
        self._hurry = -1
        self._thread: threading.Thread

    def start_worker(self, number: int) -> None:
        """In a fresh worker, counted from 1."""
        self._counts.start_worker(number)
        self._hurry = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        self._thread.start()

    def wants(self, request_id: str) -> bool:
        """Whether a request is of the part that is kept: the same wherever it is asked."""
        return zlib.crc32(request_id.encode()) < self._below

    def offer(self, entry: Entry) -> None:
        """Keep a request, unless too much waits to be written."""
        size = _ENTRY_BYTES + sum(map(_size, (*entry.task.inputs.values(), *entry.reply.outputs.values())))
        with self._lock:
            self._counts.count(Kept.MEANT, entry.task.rows)
            if self._ends or self._bytes + size > _MOST_BYTES:
                self._counts.count(Kept.DROPPED, entry.task.rows)
                return
            self._entries.append(entry)
            self._bytes += size
            if self._bytes > _MOST_BYTES // 2:
                os.eventfd_write(self._hurry, 1)

    def end(self) -> None:
        """Write what is left."""
        self._ends = True
        os.eventfd_write(self._hurry, 1)
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        """All of the thread's life."""
        try:
            self._folder.start()
            # a worker that ends before that has nothing to write with
            _warm_up()
            _at_exit(self.end)
            poll = select.poll()
            poll.register(self._hurry, select.POLLIN)
            while not self._ends:
                if poll.poll(_PAUSE_S * 1000):
                    os.eventfd_read(self._hurry)
                self._turn(time.monotonic())
            # what came during the last one
            self._turn(time.monotonic())
        except Exception:
            log.exception("the prediction log has ended")
        finally:
            with self._lock:
                self._ends = True
                self._counts.drop_rest()

    def _turn(self, now: float) -> None:
        """Write what is there, and end the files that are due."""
        with self._lock:
            ends = self._ends
            entries, self._entries = self._entries, []
            size = self._bytes
        try:
            self._folder.write(entries, now)
            self._folder.finish(now, everything=ends)
        finally:
            with self._lock:
                self._bytes -= size
                self._counts.count(Kept.WRITTEN, self._folder.written)
                self._counts.count(Kept.DROPPED, self._folder.dropped)
            self._folder.written = self._folder.dropped = 0


class Folder:
    """The files, and the limit for all of them: those of other workers too."""

    def __init__(self, settings: Settings) -> None:
        self._path = Path(settings.prediction_log_dir)
        self._most_bytes = settings.prediction_log_max_mb << 20
        self._file_bytes = self._most_bytes // (_OPEN_PART * _MOST_OPEN * settings.prediction_workers)
        # what each worker may add before it looks at the folder again, where there may be many files
        self._room_bytes = self._most_bytes - self._file_bytes * settings.prediction_workers
        self._added: float = math.inf
        self._file_s = settings.prediction_log_file_s
        self._open: dict[Any, _File] = {}
        self._number = 0
        self._fails = False
        # rows, since somebody has taken note of them
        self.written = self.dropped = 0

    def start(self) -> None:
        """Remove what a predecessor that was killed has left."""
        if self._path.is_dir():
            with self._locked():
                self._sweep()

    def write(self, entries: list[Entry], now: float) -> None:
        """Write the rows of some requests; what cannot be written is dropped."""
        import pyarrow

        for _, some in groupby(sorted(entries, key=Entry.layout), key=Entry.layout):
            alike = list(some)
            try:
                table = _table(alike)
                file = self._open.get(table.schema) or self._add(table.schema, now)
                before = file.bytes
                file.write(table)
                self._added += file.bytes - before
                self._fails = False
            except (OSError, pyarrow.ArrowException) as error:
                self.dropped += sum(entry.task.rows for entry in alike)
                self._complain(error)
        if entries and self._added >= self._file_bytes:
            self._make_room()

    def finish(self, now: float, everything: bool = False) -> None:
        """Give those files their names that are large or old enough; everything: all of them."""
        for schema, file in list(self._open.items()):
            if everything or file.failed or file.bytes >= self._file_bytes or now - file.since >= self._file_s:
                del self._open[schema]
                self._close(file)

    def _add(self, schema: Any, now: float) -> "_File":
        if len(self._open) >= _MOST_OPEN:
            self._close(self._open.pop(min(self._open, key=lambda one: self._open[one].since)))
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._number += 1
        # by their names they stand in the order of time
        name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}-{self._number:04}"
        with self._locked():
            self._sweep()
            file = self._open[schema] = _File(self._path / name, schema, now)
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody sweeps while a file that is new has no lock yet."""
        folder = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _close(self, file: "_File") -> None:
        import pyarrow

        before = file.bytes
        try:
            file.close()
            self._added += file.bytes - before
            self.written += file.rows
        except (OSError, pyarrow.ArrowException) as error:
            self.dropped += file.rows
            self._complain(error)

    def _sweep(self) -> None:
        """Remove what killed processes have left."""
        for left in self._path.glob(f"*{_PART}"):
            with suppress(OSError), left.open("rb") as file:
                # somebody else's, as long as that process lives
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()

    def _make_room(self) -> None:
        """Remove the oldest files until all of them together are small enough."""
        sizes = {}
        for file in sorted(self._path.glob("*")):
            with suppress(OSError):
                sizes[file] = file.stat().st_size
        over = sum(sizes.values()) - self._room_bytes
        self._added = 0
        for file, size in sizes.items():
            if over > 0 and file.suffix == _WHOLE:
                # what is no file of ours stays
                with suppress(OSError):
                    # another worker may have been faster
                    file.unlink(missing_ok=True)
                    over -= size

    def _complain(self, error: Exception) -> None:
        """Once, until something can be written again."""
        if not self._fails:
            log.error("the prediction log in %s cannot be written, and rows are dropped: %s", self._path, error)
        self._fails = True


class _File:
    """A file that is being written."""

    def __init__(self, path: Path, schema: Any, now: float) -> None:
        import pyarrow.parquet

        self._whole, self._part = path.with_name(path.name + _WHOLE), path.with_name(path.name + _PART)
        self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._writer = pyarrow.parquet.ParquetWriter(self._file, schema, compression="zstd")
        self.since = now
        self.rows = self.bytes = 0
        self.failed = False

    def write(self, table: Any) -> None:
        """Add a table; where that fails, the file is to be closed."""
        try:
            self._writer.write_table(table)
            self.rows += table.num_rows
            self.bytes = self._file.tell()
        except BaseException:
            self.failed = True
            raise

    def close(self) -> None:
        """Give it its name.  OSError or ArrowException where it cannot be written, and is gone."""
        try:
            self._writer.close()
            self._file.flush()
            self.bytes = self._file.tell()
            if self.failed:
                raise OSError("a part of it is missing")
            self._part.rename(self._whole)
        except BaseException:
            # it would try once more when nobody is there to hear of it
            self._writer.is_open = False
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise
        finally:
            with suppress(OSError):
                self._file.close()


def _warm_up() -> None:
    """Let Arrow make all that it makes once."""
    import pyarrow
    import pyarrow.parquet

    reply = Reply(b"", 0, outputs={"y": np.zeros((1, 1)), "z": np.array([b""], object)})
    table = _table([Entry(0.0, "", "", 0, Task(b"", "", 0.0, 0.0, 1, reply.outputs), reply)])
    with pyarrow.parquet.ParquetWriter(pyarrow.BufferOutputStream(), table.schema, compression="zstd") as writer:
        writer.write_table(table)


def _at_exit(end: Callable[[], None]) -> None:
    """Call end when this process exits, before the libraries that are loaded by now clear up what end needs.

    uWSGI's own hook comes after that.  Where Python ends before the process, as everywhere but in uWSGI, it is called
    then: nothing of Python can be called later.
    """
    call, handle = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: end()), ctypes.c_char()
    _KEPT.extend((call, handle))
    libc = ctypes.CDLL(None)
    getattr(libc, "__cxa_atexit")(call, None, ctypes.byref(handle))
    # calls what is registered with the handle, unless it has been called, and forgets it
    atexit.register(getattr(libc, "__cxa_finalize"), ctypes.byref(handle))


def _table(entries: list[Entry]) -> Any:
    """The rows of requests that have the same layout."""
    import pyarrow

    rows = [entry.task.rows for entry in entries]

    def column(values: Iterable[Any], kind: Any) -> Any:
        return pyarrow.array(np.repeat(np.array(list(values), object), rows), kind)

    columns = {
        "time": column((int(entry.time * 1e6) for entry in entries), pyarrow.int64()).cast(
            pyarrow.timestamp("us", tz="UTC")
        ),
        "request_id": column((entry.request_id for entry in entries), pyarrow.string()),
        "row": pyarrow.array(np.concatenate([np.arange(count) for count in rows]), pyarrow.int32()),
        "model": column((entry.model for entry in entries), pyarrow.string()),
        "version": column((entry.version for entry in entries), pyarrow.int64()),
        "signature": column((entry.task.signature for entry in entries), pyarrow.string()),
    }
    for name in entries[0].task.inputs:
        columns[f"inputs.{name}"] = _array([entry.task.inputs[name] for entry in entries])
    for name in entries[0].reply.outputs:
        columns[f"outputs.{name}"] = _array([entry.reply.outputs[name] for entry in entries])
    return pyarrow.table(columns)


def _array(tensors: list[Tensor]) -> Any:
    """Tensors as one array of their rows."""
    import pyarrow

    joined = np.concatenate(tensors)
    values: Any = joined.reshape(-1)
    if joined.dtype.kind == "O":
        texts = [text if isinstance(text, bytes) else str(text).encode() for text in values.tolist()]
        # where one is no text, none is
        is_text = all(map(_is_text, texts))
        values = pyarrow.array(texts, pyarrow.binary())
        values = values.cast(pyarrow.string()) if is_text else values
    else:
        values = pyarrow.array(values.astype(joined.dtype.newbyteorder("="), copy=False))
    for axis in reversed(range(1, joined.ndim)):
        size, count = joined.shape[axis], math.prod(joined.shape[:axis])
        values = pyarrow.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * np.int32(size), values)
    return values


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _size(tensor: Tensor) -> int:
    """In memory, about."""
    texts = tensor.ravel().tolist() if tensor.dtype.kind == "O" else ()
    return _TENSOR_BYTES + tensor.nbytes + sum(map(len, texts)) + len(texts) * _STRING_BYTES
