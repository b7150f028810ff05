"""Models at web addresses, over TLS with a certificate of this test's, from a server that does all that servers do."""

import io
import ssl
import tarfile
from hashlib import sha256

import pytest

import sources
from serving.errors import SourceError, SourceUnavailable
from tests.sources.test_store import below, fetch
from tests.sources.web import chunked, cut, lying, serving, status, whole

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def tls(authority, tmp_path, monkeypatch):
    """A server whose certificate is trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(context) as server:
        yield server


def summed(url, content=CONTENT):
    return f"{url}#sha256={sha256(content).hexdigest()}"


def brought(store, url, said=None):
    """The content of the one file of a model."""
    (file,) = (fetch(store, url, said) / "1").iterdir()
    return file.read_bytes()


def packed(**files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(f"digits/{name}")
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return archive.getvalue()


def test_an_archive_is_unpacked(tls, store):
    content = packed(model=b"model", sample=b"{}")
    tls.answers["/digits.tar.gz"] = [whole(content)]
    path = fetch(store, summed(f"{tls.url}/digits.tar.gz", content))
    assert (path.name, below(path)) == ("digits", ["1", "1/model", "1/sample"])


def test_without_a_sum_it_is_accepted_and_the_sum_is_told(tls, store, said):
    tls.answers["/digits.onnx"] = [whole(CONTENT)]
    assert brought(store, f"{tls.url}/digits.onnx", said) == CONTENT
    sum = sha256(CONTENT).hexdigest()
    assert said[1] == f"{tls.url}/digits.onnx may change: append #sha256={sum} to accept nothing else"


def test_the_identity_changes_with_the_content(tls):
    source = sources.open(f"{tls.url}/digits.onnx")
    tls.answers["/digits.onnx"] = [whole(b"one"), whole(b"one"), whole(b"two")]
    first, again, second = (source.versions().identities[1] for _ in range(3))
    assert first == again != second


def test_a_sum_that_differs_is_refused(tls, store):
    tls.answers["/digits.onnx"] = [whole(b"other")]
    url = summed(f"{tls.url}/digits.onnx")
    with pytest.raises(SourceError) as caught:
        fetch(store, url)
    given, found = sha256(CONTENT).hexdigest(), sha256(b"other").hexdigest()
    assert str(caught.value) == (
        f"{tls.url}/digits.onnx: its sha256 is {found}, and not {given}; correct #sha256=, or ask whoever serves it why"
    )
    assert below(store.root / "objects") == below(store.root / "tmp") == []


@pytest.mark.parametrize("number", [429, 500, 502, 503, 504])
def test_a_server_that_fails_and_then_answers_is_asked_again(tls, store, said, number):
    tls.answers["/digits.onnx"] = [status(number), whole(CONTENT), status(number), status(number), whole(CONTENT)]
    assert brought(store, summed(f"{tls.url}/digits.onnx"), said) == CONTENT
    assert said.count(f"{tls.url}/digits.onnx gives no good answer, and is asked again") == 3


def test_a_server_that_fails_for_ever_is_given_up(tls, store):
    tls.answers["/digits.onnx"] = [status(500)]
    with pytest.raises(SourceUnavailable, match=r"/digits.onnx gives no good answer: HTTP 500$"):
        fetch(store, f"{tls.url}/digits.onnx")
    assert len(tls.asked) == 5


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (401, r"the server refuses it with 401; put user and password into ~/.netrc, or sign the URL"),
        (403, r"the server refuses it with 403; put user and password into ~/.netrc, or sign the URL"),
        (404, r"the server answers 404; correct the address"),
        (410, r"the server answers 410; correct the address"),
    ],
)
def test_a_refusal_is_told_at_once(tls, store, number, told):
    tls.answers["/digits.onnx"] = [status(number)]
    with pytest.raises(SourceError, match=f"/digits.onnx: {told}"):
        fetch(store, summed(f"{tls.url}/digits.onnx"))
    assert len(tls.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_resumed_where_the_server_can(tls, store, said, ranges):
    after = 700_000
    tls.answers["/digits.onnx"] = [whole(b""), cut(CONTENT, after), whole(CONTENT, ranges)]
    assert brought(store, summed(f"{tls.url}/digits.onnx"), said) == CONTENT
    ranges_asked = [headers.get("Range") for _, headers in tls.asked]
    assert ranges_asked[:2] == [None, None]
    assert 0 < int(ranges_asked[2].removeprefix("bytes=").removesuffix("-")) <= after
    assert said[-1] == f"{tls.url}/digits.onnx gives no good answer: incomplete read; once more in 0 s"


def test_a_part_that_was_not_asked_for_is_not_taken(tls, store):
    # an older one, whatever was asked
    etag = f'"{sha256(CONTENT).hexdigest()[:16]}"'
    wrong = status(206, ETag=etag, Content_Range=f"bytes 0-9/{len(CONTENT)}")
    other = status(206, ETag='"other"', Content_Range=f"bytes 700000-700000/{len(CONTENT)}")
    for part in (wrong, other):
        tls.answers["/digits.onnx"] = [whole(b""), cut(CONTENT, 700_000), part, whole(CONTENT)]
        path = fetch(store, summed(f"{tls.url}/digits.onnx"))
        assert (path / "1" / "digits.onnx").read_bytes() == CONTENT
        (path / "1" / "digits.onnx").unlink()


def test_what_changes_between_two_parts_is_fetched_anew(tls, store):
    tls.answers["/digits.onnx"] = [whole(b""), cut(bytes(len(CONTENT)), 700_000), whole(CONTENT)]
    assert brought(store, summed(f"{tls.url}/digits.onnx")) == CONTENT


def test_what_changes_while_it_is_fetched_is_fetched_anew(tls, store, said):
    # looked at, before, its size, itself, after; and once more, of another content
    old, new = [whole(b"old")] * 4, [whole(b"new")] * 3
    tls.answers["/digits.onnx"] = [*old, *new]
    assert brought(store, f"{tls.url}/digits.onnx", said) == b"new"
    assert any("version 1 changed while it was fetched; once more" in line for line in said)


def test_a_connection_that_breaks_each_time_is_given_up_and_leaves_nothing(tls, store):
    tls.answers["/digits.onnx"] = [whole(b""), cut(CONTENT, 1000)]
    with pytest.raises(SourceUnavailable, match=r"/digits.onnx gives no good answer: "):
        fetch(store, summed(f"{tls.url}/digits.onnx"))
    assert len(tls.asked) == 1 + 4
    assert below(store.root / "objects") == below(store.root / "tmp") == []


def test_a_length_that_is_too_large_is_a_broken_connection(tls, store):
    tls.answers["/digits.onnx"] = [lying(CONTENT, len(CONTENT) + 1)]
    with pytest.raises(SourceUnavailable):
        fetch(store, summed(f"{tls.url}/digits.onnx"))


def test_a_length_that_is_too_small_is_noticed_by_the_sum(tls, store):
    tls.answers["/digits.onnx"] = [lying(CONTENT, len(CONTENT) - 1)]
    with pytest.raises(SourceError, match=r"its sha256 is \w{64}, and not \w{64}"):
        fetch(store, summed(f"{tls.url}/digits.onnx"))


def test_no_length_is_needed_and_the_bound_holds_without_one(tls, store, said):
    tls.answers["/digits.onnx"] = [chunked(CONTENT)]
    assert brought(store, summed(f"{tls.url}/digits.onnx")) == CONTENT
    store.max_bytes = 3 << 20
    tls.answers["/endless.onnx"] = [chunked(bytes(16 << 20))]
    with pytest.raises(
        SourceError, match=r"/endless.onnx: it is larger than 3 MB, which is all that the store may hold"
    ):
        fetch(store, f"{tls.url}/endless.onnx")


def test_a_redirect_is_followed_but_not_to_plain_http(tls, web, store):
    tls.answers["/to"] = [status(302, Location=f"{tls.url}/digits.onnx")]
    tls.answers["/digits.onnx"] = [whole(CONTENT)]
    assert brought(store, summed(f"{tls.url}/to")) == CONTENT
    tls.answers["/plain"] = [status(302, Location="http://example.invalid/digits.onnx")]
    with pytest.raises(SourceError, match="anybody on the way can change what comes over http; use https, or append #"):
        fetch(store, f"{tls.url}/plain")
    # which the sum notices
    web.answers["/digits.onnx"] = [whole(b"other")]
    tls.answers["/plain"] = [status(302, Location=f"{web.url}/digits.onnx")]
    with pytest.raises(SourceError, match="its sha256 is"):
        fetch(store, summed(f"{tls.url}/plain"))


def test_a_redirect_to_itself_ends(tls, store):
    tls.answers["/round"] = [status(302, Location=f"{tls.url}/round")]
    with pytest.raises(SourceError, match="it redirects more than 10 times; give the address that it ends at"):
        fetch(store, f"{tls.url}/round")
    tls.answers["/file"] = [status(302, Location="file:///etc/passwd")]
    with pytest.raises(SourceError, match="it is, or redirects to, no address of a web server"):
        fetch(store, f"{tls.url}/file")


def test_a_certificate_that_nobody_trusts_is_refused(tls, store, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(SourceUnavailable, match=r"gives no good answer: .*certificate"):
        fetch(store, f"{tls.url}/digits.onnx")
    assert tls.asked == []


def test_user_and_password_come_from_netrc_or_the_url_and_are_never_shown(tls, store, said, tmp_path):
    (tmp_path / "netrc").write_text("machine localhost login me password hush\n")
    tls.answers["/digits.onnx"] = [whole(CONTENT)]
    fetch(store, f"{tls.url}/digits.onnx", said)
    (tmp_path / "netrc").unlink()
    tls.answers["/digits.onnx?signature=hush"] = [status(500), whole(b"other")]
    url = f"{tls.url}/digits.onnx?signature=hush".replace("https://", "https://you:hush@")
    fetch(store, url, said)
    assert {headers["Authorization"] for _, headers in tls.asked} == {"Basic bWU6aHVzaA==", "Basic eW91Omh1c2g="}
    tls.answers["/digits.onnx?signature=hush"] = [status(403)]
    with pytest.raises(SourceError) as caught:
        store.look(sources.open(url))
    told = "\n".join([*said, str(caught.value), *(file.read_text() for file in (store.root / "seen").iterdir())])
    assert "localhost" in told
    assert "hush" not in told


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.com/digits.onnx", "anybody on the way can change what comes over http; use https, or append"),
        ("https:///digits.onnx", "it names no host; an address is https://host/path"),
        ("https://[::1/a", "MODEL is no URL that can be read: Invalid IPv6 URL; correct it"),
        ("https://example.com/a#sha256=12", "after # comes sha256= with 64 hexadecimal digits, as sha256sum prints"),
        ("https://example.com/a#md5=d41d8cd98f00b204e9800998ecf8427e", "after # comes sha256="),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_before_it_is_asked(url, told):
    with pytest.raises(SourceError, match=told):
        sources.open(url)
