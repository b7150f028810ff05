"""The kernel's kills for want of memory: which of the dead died of one.

Runs in:  mule.
Units:    seconds, time.monotonic().
"""

from collections import deque
from contextlib import suppress
from pathlib import Path

from serving.store import Board

# a process that the kernel kills for want of memory gives all of it back before it is gone
DYING_S = 2.0
# as every container sees it, Linux 4.13 and later
_VMSTAT = Path("/proc/vmstat")


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
        """Count them, and forget the old ones."""
        while self._looks and self._looks[0][0] < now - DYING_S:
            _, kills = self._looks.popleft()
            if kills > self._board.oom_told:
                self._board.oom_told = kills
        self._looks.append((now, oom_kills()))

    def tell(self) -> bool:
        """Whether there is one; it is told herewith."""
        if oom_kills() <= self._board.oom_told:
            return False
        self._board.oom_told += 1
        return True


def oom_kills() -> int:
    """How many processes of this machine the kernel has killed for want of memory; of a cgroup's memory, too."""
    with suppress(OSError, ValueError):
        for line in _VMSTAT.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
