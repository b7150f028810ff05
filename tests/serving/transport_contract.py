"""What every transport promises, as tests; test_transport.py and uwsgi_contract.py run them over one each.

A subclass gives the fixture `transport`: an empty one with SEATS seats and REPLICAS replicas, of which this process is
the first; it may play both sides.

Shapes:   a frame starts with its task's uuid.
Units:    seconds.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import DeadlineExceeded, FrameTooLarge, ReplyTooLarge
from serving.ledger import ANY, Ticket
from serving.transport import _YIELDS

SEATS, REPLICAS = 24, 4
# tasks at once, where many are needed
MANY = 8
# how long what must come is waited for, and what must not
PATIENCE_S, BRIEFLY_S = 10.0, 0.05
# more rows than there ever are
ALL = 1 << 20


def uuid(number):
    return b"u" + number.to_bytes(15)


def number(uuid):
    return int.from_bytes(uuid[1:])


def frame(number, size=16):
    return uuid(number) + bytes(size - 16)


def at(number, seat=None, rows=1, alone=False, version=ANY):
    """A ticket; at a seat of its own as long as no more than SEATS are about."""
    return Ticket(uuid(number), rows, number % SEATS if seat is None else seat, alone=alone, version=version)


def soon(wait_s=PATIENCE_S):
    return time.monotonic() + wait_s


def together(*calls):
    """What calls give that run in a thread each."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def offer(transport, number, **options):
    """Put a task on the queue.  Returns its ticket."""
    ticket = at(number, **options)
    transport.offer(ticket, frame(number))
    return ticket


def take(transport, max_rows=ALL):
    return transport.take(0, max_rows)


def take_some(transport, max_rows=ALL):
    """Tasks, however often the taker is woken for nothing; [] when it was not woken for one."""
    until = soon()
    while (left := until - time.monotonic()) > 0:
        if taken := transport.take(left, max_rows):
            return taken
    return []


def numbers(taken):
    """Which tasks they are, once it is sure that each has its own frame."""
    assert [one.frame[:16] for one in taken] == [one.ticket.uuid for one in taken]
    return [number(one.ticket.uuid) for one in taken]


def leave(transport, ticket):
    """Its thread waits no longer.  Returns the reply if it is there."""
    # whoever leaves has a seat
    transport.seat()
    try:
        return transport.await_reply(ticket, soon(0))
    except DeadlineExceeded:
        return None


def finish(transport, taken):
    """Drop what was taken, as if the threads had left."""
    for one in taken:
        leave(transport, one.ticket)
        transport.drop(one)


def echo(transport, stopped, max_rows=ALL):
    """A replica whose replies are the frames."""
    while not stopped.is_set():
        for one in transport.take(BRIEFLY_S, max_rows):
            transport.publish(one, one.frame)


def ask(transport, tasks):
    """One task after the other from one thread, each answered with its own frame."""
    seat = transport.seat()
    for number in tasks:
        ticket, asked = at(number, seat), frame(number, 16 + number % 1000)
        transport.offer(ticket, asked)
        assert transport.await_reply(ticket, soon()) == asked


def die(transport, id, heir):
    """Replica id dies, and this process is another from now on, which recovers what it held."""
    transport.start_replica(heir)
    return recover(transport, id)


def recover(transport, id):
    with transport.locked():
        return transport.recover(id, lambda ticket, frame: b"guilty" + frame)


class TransportContract:
    # ---- the queue

    def test_tasks_are_taken_in_the_order_in_which_they_were_offered(self, transport):
        tickets = [offer(transport, number) for number in range(MANY)]
        taken = take(transport)
        assert [one.ticket for one in taken] == tickets
        assert numbers(taken) == [*range(MANY)]

    def test_a_frame_comes_as_it_was_offered(self, transport):
        for number, sent in enumerate([b"\0" * 40, b"\xff" * 40, bytes(range(256)), b"a", b""]):
            transport.offer(at(number, seat=number % 2), sent)
            (one,) = take(transport)
            assert one.frame == sent
            finish(transport, [one])

    def test_take_gives_nothing_when_nothing_comes(self, transport):
        assert take(transport) == []
        assert transport.take(BRIEFLY_S, ALL) == []
        offer(transport, 1)
        assert numbers(take(transport)) == [1]
        assert take(transport) == []
        assert transport.take(BRIEFLY_S, ALL) == []

    def test_a_taker_that_sleeps_wakes_for_a_task(self, transport):
        def offer_later(number):
            time.sleep(BRIEFLY_S)
            offer(transport, number)

        for number in range(3):
            taken, _ = together(lambda: take_some(transport), lambda number=number: offer_later(number))
            assert numbers(taken) == [number]

    def test_only_one_that_sleeps_is_rung(self, transport):
        rings = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "_ring", lambda: rings.append(1))
            offer(transport, 1)
            assert not rings
            # it looks once more when it says that it sleeps: what came before that was not rung for
            assert transport._nap(0) and numbers(take(transport)) == [1]
            transport._asleep[2] = 1
            offer(transport, 2)
            assert rings == [1]
            # nor for one that is dead
            recover(transport, 3)
            rings.clear()
            offer(transport, 3)
            assert not rings

    def test_much_that_waits_is_shared_with_those_who_sleep(self, transport):
        for number in range(9):
            offer(transport, number)
        transport._asleep[2] = 1
        # so much that each takes a third of it
        transport._asleep[3] = 1
        taken = transport.take(0, ALL, 9)
        assert numbers(taken) == [0, 1, 2]
        finish(transport, taken)
        # not so much, and it is for one
        taken = transport.take(0, ALL, 9)
        assert numbers(taken) == [3, 4, 5, 6, 7, 8]
        finish(transport, taken)
        # nothing is left behind where the last one is shared
        offer(transport, 9)
        taken = transport.take(0, ALL, 0)
        assert numbers(taken) == [9]
        finish(transport, taken)
        assert transport.take(0, ALL, 0) == []
        # nobody else is free
        transport._asleep[2] = transport._asleep[3] = 0
        for number in range(10, 19):
            offer(transport, number)
        taken = transport.take(0, ALL, 1)
        assert numbers(taken) == [*range(10, 19)]
        finish(transport, taken)

    def test_only_a_taker_of_several_tasks_lets_others_run_before_it_takes_again(self, transport):
        yields = []

        def offered(*tasks):
            """How often the taker yields for them."""
            for task in tasks:
                offer(transport, task)
            yields.clear()
            taken = take(transport)
            assert numbers(taken) == [*tasks]
            finish(transport, taken)
            return len(yields)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "sched_yield", lambda: yields.append(1))
            assert offered(1) == 0
            assert offered(2, 3) == 0
            assert offered(4) == _YIELDS
            assert offered(5) == 0

    def test_what_comes_while_a_taker_lets_others_run_comes_with_it(self, transport):
        offer(transport, 1)
        offer(transport, 2)
        finish(transport, take(transport))
        offer(transport, 3)
        with pytest.MonkeyPatch.context() as patch:
            late = [4]
            patch.setattr(os, "sched_yield", lambda: late and offer(transport, late.pop()))
            assert numbers(take(transport)) == [3, 4]

    def test_each_task_goes_to_one_taker(self, transport):
        # three that offer, each with seats of its own
        firsts, count, seats = (0, 1000, 2000), 200, SEATS // 3
        left = {number for first in firsts for number in range(first, first + count)}
        free = [threading.Semaphore(1) for _ in range(SEATS)]

        def offer_all(row, first):
            for number in range(first, first + count):
                ticket = at(number, seat=row * seats + number % seats)
                assert free[ticket.seat].acquire(timeout=PATIENCE_S)
                transport.offer(ticket, frame(number))

        def take_all(max_rows):
            own, until = [], soon()
            while left and time.monotonic() < until:
                taken = transport.take(BRIEFLY_S, max_rows)
                own += numbers(taken)
                finish(transport, taken)
                left.difference_update(numbers(taken))
                for one in taken:
                    free[one.ticket.seat].release()
            return own

        *taken, _, _, _ = together(
            *(lambda max_rows=max_rows: take_all(max_rows) for max_rows in (ALL, 1, 3)),
            *(lambda row=row, first=first: offer_all(row, first) for row, first in enumerate(firsts)),
        )
        assert sorted(number for own in taken for number in own) == [
            number for first in firsts for number in range(first, first + count)
        ]
        # and whoever takes, takes the older one of two first
        for own in taken:
            for first in firsts:
                of_one = [number for number in own if first <= number < first + count]
                assert of_one == sorted(of_one)

    def test_take_counts_rows_and_leaves_the_rest(self, transport):
        for number, rows in enumerate([1, 1, 3, 1, 9, 1]):
            offer(transport, number, rows=rows)
        assert numbers(take(transport, 2)) == [0, 1]
        # the one that makes it full comes whole
        assert numbers(take(transport, 2)) == [2]
        assert numbers(take(transport, 2)) == [3, 4]
        assert numbers(take(transport, 2)) == [5]

    def test_no_more_is_taken_than_can_be_written_down(self, transport):
        places = transport._held[0]._places
        held, number = [], 0
        while len(held) < places:
            offer(transport, number, seat=number % SEATS)
            number += 1
            held += take(transport)
            # its seat is needed for the next
            leave(transport, held[-1].ticket)
        offer(transport, number)
        assert take(transport) == []
        transport.drop(held.pop())
        assert numbers(take(transport)) == [number]

    def test_what_a_taker_leaves_wakes_another(self, transport):
        def offer_all(first):
            time.sleep(BRIEFLY_S)
            for number in range(first, first + MANY):
                offer(transport, number, seat=number % MANY)

        for first in range(0, 5 * MANY, MANY):
            *taken, _ = together(*[lambda: take_some(transport, 1)] * MANY, lambda first=first: offer_all(first))
            assert sorted(map(numbers, taken)) == [[number] for number in range(first, first + MANY)]
            finish(transport, [one for own in taken for one in own])

    def test_all_seats_may_offer_at_once(self, transport):
        third = SEATS // 3
        for turn in range(40):
            # with every number of tasks, and so from every place of a ring
            first = turn * SEATS
            tasks = [[first + row * third + place for place in range(turn % third + 1)] for row in range(3)]
            together(*(lambda own=own: [offer(transport, number) for number in own] for own in tasks))
            taken = take(transport)
            assert sorted(numbers(taken)) == [number for own in tasks for number in own]
            assert transport.waiting_rows() == len(taken)
            finish(transport, taken)

    def test_a_frame_may_be_as_large_as_its_seat_and_no_larger(self, transport):
        limit = transport.max_frame_bytes
        with pytest.raises(FrameTooLarge, match=rf"{limit + 1} .* {limit}: max_frame_bytes"):
            transport.offer(at(1), b"x" * (limit + 1))
        assert take(transport) == [] and not transport.waiting()
        # at each seat, with full ones beside it
        for number in range(MANY):
            transport.offer(at(number), bytes([number]) * limit)
        assert [one.frame for one in take(transport)] == [bytes([number]) * limit for number in range(MANY)]

    def test_what_nobody_waits_for_any_more_is_not_taken(self, transport):
        tickets = [offer(transport, number) for number in range(4)]
        leave(transport, tickets[1])
        leave(transport, tickets[3])
        # the next at its seat
        offer(transport, 5, seat=tickets[3].seat)
        assert numbers(take(transport)) == [0, 2, 5]

    def test_a_seat_is_queued_once_however_many_left_it(self, transport):
        for turn in range(100):
            for seat in range(SEATS):
                ticket = offer(transport, turn * SEATS + seat, seat=seat)
                if turn < 99:
                    leave(transport, ticket)
            assert sorted(transport._queue_of_seats()) == [*range(SEATS)]
        taken = take(transport)
        # the next one has the place of the one that left
        assert numbers(taken) == [*range(99 * SEATS, 100 * SEATS)]
        assert take(transport) == [] and transport._queue_of_seats() == []
        finish(transport, taken)
        offer(transport, 1)
        assert numbers(take(transport)) == [1]

    def test_what_was_claimed_is_not_taken_however_often_its_seat_is_queued(self, transport):
        offer(transport, 1)
        transport._push(1)
        assert numbers(take(transport)) == [1]
        transport._push(1)
        assert take(transport) == [] and transport._queue_of_seats() == []
        # and what is offered next is
        leave(transport, at(1))
        transport._push(1)
        offer(transport, 1 + SEATS)
        assert numbers(take(transport)) == [1 + SEATS]
        assert take(transport) == []

    # ---- what is lost on the way

    def test_what_a_worker_did_not_push_is_dropped_when_the_next_one_starts(self, transport):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "_push", lambda seat: None)
            offer(transport, 1)
        # nor is what it did
        offer(transport, 2)
        offer(transport, 3)
        transport.start_seats([1, 2])
        assert numbers(take(transport)) == [3] and transport.waiting_rows() == 1
        for number in (SEATS + 1, SEATS + 2):
            offer(transport, number)
        assert numbers(take(transport)) == [SEATS + 1, SEATS + 2]

    def test_what_the_queue_has_lost_is_offered_again_when_a_worker_starts(self, transport):
        for number in range(3):
            offer(transport, number, alone=number == 2)
        with transport.locked():
            assert [transport._pull() for _ in range(3)] == [0, 1, 2]
        offer(transport, 3)
        transport.start_seats([4])
        assert numbers(take(transport)) == [0, 1, 3]
        assert numbers(take(transport)) == [2]
        for seat in range(3):
            leave(transport, at(seat))
            offer(transport, SEATS + seat)
        assert numbers(take(transport)) == [SEATS, SEATS + 1, SEATS + 2]

    def test_what_a_dead_replica_pulled_and_did_not_write_down_is_offered_again(self, transport):
        for number in range(3):
            offer(transport, number)
        with transport.locked():
            assert transport._pull() == 0
        recovery = die(transport, 1, heir=2)
        assert not any(recovery)
        assert numbers(take(transport)) == [0, 1, 2]
        assert take(transport) == []

    def test_what_is_pushed_while_somebody_recovers_is_taken_once(self, transport):
        push, late = transport._push, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "_push", late.append)
            ticket = offer(transport, 1)
            recover(transport, 2)
        assert numbers(take(transport)) == [1]
        push(*late)
        assert take(transport) == []
        leave(transport, ticket)
        offer(transport, 1 + SEATS)
        assert numbers(take(transport)) == [1 + SEATS]
        assert take(transport) == []

    # ---- the replies

    def test_a_reply_that_is_there_before_it_is_awaited_is_not_missed(self, transport):
        seat = transport.seat()
        for number in range(3):
            ticket = offer(transport, number, seat=seat)
            transport.publish(*take(transport), b"reply %d" % number)
            assert transport.await_reply(ticket, soon()) == b"reply %d" % number

    def test_each_thread_gets_the_reply_of_its_own_uuid(self, transport):
        def call(number):
            return transport.await_reply(offer(transport, number, seat=transport.seat()), soon())

        def answer():
            taken = []
            while len(taken) < 4:
                taken += take_some(transport)
            for one in sorted(taken, key=lambda one: one.frame, reverse=True):
                transport.publish(one, one.frame)

        *replies, _ = together(*(lambda number=number: call(number) for number in range(4)), answer)
        assert replies == [frame(number) for number in range(4)]

    def test_without_a_reply_the_deadline_ends_the_wait(self, transport):
        seat = transport.seat()
        for number, deadline in enumerate([soon(BRIEFLY_S), soon(0), soon(-1)]):
            ticket = offer(transport, number, seat=seat)
            with pytest.raises(DeadlineExceeded):
                transport.await_reply(ticket, deadline)
            assert time.monotonic() >= deadline
            assert not transport.waiting()
            assert take(transport) == []

    def test_a_reply_that_comes_too_late_never_reaches_the_next_on_its_seat(self, transport):
        seat = transport.seat()

        def miss(number):
            ticket = offer(transport, number, seat=seat)
            (taken,) = take(transport)
            with pytest.raises(DeadlineExceeded):
                transport.await_reply(ticket, soon(0))
            return taken

        # before the next is offered, then before it is answered
        transport.publish(miss(1), b"late")
        late = miss(2)
        ticket = offer(transport, 3, seat=seat)
        transport.publish(late, b"late")
        (third,) = take(transport)
        transport.publish(third, b"in time")
        assert transport.await_reply(ticket, soon()) == b"in time"
        ticket = offer(transport, 4, seat=seat)
        transport.publish(third, b"twice")
        with pytest.raises(DeadlineExceeded):
            transport.await_reply(ticket, soon(BRIEFLY_S))

    def test_a_reply_that_nobody_waits_for_is_not_kept(self, transport):
        ticket = offer(transport, 1)
        (taken,) = take(transport)
        leave(transport, ticket)
        transport.publish(taken, b"late")
        assert transport._replies.find(ticket) is None

    def test_a_reply_that_another_replica_leaves_too_late_hides_none(self, transport):
        seat = transport.seat()
        late = at(1, seat)
        ticket = offer(transport, 2, seat=seat)
        transport.publish(*take(transport), b"reply")
        # stopped since it looked whether anybody waits, and left its reply now
        transport._replies.put(late, 1, b"late")
        assert transport.await_reply(ticket, soon()) == b"reply"

    def test_half_a_reply_is_never_found(self, transport):
        replies = transport._replies
        replies.put(at(1), 0, b"short")
        for longer in (b"a longer reply", b"less"):
            whole = replies._uuids
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(replies, "_uuids", bytearray(whole[:]))
                replies.put(at(1 + SEATS), 0, longer)
            # but for the last step all is done
            assert replies.find(at(1 + SEATS)) is None
        replies.put(at(1 + SEATS), 0, b"whole")
        assert replies.find(at(1 + SEATS)) == b"whole" and replies.find(at(1)) is None

    def test_a_reply_may_be_as_large_as_the_limit_and_no_larger(self, transport):
        limit = transport.max_reply_bytes
        ticket = offer(transport, 1, seat=transport.seat())
        (taken,) = take(transport)
        with pytest.raises(ReplyTooLarge, match=rf"{limit + 1} .* {limit}"):
            transport.publish(taken, b"x" * (limit + 1))
        # nothing of it is there, and the thread can still be told
        assert transport._replies.find(ticket) is None
        transport.publish(taken, b"x" * limit)
        assert transport.await_reply(ticket, soon()) == b"x" * limit

    def test_under_load_every_task_gets_its_own_reply(self, transport):
        stopped = threading.Event()

        def clients():
            try:
                together(
                    *(lambda first=first: ask(transport, range(first, first + 100)) for first in range(0, 6000, 1000))
                )
            finally:
                stopped.set()

        together(clients, *(lambda max_rows=max_rows: echo(transport, stopped, max_rows) for max_rows in (ALL, 1)))
        assert take(transport) == []
        assert not transport.waiting()

    # ---- a replica's death

    def test_what_a_dead_replica_only_held_is_offered_again_ahead_of_the_queue(self, transport):
        tickets = [offer(transport, number) for number in range(3)]
        take(transport, 2)
        recovery = die(transport, 1, heir=2)
        assert recovery.again == tickets[:2] and not recovery.guilty and not recovery.late
        assert recovery.predicting == 0
        # once, and with the rest of the queue
        assert [one.ticket for one in take(transport)] == tickets
        assert recover(transport, 1).again == []

    def test_what_a_dead_replica_predicted_is_offered_again_one_at_a_time(self, transport):
        for number in range(4):
            offer(transport, number)
        batch = take(transport, 3)
        transport.begin(batch[:2])
        recovery = die(transport, 1, heir=2)
        assert recovery.predicting == 2
        assert [(ticket.attempts, ticket.alone) for ticket in recovery.again] == [(1, True), (1, True), (0, False)]
        # the innocent first, and the suspects each by itself
        for expected in ([2, 3], [0], [1]):
            taken = take(transport)
            assert numbers(taken) == expected
            finish(transport, taken)

    def test_a_task_that_was_predicted_as_often_as_it_may_be_is_answered_with_the_verdict(self, transport):
        ticket, other = offer(transport, 1, seat=transport.seat()), offer(transport, 2, seat=SEATS - 1)
        transport.begin(take(transport))
        die(transport, 1, heir=2)
        transport.begin(take(transport))
        recovery = die(transport, 2, heir=1)
        assert [found.uuid for found in recovery.guilty] == [ticket.uuid] and recovery.again == []
        assert transport.await_reply(ticket, soon()) == b"guilty" + frame(1)
        # the other of its batch was not harmed
        assert numbers(take(transport)) == [2]
        leave(transport, other)

    def test_a_task_that_was_predicted_in_a_batch_that_raised_may_be_predicted_once_more(self, transport):
        offer(transport, 1)
        (taken,) = take(transport)
        assert transport.attempts_left(taken)
        transport.begin([taken])
        transport.end([taken])
        assert transport.attempts_left(taken)
        transport.begin([taken])
        assert not transport.attempts_left(taken)
        transport.end([taken])
        transport.end([taken])

    def test_no_task_is_predicted_more_often_than_it_may_be_whatever_its_replica_died_of(self, transport):
        tickets = [offer(transport, 1, seat=transport.seat()), offer(transport, 2)]
        taken = take(transport)
        # the batch raised, then the first alone, and the replica died before it could say so
        transport.begin(taken)
        transport.end(taken)
        transport.begin(taken[:1])
        transport.end(taken[:1])
        recovery = die(transport, 1, heir=2)
        # it is answered, and nobody is guilty
        assert [(found.uuid, found.attempts, found.alone) for found in recovery.guilty] == [(uuid(1), 2, False)]
        assert transport.await_reply(tickets[0], soon()) == b"guilty" + frame(1)
        assert [(found.uuid, found.attempts, found.alone) for found in recovery.again] == [(uuid(2), 1, True)]

    def test_only_a_task_that_was_predicted_alone_is_guilty(self, transport):
        tickets = [offer(transport, 1, seat=transport.seat()), offer(transport, 2)]
        transport._max_attempts = 1
        transport.begin(take(transport))
        assert [found.alone for found in die(transport, 1, heir=2).guilty] == [False, False]
        assert transport.await_reply(tickets[0], soon()) == b"guilty" + frame(1)
        leave(transport, tickets[1])
        offer(transport, 3)
        transport.begin(take(transport))
        assert [found.alone for found in die(transport, 2, heir=1).guilty] == [True]

    def test_a_verdict_is_not_asked_for_when_the_thread_leaves_just_now(self, transport):
        ticket = offer(transport, 1)
        transport._max_attempts = 1
        transport.begin(take(transport))
        with pytest.MonkeyPatch.context() as patch:
            # between the look at who waits and the look at the frame the next one sits down
            patch.setattr(transport._seats, "frame", lambda ticket: None)
            with transport.locked():
                recovery = transport.recover(1, None)
        assert [found.uuid for found in recovery.guilty] == [ticket.uuid]
        assert transport._replies.find(ticket) is None

    def test_attempts_are_not_forgotten_when_two_die_that_held_one_task(self, transport):
        seat = transport.seat()
        for number, order in enumerate([(1, 2), (2, 1)]):
            ticket = offer(transport, number, seat=seat)
            # the first wrote it down, and died before it claimed it; another died, and it was offered again; the second
            # died of it
            transport.start_replica(1)
            transport._own.add(ticket.encode())
            transport.start_replica(2)
            transport.begin(take(transport))
            transport.start_replica(3)
            for id in order:
                recover(transport, id)
            (taken,) = take(transport)
            assert (taken.ticket.attempts, taken.ticket.alone) == (1, True)
            transport.begin([taken])
            assert [found.attempts for found in die(transport, 3, heir=1).guilty] == [2]
            assert transport.await_reply(ticket, soon()) == b"guilty" + frame(number)
            assert take(transport) == []

    def test_what_was_answered_is_held_no_more(self, transport):
        ticket = offer(transport, 1, seat=transport.seat())
        (taken,) = take(transport)
        transport.begin([taken])
        transport.publish(taken, b"reply")
        recovery = die(transport, 1, heir=2)
        assert not any(recovery)
        assert transport.await_reply(ticket, soon()) == b"reply"

    def test_a_reply_that_nobody_was_woken_for_is_found_by_whoever_recovers(self, transport):
        ticket = offer(transport, 1, seat=transport.seat())
        (taken,) = take(transport)
        transport.begin([taken])
        # as far as publish got
        transport._replies.put(ticket, 0, b"reply")
        recovery = die(transport, 1, heir=2)
        assert recovery.again == recovery.guilty == []
        assert transport.await_reply(ticket, soon()) == b"reply"
        assert take(transport) == []

    def test_what_nobody_waits_for_is_not_recovered_and_its_predict_is_told(self, transport):
        tickets = [offer(transport, number) for number in range(3)]
        transport.begin(take(transport)[:2])
        leave(transport, tickets[1])
        leave(transport, tickets[2])
        recovery = die(transport, 1, heir=2)
        assert [(found.uuid, found.attempts, found.alone) for found, _ in recovery.late] == [(uuid(1), 1, False)]
        assert [found.uuid for found in recovery.again] == [uuid(0)]

    def test_a_task_predicted_alone_whose_thread_has_left_is_told_as_alone(self, transport):
        ticket = offer(transport, 1)
        transport.begin(take(transport))
        leave(transport, ticket)
        assert [found.alone for found, _ in die(transport, 1, heir=2).late] == [True]

    def test_a_sleeping_replica_wakes_for_what_is_offered_again(self, transport):
        offer(transport, 1)
        taken = take(transport)
        transport.begin(taken)
        transport.start_replica(2)

        def recover_later():
            time.sleep(BRIEFLY_S)
            assert recover(transport, 1).again

        taken, _ = together(lambda: take_some(transport), recover_later)
        assert numbers(taken) == [1]

    def test_one_replica_is_kept_away_from_suspects_while_more_than_one_is_alive(self, transport):
        for number in range(3):
            offer(transport, number)
        transport.begin(take(transport))
        die(transport, 1, heir=2)
        offer(transport, 3)
        held = {}
        for id in (1, 2, 3):
            transport.start_replica(id, lambda: 3)
            held[id] = numbers(take(transport))
        assert held == {1: [0], 2: [1], 3: [3]}
        # the last one alive has to
        transport.start_replica(4, lambda: 1)
        recover(transport, 1)
        recover(transport, 2)
        assert numbers(take(transport)) == [0]

    def test_suspects_are_taken_one_at_a_time_and_by_all_replicas_but_one(self, transport):
        for number in range(2):
            offer(transport, number)
        for number in range(2, 5):
            offer(transport, number, alone=True)
        held = {}
        for id in (1, 2, 3):
            transport.start_replica(id, lambda: 3)
            held[id] = take(transport)
        assert [numbers(taken) for taken in held.values()] == [[0, 1], [2], [3]]
        # nor is the first woken for one
        transport.start_replica(1, lambda: 3)
        assert not transport._tempting()
        finish(transport, held[1])
        assert not transport._tempting() and take(transport) == []
        transport.start_replica(2, lambda: 3)
        finish(transport, held[2])
        transport.start_replica(1, lambda: 3)
        assert transport._tempting() and numbers(take(transport)) == [4]

    def test_a_suspect_wakes_a_sleeping_replica(self, transport):
        def offer_later():
            time.sleep(BRIEFLY_S)
            offer(transport, 1, alone=True)

        woken, _ = together(lambda: take_some(transport), offer_later)
        assert numbers(woken) == [1]

    # ---- versions

    def test_a_task_that_names_a_version_is_left_to_those_who_serve_it(self, transport):
        transport.serve(1, True, lambda version: True)
        for number, version in enumerate([2, 1, ANY, 0, 2]):
            offer(transport, number, version=version)
        assert numbers(take(transport)) == [1, 2]
        assert not transport._tempting() and take(transport) == []
        transport.start_replica(2)
        transport.serve(2, False, lambda version: True)
        # the queue is for the others
        offer(transport, 5)
        offer(transport, 6, version=2)
        assert transport._tempting() and numbers(take(transport)) == [0, 4, 6]
        assert not transport._tempting() and take(transport) == []
        transport.start_replica(3)
        transport.serve(0, True, lambda version: True)
        # what others pulled and left was ahead of what is on the queue now
        assert numbers(take(transport, 1)) == [3] and numbers(take(transport)) == [5]

    def test_a_version_that_nobody_serves_is_taken_by_those_who_serve_by_default(self, transport):
        offer(transport, 1, version=3)
        for id, default in ((2, False), (1, True)):
            transport.start_replica(id)
            transport.serve(id, default, lambda version: version < 3)
            assert transport._tempting() is default
            assert numbers(take(transport)) == [1] * default

    def test_what_names_a_version_comes_again_to_those_who_serve_it(self, transport):
        transport.serve(2, False, lambda version: True)
        offer(transport, 1, version=2)
        transport.begin(take(transport))
        transport.start_replica(2)
        transport.serve(1, True, lambda version: True)
        assert [ticket.uuid for ticket in recover(transport, 1).again] == [uuid(1)]
        # but for its seat, which may still be on the queue
        assert take(transport) == [] and not transport._tempting()
        transport.start_replica(3)
        transport.serve(2, False, lambda version: True)
        (one,) = take(transport)
        assert (one.ticket.version, one.ticket.attempts, one.ticket.alone) == (2, 1, True)

    def test_a_suspect_that_names_a_version_is_predicted_alone_by_those_who_serve_it(self, transport):
        for number in range(2):
            offer(transport, number, alone=True, version=2)
        transport.serve(1, True, lambda version: True)
        assert take(transport) == []
        transport.start_replica(2, lambda: 3)
        transport.serve(2, False, lambda version: True)
        assert numbers(take(transport)) == [0]
        transport.start_replica(3, lambda: 3)
        transport.serve(2, False, lambda version: True)
        assert numbers(take(transport)) == [1]

    def test_nobody_looks_for_those_who_name_a_version_when_they_have_left(self, transport):
        looks = []
        transport.serve(1, True, lambda version: True)
        with pytest.MonkeyPatch.context() as patch:
            named = transport._seats.named
            patch.setattr(transport._seats, "named", lambda first: looks.append(1) or named(first))
            tickets = [offer(transport, number, version=1 + number % 2) for number in range(4)]
            assert numbers(take(transport)) == [0, 2]
            assert looks and transport.naming()
            for ticket in tickets[1:]:
                leave(transport, ticket)
            assert transport.naming()
            # its worker died, and the next one starts
            transport.start_seats([tickets[0].seat])
            looks.clear()
            assert not transport.naming()
            offer(transport, 5)
            assert numbers(take(transport)) == [5]
            assert not transport._tempting() and take(transport) == [] and not looks

    def test_no_seat_that_names_a_version_waits_for_others_for_ever(self, transport):
        transport.serve(2, False, lambda version: True)
        found = []
        for number in range(SEATS):
            offer(transport, number, version=2)
        for number in range(SEATS, 3 * SEATS):
            taken = take(transport, 1)
            found += numbers(taken)
            finish(transport, taken)
            # its seat is the first that is taken again
            offer(transport, number, seat=taken[0].ticket.seat, version=2)
        assert found == [*range(2 * SEATS)]

    def test_a_sleeping_replica_wakes_for_what_names_its_version(self, transport):
        def offer_later(number):
            time.sleep(BRIEFLY_S)
            offer(transport, number, version=2)

        for number in range(6):
            # by default as well, or not
            transport.serve(2, number % 2 == 0, lambda version: True)
            taken, _ = together(lambda: take_some(transport), lambda number=number: offer_later(number))
            assert numbers(taken) == [number]

    def test_all_that_may_be_meant_are_rung(self, transport):
        rings = []
        transport.serve(1, True, lambda version: True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "_ring", lambda: rings.append("one"))
            patch.setattr(transport, "_ring_all", lambda: rings.append("all"))
            # the second sleeps for any task, the third for those of its version
            transport._asleep[1], transport._asleep[2] = 1, 2
            offer(transport, 1)
            assert rings == ["one"] and numbers(take(transport)) == [1]
            offer(transport, 2, version=2)
            assert rings == ["one", "one", "all"]
            # pulled by a replica of another version, which nobody else sees then
            transport._asleep[1], transport._asleep[2] = 1, 0
            rings.clear()
            assert take(transport) == [] and rings == ["all"]
            transport._asleep[1] = 0
            rings.clear()
            offer(transport, 3, version=2)
            assert take(transport) == [] and rings == []

    # ---- both

    def test_waiting_is_true_while_a_thread_waits(self, transport):
        assert not transport.waiting() and transport.waiting_rows() == 0
        ticket = offer(transport, 1, seat=transport.seat(), rows=3)
        assert transport.waiting() and transport.waiting_rows() == 3
        (taken,) = take(transport)
        assert transport.waiting() and transport.waiting_rows() == 3
        offer(transport, 2, seat=SEATS - 1, rows=4)
        assert transport.waiting_rows() == 7
        transport.publish(taken, b"reply")
        assert transport.waiting_rows() == 7
        transport.await_reply(ticket, soon())
        assert transport.waiting_rows() == 4
        finish(transport, take(transport))
        assert not transport.waiting()

    def test_the_rows_that_wait_for_a_version_are_told_from_those_for_others(self, transport):
        tickets = [offer(transport, number, rows=number, version=ANY) for number in (1, 2)]
        assert transport.waiting_rows([ANY]) == transport.waiting_rows([ANY, 2]) == 3
        assert transport.waiting_rows([2]) == 0
        tickets += [offer(transport, number, rows=number, version=number) for number in (4, 8)]
        assert [transport.waiting_rows(some) for some in ([ANY], [ANY, 4], [4], [4, 8], [9])] == [3, 7, 4, 12, 0]
        assert transport.waiting_rows() == 15
        for ticket in tickets:
            leave(transport, ticket)
        assert [transport.waiting_rows(some) for some in ([ANY], [4, 8])] == [0, 0]

    def test_nobody_waits_for_a_task_that_is_past_its_deadline(self, transport):
        tickets = [offer(transport, number) for number in range(MANY)]
        assert transport.waiting_rows() == MANY
        for ticket in tickets:
            leave(transport, ticket)
        # their seats are still queued
        assert not transport.waiting() and transport.waiting_rows() == 0

    def test_a_digest_stays_only_where_a_task_is_being_predicted(self, transport):
        tickets = [offer(transport, number) for number in range(3)]
        taken = take(transport)
        transport.begin(taken[:2])
        for ticket in tickets:
            leave(transport, ticket)
            transport.leave_digest(ticket, lambda ticket=ticket: ticket.uuid[-1:] * 24)
        transport.end(taken[1:2])
        # one that is held twice at the same place is not taken for the one before
        transport.publish(taken[2], b"reply")
        assert [(ticket.uuid, digest) for ticket, digest in die(transport, 1, heir=2).late] == [(uuid(0), b"\0" * 24)]

    def test_a_digest_of_the_task_before_is_not_taken_for_that_of_the_next_in_its_place(self, transport):
        for number in (1, 2):
            ticket = offer(transport, number)
            (taken,) = take(transport)
            transport.begin([taken])
            leave(transport, ticket)
            if number == 1:
                transport.leave_digest(ticket, lambda: b"d" * 24)
                transport.publish(taken, b"reply")
        assert [digest for _, digest in die(transport, 1, heir=2).late] == [None]

    def test_the_one_task_of_a_process_that_ended_by_itself_is_guilty_at_once(self, transport):
        ticket = offer(transport, 1, seat=transport.seat())
        transport.begin(take(transport))
        with transport.locked():
            recovery = transport.recover(1, lambda ticket, frame: b"guilty", by_itself=True)
        assert [(found.uuid, found.alone) for found in recovery.guilty] == [(uuid(1), True)] and not recovery.again
        assert transport.await_reply(ticket, soon()) == b"guilty"

    def test_of_a_batch_none_is_guilty_at_once_also_when_others_are_answered_already(self, transport):
        offer(transport, 1), offer(transport, 2)
        taken = take(transport)
        transport.begin(taken)
        transport.publish(taken[0], b"reply")
        with transport.locked():
            recovery = transport.recover(1, lambda ticket, frame: b"guilty", by_itself=True)
        assert [found.uuid for found in recovery.again] == [uuid(2)] and not recovery.guilty

    def test_a_thread_keeps_its_seat_and_shares_it_with_no_other(self, transport):
        everybody = threading.Barrier(4)

        def seats():
            own = {transport.seat(), transport.seat()}
            everybody.wait()
            return own | {transport.seat()}

        found = together(*[seats] * 4)
        assert all(len(own) == 1 for own in found)
        assert len(set.union(*found)) == 4
