"""Every error a request can end in, with its HTTP status and its stable code.

    ServingError                500 internal
    ├─ ClientError              400
    │  ├─ DecodeError           400 bad_body
    │  ├─ SignatureMismatch     400 signature
    │  ├─ Forbidden             403 forbidden
    │  ├─ ModelNotFound         404 model_not_found
    │  ├─ NotAcceptable         406 not_acceptable
    │  ├─ FrameTooLarge         413 too_large
    │  ├─ UnsupportedMedia      415 media_type
    │  └─ ClientGone            400 client_gone, which nobody reads
    ├─ Unavailable              503, with Retry-After
    │  ├─ Overloaded            503 overloaded
    │  └─ ModelLoading          503 model_loading
    ├─ DeadlineExceeded         504 deadline
    ├─ LoadFailed               500 load_failed
    └─ EngineError              500 engine
       ├─ ReplicaCrashed        500 replica_crashed, with Retry-After while it is refused
       └─ ReplyTooLarge         500 reply_too_large

Others end a process, never a request: SettingsError (it refuses to start), ModelError (the model folder cannot be
served, and trying again would not help) and SourceError (the model cannot be had from where it is said to be; as
SourceUnavailable there was no answer, and another time there may be one).

Runs in:  both.
"""

from typing import ClassVar

# characters of a text: more tell nobody more
_MOST_TOLD = 4096


class ServingError(Exception):
    """The root; by itself, a fault of the server."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retry_after_s: int | None = None
    # of the model that ended in it, where one did
    version: int | None = None

    def __str__(self) -> str:
        # what it repeats of a request may have half a surrogate pair, which no body can hold, or be as long as that
        return super().__str__()[:_MOST_TOLD].encode(errors="replace").decode()


class ClientError(ServingError):
    """The request is wrong: sending it again as it is cannot help."""

    status = 400
    code = "bad_request"
    title = "Bad request"


class DecodeError(ClientError):
    """The body is not what its dialect says it is."""

    code = "bad_body"
    title = "The body cannot be read"


class SignatureMismatch(ClientError):
    """The body was read, and is not what the model takes."""

    code = "signature"
    title = "The input does not fit the model"


class Forbidden(ClientError):
    """The settings do not allow it."""

    status = 403
    code = "forbidden"
    title = "This is not allowed here"


class ModelNotFound(ClientError):
    """No such model, version of it, or label is served."""

    status = 404
    code = "model_not_found"
    title = "There is no such model"


class NotAcceptable(ClientError):
    """The answer cannot be given in any form that the client accepts."""

    status = 406
    code = "not_acceptable"
    title = "The answer has no such form"


class FrameTooLarge(ClientError):
    """The body, its rows or its frame are over a limit."""

    status = 413
    code = "too_large"
    title = "The request is too large"


class UnsupportedMedia(ClientError):
    """The body is encoded in a way that is not spoken here."""

    status = 415
    code = "media_type"
    title = "The encoding of the body is not supported"


class ClientGone(ClientError):
    """The client closed its connection before its answer was there."""

    code = "client_gone"
    title = "The client went away"


class Unavailable(ServingError):
    """Not now: the same request may succeed later."""

    status = 503
    code = "unavailable"
    title = "Not available now"
    retry_after_s = 1


class Overloaded(Unavailable):
    """What waits already takes longer than the request may."""

    code = "overloaded"
    title = "There is too much to do"


class ModelLoading(Unavailable):
    """No replica has loaded the model yet, or each of them pauses between failed loads."""

    code = "model_loading"
    title = "The model is being loaded"
    retry_after_s = 2


class DeadlineExceeded(ServingError):
    """No reply came before the deadline."""

    status = 504
    code = "deadline"
    title = "The deadline has passed"


class LoadFailed(ServingError):
    """What was asked to be loaded cannot be, and what served serves on."""

    code = "load_failed"
    title = "It could not be loaded"


class EngineError(ServingError):
    """The model raised, or returned what its signature does not promise."""

    code = "engine"
    title = "The model failed"


class ReplicaCrashed(EngineError):
    """The input killed the process that predicted it, alone."""

    code = "replica_crashed"
    title = "The model crashed on this input"


class ReplyTooLarge(EngineError):
    """The reply is larger than max_reply_bytes."""

    code = "reply_too_large"
    title = "The reply is too large"


class SettingsError(Exception):
    """A setting is wrong; the message names the key, the value, the reason and a value that would do."""


class ModelError(Exception):
    """The model folder cannot be served, and trying again would not help."""


class SourceError(Exception):
    """The model cannot be had from its source; the message names the place, the reason and what would help."""


class SourceUnavailable(SourceError):
    """The source gave no answer: what was fetched from it before can be served."""


def tree(root: type[ServingError]) -> list[type[ServingError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in tree(branch))]


_BY_CODE = {error.code: error for error in tree(ServingError)}
CODES = tuple(_BY_CODE)


def by_code(code: str, detail: str) -> ServingError:
    """The error that a replica put into a reply as code and detail."""
    return _BY_CODE.get(code, ServingError)(detail)
