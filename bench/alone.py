"""What a model takes by itself for one input: called as the peers call it, in a process without a server.

usage: python -m bench.alone SAMPLE

SAMPLE is a file with one instance, {"x": input}.  Environment: as bench/peers/models.py has it.  Prints the median of
what a call takes.

Units: milliseconds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.peers import models
from bench.work import ROOT

WARM_UP_CALLS = 20
CALLS = 200


def measure(folder: Path) -> float:
    """Measure the model of a folder, in a process of its own: its framework may not be loaded in this one."""
    with tempfile.TemporaryDirectory(prefix="bench-") as pids:
        environ = os.environ | {"MODEL": str(folder), "MODEL_PIDS": pids, "THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", "bench.alone", str(folder / "sample.json")]
        told = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    if told.returncode:
        raise ValueError(f"the model in {folder} cannot be measured by itself: {told.stderr.strip()[-500:]}")
    return float(told.stdout)


def main(arguments: list[str]) -> int:
    """Call the model again and again."""
    x = json.loads(Path(arguments[0]).read_text())["x"]
    served = models.load()
    took_ms = []
    for _ in range(WARM_UP_CALLS + CALLS):
        start = time.perf_counter()
        served.one(x)
        took_ms.append((time.perf_counter() - start) * 1000)
    print(f"{statistics.median(took_ms[WARM_UP_CALLS:]):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
