"""Locks among processes, which end with the process that has them: flock on files and folders.

A lock's file is taken away by who had it, and a folder may be moved while somebody waits for it; so whoever gets a lock
looks whether it is still the one of that path.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def lock(path: Path, kind: int) -> int | None:
    """A descriptor with the lock of a file or folder; None when it is not there any more, or not free (LOCK_NB)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


@contextmanager
def alone(file: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """With the lock of a file, which is there for nothing else; waiting is called when another process has it."""
    file.touch(mode=0o600)
    descriptor = lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        waiting()
    while descriptor is None:
        file.touch(mode=0o600)
        descriptor = lock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        file.unlink()
        os.close(descriptor)
