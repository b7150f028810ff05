"""Dialects: the protocols that clients speak, one file each, over one way to a prediction.

A path says which dialect a request is in; the rest of it is the dialect's own.  What all have in common, deadlines,
versions, what is refused when there is too much to do, is decided in app/predict.py.

Runs in:  worker.
"""

from functools import lru_cache

from app.dialects import open_inference, plain, sagemaker, tensorflow_serving, torchserve
from app.dialects.dialect import Route

_PLAIN = Route(plain.Plain())
# the paths of predictions, as metrics have them
NAMES = (
    plain.Plain.name,
    *tensorflow_serving.NAMES,
    open_inference.Infer.name,
    sagemaker.Invocations.name,
    torchserve.Predictions.name,
)
DIALECTS = (open_inference, tensorflow_serving, sagemaker, torchserve)
# Flask's rules for the paths that are found here
RULES = ("/predict", *(rule for dialect in DIALECTS for rule in dialect.RULES))
# those of RULES that a PUT asks for as well
PUT = torchserve.RULES


def find(path: str) -> Route | None:
    """The route of a POST to a path; None where nothing is predicted."""
    return _PLAIN if path == "/predict" else _find(path)


def spelled(path: str) -> str:
    """A path as the routes have it."""
    return tensorflow_serving.spelled(path) if path[:4].lower() == "/v1/" else path


def problem(path: str, status: int, text: str) -> bytes | None:
    """The body that tells of an error at a path, None where that is none of another dialect's."""
    return next((dialect.problem(status, text) for dialect in DIALECTS if path.startswith(dialect.PREFIX)), None)


@lru_cache(256)
def _find(path: str) -> Route | None:
    return next((route for dialect in DIALECTS if (route := dialect.route(path)) is not None), None)
