"""POST /predict: the server's own dialect, in JSON and other media types, and its problem bodies.

Runs in:  worker.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from app import codec, forms, media, problems
from app.dialects.dialect import JSON, Asked, Call, Encoded, Headers, Route
from serving.errors import ServingError
from serving.task import Reply

_HEADERS: Headers = [JSON]


class Plain:
    """JSON as app/codec.py has it, or what app/media/ reads and writes."""

    name: ClassVar = "/predict"

    def decode(self, call: Call) -> Asked:
        card = call.card
        sent, wanted = call.environ.get("CONTENT_TYPE", ""), call.environ.get("HTTP_ACCEPT", "")
        if sent in media.PLAIN:
            inputs, encode, signature = codec.decode(call.body, card.signature, call.max_rows, card.signatures)
        else:
            inputs, encode, signature = media.decode(call, sent)
        if wanted not in media.ANY:
            told = media.encoder(wanted, card.signatures[signature].outputs if signature else card.signature.outputs)
            if told is not None:
                return Asked(inputs, partial(_told, told, encode), signature)
        return Asked(inputs, _ANSWERS.get(encode) or _answer(encode), signature)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, problems.MEDIA_TYPE, problems.of_error(error, request_id)


def _told(encode: media.Encode, form: forms.Encode, reply: Reply) -> Encoded:
    return encode(reply.outputs, form)


def _answer(encode: forms.Encode) -> Callable[[Reply], Encoded]:
    return lambda reply: (_HEADERS, encode(reply.outputs))


# one for each form, made once
_ANSWERS: dict[forms.Encode, Callable[[Reply], Encoded]] = {
    encode: _answer(encode) for encode in (forms.encode_instances, forms.encode_columns, forms.encode_instance)
}
