"""The contract over the uWSGI transport, and what only it promises.  Runs inside uWSGI: see uwsgi_server.py.

In the class one process plays both sides; at the end the replicas are processes of their own.
"""

import os
import time
from dataclasses import replace

import pytest
import uwsgi

from serving.errors import ServingError, SettingsError
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
    finish,
    frame,
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


def test_a_hole_that_a_killed_process_left_is_closed_and_what_comes_after_it_is_taken(transport):
    for _ in range(2 * SLOTS):
        # a pop from an empty queue brings the cursors apart over an empty slot, as a kill inside a push or a pull does
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
