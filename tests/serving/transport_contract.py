"""What every transport promises, as tests; test_transport.py and uwsgi_contract.py run them over one each.

A subclass gives the fixture `transport`: an empty one with SLOTS slots, that may play both sides in one process.

Shapes:   a frame starts with 16 bytes of uuid and 2 of seat.
Units:    seconds.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import DeadlineExceeded, FrameTooLarge, QueueFull, ReplyTooLarge

SLOTS = 8
# how long what must come is waited for, and what must not
PATIENCE_S, BRIEFLY_S = 10.0, 0.05


def never(frame):
    return False


def always(frame):
    return True


def after(count):
    """Full once so many frames were taken."""
    taken = []

    def full(frame):
        taken.append(frame)
        return len(taken) >= count

    return full


def uuid(number):
    return number.to_bytes(16)


def frame(number, seat=0, size=18):
    return uuid(number) + seat.to_bytes(2) + bytes(size - 18)


def address(frame):
    """The uuid and the seat that a reply to a frame goes to."""
    return frame[:16], int.from_bytes(frame[16:18])


def soon(wait_s=PATIENCE_S):
    return time.monotonic() + wait_s


def together(*calls):
    """What calls give that run in a thread each."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def take_some(transport, full):
    """Frames, however often the taker is woken for nothing; [] when it was not woken for one."""
    until = soon()
    while (left := until - time.monotonic()) > 0:
        if frames := transport.take(left, full):
            return frames
    return []


def offer(transport, frame, seat=None):
    """Put a frame on the queue, as soon as there is room."""
    until = soon()
    while True:
        try:
            return transport.offer(frame, transport.seat() if seat is None else seat)
        except QueueFull:
            assert time.monotonic() < until, "the queue stayed full"
            time.sleep(0.0005)


def echo(transport, stopped, limit=never):
    """A replica whose replies are the frames."""
    while not stopped.is_set():
        for frame in transport.take(BRIEFLY_S, limit):
            transport.publish(*address(frame), frame)


def ask(transport, numbers):
    """One task after the other from one thread, each answered with its own frame."""
    seat = transport.seat()
    for number in numbers:
        asked = frame(number, seat, 18 + number % 1000)
        offer(transport, asked, seat)
        assert transport.await_reply(uuid(number), seat, soon()) == asked


class TransportContract:
    # ---- the queue

    def test_frames_are_taken_in_the_order_in_which_they_were_offered(self, transport):
        frames = [frame(number) for number in range(SLOTS)]
        for each in frames:
            transport.offer(each, transport.seat())
        assert transport.take(0, never) == frames

    def test_a_frame_comes_as_it_was_offered(self, transport):
        frames = [b"\0" * 40, b"\xff" * 40, bytes(range(256)), b"a"]
        for each in frames:
            transport.offer(each, transport.seat())
            assert transport.take(0, never) == [each]

    def test_take_gives_nothing_when_nothing_comes(self, transport):
        assert transport.take(0, never) == []
        assert transport.take(BRIEFLY_S, never) == []
        transport.offer(frame(1), transport.seat())
        assert transport.take(0, never) == [frame(1)]
        assert transport.take(0, never) == []
        assert transport.take(BRIEFLY_S, never) == []

    def test_a_taker_that_sleeps_wakes_for_a_frame(self, transport):
        def offer_later(number):
            time.sleep(BRIEFLY_S)
            transport.offer(frame(number), transport.seat())

        for number in range(3):
            taken, _ = together(lambda: take_some(transport, never), lambda number=number: offer_later(number))
            assert taken == [frame(number)]

    def test_each_frame_goes_to_one_taker(self, transport):
        offered = [[frame(number) for number in range(first, first + 200)] for first in (0, 1000, 2000)]
        left = set().union(*offered)

        def offer_all(frames):
            for each in frames:
                offer(transport, each)

        def take_all(full):
            own, until = [], soon()
            while left and time.monotonic() < until:
                found = transport.take(BRIEFLY_S, full)
                own += found
                left.difference_update(found)
            return own

        *taken, _, _, _ = together(
            *(lambda full=full: take_all(full) for full in (never, always, lambda frame: frame[15] % 3)),
            *(lambda frames=frames: offer_all(frames) for frames in offered),
        )
        assert sorted(each for own in taken for each in own) == sorted(each for frames in offered for each in frames)
        # and whoever takes, takes the older frame of two first
        for own in taken:
            for frames in offered:
                of_one = [each for each in own if each in frames]
                assert of_one == sorted(of_one)

    def test_take_stops_when_it_is_told_and_leaves_the_rest(self, transport):
        frames = [frame(number) for number in range(5)]
        for each in frames:
            transport.offer(each, transport.seat())
        assert transport.take(0, after(2)) == frames[:2]
        assert transport.take(0, always) == frames[2:3]
        assert transport.take(0, after(9)) == frames[3:]

    def test_full_is_told_of_each_frame_that_was_taken_once(self, transport):
        frames, told = [frame(number) for number in range(3)], []
        for each in frames:
            transport.offer(each, transport.seat())
        assert transport.take(0, told.append) == frames
        assert told == frames

    def test_what_a_taker_leaves_wakes_another(self, transport):
        frames = [frame(number) for number in range(SLOTS)]

        def offer_all():
            time.sleep(BRIEFLY_S)
            for each in frames:
                transport.offer(each, transport.seat())

        for _ in range(5):
            *taken, _ = together(*[lambda: take_some(transport, always)] * SLOTS, offer_all)
            assert sorted(taken) == [[each] for each in frames]

    def test_offer_refuses_when_no_slot_is_free_and_loses_nothing(self, transport):
        queued, number = [], 0
        # with every number of free slots, and so more than once around the ring from every place of it
        for count in [*range(1, SLOTS + 1)] * 3:
            while len(queued) < SLOTS:
                number += 1
                transport.offer(frame(number), transport.seat())
                queued.append(frame(number))
            for _ in range(2):
                with pytest.raises(QueueFull):
                    transport.offer(frame(0), transport.seat())
            assert transport.take(0, after(count)) == queued[:count]
            del queued[:count]
        assert transport.take(0, never) == queued

    def test_of_many_that_offer_at_once_only_as_many_as_there_are_slots_succeed(self, transport):
        def offer_all(first):
            accepted = []
            for number in range(first, first + SLOTS):
                try:
                    transport.offer(frame(number), transport.seat())
                    accepted.append(frame(number))
                except QueueFull:
                    pass
            return accepted

        for _ in range(5):
            accepted = together(*(lambda first=first: offer_all(first) for first in (0, 100, 200)))
            taken = transport.take(0, never)
            assert len(taken) == SLOTS
            assert sorted(taken) == sorted(each for own in accepted for each in own)

    def test_a_frame_may_be_as_large_as_a_slot_and_no_larger(self, transport):
        limit = transport.max_frame_bytes
        with pytest.raises(FrameTooLarge, match=rf"{limit + 1} .* {limit}"):
            transport.offer(b"x" * (limit + 1), transport.seat())
        assert transport.take(0, never) == [] and not transport.waiting()
        # in each slot, with full ones beside it
        frames = [bytes([number]) * limit for number in range(SLOTS)]
        for each in frames:
            transport.offer(each, transport.seat())
        assert transport.take(0, never) == frames

    # ---- the replies

    def test_a_reply_that_is_there_before_it_is_awaited_is_not_missed(self, transport):
        seat = transport.seat()
        for number in range(3):
            transport.offer(frame(number, seat), seat)
            transport.take(0, never)
            transport.publish(uuid(number), seat, b"reply %d" % number)
            assert transport.await_reply(uuid(number), seat, soon()) == b"reply %d" % number

    def test_each_thread_gets_the_reply_of_its_own_uuid(self, transport):
        def call(number):
            seat = transport.seat()
            transport.offer(frame(number, seat), seat)
            return transport.await_reply(uuid(number), seat, soon())

        def answer():
            frames = []
            while len(frames) < 4:
                frames += take_some(transport, never)
            for each in sorted(frames, reverse=True):
                transport.publish(*address(each), each[:16])

        *replies, _ = together(*(lambda number=number: call(number) for number in range(4)), answer)
        assert replies == [uuid(number) for number in range(4)]

    def test_without_a_reply_the_deadline_ends_the_wait(self, transport):
        seat = transport.seat()
        for deadline in (soon(BRIEFLY_S), soon(0), soon(-1)):
            transport.offer(frame(1, seat), seat)
            with pytest.raises(DeadlineExceeded):
                transport.await_reply(uuid(1), seat, deadline)
            assert time.monotonic() >= deadline
            assert transport.take(0, never) == [frame(1, seat)]

    def test_a_reply_that_comes_too_late_never_reaches_the_next_on_its_seat(self, transport):
        seat = transport.seat()

        def miss(number):
            transport.offer(frame(number, seat), seat)
            with pytest.raises(DeadlineExceeded):
                transport.await_reply(uuid(number), seat, soon(0))

        miss(1)
        # before the next is offered, then before it is answered
        transport.publish(uuid(1), seat, b"late")
        miss(2)
        transport.offer(frame(3, seat), seat)
        transport.publish(uuid(2), seat, b"late")
        transport.publish(uuid(3), seat, b"in time")
        assert transport.await_reply(uuid(3), seat, soon()) == b"in time"
        transport.offer(frame(4, seat), seat)
        transport.publish(uuid(3), seat, b"twice")
        with pytest.raises(DeadlineExceeded):
            transport.await_reply(uuid(4), seat, soon(BRIEFLY_S))

    def test_a_reply_is_taken_away(self, transport):
        seat = transport.seat()
        transport.publish(uuid(1), seat, b"reply")
        assert transport.await_reply(uuid(1), seat, soon()) == b"reply"
        with pytest.raises(DeadlineExceeded):
            transport.await_reply(uuid(1), seat, soon(BRIEFLY_S))

    def test_a_reply_may_be_as_large_as_a_block_and_no_larger(self, transport):
        seat, limit = transport.seat(), transport.max_reply_bytes
        transport.offer(frame(1, seat), seat)
        with pytest.raises(ReplyTooLarge, match=rf"{limit + 1} .* {limit}"):
            transport.publish(uuid(1), seat, b"x" * (limit + 1))
        # nothing of it is there, and the thread can still be told
        with pytest.raises(DeadlineExceeded):
            transport.await_reply(uuid(1), seat, soon(BRIEFLY_S))
        transport.publish(uuid(1), seat, b"x" * limit)
        assert transport.await_reply(uuid(1), seat, soon()) == b"x" * limit

    def test_under_load_every_task_gets_its_own_reply(self, transport):
        stopped = threading.Event()

        def clients():
            try:
                together(
                    *(lambda first=first: ask(transport, range(first, first + 100)) for first in range(0, 6000, 1000))
                )
            finally:
                stopped.set()

        together(clients, *(lambda full=full: echo(transport, stopped, full) for full in (never, always)))
        assert transport.take(0, never) == []
        assert not transport.waiting()

    # ---- both

    def test_waiting_is_true_while_a_task_is_queued_or_its_thread_waits(self, transport):
        seat = transport.seat()
        assert not transport.waiting()
        transport.offer(frame(1, seat), seat)
        assert transport.waiting()
        transport.take(0, never)
        assert transport.waiting()
        transport.publish(uuid(1), seat, b"reply")
        assert transport.waiting()
        transport.await_reply(uuid(1), seat, soon())
        assert not transport.waiting()

    def test_nobody_waits_for_a_task_that_is_past_its_deadline_or_was_refused(self, transport):
        seat = transport.seat()
        for number in range(SLOTS):
            transport.offer(frame(number, seat), seat)
        with pytest.raises(DeadlineExceeded):
            transport.await_reply(uuid(1), seat, soon(0))
        # its frame is still queued
        assert transport.waiting()
        with pytest.raises(QueueFull):
            transport.offer(frame(1, seat), seat)
        transport.take(0, never)
        assert not transport.waiting()

    def test_a_thread_keeps_its_seat_and_shares_it_with_no_other(self, transport):
        everybody = threading.Barrier(4)

        def seats():
            own = {transport.seat(), transport.seat()}
            everybody.wait()
            return own | {transport.seat()}

        found = together(*[seats] * 4)
        assert all(len(own) == 1 for own in found)
        assert len(set.union(*found)) == 4
