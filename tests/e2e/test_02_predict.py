"""Good requests: the answers of the server are the answers of the model."""

import itertools
import json
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from .conftest import DIGITS, FANCY, ROOT, ask


@pytest.fixture(scope="module")
def held_out():
    """Images that the example's network has not seen, with their digits."""
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    try:
        from train import split
    finally:
        sys.path.pop(0)
    _, _, images, digits = split()
    chosen = np.random.default_rng(2026).choice(len(images), 100, replace=False)
    return images[chosen], digits[chosen]


@pytest.fixture(scope="module")
def direct(held_out, tmp_path_factory):
    """What the SavedModel gives for each image when it is called by itself, one at a time, in a process of its own."""
    file = tmp_path_factory.mktemp("direct") / "images.npy"
    np.save(file, held_out[0])
    program = (
        "import sys, numpy as np, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "serve = model.signatures['serving_default']\n"
        "found = [serve(image=tf.constant(image[None])) for image in np.load(sys.argv[2])]\n"
        "np.savez(sys.argv[2] + '.npz', probabilities=[f['probabilities'].numpy()[0] for f in found],\n"
        "         digit=[f['digit'].numpy()[0] for f in found])\n"
    )
    subprocess.run([sys.executable, "-c", program, DIGITS / "1", file], check=True, capture_output=True)
    return np.load(f"{file}.npz")


def test_one_at_a_time_the_answers_are_exactly_those_of_the_saved_model(digits, held_out, direct):
    images, labels = held_out
    answers = [digits.predict({"image": image.tolist()}).json for image in images]
    probabilities = np.array([answer["probabilities"] for answer in answers], np.float32)
    np.testing.assert_array_equal(probabilities, direct["probabilities"])
    assert [answer["digit"] for answer in answers] == direct["digit"].tolist()
    assert np.mean([answer["digit"] for answer in answers] == labels) >= 0.95


def test_in_batches_the_answers_are_those_of_the_saved_model(digits, held_out, direct):
    images, _ = held_out
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda image: digits.predict({"image": image.tolist()}).json, images))
    probabilities = np.array([answer["probabilities"] for answer in answers])
    np.testing.assert_allclose(probabilities, direct["probabilities"], rtol=0, atol=1e-6)


def test_rows_columns_and_one_instance_give_the_same(digits, held_out):
    images = held_out[0][:40].tolist()
    rows = digits.predict({"instances": images}).json["predictions"]
    named = digits.predict({"instances": [{"image": image} for image in images]}).json["predictions"]
    columns = digits.predict({"inputs": {"image": images}}).json["outputs"]
    one = digits.predict({"image": images[0]}).json
    assert named == rows
    assert [row["digit"] for row in rows] == columns["digit"]
    np.testing.assert_allclose([row["probabilities"] for row in rows], columns["probabilities"], atol=1e-6)
    assert one["digit"] == rows[0]["digit"]


def test_a_request_larger_than_a_batch_is_answered_whole(digits, held_out):
    images = held_out[0].tolist() * 10
    answers = digits.predict({"instances": images}).json["predictions"]
    assert len(answers) == 1000
    assert [answer["digit"] for answer in answers[:100]] == [answer["digit"] for answer in answers[900:]]


def test_headers_tell_the_request_the_version_and_where_the_time_went(digits):
    answer = digits.predict({"image": [[0] * 8] * 8})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-model-version"] == "1"
    assert uuid.UUID(answer.headers["x-request-id"]).version == 4
    assert set(answer.timing) == {"decode", "queue", "predict", "encode"}
    assert answer.timing["predict"] > 0


def test_a_request_id_is_kept_echoed_and_logged(digits):
    id = f"order-{uuid.uuid4()}"
    assert digits.predict({"image": [[0] * 8] * 8}, X_Request_ID=id).headers["x-request-id"] == id
    line = digits.access(id)
    assert (line["status"], line["method"], line["path"]) == (200, "POST", "/predict")
    assert float(line["upstream_s"]) <= line["total_s"] + 0.002


@pytest.mark.parametrize("id", ["x" * 65, "two words", 'quote"', "new\tline", ""])
def test_a_request_id_that_is_not_sound_is_replaced(digits, id):
    echoed = digits.predict({"image": [[0] * 8] * 8}, X_Request_ID=id).headers["x-request-id"]
    assert str(uuid.UUID(echoed)) == echoed


def test_two_requests_with_the_same_id_get_their_own_answers(fancy):
    def one(text):
        return fancy.predict({"text": text}, X_Request_ID="same").json["res"]

    texts = [f"text {number}" for number in range(64)]
    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(one, texts)) == [f"Can't tell anything smart about: {text}" for text in texts]


@pytest.mark.parametrize(
    "text", ["hello", "", "žluťoučký kůň 🐎", 'a "quote" and a \\', "line\nbreak\0nul", "x" * 100_000]
)
def test_strings_travel(fancy, text):
    assert fancy.predict({"text": text}).json == {"res": f"Can't tell anything smart about: {text}"}


def test_many_clients_each_get_their_own_answer(fancy):
    def client(number):
        connection = fancy.connect()
        found = []
        for turn in range(25):
            body = json.dumps({"text": f"{number}/{turn}"}).encode()
            answer = ask(connection, "POST", "/predict", body)
            found.append(answer.status == 200 and answer.json["res"].endswith(f": {number}/{turn}"))
        connection.close()
        return found

    with ThreadPoolExecutor(16) as clients:
        found = list(itertools.chain(*clients.map(client, range(16))))
    assert found == [True] * 400


@pytest.mark.parametrize("headers", [{"Transfer-Encoding": "chunked"}, {"Expect": "100-continue"}])
def test_bodies_that_come_in_other_ways_are_read(fancy, headers):
    flags = [part for name, value in headers.items() for part in ("-H", f"{name}: {value}")]
    command = ["curl", "-s", f"{fancy.url}/predict", "-d", '{"text": "hello"}', *flags]
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["res"].endswith(": hello")


@pytest.mark.parametrize(("example", "folder"), [("digits", DIGITS), ("fancy", FANCY)])
def test_the_example_client_prints_the_answer(request, example, folder):
    server = request.getfixturevalue(example)
    command = [sys.executable, ROOT / "examples" / "client.py", folder / "sample.json", f"{server.url}/predict"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"digits": "digit: 4", "fancy": "Can't tell anything smart about: hello"}[example] in printed


def test_the_example_client_tells_what_is_wrong(fancy, tmp_path):
    (tmp_path / "body.json").write_text('{"txt": "hello"}')
    command = [sys.executable, ROOT / "examples" / "client.py", tmp_path / "body.json", f"{fancy.url}/predict"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1
    assert told.stderr.startswith("400 signature: the body: 'text' is missing")
