"""The memory of what is counted, with which the uWSGI that a reload starts goes on.

The supervisor keeps it, as a file without a name, and each uWSGI maps the parts that it needs, before its fork.  While
one takes over from another both write, each on a side of its own; there are two.  The next one has the side of the one
before the last, which has ended by then, and goes on where that stopped.  Whoever reads adds up both sides.

A part is found by its name and by how it is laid out: code that has another layout begins with a part of its own.

Runs in:  the supervisor makes it; master, and all that is forked from it.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

SIDES = 2
# of uWSGI's environment: the number of the open file, and the side
VARIABLE = "MULETEER_COUNTS"
# of the file, and what /proc says that it is
_NAME = "counts"
_LINK = f"/memfd:{_NAME} (deleted)"
_PARTS = 15
# of the file, which has memory only where something was written; the first one tells of the others
_PART_BYTES = 1 << 36
# of a part: its mark, and for how many units of a side it is
_ENTRY = struct.Struct("qq")


def make() -> int | None:
    """The file; None where the limits of this machine forbid one, and counts begin anew with each uWSGI."""
    with suppress(OSError):
        file = os.memfd_create(_NAME)
        try:
            os.truncate(file, (1 + _PARTS) * _PART_BYTES)
        except OSError:
            os.close(file)
            raise
        return file
    return None


class Memory:
    """The parts that this uWSGI counts in; without a file they end with it."""

    def __init__(self, file: int | None = None, side: int = 0) -> None:
        self._file = file
        self.side, self.sides = (0, 1) if file is None else (side, SIDES)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Memory":
        """The one that the supervisor has left to this process."""
        if VARIABLE not in environ:
            return cls()
        file, side = map(int, environ[VARIABLE].split(","))
        with suppress(OSError):
            if str(Path(f"/proc/self/fd/{file}").readlink()) == _LINK:
                # not for what a model starts
                os.set_inheritable(file, False)
                return cls(file, side)
        with suppress(OSError):
            # uWSGI was told to start itself anew, and has closed it; its parent has not
            kept = Path(f"/proc/{os.getppid()}/fd/{file}")
            if str(kept.readlink()) == _LINK:
                return cls(os.open(kept, os.O_RDWR | os.O_CLOEXEC), side)
        return cls()

    def place(self, number: int) -> int:
        """Where this uWSGI's own unit of that number is, among those of both sides."""
        return number * self.sides + self.side

    def places(self, number: int) -> range:
        """Where the units of that number are, of all sides."""
        return range(number * self.sides, (number + 1) * self.sides)

    def map(self, name: str, layout: object, unit_bytes: int, units: int) -> mmap.mmap:
        """So many units for each side, a unit of one after that of the other; more where a uWSGI before had more."""
        if self._file is not None:
            with mmap.mmap(self._file, mmap.ALLOCATIONGRANULARITY) as head:
                mark = zlib.crc32(f"{name} {layout} {unit_bytes}".encode()) + 1
                for part in range(_PARTS):
                    found, most = _ENTRY.unpack_from(head, part * _ENTRY.size)
                    if found in (0, mark):
                        most = max(most, units)
                        _ENTRY.pack_into(head, part * _ENTRY.size, mark, most)
                        return mmap.mmap(self._file, SIDES * most * unit_bytes, offset=(1 + part) * _PART_BYTES)
        return mmap.mmap(-1, self.sides * units * unit_bytes)
