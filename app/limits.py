"""What a body may have in it, and what must be installed to read it.

Runs in:  worker.
Raises:   FrameTooLarge, SignatureMismatch, UnsupportedMedia.
"""

import importlib
import math
from collections.abc import Sequence
from typing import Any

from serving.errors import FrameTooLarge, SignatureMismatch, UnsupportedMedia

# of a text in Python, beside its letters
TEXT_BYTES = 32
# numpy's own limit is 2**63 bytes, of batches and of copies in another dtype too
_MOST_ELEMENTS = 1 << 40


def check_rows(rows: int, most: float, what: str = "the body") -> None:
    """Raise where there are more rows than one request may have."""
    if rows > most:
        raise FrameTooLarge(
            f"{what} has {rows} rows and the limit is {most}: max_request_rows in uwsgi.ini;"
            " send them in several requests"
        )


def check_shape(shape: Sequence[int], what: str) -> None:
    """Raise for sizes that no tensor can have: beside a size of 0 they need no bytes."""
    if math.prod(filter(None, shape)) > _MOST_ELEMENTS:
        raise SignatureMismatch(f"{what} has shape {list(shape)}, which is more than any tensor has")


def check_bytes(size: int, most: float, what: str = "what the body holds") -> None:
    """Raise where more would be unpacked than a body may have."""
    if size > most:
        raise FrameTooLarge(
            f"{what} would be {size} bytes unpacked, and the limit is {most}: max_body_bytes in uwsgi.ini"
        )


def need(module: str) -> Any:
    """A library of the extra `media`, which takes memory of a worker only where it is used."""
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0].replace("PIL", "pillow")
        reason = f"this needs {library}, which is not installed: pip install -c constraints.txt '.[media]'"
        raise UnsupportedMedia(reason) from None
