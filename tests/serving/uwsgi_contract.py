"""The contract over the uWSGI transport, and what only it promises.  Runs inside uWSGI: see uwsgi_server.py.

In the class one process plays both sides; at the end the replicas are processes of their own.
"""

import os
from dataclasses import replace

import pytest
import uwsgi

from serving.errors import ServingError, SettingsError
from serving.uwsgi_transport import UwsgiTransport, replica_id

from . import uwsgi_server
from .transport_contract import BRIEFLY_S, SLOTS, TransportContract, frame, never, offer, soon, together, uuid


@pytest.fixture
def transport():
    transport = UwsgiTransport(uwsgi_server.settings)
    transport.start_replica()
    yield transport
    while transport.take(0, never):
        pass
    uwsgi.cache_clear()
    for fd in (transport._doorbell, *transport._wakers):
        os.close(fd)


class TestUwsgiTransport(TransportContract):
    pass


def test_a_mule_knows_its_number():
    assert replica_id() == 1


def test_the_settings_are_what_uwsgi_read_from_the_same_file():
    settings = uwsgi_server.settings
    for key in ("processes", "threads", "queue", "queue_blocksize", "listen", "worker_reload_mercy"):
        assert uwsgi.opt[key.replace("_", "-")] == b"%d" % getattr(settings, key)
    assert uwsgi.opt["mules"] == b"%d" % settings.mules
    cache = f"items={settings.cache_items},blocksize={settings.cache_blocksize},keysize={settings.cache_keysize}"
    assert uwsgi.opt["cache2"] == f"name=replies,{cache}".encode()


def test_other_numbers_than_those_that_uwsgi_runs_with_are_refused():
    for key in ("processes", "threads", "queue"):
        value = getattr(uwsgi_server.settings, key)
        with pytest.raises(SettingsError, match=f"{key}: uwsgi.ini says {value + 1}, and uWSGI runs with {value}"):
            UwsgiTransport(replace(uwsgi_server.settings, **{key: value + 1}))


def test_a_cache_that_is_full_is_told_and_loses_nothing(transport):
    seat, number = transport.seat(), 0
    with pytest.raises(ServingError, match="the cache has no free item"):
        while True:
            transport.publish(uuid(number), seat, b"%d" % number)
            number += 1
    # uWSGI keeps one item for itself
    assert number == uwsgi_server.settings.cache_items - 1
    assert transport.await_reply(uuid(0), seat, soon()) == b"0"
    transport.publish(uuid(number), seat, b"again")
    assert transport.await_reply(uuid(number), seat, soon()) == b"again"


def test_a_hole_that_a_killed_process_left_is_closed_and_what_comes_after_it_is_taken(transport):
    for _ in range(2 * SLOTS):
        # a pop from an empty queue brings the cursors apart over an empty slot, as a kill inside a push or a pull does
        uwsgi.queue_pop()
        assert uwsgi.queue_slot() != uwsgi.queue_pull_slot()
        assert transport.take(0, never) == []
        assert uwsgi.queue_slot() == uwsgi.queue_pull_slot()
        sent = [frame(number) for number in range(3)]
        for one in sent:
            transport.offer(one, 0)
        assert transport.take(0, never) == sent
        assert not transport._queued()


def test_a_reply_of_a_replica_that_died_before_it_woke_anybody_is_found_at_the_deadline(transport):
    seat = transport.seat()
    uwsgi.cache_update(uuid(1), b"reply", 5)
    assert transport.await_reply(uuid(1), seat, soon(BRIEFLY_S)) == b"reply"
    assert not uwsgi.cache_exists(uuid(1))


def test_replicas_in_processes_of_their_own_answer_every_task_once():
    transport = uwsgi_server.transport
    uwsgi_server.echoing[0] = 1

    def client(first):
        seat, pids = transport.seat(), set()
        for number in range(first, first + 400):
            asked = frame(number, seat, 18 + number % 1000)
            offer(transport, asked, seat)
            reply = transport.await_reply(uuid(number), seat, soon())
            pids.add(reply[:4])
            assert reply[4:] == asked
        return pids

    pids = set().union(*together(*(lambda first=first: client(first) for first in range(0, 10_000, 1000))))
    assert os.getpid().to_bytes(4) not in pids and len(pids) <= uwsgi_server.settings.mules - 1
    assert not transport.waiting()
