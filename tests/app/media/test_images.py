"""Images, alone and in forms, and what is refused of them."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.media import images, segments
from serving.errors import ClientError, DecodeError, FrameTooLarge, SignatureMismatch, UnsupportedMedia
from serving.signature import Signature, TensorSpec
from tests.app.conftest import signature

LIMIT = 1 << 20
GREY = signature({"image": "float32[8, 8]"}, {"y": "float32"})
MIXED = signature({"image": "uint8[4, 4, 3]", "name": "string", "scale": "float32[2]"}, {"y": "float32"})


def file_of(pixels, format="PNG", **options):
    file = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, format, **options)
    return file.getvalue()


def decode(body, taken=GREY):
    return images.image(body, taken, LIMIT)


pixels = st.integers(0, 255)
sizes = st.integers(1, 9)


@settings(deadline=None)
@given(st.data(), sizes, sizes, st.sampled_from(["PNG", "WEBP"]))
def test_pixels_come_as_they_are(data, height, width, format):
    colours = np.array(
        data.draw(st.lists(pixels, min_size=height * width * 3, max_size=height * width * 3)), np.uint8
    ).reshape(height, width, 3)
    body = file_of(colours, format, lossless=True)
    for shape, expected in (
        ((height, width, 3), colours),
        ((-1, -1, 3), colours),
        ((3, height, width) if width not in (1, 3) else (height, width, 3), None),
    ):
        taken = Signature((TensorSpec("image", "float32", shape),), ())
        found = decode(body, taken)["image"]
        assert found.dtype == np.float32
        if expected is None:
            expected = colours.transpose(2, 0, 1) if shape[0] == 3 and shape[-1] not in (1, 3) else colours
        np.testing.assert_array_equal(found, expected[None])
    grey = np.array(Image.fromarray(colours).convert("L"))
    for shape in ((height, width), (height, width, 1), (-1, width)):
        taken = Signature((TensorSpec("image", "uint8", shape),), ())
        np.testing.assert_array_equal(decode(body, taken)["image"].reshape(grey.shape), grey)


def test_a_jpeg_is_what_pillow_reads():
    photo = Image.linear_gradient("L").convert("RGB")
    body = file_of(photo, "JPEG")
    expected = np.array(Image.open(io.BytesIO(body)).resize((32, 16), Image.Resampling.BILINEAR))
    found = decode(body, signature({"image": "int32[16, 32, 3]"}, {}))["image"]
    np.testing.assert_array_equal(found, expected[None])
    planar = decode(body, signature({"image": "float16[3, 16, 32]"}, {}))["image"]
    np.testing.assert_array_equal(planar, expected.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_each_kind_of_pixels_is_read(mode):
    image = Image.linear_gradient("L").resize((8, 8)).convert(mode)
    body = file_of(image, "JPEG" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(body)) as read:
        expected = np.array(read.convert("L"))
    np.testing.assert_array_equal(decode(body)["image"][0], expected)


def test_what_can_be_seen_through_is_seen():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    body = file_of(image, transparency=b"\xff\0")
    assert decode(body, signature({"image": "uint8[8, 8, 3]"}, {}))["image"][0, 0, 0].tolist() == [200, 100, 50]


def test_a_model_with_one_string_takes_the_file():
    assert decode(b"whatever", signature({"jpeg": "string"}, {}))["jpeg"].tolist() == [b"whatever"]


def test_an_input_with_a_default_may_be_left_out():
    left_out = Signature((*GREY.inputs, TensorSpec("t", "float32", (), 0.5)), ())
    assert decode(file_of(np.zeros((8, 8), np.uint8)), left_out)["t"].tolist() == [0.5]


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, *chunks, depth=8, kind=2):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in chunks) + chunk(b"IEND", b"")


def webp(width, height):
    content = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    content += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", len(content)) + content


def jpeg(width, height):
    body = bytearray(file_of(np.zeros((8, 8), np.uint8), "JPEG"))
    struct.pack_into(">HH", body, body.index(b"\xff\xc0") + 5, height, width)
    return bytes(body)


def commented(comments):
    body = file_of(np.full((8, 8), 7, np.uint8), "JPEG")
    return body[:2] + comments + body[2:]


def scanned(more):
    """A progressive JPEG in which the last scan comes again and again."""
    body = file_of(Image.linear_gradient("L").convert("RGB"), "JPEG", progressive=True)
    last = body[body.rindex(b"\xff\xda") : -2]
    return body[:-2] + last * more + body[-2:]


LONG = b"a\0\0" + zlib.compress(bytes(1_000_000))
DEEP = png(1, 1, (b"IDAT", zlib.compress(b"\0" + bytes(range(6)))), depth=16)
GOOD = file_of(np.zeros((8, 8), np.uint8))
NOISE = file_of(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8))
REFUSED = {
    "nothing": (b"", DecodeError, "no PNG, JPEG or WebP"),
    "noise": (b"\0" * 99, DecodeError, "no PNG, JPEG or WebP"),
    "a gif": (file_of(Image.new("L", (8, 8)), "GIF"), DecodeError, "no PNG, JPEG or WebP"),
    "a tiff": (file_of(Image.new("L", (8, 8)), "TIFF"), DecodeError, "no PNG, JPEG or WebP"),
    "half of it": (NOISE[: len(NOISE) // 2], DecodeError, "the image is broken: image file is truncated"),
    "a png of 7.5 GB": (png(50_000, 50_000, (b"IDAT", zlib.compress(bytes(2000)))), FrameTooLarge, "max_body_bytes"),
    "a png past the limit": (png(700, 700, (b"IDAT", b"")), FrameTooLarge, "700 × 700 pixels would be 1470000 bytes"),
    "a jpeg of 8 GB": (jpeg(65_000, 65_000), FrameTooLarge, "max_body_bytes"),
    "a webp of 800 MB": (webp(16_000, 16_000), FrameTooLarge, "max_body_bytes"),
    "a png of no pixels": (png(0, 0), DecodeError, "the image is"),
    "16 bits": (file_of(np.zeros((8, 8), np.uint16)), UnsupportedMedia, "they may have 8 bits for each colour"),
    "16 bits of each colour": (DEEP, UnsupportedMedia, "pixels of 16 bits; they may have 8 bits for each colour"),
    "16 bits and what can be seen through": (png(8, 8, depth=16, kind=6), UnsupportedMedia, "of 16 bits"),
    "texts without end": (png(8, 8, *[(b"zTXt", LONG)] * 99), DecodeError, "the image is"),
    "chunks without end": (png(8, 8, *[(b"abCd", b"")] * 9999), FrameTooLarge, "more than 532 segments in 120"),
    "empty parts without end": (png(8, 8, *[(b"IDAT", b"")] * 9999), FrameTooLarge, "more than 532 segments in 120"),
    "comments without end": (commented(b"\xff\xfe\0\2" * 9999), FrameTooLarge, "segments in 40"),
    "tables without end": (commented(b"\xff\xdb\0\2" * 9999), FrameTooLarge, "segments in 40"),
    "scans without end": (scanned(99), FrameTooLarge, "the image has 109 scans and may have 64"),
}


@pytest.mark.parametrize(("body", "error", "told"), REFUSED.values(), ids=REFUSED)
def test_an_image_that_cannot_be_taken_is_refused(body, error, told):
    with pytest.raises(error) as refused:
        decode(body)
    assert told in str(refused.value)


def test_what_makes_no_pixels_is_left_out():
    head, rest = GOOD[:33], GOOD[33:]
    tracemalloc.start()
    try:
        for body in (
            head + chunk(b"zTXt", LONG) * 60 + rest,
            head + chunk(b"iCCP", LONG) + rest,
            GOOD + b"behind it",
        ):
            np.testing.assert_array_equal(decode(body)["image"], np.zeros((1, 8, 8)))
        assert tracemalloc.get_traced_memory()[1] < LIMIT
    finally:
        tracemalloc.stop()
    for comments in (
        b"\xff\xe1\xff\xff" + bytes(65533),
        b"\xff\xe2\0\x06MPF\0",
        b"\xff\xfe\0\x05abc" * 9,
        b"\xff" * 8_000_000,
        b"\xff\xfe\0\2" + b"\0" * 8_000_000,
    ):
        np.testing.assert_array_equal(decode(commented(comments))["image"], np.full((1, 8, 8), 7))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(99)}, {"comment": b"a"}])
def test_pixels_are_the_same_without_the_segments_that_make_none(mode, options):
    body = file_of(Image.linear_gradient("L").convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(body)) as whole, Image.open(io.BytesIO(segments.pixels(body))) as kept:
        assert whole.mode == kept.mode == mode
        np.testing.assert_array_equal(np.asarray(whole), np.asarray(kept))


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        (signature({"x": "float32"}, {}), "an image fits 0 inputs; the model takes x float32"),
        (signature({"x": "float32[8]"}, {}), "an image fits 0 inputs"),
        (signature({"x": "float32[8, 8, 4]"}, {}), "an image fits 0 inputs"),
        (signature({"x": "bool[8, 8]"}, {}), "an image fits 0 inputs"),
        (signature({"x": "int8[8, 8]"}, {}), "an image fits 0 inputs"),
        (signature({"x": "uint8[8, 8]", "y": "uint8[8, 8]"}, {}), "an image fits 2 inputs"),
        (MIXED, "'name', 'scale' is missing"),
    ],
)
def test_a_model_that_takes_no_image_says_so(taken, told):
    with pytest.raises(SignatureMismatch) as refused:
        decode(GOOD, taken)
    assert told in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5))
def test_noise_in_an_image_is_no_fault(format, edits):
    body = bytearray(file_of(Image.linear_gradient("L").resize((8, 8)), format))
    for at, value in edits:
        body[int(at * (len(body) - 1))] = value
    try:
        decode(bytes(body))
    except ClientError as error:
        assert str(error)


def encoded(*fields):
    """A form as requests sends it: its body and boundary."""
    sent = requests.Request("POST", "http://x/", files=fields).prepare()
    return sent.body, sent.headers["Content-Type"].partition("boundary=")[2]


def form(*fields, taken=MIXED, max_rows=4, limit=LIMIT):
    body, boundary = encoded(*fields)
    return images.form(body, taken, max_rows, limit, boundary)


def picture(value, size=(4, 4), name="a.png"):
    return ("image", (name, file_of(np.full((*size, 3), value, np.uint8)), "image/png"))


def text(name, value):
    return (name, (None, value))


def test_several_images_are_several_rows_and_texts_are_json():
    found = form(
        picture(7),
        picture(9, (8, 8)),
        text("name", '"a"'),
        text("name", '"ž"'),
        text("scale", "[1, 2]"),
        text("scale", "[NaN, 3]"),
    )
    assert list(found) == ["image", "name", "scale"]
    assert found["image"].shape == (2, 4, 4, 3) and found["image"][:, 0, 0, 0].tolist() == [7, 9]
    assert found["name"].tolist() == [b"a", "ž".encode()] and found["scale"][1, 1] == 3


def test_the_only_image_may_have_any_name():
    found = form(("file", ("a.png", GOOD)), ("upload", ("b.png", GOOD)), taken=GREY)
    assert found["image"].shape == (2, 8, 8)


def test_a_form_may_have_no_image():
    assert form(text("x", "1"), text("x", "2"), taken=signature({"x": "int32"}, {}))["x"].tolist() == [1, 2]


ROW = (text("name", '"a"'), text("scale", "[1, 2]"))
REFUSED_FORMS = [
    ((picture(1),), SignatureMismatch, "'name', 'scale' is missing"),
    ((picture(1), picture(2), *ROW), SignatureMismatch, "differ in their number of rows"),
    ((picture(1), *ROW, text("z", "1")), SignatureMismatch, "the field 'z' is unknown; the model takes"),
    ((picture(1), text("name", "a"), ROW[1]), DecodeError, "the field 'name' is not JSON: Expecting value at offset 0"),
    ((picture(1), text("name", ""), ROW[1]), DecodeError, "the field 'name' is empty"),
    ((picture(1), ROW[0], text("scale", "[1]")), SignatureMismatch, "one row has shape [1]"),
    ((picture(1), text("image", "1"), *ROW), SignatureMismatch, "input 'image'"),
    ((*[picture(1)] * 5, *ROW), FrameTooLarge, "5 rows and the limit is 4"),
    ((("name", ("a.txt", b"a")), picture(1), ROW[1]), SignatureMismatch, ""),
    ((("scale", ("a.png", GOOD)), picture(1), ROW[0]), SignatureMismatch, "input 'scale' is no image"),
    ((("image", ("a.png", b"a")), *ROW), DecodeError, "no PNG, JPEG or WebP"),
    ((*[text("name", '"a"')] * 13,), FrameTooLarge, "the form has more than 12 fields"),
]


@pytest.mark.parametrize(("fields", "error", "told"), REFUSED_FORMS, ids=[told for *_, told in REFUSED_FORMS])
def test_a_form_that_cannot_be_taken_is_refused(fields, error, told):
    if told:
        with pytest.raises(error) as refused:
            form(*fields)
        assert told in str(refused.value)
    else:
        # a string takes any file
        assert form(*fields)["name"].tolist() == [b"a"]


def test_images_together_are_no_larger_than_a_body():
    with pytest.raises(FrameTooLarge, match="an image of 200 × 200 pixels and those before it would be 240000 bytes"):
        form(
            picture(1, (200, 200)),
            picture(2, (200, 200)),
            taken=signature({"image": "uint8[4, 4, 3]"}, {}),
            limit=200_000,
        )
    with pytest.raises(FrameTooLarge, match="the resized images would be 24000000 bytes"):
        form(picture(1), picture(2), taken=signature({"image": "float32[1000, 1000, 3]"}, {}))


def test_images_of_several_sizes_are_no_tensor():
    with pytest.raises(SignatureMismatch, match="images of several sizes"):
        form(picture(1), picture(1, (5, 5)), taken=signature({"image": "uint8[-1, -1, 3]"}, {}))


def test_a_form_without_an_end_is_refused():
    body, boundary = encoded(picture(1), *ROW)
    for size in (0, 1, 30, len(body) // 2, len(body) - 6):
        with pytest.raises(DecodeError, match="the form ends before its last boundary"):
            images.form(body[:size], MIXED, 4, LIMIT, boundary)
    for wrong in ("", "ž", "x" * 71):
        with pytest.raises(DecodeError, match="Content-Type has no boundary"):
            images.form(body, MIXED, 4, LIMIT, wrong)


def test_a_form_begins_with_its_boundary_and_has_no_long_heads_and_texts():
    with pytest.raises(DecodeError, match="the form does not begin with its boundary"):
        images.form(b"before\r\n--b--\r\n", MIXED, 4, LIMIT, "b")
    head = b"--b\r\nContent-Disposition: form-data; name=scale\r\n"
    for long, told in (
        (b"a: b\r\n" * (LIMIT // 6), "heads of more than 256 bytes"),
        (b";" * 4096, "heads of more than 256 bytes"),
        (b"\r\n" + b"1" * LIMIT, "or a text of more than 131072 bytes"),
    ):
        with pytest.raises(FrameTooLarge, match=told):
            images.form(head + long + b"\r\n\r\n1\r\n--b--\r\n", MIXED, 4, LIMIT, "b")
    longer = head + b"a: b\r\n" * 99 + b"\r\n[1, 2]\r\n"
    with pytest.raises(SignatureMismatch, match="'image', 'name' is missing"):
        images.form(longer * 4 + b"--b--\r\n", MIXED, 4, LIMIT, "b")
    with pytest.raises(FrameTooLarge, match="heads of more than 256 bytes"):
        images.form(longer * 40 + b"--b--\r\n", MIXED, 40, LIMIT, "b")


@pytest.mark.parametrize("part", [b"\r\n--b\r\n\r\n", b"\r\n--b", b"\n--bx", b"\r--b\r\r"])
def test_more_parts_than_there_may_be_are_refused_before_they_are_read(part, monkeypatch):
    monkeypatch.setattr(images, "MultiPartParser", None)
    with pytest.raises(FrameTooLarge, match="more than 12 fields"):
        images.form(b"--b\r\na: b\r\n\r\n" + part * 100_000 + b"\r\n--b--", MIXED, 4, LIMIT, "b")


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
def test_noise_in_a_form_is_no_fault(edits):
    body, boundary = encoded(picture(1), *ROW)
    noisy = bytearray(body)
    for at, value in edits:
        noisy[int(at * (len(body) - 60))] = value
    try:
        images.form(bytes(noisy), MIXED, 4, LIMIT, boundary)
    except ClientError as error:
        assert str(error)


@pytest.mark.parametrize(
    "part",
    [
        b"\r\n",
        b"Content-Disposition: form-data\r\n\r\n1",
        b"Content-Disposition: attachment; name=a\r\n\r\n1",
        b"no header\r\n\r\n1",
        b"Content-Disposition: form-data; name*=x'y\r\n\r\n1",
        b"Content-Disposition: form-data; name=x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n1",
        b"Content-Disposition: form-data; name=x; filename=\r\n\r\n1",
        b"X: " + b"y" * LIMIT + b"\r\n\r\n1",
    ],
)
def test_an_odd_part_is_refused(part):
    with pytest.raises(ClientError):
        images.form(b"--b\r\n" + part + b"\r\n--b--\r\n", GREY, 4, LIMIT, "b")
