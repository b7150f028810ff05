"""BentoML: its own front on uvicorn, and a worker for each copy of the model.

workers as its docs (Workers) say for models that use a core each.  Batched is the same with its adaptive batching,
which waits by what it has measured; max_latency_ms is how long a request may take before it is refused.  Its batches
are lists, and so are the bodies of its clients.  Metrics and access log are off, as the other peers have none.
"""

import os

import bentoml

from bench.peers import models

SERVICE = {
    "workers": int(os.environ["PROCESSES"]),
    "traffic": {"timeout": 30},
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
}


@bentoml.service(**SERVICE)
class Plain:
    def __init__(self) -> None:
        self.model = models.load()

    @bentoml.api(route="/predict")
    def predict(self, x: list[float]) -> dict:  # type: ignore[type-arg]
        return {"y": self.model.one(x)}


@bentoml.service(**SERVICE)
class Batched:
    def __init__(self) -> None:
        self.model = models.load()

    @bentoml.api(route="/predict", batchable=True, max_batch_size=models.MOST_ROWS, max_latency_ms=60000)
    def predict(self, x: list[list[float]]) -> list:  # type: ignore[type-arg]
        return self.model.many(x)
