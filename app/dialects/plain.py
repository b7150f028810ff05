"""POST /predict: the server's own dialect, JSON and its problem bodies.

Runs in:  worker.
"""

from collections.abc import Callable

from app import codec, problems
from app.dialects.dialect import JSON, Asked, Call, Encoded, Headers, Route
from serving.errors import ServingError
from serving.task import Reply

_HEADERS: Headers = [JSON]


class Plain:
    """JSON as app/codec.py has it."""

    def decode(self, call: Call) -> Asked:
        card = call.card
        inputs, encode, signature = codec.decode(call.body, card.signature, call.max_rows, card.signatures)
        return Asked(inputs, _ANSWERS[encode], signature)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, problems.MEDIA_TYPE, problems.of_error(error, request_id)


def _answer(encode: codec.Encode) -> Callable[[Reply], Encoded]:
    return lambda reply: (_HEADERS, encode(reply.outputs))


# one for each form, made once
_ANSWERS: dict[codec.Encode, Callable[[Reply], Encoded]] = {
    encode: _answer(encode) for encode in (codec.encode_instances, codec.encode_columns, codec.encode_instance)
}
