"""What processes cost, by the kernel's own numbers."""

import os
import subprocess
import sys

from load import cost
from load.cost import Process, Reading

SPIN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True)\ninput()"


def test_cpu_of_a_process_is_what_it_used():
    before = cost.read()
    with subprocess.Popen([sys.executable, "-c", SPIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        after = cost.read()
        assert process.pid in after.below(os.getpid())
        # it knows of 0.2 s, and of its start
        assert 0.15 < cost.spent(before, after, [process.pid])[process.pid] < 5
        assert cost.by_name(before, after, [])[after.processes[process.pid].name] > 0.15
        process.communicate(b"\n")


def test_who_has_ended_is_counted_once():
    # the child's 5 s before have come to its parent; 1 s is new
    before = Reading({1: Process(0, "init", 0.0), 10: Process(1, "parent", 2.0), 11: Process(10, "child", 5.0)}, 0.0)
    after = Reading({1: Process(0, "init", 0.0), 10: Process(1, "parent", 8.0)}, 0.0)
    used = cost.spent(before, after, before.below(10) | after.below(10))
    assert used == {10: 6.0, 11: -5.0}
    assert sum(used.values()) == 1.0


def test_others_are_all_but_ours_and_the_kernel():
    processes = {2: ("kthreadd", 0), 3: ("kworker", 2), 10: ("ours", 1), 20: ("stranger", 1), 21: ("stranger", 1)}
    before = Reading({pid: Process(parent, name, 1.0) for pid, (name, parent) in processes.items()}, 0.0)
    after = Reading({pid: Process(parent, name, 1.5) for pid, (name, parent) in processes.items()}, 0.0)
    assert cost.by_name(before, after, {10}) == {"stranger": 1.0}


def test_memory_shared_with_others_counts_in_part():
    rss, pss = cost.memory(os.getpid())
    assert 0 < pss <= rss
