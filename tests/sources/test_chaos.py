"""A small store that several processes fetch into at once, while one after another is killed."""

import os
import random
import subprocess
import sys

from sources import tree
from tests.sources.test_store import MB, ROOT, below, fetch, pinned

PROCESSES, KILLS = 4, 24
BOUND = 4 * MB + MB // 2
# fetches one model after another, and reads each of them all twice while it holds it
USE = """
import random, sys
from pathlib import Path
import sources
from serving.errors import SourceError
from sources.store import Store
root, max_bytes, *urls = sys.argv[1:]
store = Store(Path(root), int(max_bytes))
while True:
    source = sources.open(random.choice(urls))
    try:
        path, _ = store.fetch(source, 1, store.look(source).identities[1])
    except SourceError as error:
        assert "models in use" in str(error), error
        continue
    store.verify(path)
    print(path, flush=True)
    store.verify(path)
    store.release(path)
"""


def test_whoever_is_killed_what_is_in_use_is_whole_and_nothing_is_left(store, web):
    urls = [pinned(web, f"/{number}.onnx", os.urandom(MB)) for number in range(8)]
    command = [sys.executable, "-c", USE, str(store.root), str(BOUND), *urls]

    def start():
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    processes = [start() for _ in range(PROCESSES)]
    try:
        for kill in range(KILLS):
            process = processes[kill % PROCESSES]
            # at another moment each time
            for _ in range(random.randrange(1, 4)):
                assert process.stdout.readline(), process.stderr.read()
            process.kill()
            process.communicate()
            processes[kill % PROCESSES] = start()
    finally:
        for process in processes:
            process.kill()
            _, errors = process.communicate()
            assert errors == ""
    objects = list((store.root / "objects").iterdir())
    for folder in objects:
        tree.verify(folder, folder.name)
    assert sum(map(tree.size, objects)) <= BOUND
    fetch(store, pinned(web, "/last.onnx", b"graph"))
    assert below(store.root / "tmp") == below(store.root / "locks") == []
