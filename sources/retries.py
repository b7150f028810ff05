"""What libraries do by themselves, told in lines of ours.

Each of them asks again by its own rules, and logs that with the URL, which may be a signed one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from sources.source import Say

# who logs it, and how the line begins
_LOGGERS = {
    "urllib3.connectionpool": "Retry",
    "botocore.retries.standard": "Retry needed",
    "google.api_core.retry": "Due to",
}


class _Teller(logging.Handler):
    def __init__(self, say: Say, what: str, start: str) -> None:
        super().__init__(logging.DEBUG)
        self._say, self._what, self._start = say, what, start

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith(self._start):
            self._say(f"{self._what} gives no good answer, and is asked again")


@contextmanager
def told(say: Say, what: str) -> Iterator[None]:
    """Meanwhile, say each time that something is asked again, and keep the libraries' own lines to themselves."""
    before = []
    for name, start in _LOGGERS.items():
        logger, handler = logging.getLogger(name), _Teller(say, what, start)
        before.append((logger, logger.level, logger.propagate, handler))
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level, propagate, handler in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
