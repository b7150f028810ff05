"""How far a search is: a bar on a terminal, with what is left; lines for whoever reads it elsewhere.

Runs in:  the command line.
Units:    seconds.
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from tuning.search import Watch


class _Left(ProgressColumn):
    """What is still to come, counted down between the steps."""

    def render(self, task: Task) -> Text:
        left_s = max(0, round(task.fields["ends"] - time.monotonic()))
        return Text(f"about {left_s // 60}:{left_s % 60:02d} left", style="dim")


class Bar(Watch):
    """On standard error, so that what is printed can be piped."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), _Left())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._began = time.monotonic()
        self._task = self._progress.add_task("", total=1.0, ends=self._began)

    def __enter__(self) -> "Bar":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, text: str, left_s: float) -> None:
        now = time.monotonic()
        if self._console.is_terminal:
            done = now - self._began
            self._progress.update(self._task, description=text, completed=done, total=done + left_s, ends=now + left_s)
        else:
            self._console.print(f"muleteer: {text}, about {left_s:.0f} s left", soft_wrap=True)
