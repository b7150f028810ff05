"""A store, what was said, and a web server for each test."""

import os

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
def nobody(monkeypatch, tmp_path):
    """What libraries read of a user is of none, neither in the environment nor in files."""
    prefixes = ("AWS_", "MLFLOW_", "GOOGLE_", "CLOUDSDK_", "STORAGE_")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / name))
    # nor is this machine one of a cloud
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


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
