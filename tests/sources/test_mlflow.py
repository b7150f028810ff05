"""Registered models and runs, from a real MLflow server with its registry in SQLite."""

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

import sources
from serving.errors import SourceError, SourceUnavailable
from sources.store import Store
from tests.sources.servers import MLflow
from tests.sources.test_store import below, bring, fetching
from tests.sources.web import passed_on, status

# as users log a model: MLflow writes the folder
LOG = """
import mlflow
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
with mlflow.start_run() as run:
    logged = mlflow.pyfunc.log_model(name="letters", python_model=Model(), registered_model_name="letters")
print("run", run.info.run_id)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MLflow(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def environment(server, monkeypatch, nobody):
    """What MLflow reads."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")


@pytest.fixture(scope="module")
def run(server, tmp_path_factory):
    """The id of a run that has logged three folders and a file."""
    folder = tmp_path_factory.mktemp("logged")
    for name in ("one", "two", "three"):
        (folder / name / "assets").mkdir(parents=True)
        (folder / name / "model.py").write_text(name)
        (folder / name / "assets" / "x").write_bytes(os.urandom(1 << 20))
    (folder / "digits.onnx").write_text("graph")
    client = mlflow.MlflowClient(server.url)
    run_id = client.create_run(client.create_experiment("digits")).info.run_id
    client.log_artifacts(run_id, str(folder))
    return run_id


@pytest.fixture(scope="module")
def registered(server, run):
    """A registered model with versions 1 to 3; champion is 2, and challenger 3."""
    client = mlflow.MlflowClient(server.url)
    client.create_registered_model("digits")
    for name in ("one", "two", "three"):
        client.create_model_version("digits", f"runs:/{run}/{name}", run)
    client.set_registered_model_alias("digits", "champion", "2")
    client.set_registered_model_alias("digits", "challenger", "3")
    return client


@pytest.fixture
def front(environment, web, server, monkeypatch):
    """A server before the real one, for trouble on the way."""
    web.otherwise = passed_on(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", web.url)
    return web


@pytest.mark.parametrize(
    ("url", "versions", "labels"),
    [
        ("models:/digits", [1, 2, 3], {"champion": 2, "challenger": 3}),
        ("models:/digits@champion", [2], {"champion": 2}),
        ("models:/digits/1", [1], {}),
        ("models:/digits/3/", [3], {"challenger": 3}),
    ],
)
def test_a_registered_model_has_versions_and_its_aliases_are_labels(environment, registered, url, versions, labels):
    source = sources.open(url)
    found = source.versions()
    assert (source.name, sorted(found.identities), found.labels) == ("digits", versions, labels)
    assert source.versions() == found


def test_a_version_is_fetched(environment, registered, store, said):
    source = sources.open("models:/digits@champion", said.append)
    store.look(source)
    path = bring(store, source, 2)
    assert (path.name, below(path)) == ("digits", ["2", "2/assets", "2/assets/x", "2/model.py"])
    assert (path / "2" / "model.py").read_text() == "two"
    assert said[-1] == "fetching digits version 2 from models:/digits@champion"
    same = sources.open("models:/digits/2")
    assert bring(store, same, 2) == path


def test_an_alias_that_is_moved_means_another_version(environment, registered):
    source = sources.open("models:/digits@moving")
    found = []
    for version in ("1", "3"):
        registered.set_registered_model_alias("digits", "moving", version)
        found.append(list(source.versions().identities))
    registered.delete_registered_model_alias("digits", "moving")
    assert found == [[1], [3]]


@pytest.mark.parametrize(
    ("path", "name", "files"),
    [
        ("one", "one", ["1", "1/assets", "1/assets/x", "1/model.py"]),
        ("one/assets/", "assets", ["1", "1/x"]),
        ("digits.onnx", "digits", ["1", "1/digits.onnx"]),
    ],
)
def test_what_a_run_has_logged_is_version_1(environment, run, store, path, name, files):
    source = sources.open(f"runs:/{run}/{path}")
    assert list(source.versions().identities) == [1]
    path = bring(store, source, 1)
    assert (path.name, below(path)) == (name, files)


def test_a_model_that_mlflow_has_logged_is_fetched_by_its_name_and_by_its_run(environment, store):
    logged = subprocess.run([sys.executable, "-c", LOG], capture_output=True, text=True)
    run = next(line.split()[1] for line in logged.stdout.splitlines() if line.startswith("run "))
    for url in ("models:/letters/1", f"runs:/{run}/letters"):
        assert {"1/MLmodel", "1/python_model.pkl"} <= set(below(bring(store, sources.open(url), 1)))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "models:/digits@prod",
            "the registered model has no alias prod, but challenger, champion; set it, or name a ver",
        ),
        (
            "models:/digits/7",
            r"the MLflow server has nothing of that name \(RESOURCE_DOES_NOT_EXIST\); correct it, or MLF",
        ),
        (
            "models:/letter",
            r"the MLflow server has nothing of that name \(RESOURCE_DOES_NOT_EXIST\); correct it, or MLF",
        ),
        (
            "models:/digits/Production",
            "an address is models:/name@alias, models:/name/3, or models:/name for all versio",
        ),
        ("models:/", "an address is models:/name@alias"),
        ("runs:/0123456789abcdef/model", r"the MLflow server has nothing of that name \(RESOURCE_DOES_NOT_EXIST\)"),
        ("runs:/{run}/nothing", "the run has nothing under that path; correct it"),
        ("runs:/{run}", "an address is runs:/id/path, as MLflow shows it beside a run's model"),
    ],
)
def test_what_there_is_not_is_told(environment, registered, run, url, told):
    url = url.format(run=run)
    with pytest.raises(SourceError, match=f"^{url}: {told}") as caught:
        sources.open(url).versions()
    assert not isinstance(caught.value, SourceUnavailable)


def test_a_registered_model_without_a_version_is_told(environment, registered):
    registered.create_registered_model("empty")
    with pytest.raises(SourceError, match="the registered model has no version that is ready; register one"):
        sources.open("models:/empty").versions()


def test_an_address_without_a_server_is_told(nobody):
    with pytest.raises(
        SourceError, match="models:/digits: it needs MLFLOW_TRACKING_URI, the address of the MLflow ser"
    ):
        sources.open("models:/digits")


@pytest.mark.parametrize("number", [429, 500, 503])
def test_a_server_that_fails_and_then_answers_is_asked_again(registered, front, store, said, number):
    front.first += [status(number)]
    source = sources.open("models:/digits@champion", said.append)
    store.look(source)
    assert said == ["models:/digits@champion gives no good answer, and is asked again"]
    store.release(bring(store, source, 2))
    front.otherwise = status(number)
    assert store.look(source).stale


@pytest.mark.parametrize("number", [401, 403])
def test_credentials_that_are_refused_are_told_without_them(registered, front, store, monkeypatch, number):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    source = sources.open("models:/digits@champion")
    store.look(source)
    assert front.asked[-1][1]["Authorization"] == "Basic bWU6aHVzaA=="
    front.otherwise = status(number)
    with pytest.raises(
        SourceError, match=r"the MLflow server refuses these credentials .*MLFLOW_TRACKING_USERNAME"
    ) as caught:
        store.look(source)
    assert "hush" not in str(caught.value)


def test_a_connection_that_breaks_in_the_middle_leaves_no_version(registered, front, store, server, said):
    source = sources.open("models:/digits/1", said.append)
    store.look(source)
    asset = next(path for path in Path(server.folder, "artifacts").rglob("assets/x") if "one" in path.parts)
    path = f"/api/2.0/mlflow-artifacts/artifacts/{asset.relative_to(server.folder / 'artifacts')}"
    front.answers[path] = [passed_on(server.port, 1000)]
    with pytest.raises(SourceUnavailable, match="models:/digits/1: not all files of version 1 came whole"):
        bring(store, source, 1)
    assert below(store.root / "objects") == below(store.root / "tmp") == []
    front.answers[path] = [passed_on(server.port, 1000), passed_on(server.port)]
    assert (bring(store, source, 1) / "1" / "assets" / "x").stat().st_size == 1 << 20


def test_a_full_disk_is_told(environment, registered, tmp_path):
    with fetching(tmp_path, "models:/digits/1", "prlimit", f"--fsize={1 << 19}") as process:
        _, errors = process.communicate("")
    assert f"SourceError: the disk of the store {tmp_path} is full, and digits version 1 is not fetched" in errors


def test_what_was_fetched_is_served_when_the_server_is_gone(environment, registered, store, server):
    for url, version in (("models:/digits@champion", 2), ("models:/digits", 3)):
        source = sources.open(url)
        store.look(source)
        bring(store, source, version)
    server.stop()
    store = Store(store.root, store.max_bytes)
    source = sources.open("models:/digits@champion")
    found = store.look(source)
    assert (list(found.identities), found.labels, found.stale) == ([2], {"champion": 2}, True)
    assert found.reason == "models:/digits@champion gives no good answer: Connection refused"
    assert (bring(store, source, 2) / "2" / "model.py").read_text() == "two"
    source = sources.open("models:/digits")
    assert sorted(store.look(source).identities) == [1, 2, 3]
    assert (bring(store, source, 3) / "3" / "model.py").read_text() == "three"
    with pytest.raises(SourceUnavailable, match="Connection refused"):
        bring(store, source, 1)
