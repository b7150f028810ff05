"""What libraries do by themselves, told in lines of ours.

Each of them asks again by its own rules, and logs that with the URL, which may be a signed one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sources.source import Say

# who logs it, in lines that begin so
_LOGGERS = ("urllib3.connectionpool", "botocore.retries.standard", "google.api_core.retry")
_START = "Retry"


class _Teller(logging.Handler):
    def __init__(self, say: Say, what: str) -> None:
        super().__init__(logging.DEBUG)
        self._say, self._what = say, what

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(_START):
            self._say(f"{self._what} gives no good answer, and is asked again")


@contextmanager
def told(say: Say, what: str) -> Iterator[None]:
    """Meanwhile, say each time that something is asked again, and keep the libraries' own lines to themselves."""
    before, handler = [], _Teller(say, what)
    for logger in map(logging.getLogger, _LOGGERS):
        before.append((logger, logger.level, logger.propagate))
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
