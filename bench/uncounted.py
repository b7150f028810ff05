"""The server without its metrics: what uWSGI loads in place of wsgi.py, to tell what counting costs.

Runs in:  master, and all that is forked from it.
"""

from typing import Any

from app.metrics import Ends
from serving.counts import Batches


def _count_nothing(self: Any, *numbers: object) -> None:
    pass


Ends.count = _count_nothing  # type: ignore[assignment]
Batches.count = _count_nothing  # type: ignore[assignment]

from wsgi import application  # noqa: E402, F401
