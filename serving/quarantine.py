"""Inputs that killed the processes that predicted them: refused for a while, or predicted alone.

Inputs are known by a digest of their tensors, so the same input is known again whatever its request is called; and of
the version that was named, so what one cannot take is refused to no other.  While nothing is noted, a look costs one
comparison.

Runs in:  both.
Units:    seconds.
Raises:   ReplicaCrashed.
"""

import hashlib
import mmap
import time
from typing import Protocol

from serving.errors import ReplicaCrashed
from serving.ledger import ANY, DIGEST_BYTES
from serving.wire import content

_REFUSED, _SUSPECT = b"refused", b"suspect"


class Notes(Protocol):
    """What processes tell each other for a while."""

    def put(self, key: bytes, value: bytes, seconds: int) -> None: ...

    def get(self, key: bytes) -> bytes | None: ...

    def delete(self, key: bytes) -> None: ...

    def count(self) -> int: ...


class Quarantine:
    """Made before the fork, and so shared."""

    def __init__(self, notes: Notes, quarantine_s: int) -> None:
        self._notes = notes
        self._quarantine_s = quarantine_s
        # until when anything is noted
        self._until = memoryview(mmap.mmap(-1, 8)).cast("d")

    def noted(self) -> bool:
        """Whether any input is refused or a suspect."""
        return time.monotonic() < self._until[0]

    def count(self) -> int:
        """How many inputs are noted."""
        return self._notes.count() if self.noted() else 0

    def admit(self, frame: bytes, version: int = ANY) -> bool:
        """Whether a frame must be predicted alone; ReplicaCrashed when it is refused."""
        if not self.noted():
            return False
        note = self._notes.get(digest(frame, version)) or b""
        if note.startswith(_REFUSED):
            left_s = int(note.removeprefix(_REFUSED)) - int(time.monotonic())
            if left_s > 0:
                error = ReplicaCrashed(
                    "this input killed the processes that predicted it, and is refused for now (quarantine_s)"
                )
                error.retry_after_s = left_s
                raise error
        return note == _SUSPECT

    def refuse(self, digest: bytes) -> None:
        """It killed its process, alone."""
        self._note(digest, _REFUSED + b"%d" % (int(time.monotonic()) + self._quarantine_s))

    def suspect(self, digest: bytes) -> None:
        """It may have killed its process."""
        self._note(digest, _SUSPECT)

    def clear(self, frame: bytes, version: int = ANY) -> None:
        """It was predicted alone, and did no harm."""
        if self.noted():
            self._notes.delete(digest(frame, version))

    def _note(self, digest: bytes, note: bytes) -> None:
        if self._quarantine_s:
            self._until[0] = time.monotonic() + self._quarantine_s
            self._notes.put(digest, note, self._quarantine_s)


def digest(frame: bytes, version: int = ANY) -> bytes:
    """What an input is known by, where a version was named: never a uuid, which has 16 bytes."""
    person = version.to_bytes(8, signed=True)
    return hashlib.blake2b(content(frame), digest_size=DIGEST_BYTES, person=person).digest()
