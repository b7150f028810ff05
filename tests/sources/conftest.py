"""A store, what was said, and a web server for each test."""

import pytest
import trustme

from sources.store import Store
from tests.sources.web import serving


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """What is retried is retried as often, and sooner."""
    monkeypatch.setattr("sources.https.PAUSE_S", 0.02)
    monkeypatch.setattr("sources.store.PAUSES_S", (0.01, 0.02, 0.04))
    # progress is for the one test of it
    monkeypatch.setattr("sources.store.PROGRESS_S", 3600)


@pytest.fixture
def said():
    """The lines that users would see."""
    return []


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", 1 << 30)


@pytest.fixture
def web():
    with serving() as server:
        yield server


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()
