"""What libraries tell their logs alone, for those who should know of it.

Each of them asks again by its own rules, and logs that with the URL, which may be a signed one: so it stays here.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sources.source import Say

# who logs that something is asked again, in lines that begin so
_RETRYING = ("urllib3.connectionpool", "botocore.retries.standard", "google.api_core.retry")
_START = "Retry"


@contextmanager
def told(say: Say, what: str) -> Iterator[None]:
    """Meanwhile, say each time that something is asked again."""
    with listening(_Teller(say, what), *_RETRYING):
        yield


@contextmanager
def listening(handler: logging.Handler, *names: str) -> Iterator[None]:
    """Meanwhile, let a handler have all that these loggers are told, and nobody else."""
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class Errors(logging.Handler):
    """The errors that were logged."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.found.append(record.exc_info[1])


class _Teller(logging.Handler):
    def __init__(self, say: Say, what: str) -> None:
        super().__init__()
        self._say, self._what = say, what
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        # Google's library asks for more than it was told to, in nameless threads that nobody waits for
        aside = record.thread != self._thread and str(record.threadName).startswith("Thread-")
        if str(record.msg).startswith(_START) and not aside:
            self._say(f"{self._what} gives no good answer, and is asked again")
