"""python -m mules.engines: a model folder without a server."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run(*arguments):
    command = [sys.executable, "-m", "mules.engines", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_folder_tells_what_it_takes_and_gives_and_costs():
    done = run(ROOT / "examples" / "fancy", "--seconds", "0.05", "--rows", "1")
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["row_us"].pop("1") > 0
    assert told == {"engine": "python", "inputs": {"text": "string"}, "outputs": {"res": "string"}, "row_us": {}}


def test_one_that_cannot_be_served_is_told_in_a_sentence(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"muleteer: the model folder {tmp_path} is empty; put the files of a model into it\n"
