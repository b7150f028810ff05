"""A replica between a queue and replies, in one process."""

import itertools
import time
import uuid
from pathlib import Path

import numpy as np

from mules import engines
from mules.replica import Replica
from serving.ledger import ANY, Ticket
from serving.memory_transport import MemoryTransport
from serving.model import ModelCard
from serving.plan import Plan, PlanFile, Release
from serving.settings import Settings
from serving.signature import Signature, TensorSpec
from serving.store import Board
from serving.task import Task
from serving.wire import decode_reply, encode_task

SETTINGS = Settings.read(Path(__file__).parents[2] / "uwsgi.ini", {})
SIGNATURE = Signature((TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1,)),))
MODEL = """
class Model:
    inputs = {"x": "float32[2]"}
    outputs = {"y": "float32[2]"}
    seen = []

    def __init__(self, path):
        pass

    def predict(self, inputs):
        self.seen.append(inputs["x"].tolist())
        return {"y": inputs["x"]}
"""


def release(folder, number=1, replicas=1, **options):
    """What the plan says of a model folder."""
    return Release(number, folder.version, folder.path, folder.root, replicas, **options)


def plan_file(path, *releases):
    """Where a plan of these releases stands."""
    file = PlanFile(path / "plan.json")
    file.write(Plan(releases))
    return file


class Engine:
    """Gives twice its input, raises where it holds a 13, and keeps what it was given."""

    signature = SIGNATURE
    max_batch_rows = None

    def __init__(self, outputs=None):
        self.seen = []
        self.outputs = outputs

    def predict(self, inputs):
        self.seen.append(inputs["x"].tolist())
        if (inputs["x"] == 13).any():
            raise ValueError("the secret is 42")
        return {"y": inputs["x"] * 2} if self.outputs is None else self.outputs


class Bench:
    """A replica, and clients that have a seat each."""

    def __init__(self, engine=None, transport=None, max_batch_rows=4, batch_wait_ms=0, **options):
        self.engine = engine or Engine()
        self.transport = transport or MemoryTransport()
        self.transport.start_replica(1)
        self.board = Board(1, 3, 5)
        self.record = self.board.records[0]
        others = {name: other.signature for name, other in engines.others(self.engine).items()}
        card = ModelCard("bench", 7, "python", self.engine.signature, max_batch_rows, others=others)
        self.replica = Replica(self.engine, card, self.transport, self.record, batch_wait_ms, **options)
        self._seats = itertools.count()

    def ready(self, after_s=0.0):
        """Whether the board says so, some seconds from now."""
        return self.board.statuses(time.monotonic() + after_s)[0].ready

    def offer(self, *rows, left_s=60.0, id="a-1", alone=False, version=ANY, signature=""):
        """Put rows on the queue.  Returns the task's ticket."""
        uuid_, now = uuid.uuid4().bytes, time.monotonic()
        task = Task(uuid_, id, now, now + left_s, len(rows), {"x": np.array(rows, np.float32)}, signature)
        ticket = Ticket(uuid_, len(rows), next(self._seats), alone=alone, version=version)
        self.transport.offer(ticket, encode_task(task))
        return ticket

    def reply(self, ticket):
        """The reply that is there, or DeadlineExceeded."""
        return decode_reply(self.transport.await_reply(ticket, time.monotonic()))

    def outputs(self, ticket):
        reply = self.reply(ticket)
        assert reply.error is None and reply.uuid == ticket.uuid
        return reply.outputs["y"].tolist()

    def error(self, ticket):
        reply = self.reply(ticket)
        assert reply.outputs == {}
        return reply.error
