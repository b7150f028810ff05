"""The transport in memory, under the contract of all; its parts by themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ledger import TICKET_BYTES, Again, Held, Seats, Ticket
from serving.memory_transport import MemoryTransport

from .transport_contract import REPLICAS, SEATS, TransportContract, at, frame
from .transport_contract import number as number_of


class TestMemoryTransport(TransportContract):
    @pytest.fixture
    def transport(self):
        transport = MemoryTransport(
            max_frame_bytes=4080, max_reply_bytes=2048, seats=SEATS, replicas=REPLICAS, places=32
        )
        transport.start_replica(1)
        return transport


TICKETS = st.builds(
    Ticket,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.integers(0, 255),
    st.booleans(),
    st.integers(-1, 2**63 - 1),
)


@given(TICKETS)
def test_a_ticket_that_is_encoded_and_decoded_is_the_same(ticket):
    assert len(ticket.encode()) == TICKET_BYTES
    assert Ticket.decode(ticket.encode()) == ticket


def test_a_frame_is_read_only_with_the_ticket_that_it_was_laid_down_for():
    seats = Seats(2, 100)
    seats.sit(at(1, seat=1), frame(1, 50))
    assert seats.awaits(at(1, seat=1)) and seats.frame(at(1, seat=1)) == frame(1, 50)
    assert not seats.awaits(at(1, seat=0)) and seats.frame(at(1, seat=0)) is None
    seats.leave(1)
    # it stays until the next, for whoever judges it
    assert not seats.awaits(at(1, seat=1)) and seats.frame(at(1, seat=1)) == frame(1, 50)
    seats.sit(at(2, seat=1), frame(2))
    assert seats.frame(at(1, seat=1)) is None and seats.frame(at(2, seat=1)) == frame(2)


def test_a_frame_that_is_overwritten_while_it_is_read_is_not_given():
    class Overwritten(Seats):
        """The thread leaves, and lays the next frame down, in the middle of the first read."""

        @property
        def _frames(self):
            memory = self.__dict__["frames"]
            if self.__dict__.pop("armed", False):
                self.sit(at(2, seat=0), frame(2, 30))
            return memory

        @_frames.setter
        def _frames(self, memory):
            self.__dict__["frames"] = memory

    seats = Overwritten(1, 100)
    seats.sit(at(1, seat=0), frame(1, 20))
    seats.__dict__["armed"] = True
    assert seats.frame(at(1, seat=0)) is None
    assert seats.frame(at(2, seat=0)) == frame(2, 30)


def test_what_is_held_is_told_with_its_attempts_and_whether_it_is_predicted():
    held = Held(3)
    places = [held.add(at(number)._replace(attempts=number).encode()) for number in range(3)]
    assert held.add(at(3).encode()) == -1
    held.begin(places[1])
    held.begin(places[2])
    held.end(places[2])
    found = {number_of(ticket.uuid): (place, ticket.attempts, busy) for place, ticket, busy in held.tickets()}
    assert found == {0: (places[0], 0, False), 1: (places[1], 2, True), 2: (places[2], 3, False)}
    held.wipe(places[1])
    assert [number_of(ticket.uuid) for _, ticket, _ in held.tickets()] == [0, 2]
    assert held.add(at(4).encode()) == places[1]
    assert not held.alone()


def test_the_attempts_of_a_place_begin_anew_with_its_next_ticket():
    held = Held(1)
    for _ in range(2):
        place = held.add(at(1).encode())
        for attempts in range(1, 61):
            held.begin(place)
            assert [(ticket.attempts, busy) for _, ticket, busy in held.tickets()] == [(attempts, True)]
            held.end(place)
        held.wipe(place)


def test_what_is_offered_again_comes_by_seats_with_the_suspects_last():
    again = Again(5)
    for number, alone in ((4, True), (3, False), (1, True), (0, False)):
        again.put(at(number, alone=alone))
    assert again.tickets() == [at(0), at(3), at(1, alone=True), at(4, alone=True)]
    again.wipe(0)
    again.wipe(3)
    assert again.tickets() == [at(1, alone=True), at(4, alone=True)]
