"""Media types on the real server: one row in all of them, and garbage in all of them."""

import gzip
import io
import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import ormsgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import zstandard
from PIL import Image

from .conftest import DIGITS, ask, write_model

IMAGE = np.array([json.loads((DIGITS / "sample.json").read_bytes())["image"]], np.float32)
DOUBLE = """
class Model:
    inputs = {"x": "float32[2]"}
    outputs = {"y": "float32[2]"}

    def __init__(self, path):
        pass

    def predict(self, inputs):
        return {"y": inputs["x"] * 2}
"""
# of each media type, and of each kind of garbage
REQUESTS = 60


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def arrow(table):
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def parquet(table):
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def png(pixels, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, format, lossless=True)
    return file.getvalue()


def form(body):
    sent = requests.Request("POST", "http://x/", files={"image": ("a.png", body, "image/png")}).prepare()
    return {"Content-Type": sent.headers["Content-Type"]}, sent.body


WIDE = pa.table({f"pixel_{index}": IMAGE.reshape(1, 64)[:, index] for index in range(64)})
NESTED = pa.table({"image": [IMAGE.reshape(64)]})
RAW = {"Content-Type": "application/octet-stream", "X-Tensor-Shape": "1,8,8"}
BODIES = [
    ({"Content-Type": "application/x-npy"}, npy(IMAGE)),
    ({"Content-Type": "application/x-npy"}, npy(IMAGE.astype(np.int64))),
    ({"Content-Type": "application/x-npz"}, npz(image=IMAGE)),
    (RAW, IMAGE.tobytes()),
    ({**RAW, "X-Tensor-Dtype": "uint8"}, IMAGE.astype(np.uint8).tobytes()),
    ({"Content-Type": "text/csv"}, ",".join(map(str, IMAGE.ravel())).encode()),
    ({"Content-Type": "application/vnd.apache.arrow.stream"}, arrow(WIDE)),
    ({"Content-Type": "application/vnd.apache.arrow.stream"}, arrow(NESTED)),
    ({"Content-Type": "application/vnd.apache.parquet"}, parquet(WIDE)),
    ({"Content-Type": "application/vnd.apache.parquet"}, parquet(NESTED)),
    ({"Content-Type": "application/vnd.msgpack"}, ormsgpack.packb({"instances": IMAGE.tolist()})),
    ({"Content-Type": "image/png"}, png(IMAGE[0])),
    ({"Content-Type": "image/webp"}, png(IMAGE[0], "WEBP")),
    form(png(IMAGE[0])),
]
IDS = [f"{number} {headers['Content-Type'].partition(';')[0]}" for number, (headers, _) in enumerate(BODIES)]


@pytest.fixture(scope="module")
def expected(digits):
    return digits.predict({"instances": IMAGE.tolist()}).json


@pytest.mark.parametrize(("headers", "body"), BODIES, ids=IDS)
def test_the_same_row_has_the_same_answer_in_every_media_type(digits, expected, headers, body):
    answer = digits.request("POST", "/predict", body, headers)
    assert (answer.status, answer.json) == (200, expected)
    packed = zstandard.ZstdCompressor().compress(body)
    assert digits.request("POST", "/predict", packed, {**headers, "Content-Encoding": "zstd"}).json == expected


def test_the_answer_has_the_same_numbers_in_every_media_type(digits, expected):
    ((row,),) = expected.values()
    wanted = {name: np.array([value], "f4" if name == "probabilities" else "i8") for name, value in row.items()}

    def given(accept):
        answer = digits.request("POST", "/predict", npy(IMAGE), {"Content-Type": "application/x-npy", "Accept": accept})
        assert answer.status == 200 and answer.headers["content-type"] == accept, answer
        return answer.body

    def same(found):
        assert set(found) == set(wanted)
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(np.array(found[name], tensor.dtype), tensor)

    same(np.load(io.BytesIO(given("application/x-npz"))))
    same(pa.ipc.open_stream(given("application/vnd.apache.arrow.stream")).read_all().to_pydict())
    same(pq.read_table(pa.BufferReader(given("application/vnd.apache.parquet"))).to_pydict())
    ((told,),) = ormsgpack.unpackb(given("application/vnd.msgpack")).values()
    same({name: [value] for name, value in told.items()})
    names, cells = (line.split(",") for line in given("text/csv").decode().splitlines())
    assert dict(zip(names, map(float, cells), strict=True))["digit"] == row["digit"]
    headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    assert digits.request("POST", "/predict", npy(IMAGE), headers).json["code"] == "not_acceptable"


def test_the_only_output_comes_back_as_npy_and_as_raw_bytes(start, tmp_path):
    server = start(MODEL=write_model(tmp_path / "double", DOUBLE), MULES=1).wait_ready()
    pair = np.array([[1.5, 2], [3, 4]], np.float32)
    headers = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
    answer = server.request("POST", "/predict", pair.tobytes(), headers)
    assert (answer.status, answer.body) == (200, (pair * 2).tobytes())
    assert (answer.headers["x-tensor-shape"], answer.headers["x-tensor-dtype"]) == ("2,2", "float32")
    answer = server.request("POST", "/predict", npy(pair), dict.fromkeys(headers, "application/x-npy"))
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.body)), pair * 2)


def test_garbage_in_every_media_type_is_refused_and_harms_nobody(digits, expected):
    draw = random.Random(20)

    def garbage(body):
        noisy = bytearray(body)
        for _ in range(draw.randint(1, 6)):
            at = draw.randrange(len(noisy))
            match draw.randrange(4):
                case 0:
                    noisy[at] = draw.randrange(256)
                case 1:
                    noisy[at : at + draw.randint(1, 9)] = b""
                case 2:
                    noisy[at:at] = draw.randbytes(draw.randint(1, 9))
                case 3:
                    noisy[at] = draw.choice(b"\0\1\x7f\x80\xff")
            noisy = noisy or bytearray(1)
        return bytes(noisy)

    cases = []
    for headers, body in BODIES:
        cases += [(headers, garbage(body)) for _ in range(REQUESTS)]
        cases += [(headers, body[: draw.randrange(len(body))]) for _ in range(REQUESTS // 4)]
        # of another type
        cases += [(headers, draw.choice(BODIES)[1]) for _ in range(REQUESTS // 4)]
    draw.shuffle(cases)
    workers = digits.processes()["worker"]

    def play(some):
        statuses = []
        with closing(digits.connect()) as connection:
            for headers, body in some:
                answer = ask(connection, "POST", "/predict", body, headers)
                assert answer.status in (200, 400, 413, 415), (headers, body, answer)
                statuses.append(answer.status)
        return statuses

    with ThreadPoolExecutor(4) as clients:
        turns = clients.map(play, (cases[turn::4] for turn in range(4)))
        statuses = list(itertools.chain.from_iterable(turns))
    assert statuses.count(400) > len(cases) / 2
    assert digits.predict({"instances": IMAGE.tolist()}).json == expected
    assert digits.processes()["worker"] == workers and "Traceback" not in digits.log


def test_bombs_are_refused(digits):
    zeros = np.zeros(64 << 20, np.uint8)
    huge = pa.table({"image": ["x" * (64 << 20)]})
    file = io.BytesIO()
    pq.write_table(huge, file, compression="zstd")
    photo = io.BytesIO()
    Image.new("1", (50_000, 50_000)).save(photo, "PNG")
    for headers, body in (
        ({"Content-Type": "application/x-npz"}, npz(image=zeros)),
        ({"Content-Type": "application/vnd.apache.parquet"}, file.getvalue()),
        ({"Content-Type": "image/png"}, photo.getvalue()),
        form(photo.getvalue()),
        ({"Content-Type": "application/x-npy", "Content-Encoding": "gzip"}, gzip.compress(npy(zeros))),
    ):
        answer = digits.request("POST", "/predict", body, headers)
        assert answer.status == 413 and answer.json["code"] == "too_large", answer
        assert "max_body_bytes" in answer.json["detail"]
