"""The whole way of a request in one process: app, MemoryTransport, board, and replicas that step in threads."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from werkzeug.test import Client

from app import create_app
from app.front import Front
from app.metrics import Metrics
from mules.engines.python import PythonEngine
from mules.replica import Replica
from serving.counts import Counts
from serving.memory_transport import MemoryTransport
from serving.model import ModelCard
from serving.plan import PlanFile
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.signature import Signature, TensorSpec
from serving.store import Board
from tests.serving.memory_notes import MemoryNotes

SETTINGS = Settings.read(Path(__file__).parents[2] / "uwsgi.ini", {})
DOORS = ("flask", "short cut")


def signature(inputs, outputs):
    return Signature(*(tuple(TensorSpec.parse(*item) for item in side.items()) for side in (inputs, outputs)))


class Double:
    """Any number of values a row; raises at 13."""

    inputs = {"x": "float32[-1]"}
    outputs = {"y": "float32[-1]", "sum": "float32"}

    def predict(self, inputs):
        if (inputs["x"] == 13).any():
            raise ValueError("the secret is 42")
        return {"y": inputs["x"] * 2, "sum": inputs["x"].sum(axis=1)}


class Chain:
    """One app; its replicas run once they are asked to."""

    def __init__(self, model=None, transport=None, plan=None, loads=None, traces=None, **settings):
        self.model = model or Double()
        self.signature = signature(self.model.inputs, self.model.outputs)
        self.transport = transport or MemoryTransport(replicas=3)
        self.board = Board(2, heartbeat_timeout_s=3, predict_timeout_s=5)
        self.quarantine = Quarantine(MemoryNotes(), 60)
        self.plan = plan or PlanFile(Path("there is none"))
        settings = replace(SETTINGS, **settings)
        counts = Counts(settings.seats, settings.processes, 3)
        self.metrics = Metrics(
            self.transport,
            self.board,
            counts,
            Front(),
            settings.deadline_ms / 1000,
            self.quarantine,
            settings.cache_items,
        )
        parts = self.transport, self.board, self.quarantine, self.plan, self.metrics
        self.app = create_app(settings, *parts, loads=loads, traces=traces)
        self._clients = {"short cut": Client(self.app.wsgi_app), "flask": Client(self.app.wsgi_app.flask_door)}
        self._stopped = threading.Event()
        self._threads = []

    def ready(self):
        """The card is on the board, and nobody takes what is queued."""
        self.board.records[0].describe(ModelCard("double", 3, "python", self.signature, 32))
        self.board.records[0].beat()
        self.board.records[0].succeed()
        return self

    def serve(self, replicas=1, max_batch_rows=32):
        """Replicas, each in a thread, until the test ends."""
        self.ready()
        self.transport.serve(3, True, lambda version: True)
        for record in self.board.records[:replicas]:
            engine = PythonEngine(self.model, self.signature)
            card = ModelCard("double", 3, "python", self.signature, max_batch_rows)
            replica = Replica(engine, card, self.transport, record, quarantine=self.quarantine)
            self._threads.append(threading.Thread(target=self._run, args=(replica,)))
            self._threads[-1].start()
        return self

    def post(self, body, door="short cut", environ=None, path="/predict", **headers):
        """POST to a path through one of the doors; headers with _ for -."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._clients[door].post(path, data=body, headers=named, environ_overrides=environ)

    def get(self, path, method="GET", door="short cut", **options):
        return self._clients[door].open(path, method=method, **options)

    def _run(self, replica):
        while not self._stopped.is_set():
            replica.step(0.02)

    def close(self):
        self._stopped.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def make_chain():
    with contextlib.ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(contextlib.closing(Chain(*args, **settings)))


def check_problem(response, status, code, told=""):
    """A problem body (RFC 9457), with the request's id; returns its detail."""
    assert response.status_code == status, response.data
    assert response.content_type == "application/problem+json"
    problem = response.json
    assert set(problem) == {"type", "title", "status", "code", "detail", "request_id"}
    assert (problem["type"], problem["status"], problem["code"]) == ("about:blank", status, code)
    assert problem["request_id"] == response.headers["X-Request-ID"]
    assert problem["title"] and told in problem["detail"]
    return problem["detail"]
