"""Noise in each dialect: sound requests with something broken in them, and no answer that the server is to blame for.

Units: seconds.
"""

import io
import json
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import ormsgpack
import pandas as pd
import pyarrow as pa
from PIL import Image

from .conftest import DIGITS, Server, ask

REQUESTS = 20_000
CLIENTS = 4
SEED = 2026
IMAGE = json.loads((DIGITS / "sample.json").read_bytes())["image"]
FLAT = [value for row in IMAGE for value in row]
RAW = struct.pack("<64f", *FLAT)
JSON = {"Content-Type": "application/json"}


def binary(**more):
    """A body of the binary tensor extension, and its headers."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "parameters": {"binary_data_size": len(RAW)}}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + RAW


def v2(**more):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": FLAT}
    return JSON, json.dumps({"inputs": [tensor], **more}).encode()


def file(write, *arguments, **options):
    """What is written to a file."""
    sink = io.BytesIO()
    write(sink, *arguments, **options)
    return sink.getvalue()


def arrow():
    batch = pa.record_batch({"image": [FLAT]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


def kind(media_type, **more):
    return {"Content-Type": media_type, **more}


PICTURE = file(Image.fromarray(np.array(IMAGE, np.uint8)).save, "png")
NPY = file(np.save, np.array([IMAGE], np.float32))
CSV = pd.DataFrame([FLAT]).to_csv(index=False, header=False).encode()
SPLIT = {"columns": ["image"], "data": [[IMAGE]]}
PARTS = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
WANTED = [{"name": "digit", "parameters": {"binary_data": True}}]
# path, headers, body
SOUND = [
    ("/predict", JSON, json.dumps({"image": IMAGE}).encode()),
    ("/predict", JSON, json.dumps({"signature_name": "serving_default", "instances": [IMAGE, IMAGE]}).encode()),
    ("/v1/models/digits:predict", {}, json.dumps({"instances": [IMAGE]}).encode()),
    ("/v1/models/digits/versions/1:predict", {}, json.dumps({"inputs": {"image": [IMAGE]}}).encode()),
    ("/v1/models/digits:classify", {}, b'{"examples": [{"a": 1, "b": ["x", {"b64": "AA=="}], "c": 0.5}]}'),
    ("/v1/models/digits:regress", {}, b'{"context": {"a": 1}, "examples": [{"b": -1}]}'),
    ("/v2/models/digits/infer", *v2(id="a", outputs=WANTED)),
    ("/v2/models/digits/infer", *v2(parameters={"timeout": 3_000_000, "binary_data_output": True})),
    ("/v2/models/digits/versions/1/infer", *binary(outputs=[{"name": "digit"}])),
    ("/v2/models/digits/infer", {"Inference-Header-Content-Length": "0"}, RAW),
    ("/v2/repository/index", JSON, b'{"ready": true}'),
    ("/predict", kind("application/x-npy", Accept="application/x-npz"), NPY),
    ("/predict", kind("application/x-npz", Accept="application/x-npz"), file(np.savez, image=[IMAGE])),
    ("/predict", kind("application/octet-stream", **{"X-Tensor-Shape": "1,8,8", "X-Tensor-Dtype": "float32"}), RAW),
    ("/predict", kind("text/csv", Accept="text/csv"), CSV),
    ("/predict", kind("application/vnd.apache.arrow.stream"), arrow()),
    ("/predict", kind("application/vnd.apache.parquet"), file(pd.DataFrame({"image": [FLAT]}).to_parquet)),
    ("/predict", kind("application/msgpack", Accept="application/msgpack"), ormsgpack.packb({"image": IMAGE})),
    ("/predict", kind("image/png"), PICTURE),
    ("/predict", kind("multipart/form-data; boundary=b"), PARTS + PICTURE + b"\r\n--b--\r\n"),
    ("/invocations", JSON, json.dumps({"dataframe_split": SPLIT}).encode()),
    ("/invocations", JSON, json.dumps({"instances": [IMAGE], "params": {}}).encode()),
    ("/invocations", kind("text/csv"), CSV),
    ("/invocations", kind("application/x-npy"), NPY),
    ("/predictions/digits", JSON, json.dumps(IMAGE).encode()),
    ("/predictions/digits/1", {}, json.dumps({"instances": [{"image": IMAGE}]}).encode()),
]
FRAGMENTS = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"0", b"-", b"e99", b".", b"null", b"true"]
FRAGMENTS += [b"NaN", b"1e999", b"\0", b"\xff", b"\n", b"99999999999999999999", b"FP64", b"BYTES", b"-1", b"shape"]
VALUES = ["", "0", "-1", "1", "17", "99999999999999999999", "gzip", "deflate", "zstd", "a/b", "*/*", "text/html;q=0.1"]
VALUES += [
    "application/json",
    "text/csv",
    "application/octet-stream",
    "application/x-npy",
    "image/png",
    "\xff",
    "x" * 300,
]
HEADERS = ["Content-Type", "Accept", "Accept-Encoding", "Content-Encoding", "Inference-Header-Content-Length"]
HEADERS += ["X-Model-Version", "X-Request-Timeout-Ms", "X-Tensor-Shape", "X-Tensor-Dtype"]


def broken(chance, body):
    """A body with some bytes of it replaced, put in, left out, or said twice."""
    for _ in range(chance.randint(0, 3)):
        start = chance.randint(0, len(body))
        end = min(len(body), start + chance.choice([0, 1, 1, 2, 4, 30]))
        new = chance.choice(
            [b"", chance.choice(FRAGMENTS), chance.randbytes(chance.randint(1, 8)), body[start:end] * 2]
        )
        body = body[:start] + new + body[end:]
    return body[: chance.randint(0, len(body))] if chance.random() < 0.05 else body


def drawn(chance):
    """A request: its path, its headers and its body."""
    path, headers, body = chance.choice(SOUND)
    headers = dict(headers)
    if chance.random() < 0.3:
        headers[chance.choice(HEADERS)] = chance.choice(VALUES)
    if headers and chance.random() < 0.1:
        del headers[chance.choice(list(headers))]
    if chance.random() < 0.1:
        path = chance.choice(
            [path + "x", path.replace("digits", "none"), path.replace("1", "7"), chance.choice(SOUND)[0]]
        )
    return path, headers, broken(chance, body) if chance.random() < 0.85 else body


def run(server, number):
    """A quarter of all requests, over one connection; the statuses that were answered, by path."""
    chance = random.Random(SEED + number)
    found = set()
    connection = server.connect()
    for _ in range(REQUESTS // CLIENTS):
        path, headers, body = drawn(chance)
        answer = ask(connection, "POST", path, body, headers)
        told = (path, headers, body, answer.status, answer.body)
        assert answer.status < 500 or answer.status in (503, 504), told
        if answer.status != 200 and answer.headers["content-type"].endswith("json"):
            assert isinstance(json.loads(answer.body), dict), told
        found.add((path, answer.status))
        if answer.headers.get("connection") == "close":
            connection.close()
    connection.close()
    return found


def test_no_noise_is_answered_as_a_fault_of_the_server():
    with closing(Server(MODEL=DIGITS, MULES=2)) as server, ThreadPoolExecutor(CLIENTS) as clients:
        server.wait_ready()
        before = {role: sorted(pids) for role, pids in server.processes().items()}
        for path, headers, body in SOUND:
            answer = server.request("POST", path, body, headers)
            # digits has no signature for examples
            assert answer.status == (400 if path.endswith(("classify", "regress")) else 200), (path, answer.body)
        found = set().union(*clients.map(lambda number: run(server, number), range(CLIENTS)))
        assert {status for _, status in found} >= {200, 400, 404}
        for path, _, _ in SOUND:
            assert (path, 400) in found
        assert {role: sorted(pids) for role, pids in server.processes().items()} == before
        assert "Traceback" not in server.log
        assert server.stop() == 0
