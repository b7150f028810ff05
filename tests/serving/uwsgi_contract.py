"""The contract over the uWSGI transport, and what only it promises.  Runs inside uWSGI: see uwsgi_server.py.

In the class one process plays both sides; at the end the replicas are processes of their own.
"""

import ctypes
import itertools
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uwsgi

from serving import uwsgi_transport
from serving.errors import SettingsError
from serving.uwsgi_transport import Notes, UwsgiTransport, mule_id

from . import uwsgi_server
from .quarantine_contract import QuarantineContract
from .transport_contract import (
    BRIEFLY_S,
    REPLICAS,
    SEATS,
    TransportContract,
    at,
    finish,
    frame,
    leave,
    numbers,
    offer,
    soon,
    take,
    together,
)

SLOTS = uwsgi_server.settings.queue


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
    for fd in (transport._doorbell, transport._gong, *transport._wakers):
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
    assert uwsgi.opt["cache2"] == f"name=notes,{cache}".encode()


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


def turn_to(slot):
    """Bring both cursors of the empty queue to some place of the ring."""
    while uwsgi.queue_pull_slot() != slot:
        uwsgi.queue_push(b"\0")
        uwsgi.queue_pull()
    assert uwsgi.queue_slot() == slot


def test_a_hole_in_the_queue_is_closed_and_what_comes_after_it_is_taken(transport):
    for turn in range(2 * SLOTS):
        # a pop from an empty queue brings the cursors apart over empty slots
        uwsgi.queue_pop()
        assert uwsgi.queue_slot() != uwsgi.queue_pull_slot()
        assert take(transport) == []
        assert uwsgi.queue_slot() == uwsgi.queue_pull_slot()
        tasks = [SEATS * turn + place for place in range(3)]
        for number in tasks:
            offer(transport, number)
        taken = take(transport)
        assert numbers(taken) == tasks
        finish(transport, taken)
        assert not transport._depth()


def half_push(content, depth):
    """A worker was killed before it moved the cursor: an item lies where the next one goes."""
    uwsgi.queue_set(uwsgi.queue_slot(), content)


def half_pull(content, depth):
    """A replica was killed after it moved the cursor: what it took still lies behind that."""
    uwsgi.queue_set((uwsgi.queue_pull_slot() - 1) % SLOTS, content)


def both(content, depth):
    half_pull(content, depth)
    half_push(content, depth)


def leftovers(content, depth):
    """Many were killed, one after the other: each free slot holds something."""
    for free in range(depth, SLOTS):
        uwsgi.queue_set((uwsgi.queue_pull_slot() + free) % SLOTS, content)


def test_what_the_killed_leave_in_the_queue_is_never_taken(transport):
    numbered = itertools.count(SEATS)
    # what lay in a slot before may be the seat of a task that somebody still waits for
    waits = offer(transport, next(numbered), seat=SEATS - 1)
    (held,) = take(transport)
    deadly = (half_push, half_pull, both, leftovers)
    for turn, depth, deaths in itertools.product(range(0, SLOTS, 3), range(0, SEATS - 1, 5), deadly):
        for content in (uwsgi_transport._SEAT.pack(waits.seat), b"\0", b"\xff" * 24):
            for early in (True, False):
                turn_to(turn)
                tasks = [(next(numbered), seat) for seat in range(depth)]
                if early:
                    deaths(content, 0)
                for number, seat in tasks:
                    offer(transport, number, seat=seat)
                if not early:
                    deaths(content, depth)
                taken = take(transport)
                assert numbers(taken) == [number for number, _ in tasks]
                finish(transport, taken)
                assert take(transport) == [] and not transport._depth()
    finish(transport, [held])


def header():
    """The two cursors of the queue, where uWSGI keeps them: before the first slot."""
    size = SLOTS * uwsgi_server.settings.queue_blocksize
    cursors = uwsgi.queue_slot(), uwsgi.queue_pull_slot()
    assert any(cursors)
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        if end - start == size + mmap.PAGESIZE and " rw-s " in line:
            found = (ctypes.c_uint64 * 2).from_address(start)
            if tuple(found) == cursors:
                return found
    raise AssertionError("the queue is nowhere")


def test_a_worker_killed_between_moving_the_cursor_and_taking_it_round_breaks_nothing(transport):
    numbered = itertools.count(SEATS)
    # one worker, or another after it when it brought the cursor round
    killed = (SLOTS, SLOTS + 1)
    for depth, taken_first, slot in itertools.product(range(1, SEATS - 1), (True, False), killed):
        turn_to(SLOTS - depth)
        tasks = [offer(transport, next(numbered), seat=seat) for seat in range(depth)]
        assert uwsgi.queue_slot() == 0
        header()[0] = slot
        # the one that was pushed last is that of the worker which was killed
        leave(transport, tasks.pop())
        if taken_first:
            taken = take(transport)
            assert [one.ticket for one in taken] == tasks
            finish(transport, taken)
            tasks = []
        tasks.append(offer(transport, next(numbered), seat=SEATS - 1))
        tasks.append(offer(transport, next(numbered), seat=SEATS - 2))
        taken = take(transport)
        assert [one.ticket for one in taken] == tasks
        finish(transport, taken)
        assert take(transport) == [] and not transport._depth() and uwsgi.queue_slot() == 2


def test_what_was_pushed_behind_the_last_slot_is_offered_again_when_the_next_worker_starts(transport):
    turn_to(SLOTS - 1)
    tasks = [offer(transport, 0)]
    header()[0] = SLOTS
    with pytest.MonkeyPatch.context() as patch:
        # that worker was killed just after this one had looked
        patch.setattr(transport, "_push", lambda seat: uwsgi.queue_push(uwsgi_transport._SEAT.pack(seat)))
        lost = offer(transport, 1)
    tasks.append(offer(transport, 2))
    assert [one.ticket for one in take(transport)] == tasks
    transport.start_seats([])
    assert [one.ticket for one in take(transport)] == [lost]
    leave(transport, lost)
    assert numbers([*take(transport), *(offer(transport, 1 + SEATS) and take(transport))]) == [1 + SEATS]


def test_a_reply_of_a_replica_that_died_before_it_woke_anybody_is_found_at_the_deadline(transport):
    ticket = offer(transport, 1, seat=transport.seat())
    transport._replies.put(ticket, 0, b"reply")
    assert transport.await_reply(ticket, soon(BRIEFLY_S)) == b"reply"


def test_a_worker_is_crowded_where_another_has_nearly_none(transport, monkeypatch):
    def crowded(*taken):
        """Whether the last one is; by worker, at how many seats somebody waits."""
        each = SEATS // len(taken)
        transport._seats_of = [range(first, first + each) for first in range(0, SEATS, each)]
        transport._own_seats = transport._seats_of[-1]
        for seats, count in zip(transport._seats_of, taken, strict=True):
            for place, seat in enumerate(seats):
                transport._seats._rows[seat] = place < count
        return transport.crowded()

    assert [crowded(24), crowded(12, 12), crowded(12, 0), crowded(3, 12), crowded(4, 12)] == [0, 0, 0, 1, 0]
    # eight are few, whatever they are of all
    assert not crowded(0, 8, 8)
    monkeypatch.setattr(uwsgi_transport, "_CROWD", 0)
    assert [crowded(0, 3, 3, 3, 3, 3, 3, 3), crowded(3, 3, 3, 3, 3, 3, 3, 3), crowded(8, 8, 0)] == [1, 0, 0]
    # the worker that answers health
    transport._own_seats = range(0)
    assert not transport.crowded()


def test_replicas_in_processes_of_their_own_answer_every_task_once():
    transport = uwsgi_server.transport
    uwsgi_server.echoing[0] = 1

    def client(first):
        seat, pids = transport.seat(), set()
        for number in range(first, first + 400):
            ticket, asked = at(number, seat), frame(number, 16 + number % 1000)
            transport.offer(ticket, asked)
            reply = transport.await_reply(ticket, soon())
            pids.add(reply[:4])
            assert reply[4:] == asked
        return pids

    pids = set().union(*together(*(lambda first=first: client(first) for first in range(0, 10_000, 1000))))
    assert os.getpid().to_bytes(4) not in pids and len(pids) <= REPLICAS - 1
    assert not transport.waiting()
