"""The pool as it is at this moment: nginx, workers, queue, mules and cache, and what has become of requests.

Runs in:  worker, the one that no prediction goes to.
Units:    seconds and bytes; milliseconds where a name says so.
"""

import importlib.metadata
import math
import time
from typing import Any

import numpy as np

from app.console.history import History, Look
from app.health import is_ready, shows_samples
from app.metrics import Metrics
from serving.errors import ServingError, tree
from serving.quarantine import Quarantine
from serving.settings import Settings
from serving.signature import STRING, TensorSpec
from serving.store import Board
from serving.transport import Transport

# failures that are told
_FAILURES = 40
# what inputs that are drawn go up to, from white to black, where the sample says no other
_INKS = (1, 16, 255)
TITLES = {error.code: error.title for error in tree(ServingError)} | {
    "queue_full": "All threads were taken",
    "not_found": "There is nothing at this path",
    "method_not_allowed": "The path takes another method",
    "bad_gateway": "The worker that held it died, and so did the next two",
    "not_implemented": "The transfer encoding is not supported",
    "other": "Another reason",
}


class Pool:
    """What the page shows."""

    def __init__(
        self, settings: Settings, transport: Transport, board: Board, quarantine: Quarantine, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._board = board
        self._quarantine = quarantine
        self._metrics = metrics
        self._version = importlib.metadata.version("muleteer")
        # of this uWSGI: the page says when another serves
        self._since = time.time()
        self.history = History(self._look)

    def _look(self) -> Look:
        return Look.take(self._metrics, self._transport)

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        look, now = self._look(), time.monotonic()
        refused = {end: count for end, count in sorted(look.ends.items()) if end[2]}
        queue = self._transport.queue(now)
        return {
            "at": look.at,
            "since": self._since,
            "muleteer": self._version,
            "ready": is_ready(self._board),
            "failed": self._board.failed(),
            "deadline_ms": self._settings.deadline_ms,
            "max_body_bytes": self._settings.max_body_bytes,
            "model": self._model(),
            "nginx": self._nginx(),
            "workers": self._workers(),
            "queue": {**queue._asdict(), "oldest_s": round(queue.oldest_s, 4)},
            "mules": self._mules(now),
            "cache": {"notes": self._quarantine.count(), "capacity": self._settings.cache_items - 1},
            "requests": sum(look.ends.values()),
            "answered": sum(look.ends.values()) - sum(refused.values()),
            "rows": look.rows,
            "refused": [
                {"route": route, "status": int(status), "code": code, "title": TITLES.get(code, ""), "count": count}
                for (route, status, code), count in refused.items()
            ],
            "latency": self.history.latency(look),
            "failures": self._failures(),
        }

    def _model(self) -> dict[str, Any] | None:
        card = self._board.card()
        if card is None:
            return None
        inks = {spec.name: ink for spec in card.signature.inputs if (ink := _ink(spec))}
        return {**card.as_dict(samples=shows_samples(self._settings)), "inks": inks}

    def _nginx(self) -> dict[str, Any] | None:
        status = self._metrics.nginx.status()
        return None if status is None else {"connections": status.connections, "accepted": status.accepted}

    def _workers(self) -> list[dict[str, Any]]:
        threads, predict = self._settings.threads, self._settings.prediction_workers
        pids = self._transport.workers() or [0] * self._settings.processes
        return [
            {
                "id": number + 1,
                "pid": pid,
                "predicts": number < predict,
                "threads": threads,
                "waiting": self._transport.waiting_among(range(number * threads, (number + 1) * threads))
                if number < predict
                else 0,
            }
            for number, pid in enumerate(pids)
        ]

    def _mules(self, now: float) -> list[dict[str, Any]]:
        board, batches = self._board, self._metrics.counts.batches
        # a uWSGI before may have had more of them
        histories = board.histories()[: len(board.records)]
        parts = zip(board.statuses(now), board.records, histories, self._transport.holdings(), strict=True)
        return [
            {
                **status.as_dict(),
                "post": bool(record.post),
                "rss": record.rss,
                "load_s": round(record.load_s, 3),
                "loads": history.loads,
                "failed_loads": history.failed_loads,
                "deaths": {death.value: count for death, count in history.deaths().items() if count},
                "held": holding._asdict(),
                # of all processes that had its place
                **batches.work(status.id - 1)._asdict(),
            }
            for status, record, history, holding in parts
        ]

    def _failures(self) -> list[dict[str, Any]]:
        found = []
        for failure in self._metrics.counts.failures.newest(_FAILURES):
            route, status, code = self._metrics.ends.decode(failure.end)
            found.append(
                {
                    "at": round(failure.at, 3),
                    "id": failure.id,
                    "route": route,
                    "status": int(status),
                    "code": code,
                    "title": TITLES.get(code, ""),
                    "took_ms": round(failure.took_s * 1000, 2),
                }
            )
        return found


def _ink(spec: TensorSpec) -> int:
    """What the darkest point of an image is in this input, as far as the sample tells; 0 where that is no image."""
    if spec.dtype == STRING or spec.sample is None or math.prod(spec.shape) < 2:
        return 0
    most = float(np.max(spec.samples()))
    return next((ink for ink in _INKS if 0 < most <= ink), 0)
