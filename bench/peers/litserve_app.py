"""LitServe: API processes with FastAPI in them, and a process for each copy of the model.

As many API processes as copies of the model, as is its default.  Without fast_queue (ZeroMQ), which was no faster
here.  BATCH_WAIT_MS makes it batch: max_batch_size and batch_timeout of its docs (Batching).  JSON is FastAPI's.
"""

import os
from typing import Any

import litserve

from bench.peers import models

BATCH_WAIT_MS = os.environ.get("BATCH_WAIT_MS")


class Predict(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = models.load()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["x"]

    def predict(self, x: Any) -> Any:
        return self.model.many(x) if BATCH_WAIT_MS else self.model.one(x)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"y": output}


if __name__ == "__main__":
    batching = {"max_batch_size": models.MOST_ROWS, "batch_timeout": int(BATCH_WAIT_MS) / 1000} if BATCH_WAIT_MS else {}
    server = litserve.LitServer(
        Predict(**batching), accelerator="cpu", devices=1, workers_per_device=int(os.environ["PROCESSES"]), timeout=30
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
