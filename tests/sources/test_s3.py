"""S3 by boto3, from OpenStack Swift, an object server that speaks it."""

import os

import boto3
import pytest

import sources
from serving.errors import SourceError, SourceUnavailable
from sources.store import Store
from tests.sources.bucket_contract import BucketContract
from tests.sources.servers import GUEST, OWNER, Swift
from tests.sources.test_store import below, bring
from tests.sources.web import passed_on, status


@pytest.fixture(scope="module")
def swift(tmp_path_factory):
    server = Swift(tmp_path_factory.mktemp("swift"))
    yield server
    server.stop()


@pytest.fixture
def environment(swift, monkeypatch, nobody):
    """What boto3 reads."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", swift.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("sources.s3.ATTEMPTS", 2)
    user(monkeypatch, OWNER)


def user(monkeypatch, name_and_secret):
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), name_and_secret, strict=True):
        monkeypatch.setenv(name, value)


class Bucket:
    url = "s3://models"

    def __init__(self):
        self._client = boto3.session.Session().client("s3")
        if not self._client.list_buckets()["Buckets"]:
            self._client.create_bucket(Bucket="models")

    def put(self, files):
        for key, content in files.items():
            self._client.put_object(Bucket="models", Key=key, Body=content)


@pytest.fixture
def bucket(environment):
    return Bucket()


@pytest.fixture
def front(bucket, web, swift, monkeypatch):
    """A server before the real one, for trouble on the way."""
    web.otherwise = passed_on(swift.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    return web


class TestBucket(BucketContract):
    pass


def test_a_key_that_leads_out_of_its_folder_is_refused(bucket, store):
    bucket.put({"evil/a/../../x": b"x", "evil/model.py": b""})
    with pytest.raises(SourceError, match=r"/evil: the key 'evil/a/../../x' is no path of a file; rename the object"):
        bring(store, sources.open("s3://models/evil"), 1)
    assert below(store.root / "objects") == below(store.root / "tmp") == []


def test_a_file_that_comes_in_parts_is_whole(bucket, store):
    content = os.urandom(20 << 20)
    bucket.put({"large.onnx": content})
    source = sources.open("s3://models/large.onnx")
    assert (bring(store, source, 1) / "1" / "large.onnx").read_bytes() == content


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (GUEST, "AccessDenied"),
        ((OWNER[0], "wrong"), "SignatureDoesNotMatch"),
        (("test:nobody", "wrong"), "SignatureDoesNotMatch"),
    ],
)
@pytest.mark.parametrize("key", ["digits", "digits.tar.gz"])
def test_credentials_that_may_not_read_are_told_without_them(bucket, monkeypatch, who, code, key):
    bucket.put({"digits/model.py": b"", "digits.tar.gz": b""})
    user(monkeypatch, who)
    with pytest.raises(SourceError) as caught:
        sources.open(f"s3://models/{key}").versions()
    # HEAD has no body, and so no code
    code = code if key == "digits" else "403"
    assert str(caught.value) == (
        f"s3://models/{key}: these credentials may not read bucket models ({code}); they need s3:ListBucket and"
        " s3:GetObject, and come from AWS_ACCESS_KEY_ID or AWS_PROFILE"
    )
    assert not isinstance(caught.value, SourceUnavailable)


def test_what_was_seen_is_not_shown_to_who_may_not_see_it(bucket, store, monkeypatch):
    bucket.put({"digits/model.py": b"one"})
    store.look(sources.open("s3://models/digits"))
    user(monkeypatch, GUEST)
    with pytest.raises(SourceError, match="may not read bucket models"):
        store.look(sources.open("s3://models/digits"))


def test_no_credentials_are_told(environment, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(
        SourceUnavailable, match="there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_"
    ):
        sources.open("s3://models/digits").versions()


@pytest.mark.parametrize(
    ("bucket", "environ", "told"),
    [
        (
            "models",
            {"AWS_PROFILE": "missing"},
            "AWS_PROFILE names a profile that ~/.aws/config does not have; correct it",
        ),
        ("models", {"AWS_ENDPOINT_URL": "host:1"}, "boto3 refuses AWS_ENDPOINT_URL or AWS_REGION; an endpoint is http"),
        ("models", {"AWS_DEFAULT_REGION": "a b"}, "boto3 refuses AWS_ENDPOINT_URL or AWS_REGION; an endpoint is http"),
        ("mod els", {}, "mod els is no name of a bucket; correct the URL"),
    ],
)
def test_what_boto3_cannot_use_is_told(environment, monkeypatch, bucket, environ, told):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match=f"^s3://{bucket}/digits: {told}") as caught:
        sources.open(f"s3://{bucket}/digits").versions()
    assert not isinstance(caught.value, SourceUnavailable)


@pytest.mark.parametrize("number", [500, 503])
def test_a_server_that_fails_and_then_answers_is_asked_again(bucket, front, store, said, number):
    bucket.put({"again/model.py": b"one"})
    front.first += [status(number)]
    source = sources.open("s3://models/again", said.append)
    store.look(source)
    assert said == ["s3://models/again gives no good answer, and is asked again"]
    front.first += [status(number)] * 2
    with pytest.raises(SourceUnavailable, match=f"s3://models/again gives no good answer: HTTP {number}"):
        source.versions()


def test_a_connection_that_breaks_in_the_middle_leaves_no_version(bucket, front, store, swift):
    content = os.urandom(1 << 20)
    bucket.put({"broken/1/model.py": content})
    source = sources.open("s3://models/broken")
    store.look(source)
    # listed, and then brought in part
    front.answers["/models/broken/1/model.py"] = [passed_on(swift.port, 1000)]
    with pytest.raises(SourceUnavailable, match="s3://models/broken gives no good answer: "):
        bring(store, source, 1)
    assert below(store.root / "objects") == below(store.root / "tmp") == []
    front.answers["/models/broken/1/model.py"] = [passed_on(swift.port, 1000), passed_on(swift.port)]
    assert (bring(store, source, 1) / "1" / "model.py").read_bytes() == content


def test_what_was_fetched_is_served_when_the_server_is_gone(bucket, store, swift, said):
    bucket.put({"gone/1/model.py": b"one", "gone/2/model.py": b"two"})
    source = sources.open("s3://models/gone", said.append)
    store.look(source)
    path = bring(store, source, 2)
    swift.stop()
    store = Store(store.root, store.max_bytes)
    source = sources.open("s3://models/gone", said.append)
    found = store.look(source)
    assert (sorted(found.identities), found.stale) == ([1, 2], True)
    assert found.reason == "s3://models/gone gives no good answer: Connection refused"
    assert bring(store, source, 2) == path
    assert below(path) == ["2", "2/model.py"]
    with pytest.raises(SourceUnavailable, match="Connection refused"):
        bring(store, source, 1)
