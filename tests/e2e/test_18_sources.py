"""Models from elsewhere: fetched, kept, noticed when they change, and served when where they come from is gone."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.sources.servers import OWNER, MLflow, Swift

from .conftest import ROOT, Server, reload, wait_until
from .test_16_versions import load, serves, source, versions

# in a process of its own, as whoever trains a model has it
UPLOAD = """
import boto3, sys
s3 = boto3.client("s3")
if not s3.list_buckets()["Buckets"]:
    s3.create_bucket(Bucket="models")
s3.put_object(Bucket="models", Key=sys.argv[1], Body=sys.stdin.read().encode())
"""
REGISTER = """
import sys, mlflow
from mlflow.exceptions import MlflowException
client = mlflow.MlflowClient()
version, folder = sys.argv[1:]
try:
    client.create_registered_model("words")
except MlflowException:
    pass
run = client.create_run("0").info.run_id
client.log_artifacts(run, folder, "model")
assert client.create_model_version("words", f"runs:/{run}/model", run).version == version
client.set_registered_model_alias("words", "champion", version)
"""


def python(program, *arguments, environ, text=""):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    subprocess.run(command, env=os.environ | environ, input=text, text=True, check=True)


@pytest.fixture
def swift(tmp_path):
    (tmp_path / "swift").mkdir()
    server = Swift(tmp_path / "swift")
    yield server
    server.stop()


@pytest.fixture
def mlflow(tmp_path):
    (tmp_path / "mlflow").mkdir()
    server = MLflow(tmp_path / "mlflow")
    yield server
    server.stop()


def test_a_bucket_is_served_watched_and_not_needed_any_more(start, swift, tmp_path):
    key, secret = OWNER
    aws = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": swift.url}
    aws |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    python(UPLOAD, "words/1/model.py", environ=aws, text=source(1))
    options = {**aws, "MODEL": "s3://models/words", "MULES": 2, "MULETEER_STORE": tmp_path / "store"}
    server = start(**options, SERVING_VERSION_POLL_S=1).wait_ready()
    assert "fetching words version 1 from s3://models/words" in server.output
    assert "model  words, version 1 (python)" in server.output
    serves(server, 1, 1)
    with load(server, "") as found:
        python(UPLOAD, "words/2/model.py", environ=aws, text=source(2))
        serves(server, 2, 2)
        python(UPLOAD, "words/3/model.py", environ=aws, text=source(3, load="raise RuntimeError('no weights')"))
        refused = wait_until(lambda: server.ready()["refused"], "version 3 is refused")
        assert "no weights" in refused["3"]
    assert set(found[""]) == {"1", "2"}
    # the way back needs no bucket, and neither does a new start
    swift.stop()
    with load(server, ""):
        status, _, err = reload(server, "--version", "1")
        assert (status, err) == (0, "")
        assert versions(server) == [1, 1]
        wait_until(lambda: "what was there before is served: " in server.output, "it says so")
    assert server.stop() == 0
    assert secret not in server.output + server.log
    again = start(**options, SERVING_VERSION_POLICY="2").wait_ready()
    assert versions(again) == [2, 2]
    assert "what was there before is served: s3://models/words gives no good answer" in again.output


def test_an_alias_that_moves_is_followed(start, mlflow, tmp_path):
    environ = {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for version in (1, 2):
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / "model.py").write_text(source(version))
    python(REGISTER, 1, tmp_path / "1", environ=environ)
    options = {**environ, "MODEL": "models:/words@champion", "MULES": 1, "MULETEER_STORE": tmp_path / "store"}
    server = start(**options, SERVING_VERSION_POLL_S=1).wait_ready()
    assert "model  words, version 1 (champion) (python)" in server.output
    with load(server, "", "champion") as found:
        python(REGISTER, 2, tmp_path / "2", environ=environ)
        serves(server, 2)
    assert set(found["champion"]) == {"1", "2"}
    mlflow.stop()
    assert server.stop() == 0
    again = start(**options).wait_ready()
    assert versions(again) == [2]
    answer = again.predict({"text": "x"}, X_Model_Version="champion")
    assert (answer.json, answer.headers["x-model-version"]) == ({"res": "2 x"}, "2")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("ftp://host/model", "ftp: is nothing that models come from"),
        ("http://example.com/model.zip", "http://example.com/model.zip"),
        ("s3://", "s3://"),
    ],
)
def test_a_url_that_is_none_is_told(tmp_path, model, told):
    server = Server(MODEL=model, MULETEER_STORE=tmp_path / "store")
    try:
        assert server.process.wait(60) == 2
        assert told in server.output and server.output.count("\n") == 1 and "Traceback" not in server.output
    finally:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_heard_while_a_model_is_fetched(tmp_path, number):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/model.zip#sha256={'0' * 64}"
        server = Server(MODEL=url, MULETEER_STORE=tmp_path / "store")
        try:
            silent.settimeout(60)
            connection, _ = silent.accept()
            asked = time.monotonic()
            assert server.stop(number) == 0, server.output
            assert time.monotonic() - asked < 30
            assert "stopped" in server.output
            connection.close()
        finally:
            server.close()


def test_a_model_is_fetched_by_command(swift, tmp_path):
    key, secret = OWNER
    aws = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": swift.url}
    aws |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    python(UPLOAD, "words/7/model.py", environ=aws, text=source(7))
    environ = os.environ | aws | {"MULETEER_STORE": str(tmp_path / "store"), "MODEL": "s3://models/words"}
    (tmp_path / "body").write_text('{"text": "x"}')
    for arguments, told in [
        (["models", "list"], "version  labels  identity\n  7"),
        (["models", "fetch"], "/words/7\n"),
        (["models", "verify"], "words, version 7 (python)"),
        (["predict", str(tmp_path / "body")], '{"res":"7 x"}\n'),
    ]:
        done = subprocess.run(
            [ROOT / "entrypoint.sh", *arguments], env=environ, capture_output=True, text=True, check=True
        )
        assert told in done.stdout
