"""Which media type is which, by Content-Type and Accept, through both doors down to a real replica."""

import io
import json
import subprocess
import sys

import numpy as np
import ormsgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from PIL import Image

from app import media
from app.media import arrays, arrow, tables
from serving.memory_transport import MemoryTransport
from tests.app.conftest import DOORS, Chain, check_problem
from tests.test_layering import ROOT

X = np.array([[1, 2], [3, 4]], np.float32)
ANSWER = {"predictions": [{"y": [2.0, 4.0], "sum": 3.0}, {"y": [6.0, 8.0], "sum": 7.0}]}
COLUMNS = {"a": X[:, 0], "b": X[:, 1]}
BODIES = {
    "application/json": b'{"instances": [[1, 2], [3, 4]]}',
    "application/json; charset=utf-8": b'{"instances": [[1, 2], [3, 4]]}',
    "Application/Problem+JSON": b'{"instances": [[1, 2], [3, 4]]}',
    "application/x-www-form-urlencoded": b'{"instances": [[1, 2], [3, 4]]}',
    "text/plain;charset=UTF-8": b'{"instances": [[1, 2], [3, 4]]}',
    "application/x-npy": arrays.npy_of({"x": X}),
    "application/x-npz": arrays.npz_of({"x": X}),
    "text/csv": b"a,b\n1,2\n3,4\n",
    "text/csv; header=absent; charset=UTF-8": b"1,2\n3,4\n",
    "text/csv; charset=utf8": b"1,2\n3,4\n",
    "text/csv; header=present": b"1,2\n1,2\n3,4\n",
    "application/vnd.apache.arrow.stream": arrow.stream_of(COLUMNS),
    "application/vnd.apache.parquet": arrow.parquet_of(COLUMNS),
    "application/x-parquet": arrow.parquet_of(COLUMNS),
    "application/vnd.msgpack": ormsgpack.packb({"instances": X.tolist()}),
    "application/msgpack": ormsgpack.packb({"instances": X.tolist()}),
    "application/x-msgpack": ormsgpack.packb({"instances": X.tolist()}),
}


class Only:
    """One output."""

    inputs = {"image": "float32[2, 2]", "scale": "float32"}
    outputs = {"y": "float32[2, 2]"}

    def predict(self, inputs):
        return {"y": inputs["image"] * inputs["scale"][:, None, None]}


@pytest.fixture(scope="module")
def chain():
    chain = Chain(transport=MemoryTransport(), max_request_rows=8, max_body_bytes=1 << 20).serve()
    yield chain
    chain.close()


@pytest.fixture(scope="module")
def only():
    chain = Chain(Only(), MemoryTransport(), max_request_rows=8, max_body_bytes=1 << 20).serve()
    yield chain
    chain.close()


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("type", BODIES)
def test_each_media_type_is_taken(chain, type, door):
    response = chain.post(BODIES[type], door, Content_Type=type)
    assert (response.status_code, response.json) == (200, ANSWER), response.data
    assert response.content_type == "application/json"


def test_raw_bytes_and_forms_are_taken(chain, only):
    response = chain.post(X.tobytes(), Content_Type="application/octet-stream", X_Tensor_Shape="2,2")
    assert response.json == ANSWER
    response = chain.post(
        X.astype("f8").tobytes(),
        Content_Type="application/octet-stream",
        X_Tensor_Shape="(2, 2)",
        X_Tensor_Dtype="float64",
    )
    assert response.json == ANSWER
    file = io.BytesIO()
    Image.fromarray(X.astype(np.uint8)).save(file, "PNG")
    sent = requests.Request("POST", "http://x/", files={"image": file.getvalue()}, data={"scale": "2"}).prepare()
    response = only.post(sent.body, Content_Type=sent.headers["Content-Type"])
    assert response.json == {"predictions": [[[2.0, 4.0], [6.0, 8.0]]]}
    check_problem(only.post(file.getvalue(), Content_Type="image/png"), 400, "signature", "'scale' is missing")


def test_each_media_type_is_given(chain):
    def asked(accept):
        response = chain.post(BODIES["application/x-npy"], Content_Type="application/x-npy", Accept=accept)
        assert response.status_code == 200 and response.content_type.partition(";")[0] == accept, response.data
        return response.data

    assert asked("text/csv") == b"y_0,y_1,sum\n2.0,4.0,3.0\n6.0,8.0,7.0\n"
    assert ormsgpack.unpackb(asked("application/vnd.msgpack")) == ANSWER
    assert np.load(io.BytesIO(asked("application/x-npz")))["y"].tolist() == (X * 2).tolist()
    for table in (
        pa.ipc.open_stream(asked("application/vnd.apache.arrow.stream")).read_all(),
        pq.read_table(pa.BufferReader(asked("application/vnd.apache.parquet"))),
    ):
        assert table.to_pylist() == ANSWER["predictions"]


def test_the_only_output_is_given_as_npy_and_as_raw_bytes(only):
    body = json.dumps({"instances": [{"image": X.tolist(), "scale": scale} for scale in (1, 2)]})
    expected = np.stack([X, X * 2])
    response = only.post(body, Accept="application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(response.data)), expected)
    response = only.post(body, Accept="application/octet-stream")
    assert response.headers["X-Tensor-Shape"] == "2,2,2" and response.headers["X-Tensor-Dtype"] == "float32"
    assert response.data == expected.tobytes()


@pytest.mark.parametrize(
    ("accept", "type"),
    [
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json, text/javascript, */*; q=0.01", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("text/*", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/json;verbose=True", "application/json"),
        ("text/csv; charset=utf-8", "text/csv"),
        ("text/csv; header=present; q=0.5, application/json;q=.4", "text/csv"),
        # what Java asks for where nobody says
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "application/json"),
        ("*/*, text/csv", "text/csv"),
        ("*/*, application/json;q=0, application/*;q=0.1", "text/csv"),
        ("text/html, text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        # for one output alone
        ("application/x-npy, application/x-npz;q=0.5, application/json;q=0.1", "application/x-npz"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_an_answer_is_as_it_is_wanted_most(chain, accept, type, path):
    assert chain.post(BODIES["application/json"], path=path, Accept=accept).content_type.partition(";")[0] == type


@pytest.mark.parametrize(
    "accept",
    [
        "text/html",
        "application/x-npy",
        "application/octet-stream",
        "image/png",
        "application/json;q=0",
        "application/json;q=x, text/csv;q=nan",
        "x",
        "ÿ,,;=;",
        "a/b" + " " * 1_000_000 + "x",
        "a/b," * 300_000,
    ],
    ids=lambda accept: accept[:32],
)
@pytest.mark.parametrize("door", DOORS)
def test_an_answer_that_nothing_can_give_is_refused(chain, accept, door):
    detail = check_problem(chain.post(BODIES["application/json"], door, Accept=accept), 406, "not_acceptable")
    assert "there is application/json, application/x-npz, text/csv, application/vnd.apache.arrow.stream" in detail


@pytest.mark.parametrize("type", ["text/html", "application/xml", "image/gif", "video/mp4", "x", "ÿ", "x" * 999])
def test_a_media_type_that_nothing_reads_is_refused_with_those_there_are(chain, type):
    detail = check_problem(chain.post(b"{}", Content_Type=type), 415, "media_type", "Content-Type is ")
    assert "it may be application/json, application/x-npy, " in detail and len(detail) < 500
    check_problem(chain.post(b"", Content_Type="text/csv; charset=latin-1"), 415, "media_type", "charset 'latin-1'")


@pytest.mark.parametrize(
    "type", [type for type in BODIES if "json" not in type] + ["image/png", "multipart/form-data; boundary=b"]
)
@pytest.mark.parametrize("body", [b"", b"{}", b"\0" * 999, b"\xff" * 999, b"GARBAGE"])
def test_garbage_is_refused_in_every_type(chain, type, body):
    response = chain.post(body, Content_Type=type, X_Tensor_Shape="1,2")
    assert 400 <= response.status_code < 416, response.data
    assert response.json["code"] in ("bad_body", "signature", "too_large")


def test_what_is_not_installed_is_named_with_its_extra(chain, monkeypatch):
    for module, library, types in (
        ("pyarrow", "pyarrow", ["application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"]),
        ("ormsgpack", "ormsgpack", ["application/vnd.msgpack"]),
    ):
        # as where there is none
        monkeypatch.setitem(sys.modules, module, None)
        media.encoder.cache_clear()
        told = f"this needs {library}, which is not installed: pip install -c constraints.txt '.[media]'"
        for type in types:
            check_problem(chain.post(BODIES[type], Content_Type=type), 415, "media_type", told)
            check_problem(
                chain.post(BODIES["text/csv"], Content_Type="text/csv", Accept=type), 406, "not_acceptable", told
            )
    media.encoder.cache_clear()


def test_nothing_of_the_extra_is_loaded_before_it_is_asked_for():
    program = "import sys, app; print(sorted({'pyarrow', 'PIL', 'ormsgpack'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_other_dialects_may_read_tables_without_names(chain):
    found = tables.decode(b"1,2\n3,4\n", chain.signature, 8, 1 << 20, header=False)
    assert found["x"].tolist() == X.tolist()
