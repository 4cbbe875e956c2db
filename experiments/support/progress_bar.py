"""How far a script has come."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A progress bar with the time left; plain lines where the output is no terminal."""

    def __init__(self, total: float) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console()
        self._live = console.is_terminal
        self._progress = Progress(*columns, console=console, disable=not self._live)
        self._task = self._progress.add_task("", total=total)
        self._total, self._done, self._skipped, self._shown = total, 0.0, 0.0, 0
        self._start = time.monotonic()

    def skip(self, amount: float) -> None:
        """Count ``amount`` of the total as done by an earlier run."""
        self._skipped += amount
        self._done += amount

    def advance(self, amount: float, text: str) -> None:
        """Count ``amount`` more of the total as done and show ``text``."""
        self._done += amount
        self._progress.update(self._task, completed=self._done, description=text)
        percent = int(100 * self._done / self._total + 1e-9)
        if not self._live and percent // 5 > self._shown // 5:
            self._shown = percent
            elapsed = time.monotonic() - self._start
            left = elapsed * (self._total - self._done) / max(self._done - self._skipped, 1e-9)
            print(f"{percent:3d} %  {elapsed:5.0f} s done  {left:5.0f} s left  {text}", flush=True)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
