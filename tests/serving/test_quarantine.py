"""The quarantine over notes in the memory of one process."""

import pytest

from .memory_notes import MemoryNotes
from .quarantine_contract import QuarantineContract


class TestQuarantine(QuarantineContract):
    @pytest.fixture
    def notes(self):
        return MemoryNotes()
