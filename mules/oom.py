"""The kernel's kills for want of memory: which of the dead died of one.

Runs in:  mule.
Units:    seconds, time.monotonic().
"""

import os
import re
from collections import deque
from pathlib import Path

from serving.store import Board

# a process that the kernel kills for want of memory gives all of it back before it is gone
DYING_S = 2.0
# as every container sees it, Linux 4.13 and later
_VMSTAT = Path("/proc/vmstat")
# more than it has
_VMSTAT_BYTES = 1 << 16
_OOM_KILL = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class OomKills:
    """The kernel's kills for want of memory, as far as none of the pool has told of them.

    They are counted for the machine, when they begin.  Nobody says who was killed: it is told of the next who dies by
    SIGKILL, and forgotten DYING_S later, as it was none of the pool then.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._looks: deque[tuple[float, int]] = deque()
        if board.oom_told < 0:
            board.oom_told = oom_kills()

    def look(self, now: float) -> None:
        """Forget the old ones, and count them, at most twice in DYING_S."""
        while self._looks and self._looks[0][0] < now - DYING_S:
            _, kills = self._looks.popleft()
            if kills > self._board.oom_told:
                self._board.oom_told = kills
        if not self._looks or now - self._looks[-1][0] >= DYING_S / 2:
            self._looks.append((now, oom_kills()))

    def tell(self) -> bool:
        """Whether there is one; it is told herewith."""
        if oom_kills() <= self._board.oom_told:
            return False
        self._board.oom_told += 1
        return True


def oom_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory; of a cgroup's memory, too."""
    try:
        # every mule counts them while it is idle, and a file object takes three times as long
        file = os.open(_VMSTAT, os.O_RDONLY | os.O_CLOEXEC)
        try:
            told = os.read(file, _VMSTAT_BYTES)
        finally:
            os.close(file)
    except OSError:
        return 0
    found = _OOM_KILL.search(told)
    return int(found[1]) if found else 0
