"""Failures in shared memory: the newest of all rings, one writer for each, and successors that go on."""

import os
import threading

from serving import memory
from serving.failures import ID_BYTES, PLACES, Failures
from serving.memory import Memory


def ids(failures, most=1000):
    return [failure.id for failure in failures.newest(most)]


def test_nothing_is_told_before_anything_failed():
    assert Failures(4, 2).newest(10) == []


def test_the_newest_of_all_rings_come_first():
    failures = Failures(3, 1)
    for ring, id in [(0, "a"), (2, "b"), (0, "c"), (3, "d")]:
        failures.note(ring, 7, 0.25, id)
    assert ids(failures) == ["d", "c", "b", "a"] and ids(failures, 2) == ["d", "c"]
    first = failures.newest(10)[-1]
    assert (first.end, first.took_s) == (7, 0.25) and first.at <= failures.newest(1)[0].at


def test_a_ring_keeps_as_many_as_it_has_places():
    failures = Failures(2, 0)
    for number in range(PLACES + 5):
        failures.note(1, number, 0.0, str(number))
    failures.note(0, 0, 0.0, "other")
    assert ids(failures) == ["other", *(str(number) for number in reversed(range(5, PLACES + 5)))]


def test_an_id_is_cut_where_it_is_too_long():
    failures = Failures(1, 0)
    failures.note(0, 1, 0.0, "x" * ID_BYTES)
    failures.note(0, 1, 0.0, "y" * (ID_BYTES + 9))
    assert ids(failures) == ["y" * ID_BYTES, "x" * ID_BYTES]


def test_who_follows_one_that_died_goes_on_where_it_stopped():
    failures = Failures(2, 1)
    child = os.fork()
    if not child:
        failures.note(1, 5, 0.1, "before")
        os._exit(0)
    os.waitpid(child, 0)
    failures.note(1, 5, 0.1, "after")
    assert ids(failures) == ["after", "before"]


def test_the_next_uwsgi_goes_on_with_more_rings_or_fewer_and_each_has_a_side_of_its_own():
    file = memory.make()
    first = Failures(3, 2, Memory(file, 0))
    first.start_worker(2)
    first.note(0, 5, 0.1, "a thread of the first")
    first.note_other(5, 0.1, "another of the first")
    second = Failures(1, 1, Memory(file, 1))
    # both write while one takes over from the other
    second.note(0, 5, 0.1, "a thread of the second")
    first.note(0, 5, 0.1, "the last of the first")
    third = Failures(9, 1, Memory(file, 0))
    third.note(8, 5, 0.1, "a thread of the third")
    third.note(0, 5, 0.1, "the last of the third")
    found = [
        "the last of the third",
        "a thread of the third",
        "the last of the first",
        "a thread of the second",
        "another of the first",
        "a thread of the first",
    ]
    assert ids(third) == ids(Failures(1, 1, Memory(file, 1))) == found
    os.close(file)


def test_half_of_one_is_not_told():
    failures = Failures(1, 0)
    failures.note(0, 1, 0.0, "whole")
    failures.note(0, 1, 0.0, "half")
    # its writer was killed between the two times
    failures._seconds[3 + ID_BYTES // 8] = 0.0
    assert ids(failures) == ["whole"]
    failures.note(0, 1, 0.0, "next")
    assert ids(failures) == ["next", "whole"]


def test_threads_of_a_worker_note_what_is_no_prediction_in_the_same_ring():
    failures = Failures(2, 3)
    failures.start_worker(3)

    def note(name):
        for number in range(PLACES // 4):
            failures.note_other(9, 0.0, f"{name} {number}")

    threads = [threading.Thread(target=note, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(failures)) == sorted(f"{name} {number}" for name in "abcd" for number in range(PLACES // 4))
