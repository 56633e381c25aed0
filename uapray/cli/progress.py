"""Progress: a live table on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINE_S = 10.0
FINISHED_SHOWN = 8  # of thousands of trials a terminal shows those under way and the latest finished


class Board(Protocol):
    """Shows how far named things are."""

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        """Say how far one thing is; it is finished when ``done`` reaches ``total``."""
        ...


@contextmanager
def board(part: str = "") -> Iterator[Board]:
    """Provide a board on standard error: bars if that is a terminal, else a line every ten seconds.

    Args:
        part: What of a grid it is about, where others may write to the same terminal; goes before each line.
    """
    if sys.stderr.isatty() and not part:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            yield _Bars(progress)
    else:
        yield _Lines(f"{part} " if part else "")


class _Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}
        self._finished: deque[str] = deque()

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        self._progress.update(self._tasks[name], completed=done, total=total, note=note)
        if done >= total and name not in self._finished:
            self._finished.append(name)
            if len(self._finished) > FINISHED_SHOWN:
                self._progress.remove_task(self._tasks.pop(self._finished.popleft()))


class _Lines:
    def __init__(self, before: str) -> None:
        self._before = before
        self._last: dict[str, float] = {}

    def show(self, name: str, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if done >= total or now - self._last.get(name, -PLAIN_LINE_S) >= PLAIN_LINE_S:
            self._last[name] = now
            if done >= total:
                del self._last[name]
            share = done / total if total else 1.0
            print(f"{self._before}{name}: {share:.0%} {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201
