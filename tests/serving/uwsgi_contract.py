"""The contract over the uWSGI transport, and what only it promises.  Runs inside uWSGI: see uwsgi_server.py.

In the class one process plays both sides; at the end the replicas are processes of their own.
"""

import ctypes
import itertools
import mmap
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import uwsgi

from serving.errors import QueueFull, ServingError, SettingsError
from serving.uwsgi_transport import Notes, UwsgiTransport, mule_id

from . import uwsgi_server
from .quarantine_contract import QuarantineContract
from .transport_contract import (
    BRIEFLY_S,
    REPLICAS,
    SEATS,
    SLOTS,
    TransportContract,
    at,
    die,
    finish,
    frame,
    leave,
    numbers,
    offer,
    offer_soon,
    soon,
    take,
    together,
    uuid,
)


@pytest.fixture
def transport():
    transport = UwsgiTransport(uwsgi_server.settings)
    transport.start_replica(1)
    yield transport
    # what is on the queue is nothing to the next
    for seat in range(SEATS):
        transport._seats.leave(seat)
    assert take(transport) == []
    uwsgi.cache_clear()
    transport._epoll.close()
    for fd in (transport._doorbell, *transport._wakers):
        os.close(fd)


class TestUwsgiTransport(TransportContract):
    pass


class TestQuarantine(QuarantineContract):
    @pytest.fixture
    def notes(self):
        yield Notes()
        uwsgi.cache_clear()


def test_a_mule_knows_its_number():
    assert mule_id() == 1


def test_the_settings_are_what_uwsgi_read_from_the_same_file():
    settings = uwsgi_server.settings
    for key in ("processes", "threads", "queue", "queue_blocksize", "listen", "worker_reload_mercy"):
        assert uwsgi.opt[key.replace("_", "-")] == b"%d" % getattr(settings, key)
    cache = f"items={settings.cache_items},blocksize={settings.cache_blocksize},keysize={settings.cache_keysize}"
    assert uwsgi.opt["cache2"] == f"name=replies,{cache}".encode()


def test_uwsgi_adds_the_spare_to_the_replicas():
    until = soon()
    while sum(uwsgi_server.started) < uwsgi_server.settings.mule_processes:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [id for id, started in enumerate(uwsgi_server.started) if started] == [*range(1, REPLICAS + 1)]


def test_other_numbers_than_those_that_uwsgi_runs_with_are_refused():
    for key in ("processes", "threads", "queue"):
        value = getattr(uwsgi_server.settings, key)
        with pytest.raises(SettingsError, match=f"{key}: uwsgi.ini says {value + 1}, and uWSGI runs with {value}"):
            UwsgiTransport(replace(uwsgi_server.settings, **{key: value + 1}))


def test_a_cache_that_is_full_is_told_and_loses_nothing(transport):
    seat, number = transport.seat(), 0
    with pytest.raises(ServingError, match="the cache has no free item"):
        while True:
            transport._put_reply(uuid(number), b"%d" % number)
            number += 1
    # uWSGI keeps one item for itself
    assert number == uwsgi_server.settings.cache_items - 1
    ticket = offer(transport, 0, seat=seat)
    (taken,) = take(transport)
    assert transport.await_reply(ticket, soon(0)) == b"0"
    ticket = offer(transport, number, seat=seat)
    (taken,) = take(transport)
    transport.publish(taken, b"again")
    assert transport.await_reply(ticket, soon()) == b"again"


def test_a_cache_that_is_full_does_not_end_whoever_recovers(transport):
    ticket, other = offer(transport, 1, seat=transport.seat()), offer(transport, 2)
    transport.begin(take(transport, 1))
    die(transport, 1, heir=2)
    transport.begin(take(transport))
    take(transport)
    with suppress(ServingError):
        for number in itertools.count(10):
            transport._put_reply(uuid(number), b"late")
    recovery = die(transport, 2, heir=1)
    assert [found.uuid for found in recovery.guilty] == [ticket.uuid]
    assert [found.uuid for found in recovery.again] == [other.uuid]
    assert leave(transport, ticket) is None


def test_a_hole_in_the_queue_is_closed_and_what_comes_after_it_is_taken(transport):
    for _ in range(2 * SLOTS):
        # a pop from an empty queue brings the cursors apart over empty slots
        uwsgi.queue_pop()
        assert uwsgi.queue_slot() != uwsgi.queue_pull_slot()
        assert take(transport) == []
        assert uwsgi.queue_slot() == uwsgi.queue_pull_slot()
        for number in range(3):
            offer(transport, number)
        taken = take(transport)
        assert numbers(taken) == [0, 1, 2]
        finish(transport, taken)
        assert not transport._queued()


def fill(transport, turns, depth):
    """A queue that holds so many tasks, with its cursors at some place of the ring; and one task that a replica has."""
    offer(transport, 1000, seat=SEATS - 1)
    (held,) = take(transport)
    # an echo of an earlier round lies where it was
    while uwsgi.queue_pull_slot() != turns:
        one = offer(transport, 999, seat=SEATS - 2)
        finish(transport, take(transport))
        assert not transport._seats.awaits(one)
    for number in range(depth):
        offer(transport, number)
    return held


def half_push(content):
    """A worker was killed before it moved the cursor: an item lies where the next one goes."""
    uwsgi.queue_set(uwsgi.queue_slot(), content)


def half_pull(content):
    """A replica was killed after it moved the cursor: what it took still lies behind that."""
    uwsgi.queue_set((uwsgi.queue_pull_slot() - 1) % SLOTS, content)


def leftovers(content, depth):
    """Many were killed, one after the other: each free slot holds something."""
    for free in range(depth, SLOTS):
        uwsgi.queue_set((uwsgi.queue_pull_slot() + free) % SLOTS, content)


def check_queue(transport, depth):
    """The queue gives what it held, takes as many as it has slots for, in order, and gives nothing else."""
    queued = list(range(depth))
    for number in range(depth, SLOTS):
        offer(transport, number)
        queued.append(number)
    with pytest.raises(QueueFull):
        offer(transport, SLOTS)
    assert transport._queued()
    taken = take(transport, 3)
    assert numbers(taken) == queued[:3]
    finish(transport, taken)
    for number in range(SLOTS, SLOTS + 3):
        offer(transport, number)
    with pytest.raises(QueueFull):
        offer(transport, SLOTS + 3)
    taken = take(transport)
    assert numbers(taken) == [*queued[3:], *range(SLOTS, SLOTS + 3)]
    finish(transport, taken)
    assert take(transport) == [] and not transport._queued()


def torn(transport, deaths):
    """For each place of the ring, and each number of tasks on it: check it after some deaths."""
    for turns in range(SLOTS):
        for depth in range(SLOTS + 1):
            held = fill(transport, turns, depth)
            item = held.ticket.encode()
            # what lay in a slot before may be the whole ticket of a task that somebody still waits for
            for content in (item, item[:9] + bytes(15), b"\0", b"\xff" * 24):
                deaths(content, depth)
                taken = take(transport)
                assert numbers(taken) == [*range(depth)]
                finish(transport, taken)
                assert take(transport) == []
                for number in range(depth):
                    offer(transport, number)
                deaths(content, depth)
            check_queue(transport, depth)
            finish(transport, [held])


def test_a_worker_killed_in_the_middle_of_a_push_leaves_nothing_that_is_taken(transport):
    torn(transport, lambda content, depth: half_push(content) if depth < SLOTS else None)


def test_a_replica_killed_in_the_middle_of_a_pull_leaves_nothing_that_is_taken_again(transport):
    torn(transport, lambda content, depth: half_pull(content) if depth < SLOTS else None)


def test_two_killed_one_after_the_other_leave_nothing_that_is_taken(transport):
    def deaths(content, depth):
        if depth < SLOTS:
            half_pull(content)
            half_push(content)

    torn(transport, deaths)


def test_what_many_left_that_were_killed_is_never_taken_and_never_fills_the_queue(transport):
    torn(transport, leftovers)


def test_a_replica_killed_between_writing_down_and_pulling_holds_what_is_still_queued(transport):
    for turns in range(SLOTS):
        finish(transport, [fill(transport, turns, SLOTS)])
        transport._own.add(transport._head())
        recovery = die(transport, 1, heir=2)
        assert recovery.again == recovery.guilty == []
        taken = take(transport)
        assert numbers(taken) == [*range(SLOTS)]
        finish(transport, taken)
        transport.start_replica(1)


def test_a_worker_killed_before_the_push_that_fills_the_queue_does_not_fill_it(transport):
    class Killed(Exception):
        pass

    def killed(item):
        raise Killed

    for turns in range(SLOTS):
        for then_taken in range(SLOTS):
            finish(transport, [fill(transport, turns, SLOTS - 1)])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(uwsgi, "queue_push", killed)
                with pytest.raises(Killed):
                    offer(transport, SLOTS)
            leave(transport, at(SLOTS))
            if then_taken:
                taken = take(transport, then_taken)
                assert numbers(taken) == [*range(then_taken)]
                finish(transport, taken)
            for number in range(SLOTS - 1, SLOTS + then_taken):
                offer(transport, number)
            with pytest.raises(QueueFull):
                offer(transport, SLOTS + then_taken)
            taken = take(transport)
            assert numbers(taken) == [*range(then_taken, SLOTS + then_taken)]
            finish(transport, taken)
            assert take(transport) == [] and not transport._queued()


def header():
    """The two cursors of the queue, where uWSGI keeps them: before the first slot."""
    size = SLOTS * uwsgi_server.settings.queue_blocksize
    cursors = uwsgi.queue_slot(), uwsgi.queue_pull_slot()
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if end - start == size + mmap.PAGESIZE and " rw-s " in line:
            found = (ctypes.c_uint64 * 2).from_address(start)
            if tuple(found) == cursors:
                return found
    raise AssertionError("the queue is nowhere")


def test_a_worker_killed_between_moving_the_cursor_and_taking_it_round_breaks_nothing(transport):
    for depth in range(SLOTS):
        finish(transport, [fill(transport, SLOTS - 1 - depth, depth)])
        # the one that is pushed last is that of the worker which is killed
        offer(transport, depth)
        assert uwsgi.queue_slot() == 0
        header()[0] = SLOTS
        leave(transport, at(depth))
        taken = take(transport)
        assert numbers(taken) == [*range(depth)]
        finish(transport, taken)
        check_queue(transport, 0)
        finish(transport, [fill(transport, SLOTS - 1 - depth, depth)])
        offer(transport, depth)
        header()[0] = SLOTS
        leave(transport, at(depth))
        check_queue(transport, depth)


def test_a_reply_of_a_replica_that_died_before_it_woke_anybody_is_found_at_the_deadline(transport):
    seat = transport.seat()
    uwsgi.cache_update(uuid(1), b"reply", 5)
    assert transport.await_reply(at(1, seat), soon(BRIEFLY_S)) == b"reply"
    assert not uwsgi.cache_exists(uuid(1))


def test_replicas_in_processes_of_their_own_answer_every_task_once():
    transport = uwsgi_server.transport
    uwsgi_server.echoing[0] = 1

    def client(first):
        seat, pids = transport.seat(), set()
        for number in range(first, first + 400):
            ticket, asked = at(number, seat), frame(number, 16 + number % 1000)
            offer_soon(transport, ticket, asked)
            reply = transport.await_reply(ticket, soon())
            pids.add(reply[:4])
            assert reply[4:] == asked
        return pids

    pids = set().union(*together(*(lambda first=first: client(first) for first in range(0, 10_000, 1000))))
    assert os.getpid().to_bytes(4) not in pids and len(pids) <= REPLICAS - 1
    assert not transport.waiting()
