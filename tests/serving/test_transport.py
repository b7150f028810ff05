"""The transport in memory, under the contract of all."""

import pytest

from serving.transport import MemoryTransport

from .transport_contract import SLOTS, TransportContract, never, soon, uuid


class TestMemoryTransport(TransportContract):
    @pytest.fixture
    def transport(self):
        return MemoryTransport(SLOTS, max_frame_bytes=4080, max_reply_bytes=2048)


def test_replies_that_come_too_late_do_not_pile_up():
    transport = MemoryTransport(slots=2)
    for number in range(100):
        transport.publish(uuid(number), 0, b"late")
    assert len(transport._replies) == 8
    assert transport.await_reply(uuid(99), transport.seat(), soon()) == b"late"
    assert transport.take(0, never) == []
