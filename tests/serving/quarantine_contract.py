"""What the quarantine promises, over whatever keeps its notes; test_quarantine.py and uwsgi_contract.py run it.

A subclass gives the fixture `notes`: empty ones.
"""

import time

import numpy as np
import pytest

from serving.errors import ReplicaCrashed
from serving.ledger import ANY
from serving.quarantine import Quarantine, digest
from serving.task import Task
from serving.wire import encode_task

REFUSED_S = 60


def asked(value, request_id="a-1", uuid=bytes(16)):
    return encode_task(Task(uuid, request_id, 1.0, 2.0, 1, {"x": np.array([[value]], np.float32)}))


BAD, GOOD = asked(13), asked(1)


class QuarantineContract:
    @pytest.fixture
    def quarantine(self, notes):
        return Quarantine(notes, REFUSED_S)

    def test_while_nothing_is_noted_everything_is_admitted(self, quarantine):
        assert not quarantine.noted()
        assert quarantine.admit(BAD) is False
        quarantine.clear(BAD)

    def test_an_input_that_killed_is_refused_whatever_its_request_is_called(self, quarantine):
        quarantine.refuse(digest(BAD))
        assert quarantine.noted()
        for frame in (BAD, asked(13, "another-name", b"u" * 16)):
            with pytest.raises(ReplicaCrashed, match="refused for now") as refusal:
                quarantine.admit(frame)
            assert REFUSED_S - 2 <= refusal.value.retry_after_s <= REFUSED_S
        assert quarantine.admit(GOOD) is False

    def test_a_suspect_is_predicted_alone_until_it_did_no_harm(self, quarantine):
        quarantine.suspect(digest(BAD))
        assert quarantine.admit(BAD) is True
        assert quarantine.admit(GOOD) is False
        quarantine.clear(GOOD)
        assert quarantine.admit(BAD) is True
        quarantine.clear(BAD)
        assert quarantine.admit(BAD) is False

    def test_what_one_version_cannot_take_is_refused_to_no_other(self, quarantine):
        quarantine.refuse(digest(BAD, 2))
        quarantine.suspect(digest(GOOD, 2))
        with pytest.raises(ReplicaCrashed):
            quarantine.admit(BAD, 2)
        assert quarantine.admit(GOOD, 2) is True
        for version in (ANY, 1, 3):
            assert quarantine.admit(BAD, version) is quarantine.admit(GOOD, version) is False
            quarantine.clear(GOOD, version)
        assert quarantine.admit(GOOD, 2) is True
        quarantine.clear(GOOD, 2)
        assert quarantine.admit(GOOD, 2) is False

    def test_a_suspect_that_kills_is_refused(self, quarantine):
        quarantine.suspect(digest(BAD))
        quarantine.refuse(digest(BAD))
        with pytest.raises(ReplicaCrashed):
            quarantine.admit(BAD)

    def test_a_refusal_ends(self, notes):
        quarantine = Quarantine(notes, 1)
        quarantine.refuse(digest(BAD))
        until = time.monotonic() + 30
        while True:
            try:
                assert quarantine.admit(BAD) is False
                break
            except ReplicaCrashed:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert not quarantine.noted() or quarantine.admit(GOOD) is False

    def test_without_a_quarantine_nothing_is_noted(self, notes):
        quarantine = Quarantine(notes, 0)
        quarantine.refuse(digest(BAD))
        quarantine.suspect(digest(GOOD))
        assert not quarantine.noted()
        assert quarantine.admit(BAD) is quarantine.admit(GOOD) is False

    def test_a_digest_is_never_taken_for_a_uuid(self, quarantine):
        assert len(digest(BAD)) == 24 and digest(BAD) != digest(GOOD)
