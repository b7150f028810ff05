"""mosec: a front in Rust, and a process of Python for each copy of the model.

BATCH_WAIT_MS makes it batch; its docs (Dynamic batching) take max_batch_size and max_wait_time together.  Two sizes: a
batch that there are too few clients to fill waits out its time, and a small one is less than many clients could fill.
JSON is read and written by orjson, in the two methods that its docs (Worker) say to override for that.
"""

import os
from typing import Any

import orjson
from mosec import Runtime, Server, Worker

from bench.peers import models

BATCH_WAIT_MS = os.environ.get("BATCH_WAIT_MS")


class Predict(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.model = models.load()

    def deserialize(self, data: bytes) -> Any:
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)

    def forward(self, data: Any) -> Any:
        if BATCH_WAIT_MS:
            return [{"y": y} for y in self.model.many([row["x"] for row in data])]
        return {"y": self.model.one(data["x"])}


if __name__ == "__main__":
    batching = {"max_batch_size": models.MOST_ROWS, "max_wait_time": int(BATCH_WAIT_MS)} if BATCH_WAIT_MS else {}
    server = Server()
    server.register_runtime({"/predict": [Runtime(Predict, num=int(os.environ["PROCESSES"]), **batching)]})
    server.run()
