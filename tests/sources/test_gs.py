"""Google's storage by google-cloud-storage, from an emulator: its own server is not to be had.

What only the real one does is not shown here: credentials and permissions, but for their absence.
"""

import os

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

import sources
from serving.errors import SourceError, SourceUnavailable
from sources.store import Store
from tests.sources.bucket_contract import BucketContract
from tests.sources.servers import GoogleEmulator
from tests.sources.test_store import below, bring
from tests.sources.web import passed_on, status

LISTING = "/storage/v1/b/models/o?projection=noAcl&prefix={}%2F&prettyPrint=false"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    server = GoogleEmulator(tmp_path_factory.mktemp("google"))
    yield server
    server.stop()


class Bucket:
    url = "gs://models"

    def __init__(self):
        self._client = storage.Client("tests", AnonymousCredentials())
        self._bucket = self._client.bucket("models")
        if not self._bucket.exists():
            self._bucket.create()

    def put(self, files):
        for key, content in files.items():
            self._bucket.blob(key).upload_from_string(content)


@pytest.fixture
def bucket(emulator, monkeypatch, nobody):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
    monkeypatch.setattr("sources.gs.RETRY_S", 2.0)
    return Bucket()


@pytest.fixture
def front(bucket, web, emulator, monkeypatch):
    """A server before the real one, for trouble on the way."""
    web.otherwise = passed_on(emulator.port)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", web.url)
    return web


class TestBucket(BucketContract):
    pass


def test_a_server_that_fails_and_then_answers_is_asked_again(bucket, front, store, said):
    bucket.put({"again/model.py": b"one"})
    front.answers[LISTING.format("again")] = [status(503), front.otherwise]
    source = sources.open("gs://models/again", said.append)
    store.look(source)
    assert said == ["gs://models/again gives no good answer, and is asked again"]
    front.answers[LISTING.format("again")] = [status(503)]
    with pytest.raises(SourceUnavailable, match="gs://models/again gives no good answer: "):
        source.versions()


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (
            403,
            r"these credentials may not read bucket models \(403\); give them the role Storage Object Viewer, or set",
        ),
        (400, "Google answers 400; correct the URL"),
    ],
)
def test_a_refusal_is_told(front, number, told):
    front.otherwise = status(number)
    with pytest.raises(SourceError, match=f"gs://models/digits: {told}"):
        sources.open("gs://models/digits").versions()


def test_no_credentials_are_told(nobody):
    with pytest.raises(
        SourceUnavailable, match="there are no credentials; set GOOGLE_APPLICATION_CREDENTIALS to a key"
    ):
        sources.open("gs://models/digits").versions()


def test_a_connection_that_breaks_in_the_middle_leaves_no_version(bucket, front, store, emulator):
    content = os.urandom(1 << 20)
    bucket.put({"broken/model.py": content})
    source = sources.open("gs://models/broken")
    store.look(source)
    # listed, and then brought in part
    front.otherwise = passed_on(emulator.port, 1000)
    front.answers[LISTING.format("broken")] = [passed_on(emulator.port)]
    with pytest.raises(SourceUnavailable, match="gs://models/broken gives no good answer: "):
        bring(store, source, 1)
    assert below(store.root / "objects") == below(store.root / "tmp") == []
    front.otherwise = passed_on(emulator.port)
    assert (bring(store, source, 1) / "1" / "model.py").read_bytes() == content


def test_what_was_fetched_is_served_when_the_server_is_gone(bucket, store, emulator):
    bucket.put({"gone/1/model.py": b"one", "gone/2/model.py": b"two"})
    source = sources.open("gs://models/gone")
    store.look(source)
    path = bring(store, source, 2)
    emulator.stop()
    store = Store(store.root, store.max_bytes)
    source = sources.open("gs://models/gone")
    found = store.look(source)
    assert (sorted(found.identities), found.stale) == ([1, 2], True)
    assert found.reason == "gs://models/gone gives no good answer: Connection refused"
    assert bring(store, source, 2) == path
    assert below(path) == ["2", "2/model.py"]
