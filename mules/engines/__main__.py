"""A model folder without a server: loads it as a replica does, predicts its sample, and tells what a row costs.

usage: python -m mules.engines FOLDER [--rows NUMBERS] [--seconds S] [--threads N]

Prints one JSON object: the engine, the inputs and outputs with their types, and for each number of rows in one predict
the microseconds of a row.  The exit status is 1 where the folder cannot be served.

Runs in:  a process of its own.
Units:    seconds; microseconds where the name says so.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mules import engines
from mules.canary import check_outputs
from serving.errors import ModelError
from serving.model import ModelFolder

SECONDS = 1.0
# of one number of rows; the quickest is the one that others disturbed least
PARTS = 5


def cost_us(call: Callable[[], object], seconds: float) -> float:
    """What a call takes, in the quickest part of so many seconds."""
    call()
    found = []
    for _ in range(PARTS):
        calls, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds / PARTS:
            call()
            calls += 1
        found.append(took / calls)
    return min(found) * 1e6


def main() -> int:
    """Load, predict, print."""
    parser = argparse.ArgumentParser(prog="mules.engines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--rows", default="1,32", metavar="NUMBERS", help="of one predict (1,32)")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"for each of them ({SECONDS:g})")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the framework (1)")
    arguments = parser.parse_args()
    try:
        folder = ModelFolder.find(arguments.folder)
        engine = engines.load(folder, arguments.threads)
        sample = folder.sample(engine.signature)
    except ModelError as error:
        print(f"muleteer: {error}", file=sys.stderr)
        return 1
    costs = {}
    for rows in map(int, arguments.rows.split(",")):
        if engine.max_batch_rows is None or rows <= engine.max_batch_rows:
            inputs = {name: tensor.repeat(rows, axis=0) for name, tensor in sample.items()}
            check_outputs(engine.predict(inputs), engine.signature, rows)
            costs[rows] = round(cost_us(partial(engine.predict, inputs), arguments.seconds) / rows, 2)
    sides = {side: {spec.name: str(spec) for spec in getattr(engine.signature, side)} for side in ("inputs", "outputs")}
    print(json.dumps({"engine": engines.find(folder), **sides, "row_us": costs}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
