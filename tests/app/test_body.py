"""Bodies as they are sent, and unpacked within the limits."""

import gzip
import io
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from app import body
from serving.errors import DecodeError, FrameTooLarge, UnsupportedMedia

LIMIT = 1 << 20


def raw_deflate(sent):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(sent) + packer.flush()


def zstd_stream(sent):
    """Without its size in front."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(sent) + packer.flush()


PACKED = {
    "gzip": ("gzip", gzip.compress),
    "zlib": ("deflate", zlib.compress),
    "deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd stream": ("zstd", zstd_stream),
}


def read(sent, coding=None, limit=LIMIT, size=None):
    environ = {"CONTENT_LENGTH": str(len(sent) if size is None else size), "wsgi.input": io.BytesIO(sent)}
    return body.read(environ if coding is None else {**environ, "HTTP_CONTENT_ENCODING": coding}, limit)


@settings(deadline=None)
@given(st.binary())
def test_a_body_comes_as_it_was_sent(sent):
    assert read(sent) == read(sent, "identity") == read(sent + b"more", size=len(sent)) == sent


@pytest.mark.parametrize("kind", PACKED)
@settings(deadline=None)
@given(sent=st.binary() | st.binary(min_size=1, max_size=9).map(lambda part: part * 5000))
def test_a_packed_body_is_unpacked(kind, sent):
    coding, pack = PACKED[kind]
    assert read(pack(sent), coding) == read(pack(sent), f" {coding.upper()}") == sent
    if coding == "gzip":
        assert read(pack(sent), "X-Gzip") == sent


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_body_may_be_as_large_as_another(kind):
    coding, pack = PACKED[kind]
    assert len(read(pack(bytes(LIMIT)), coding)) == LIMIT
    with pytest.raises(
        FrameTooLarge, match=r"larger than 1048576 bytes when it is unpacked: max_body_bytes in uwsgi.ini"
    ):
        read(pack(bytes(LIMIT + 1)), coding)


@pytest.mark.parametrize("kind", PACKED)
def test_a_bomb_takes_no_more_memory_than_the_limit(kind):
    coding, pack = PACKED[kind]
    bomb = pack(bytes(64 << 20))
    # what a library takes once
    read(pack(b""), coding)
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge):
            read(bomb, coding)
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_body_that_is_broken_is_refused(kind):
    coding, pack = PACKED[kind]
    packed = pack(bytes(range(256)) * 99)
    for sent in (packed[:-1], packed[: len(packed) // 2], packed + b"x", packed + packed, b"", b"\0" * 99, b"\xff" * 9):
        with pytest.raises(DecodeError, match=f"the body (is not {coding}:|ends before its {coding} does)"):
            read(sent, coding)


@settings(deadline=None)
@given(st.binary(), st.sampled_from(["gzip", "deflate", "zstd"]))
def test_noise_is_no_fault(sent, coding):
    try:
        read(sent, coding)
    except (DecodeError, FrameTooLarge) as error:
        assert coding in str(error) or "max_body_bytes" in str(error)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "identity, gzip", "ÿ", "x" * 999])
def test_another_coding_is_refused_with_those_there_are(coding):
    with pytest.raises(UnsupportedMedia, match=r"it may be gzip, deflate, zstd, or none"):
        read(b"", coding)


@pytest.mark.parametrize("size", ["five", "-1", "9" * 5000, "1.5", "²"])
def test_a_length_that_is_none_is_refused(size):
    with pytest.raises(DecodeError, match="Content-Length is"):
        read(b"", size=size)


def test_a_body_that_is_too_large_or_too_short_is_refused():
    with pytest.raises(FrameTooLarge, match="the body has 9 bytes and the limit is 8"):
        read(b"x" * 9, limit=8)
    with pytest.raises(DecodeError, match="the body ends after 3 of 9 bytes"):
        read(b"abc", size=9)
