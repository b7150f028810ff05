"""What a version of the model has done since the server started, as Triton counts it.

Runs in:  worker.
Source:   triton-inference-server/server, docs/protocol/extension_statistics.md; times are in nanoseconds there.
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from serving import counts
from serving.counts import HEAD, STAGES, Batches, Counts, Rows

# theirs, and the stages of ours that they are
_PARTS = {"queue": "queue", "compute_input": "decode", "compute_infer": "predict", "compute_output": "encode"}
_NONE = {"count": 0, "ns": 0}


def statistics(known: Counts, model: str, versions: Collection[int]) -> dict[str, Any]:
    """What these versions have done."""
    requests, batches = known.requests.table.read(), known.batches.table.read()
    batches = batches[batches[:, 0] & Batches.TASKS == 0]
    return {
        "model_stats": [
            {
                "name": model,
                "version": str(version),
                **_of_version(*(rows[rows[:, 1] == version] for rows in (requests, batches))),
            }
            for version in sorted(versions)
        ]
    }


def _of_version(requests: Rows, batches: Rows) -> dict[str, Any]:
    # those that were answered have stages
    answered = requests[requests[:, HEAD + counts.ROWS] > 0]
    failed = requests[requests[:, HEAD + counts.ROWS] == 0]
    parts = {
        name: _duration(answered, counts.WHOLE + counts.HISTOGRAM * (1 + STAGES.index(stage)))
        for name, stage in _PARTS.items()
    }
    return {
        "last_inference": int(_seconds(answered, counts.LAST).max(initial=0) * 1000),
        "inference_count": int(answered[:, HEAD + counts.ROWS].sum()),
        "execution_count": int(batches[:, HEAD].sum()),
        "inference_stats": {
            "success": _duration(answered, counts.WHOLE),
            "fail": _duration(failed, counts.WHOLE),
            **parts,
            "cache_hit": _NONE,
            "cache_miss": _NONE,
        },
        "batch_stats": [
            {
                "batch_size": int(size),
                "compute_input": _NONE,
                "compute_infer": _batch(batches[batches[:, 0] == size]),
                "compute_output": _NONE,
            }
            for size in np.unique(batches[:, 0])
        ],
        "memory_usage": [],
    }


def _duration(rows: Rows, histogram: int) -> dict[str, int]:
    first = HEAD + histogram
    count = rows[:, first : first + counts.BUCKETS].sum()
    return {"count": int(count), "ns": int(_seconds(rows, histogram + counts.BUCKETS).sum() * 1e9)}


def _batch(rows: Rows) -> dict[str, int]:
    return {"count": int(rows[:, HEAD].sum()), "ns": int(_seconds(rows, 1).sum() * 1e9)}


def _seconds(rows: Rows, number: int) -> Any:
    return rows[:, HEAD + number].view(np.float64)
