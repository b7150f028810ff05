"""Where models come from: buckets, web servers and MLflow behind one contract, and the store that keeps them.

    source = sources.open("s3://models/digits", say)
    store = Store(root, max_bytes)
    found = store.look(source)                 what there is, or was when the place last answered
    path, identity = store.fetch(source, 2, found.identities[2])

Runs in:  before the fork: nothing here knows of uWSGI or of mules.
Raises:   SourceError and SourceUnavailable, in one sentence, without a secret.
"""

import importlib
import re

from serving.errors import SourceError
from sources.source import Say, Source

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
# each scheme's module and class, imported when a URL asks for it, and with it the library that it needs
_SCHEMES = {
    "s3": ("s3", "S3"),
    "gs": ("gs", "GoogleStorage"),
    "https": ("https", "Https"),
    "http": ("https", "Https"),
    "models": ("mlflow", "Registry"),
    "runs": ("mlflow", "Run"),
}


def open(url: str, say: Say = lambda text: None) -> Source:
    """The source that a URL names; say is told of retries and progress, a line each time."""
    scheme = url.partition(":")[0]
    if scheme.lower() not in _SCHEMES:
        raise SourceError(
            f"{scheme}: is nothing that models come from; a folder, s3://, gs://, https://, models:/ and runs:/ are"
        )
    module, name = _SCHEMES[scheme.lower()]
    try:
        source: Source = getattr(importlib.import_module(f"sources.{module}"), name)(url, say)
    except ValueError as error:
        raise SourceError(f"MODEL is no URL that can be read: {error}; correct it") from error
    return source


def is_url(text: str) -> bool:
    """Whether it names a place elsewhere, and not a folder of this machine."""
    return _SCHEME.match(text) is not None
