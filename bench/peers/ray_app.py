"""Ray Serve: a proxy, a controller, and an actor for each copy of the model.

Its throughput mode, with HAProxy as the proxy (docs: High throughput).  max_ongoing_requests so that a replica always
has the next request at hand.  BATCH_WAIT_MS makes it batch, by serve.batch (docs: Dynamic request batching).
"""

import os
import threading
from collections.abc import Sequence

import orjson
import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from bench.peers import models

BATCH_WAIT_MS = int(os.environ.get("BATCH_WAIT_MS", "0"))
PROCESSES = int(os.environ["PROCESSES"])
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


def answer(y: models.Answer) -> Response:
    return Response(orjson.dumps({"y": y}), media_type="application/json")


class Plain:
    def __init__(self) -> None:
        self.model = models.load()

    async def __call__(self, request: Request) -> Response:
        return answer(self.model.one(orjson.loads(await request.body())["x"]))


class Batched:
    def __init__(self) -> None:
        self.model = models.load()

    @serve.batch(max_batch_size=models.MOST_ROWS, batch_wait_timeout_s=BATCH_WAIT_MS / 1000)
    async def many(self, xs: Sequence[models.Input]) -> list[models.Answer]:
        return self.model.many(xs)

    async def __call__(self, request: Request) -> Response:
        return answer(await self.many(orjson.loads(await request.body())["x"]))


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    deployment = serve.deployment(
        num_replicas=PROCESSES,
        max_ongoing_requests=100 if BATCH_WAIT_MS else 16,
        # the cores are for all of them
        ray_actor_options={"num_cpus": 0},
        logging_config=QUIET,
    )
    serve.run(deployment(Batched if BATCH_WAIT_MS else Plain).bind(), route_prefix="/predict")
    threading.Event().wait()
