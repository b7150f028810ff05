"""Models from elsewhere: fetched, kept, noticed when they change, and served when where they come from is gone."""

import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from sources.lock import lock
from tests.sources.servers import OWNER, MLflow, Swift
from tests.sources.test_store import below
from tests.sources.web import passed_on, serving, whole

from .conftest import ROOT, Server, reload, wait_until
from .test_12_reload import write_ini
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


@pytest.fixture
def silence():
    """Until it is over."""
    over = threading.Event()
    yield over
    over.set()


@pytest.fixture
def front(swift, silence):
    """A server before the real one, for trouble on the way: silent when told so, until the silence is over."""
    with serving() as web:
        web.otherwise = passed_on(swift.port)
        yield web
        silence.set()


def silent(over):
    def answer(handler):
        over.wait()
        handler.hang_up()

    return answer


def bucket(url):
    """What boto3 reads, for the owner of the buckets there."""
    key, secret = OWNER
    aws = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": url}
    return aws | {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}


def test_a_bucket_is_served_watched_and_not_needed_any_more(start, swift, tmp_path):
    aws = bucket(swift.url)
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
        wait_until(lambda: "what was there before is served: " in server.output, "it says so")
        status, _, err = reload(server, "--version", "1")
        assert (status, err) == (0, "")
        assert versions(server) == [1, 1]
    assert server.stop() == 0
    assert OWNER[1] not in server.output + server.log
    again = start(**options, SERVING_VERSION_POLICY="2").wait_ready()
    assert versions(again) == [2, 2]
    assert "what was there before is served: s3://models/words gives no good answer" in again.output


def test_the_way_back_asks_nobody_for_what_is_here(start, swift, front, silence, tmp_path):
    aws = bucket(front.url)
    python(UPLOAD, "words/1/model.py", environ=bucket(swift.url), text=source(1))
    options = {**aws, "MODEL": "s3://models/words", "MULES": 2, "MULETEER_STORE": tmp_path / "store"}
    server = start(**options).wait_ready()
    python(UPLOAD, "words/2/model.py", environ=bucket(swift.url), text=source(2))
    assert reload(server)[0] == 0
    assert versions(server) == [2, 2]
    asked, front.otherwise = len(front.asked), silent(silence)
    with load(server, ""):
        status, _, err = reload(server, "--version", "1")
        assert (status, err) == (0, "")
        assert versions(server) == [1, 1]
        # all anew, and what is asked for next
        assert reload(server)[0] == 0
        assert reload(server, "--all")[0] == 0
    assert server.stop() == 0
    # and so does a new start
    again = start(**options, RUN_DIR=server.run_dir, LOG_DIR=server.run_dir).wait_ready()
    assert versions(again) == [1, 1]
    assert len(front.asked) == asked
    # what is not here has to be asked for, and so has what else there is
    front.otherwise = passed_on(swift.port)
    status, _, err = reload(again, "--version", "7")
    assert status == 1 and "there is no version 7; there are 1, 2" in err
    assert reload(again, "--unpin")[0] == 0
    assert versions(again) == [2, 2]
    assert len(front.asked) > asked


def test_an_alias_that_moves_is_followed(start, mlflow, tmp_path):
    environ = {"MLFLOW_TRACKING_URI": mlflow.url, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for version in (1, 2):
        (tmp_path / str(version)).mkdir()
        (tmp_path / str(version) / "model.py").write_text(source(version))
    python(REGISTER, 1, tmp_path / "1", environ=environ)
    options = {**environ, "MODEL": "models:/words@champion", "MULES": 1, "MULETEER_STORE": tmp_path / "store"}
    server = start(**options, SERVING_VERSION_POLL_S=1).wait_ready()
    assert "model  words, version 1 (champion) (python)" in server.output
    with load(server, "") as found:
        python(REGISTER, 2, tmp_path / "2", environ=environ)
        serves(server, 2)
        # the way back, to what it does not mean any more
        assert reload(server, "--version", "1")[0] == 0
        assert versions(server) == [1]
        assert reload(server, "--unpin")[0] == 0
        assert versions(server) == [2]
    assert set(found[""]) == {"1", "2"}
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_breaks_a_fetch_from_a_bucket_off_and_the_next_start_goes_on(
    start, swift, front, silence, number, tmp_path
):
    store = tmp_path / "store"
    for name, text in (("model.py", source(1)), ("assets/weights", "w" * (1 << 20))):
        python(UPLOAD, f"words/1/{name}", environ=bucket(swift.url), text=text)
    options = {**bucket(front.url), "MODEL": "s3://models/words", "MULES": 1, "MULETEER_STORE": store}
    # listed, and then brought in part
    front.answers["/models/words/1/assets/weights"] = [silent(silence)]
    server = start(**options)
    wait_until(lambda: any(path == "/models/words/1/assets/weights" for path, _ in front.asked), "it is fetched")
    # whoever does not answer goes on to be silent until it has ended
    assert server.stop(number) == 0, server.output
    assert "stopped" in server.output and "Traceback" not in server.output
    assert below(store / "objects") == below(store / "fetched") == []
    del front.answers["/models/words/1/assets/weights"]
    again = start(**options, SERVING_VERSION_POLL_S=1).wait_ready()
    assert versions(again) == [1]
    assert (below(store / "tmp"), below(store / "locks")) == ([], [])
    # and while another version is served
    front.answers["/models/words/2/model.py"] = [silent(silence)]
    python(UPLOAD, "words/2/model.py", environ=bucket(swift.url), text=source(2))
    wait_until(lambda: any(path == "/models/words/2/model.py" for path, _ in front.asked), "it is fetched")
    with load(again, ""):
        pass
    assert again.stop(number) == 0, again.output
    assert len(below(store / "fetched")) == 2
    del front.answers["/models/words/2/model.py"]
    assert versions(start(**options).wait_ready()) == [2]


def test_what_a_reload_that_failed_had_fetched_may_go(start, tmp_path):
    def packed(text):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.py", text)
        return whole(file.getvalue())

    with serving() as web:
        web.answers["/words.zip"] = [packed(source(1))]
        ini, objects = write_ini(tmp_path), tmp_path / "store" / "objects"
        options = {"MODEL": f"{web.url}/words.zip", "MULES": 1, "MULETEER_STORE": tmp_path / "store"}
        server = start(**options, INI=ini, SERVING_LOAD_ATTEMPTS=1).wait_ready()

        def held():
            """The objects that somebody keeps."""
            found = {folder: lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) for folder in objects.iterdir()}
            for descriptor in found.values():
                if descriptor is not None:
                    os.close(descriptor)
            return [folder for folder, descriptor in found.items() if descriptor is None]

        (served,) = held()
        web.answers["/words.zip"] = [packed("print('no class')")]
        status, _, err = reload(server, "--all")
        assert status == 1 and "has no class Model" in err
        assert held() == [served]
        # refused by nginx
        web.answers["/words.zip"] = [packed(source(3))]
        write_ini(tmp_path, stop_timeout_s=10**17)
        status, _, err = reload(server)
        assert status == 1 and "worker_shutdown_timeout" in err
        assert held() == [served]
        assert len(list(objects.iterdir())) == 3


def test_the_exit_status_of_what_a_library_runs_is_its_own(tmp_path):
    """boto3 runs a program for credentials; one that ends with 3 has none, whatever it has printed."""
    told = {"Version": 1, "AccessKeyId": "key", "SecretAccessKey": "secret"}
    # what holds its output longer than it lives makes boto3 ask for the status late
    (tmp_path / "program").write_text(f"sleep 1 &\necho '{json.dumps(told)}'\nexit 3\n")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh {tmp_path / 'program'}\n")
    environ = {"AWS_CONFIG_FILE": tmp_path / "config", "AWS_SHARED_CREDENTIALS_FILE": tmp_path / "none"}
    environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "us-east-1"}
    server = Server(**environ, MODEL="s3://models/words", MULETEER_STORE=tmp_path / "store")
    try:
        assert server.process.wait(60) == 2
        assert "gives no good answer: credential retrieval error" in server.output
    finally:
        server.close()


def test_a_model_is_fetched_by_command(swift, tmp_path):
    aws = bucket(swift.url)
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
