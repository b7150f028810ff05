"""POST and PUT /predictions: what TorchServe's handlers take and return."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from ..conftest import DOORS, Chain


class Echo:
    """The text, in brackets."""

    inputs = {"text": "string"}
    outputs = {"echo": "string"}

    def predict(self, inputs):
        return {"echo": np.array([f"<{text}>" for text in inputs["text"]], object)}


class Brightness:
    """Of an image."""

    inputs = {"image": "float32[2, 2]"}
    outputs = {"mean": "float32"}

    def predict(self, inputs):
        return {"mean": inputs["image"].mean(axis=(1, 2))}


@pytest.fixture(scope="module")
def brightness():
    chain = Chain(Brightness()).serve()
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def double():
    chain = Chain().serve()
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def echo():
    chain = Chain(Echo()).serve()
    yield chain
    chain.close()


def ask(chain, body, path="/predictions/double", method="POST", door="flask", media_type=None):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    return chain.get(path, method, data=sent, content_type=media_type, door=door)


def check(answer, status, kind, told):
    """An error as TorchServe has it."""
    assert (answer.status_code, answer.content_type) == (status, "application/json"), answer.data
    assert set(answer.json) == {"code", "type", "message"}
    assert (answer.json["code"], answer.json["type"]) == (status, kind) and told in answer.json["message"]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([1, 2], {"y": [2, 4], "sum": 3}),
        ({"x": [1, 2]}, {"y": [2, 4], "sum": 3}),
        ([[1, 2], [3, 4]], [{"y": [2, 4], "sum": 3}, {"y": [6, 8], "sum": 7}]),
        ([{"x": [1]}], [{"y": [2], "sum": 1}]),
        ({"instances": [[1, 2]]}, {"predictions": [{"y": [2, 4], "sum": 3}]}),
        (b"data=%5B1%2C+2%5D", {"y": [2, 4], "sum": 3}),
        (b"other=1&body=[1,2]", {"y": [2, 4], "sum": 3}),
    ],
)
def test_a_row_is_answered_by_a_row_and_rows_by_rows(double, door, method, sent, expected):
    # as curl has it with -d
    answer = ask(double, sent, method=method, door=door, media_type="application/x-www-form-urlencoded")
    assert (answer.status_code, answer.content_type, answer.json) == (200, "application/json", expected)


@pytest.mark.parametrize("version", ["3", "3.0"])
def test_versions_may_be_written_as_torchserve_does(double, version):
    answer = ask(double, [1], f"/predictions/double/{version}")
    assert (answer.json, answer.headers["X-Model-Version"]) == ({"y": [2], "sum": 1}, "3")


@pytest.mark.parametrize(
    ("sent", "media_type", "expected"),
    [
        ("né".encode(), None, "<né>"),
        (b'{"text": "a"}', None, '<{"text": "a"}>'),
        (b"data=a+b", "application/x-www-form-urlencoded", "<a b>"),
        ("other=1&data=wé".encode(), "application/x-www-form-urlencoded", "<wé>"),
        (b"body=w%C3%A9%25=&x=%", "application/x-www-form-urlencoded", "<wé%=>"),
        (b'"a"', "application/json", "<a>"),
        (b'{"text": "a"}', "application/json; charset=utf-8", "<a>"),
    ],
)
def test_a_text_is_a_text_unless_it_is_said_to_be_json(echo, sent, media_type, expected):
    answer = ask(echo, sent, media_type=media_type)
    assert (answer.status_code, answer.content_type, answer.text) == (200, "text/plain; charset=utf-8", expected)


def test_several_texts_are_json(echo):
    assert ask(echo, ["a", "b"], media_type="application/json").json == ["<a>", "<b>"]
    assert ask(echo, {"instances": ["a"]}, media_type="application/json").json == {"predictions": ["<a>"]}


def test_errors_have_torchserves_types(double, make_chain):
    check(ask(double, [1], "/predictions/other"), 404, "ModelNotFoundException", "Model not found: other")
    told = "Model version: 1.5 does not exist for model: double"
    check(ask(double, [1], "/predictions/double/1.5"), 404, "ModelVersionNotFoundException", told)
    check(ask(double, b"nonsense"), 400, "BadRequestException", "the body is not JSON")
    check(ask(double, b""), 400, "BadRequestException", "the body is empty")
    check(ask(double, ["1"]), 400, "BadRequestException", "found the string '1'")
    check(ask(double, [1, 1e300]), 400, "BadRequestException", "1e+300 overflows it")
    check(ask(double, [[1], [1, 2]]), 400, "BadRequestException", "ragged")
    check(ask(double, [[1]] * 1025), 413, "BadRequestException", "1025 rows and the limit is 1024")
    check(ask(double, [13]), 500, "InternalServerException", "the model raised ValueError")
    form = "application/x-www-form-urlencoded"
    check(ask(double, b"data=&" * 65, media_type=form), 400, "BadRequestException", "more than 64 fields")
    for wrong in (b"data=%", b"data=%4", b"data=a%4z", b"data=%%41"):
        check(ask(double, wrong, media_type=form), 400, "BadRequestException", "no two hexadecimal digits follow")
    check(ask(make_chain(), [1]), 503, "ServiceUnavailableException", "no replica has loaded the model")
    check(ask(make_chain(deadline_ms=50).ready(), [1]), 504, "RequestTimeoutException", "")


def image(brightness, kind):
    file = io.BytesIO()
    Image.new("L", (2, 2), brightness).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("said", [True, False])
def test_an_image_is_one_row(brightness, kind, said):
    media_type = f"image/{kind.lower()}" if said else None
    answer = ask(brightness, image(100, kind), method="PUT", media_type=media_type)
    assert (answer.status_code, answer.json) == (200, pytest.approx(100, abs=1))


@pytest.mark.parametrize(("count", "expected"), [(1, 50), (2, [50, 50])])
def test_a_form_has_an_image_for_each_row(brightness, count, expected):
    files = [(io.BytesIO(image(50, "PNG")), f"{number}.png", "image/png") for number in range(count)]
    answer = brightness.get("/predictions/double", "POST", data={"data": files})
    assert (answer.status_code, answer.json) == (200, expected)


def test_a_text_may_come_as_a_file(echo):
    answer = echo.get("/predictions/double", "POST", data={"data": (io.BytesIO(b"hello"), "text.txt")})
    assert (answer.status_code, answer.text) == (200, "<hello>")


def test_arrays_are_rows(brightness):
    file = io.BytesIO()
    np.save(file, np.full((1, 2, 2), 3))
    assert ask(brightness, file.getvalue(), media_type="application/x-npy").json == [3]
    check(ask(brightness, b"nonsense", media_type="application/x-npy"), 400, "BadRequestException", "npy")
    check(ask(brightness, b"<x/>", media_type="application/xml"), 415, "BadRequestException", "Content-Type is")
    check(ask(brightness, b"\x89PNG"), 400, "BadRequestException", "the image is no PNG, JPEG or WebP")
