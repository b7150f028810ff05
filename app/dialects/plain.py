"""POST /predict: the server's own dialect, JSON and its problem bodies.

Runs in:  worker.
"""

from app import codec, problems
from app.dialects.dialect import JSON, Asked, Call, Encoded, Route
from serving.errors import ServingError
from serving.task import Reply


class Plain:
    """JSON as app/codec.py has it."""

    def decode(self, call: Call) -> Asked:
        card = call.card
        inputs, encode, signature = codec.decode(call.body, card.signature, call.max_rows, card.signatures)

        def encoded(reply: Reply) -> Encoded:
            return [JSON], encode(reply.outputs)

        return Asked(inputs, encoded, signature)

    def refuse(self, error: ServingError, request_id: str, route: Route) -> tuple[int, str, bytes]:
        return error.status, problems.MEDIA_TYPE, problems.of_error(error, request_id)
