"""What is seen while a grid runs, on standard error: a live line on a terminal, else a line for each event."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .plan import Cell
from .store import Store


class Display:
    """Is told by the grid what happens (see ``grid.Show``), and shows done, running, failed, and the time left."""

    def __init__(self, console: Console, cells: Sequence[Cell], store: Store, workers: int) -> None:
        self.console, self.total, self.workers = console, len(cells), workers
        self.expected = {cell.key: store.seconds(cell.spec["model"], cell.spec["dataset"]) for cell in cells}
        self.kinds = {cell.key: (cell.spec["model"], cell.spec["dataset"]) for cell in cells}
        self.left = dict.fromkeys(self.expected)
        self.running: dict[str, tuple[Cell, float]] = {}
        self.count: Counter[str] = Counter()
        self.measured: dict[tuple[str, str], list[float]] = {}
        self.progress: Progress | None = None

    @contextmanager
    def live(self) -> Iterator[Display]:
        """Inside the block the live line is there, if there is a terminal."""
        if not self.console.is_terminal:
            yield self
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[left]}"))
        with Progress(*columns, console=self.console, transient=True) as self.progress:
            self.task = self.progress.add_task("comparing", total=self.total, left="")
            yield self
        self.progress = None

    def started(self, cell: Cell) -> None:
        """A worker has begun."""
        self.running[cell.key] = (cell, time.monotonic())
        if not self.progress:
            self._line(f"{name(cell)}: started")
        self.tick()

    def ended(self, cell: Cell, outcome: str, error: str | None) -> None:
        """A cell is found, done or failed."""
        began = self.running.pop(cell.key, None)
        self.left.pop(cell.key, None)
        self.count[outcome] += 1
        took = ""
        if began is not None and outcome == "done":
            seconds = time.monotonic() - began[1]
            self.measured.setdefault(self.kinds[cell.key], []).append(seconds)
            took = f" in {duration(seconds)}"
        if outcome == "failed":
            self._line(f"{name(cell)}: failed: {error}")
        elif outcome != "found" and not self.progress:
            self._line(f"{name(cell)}: done{took}")
        self.tick()

    def tick(self) -> None:
        """Some time has passed."""
        if self.progress:
            self.progress.update(self.task, completed=sum(self.count.values()), description=self._state(),
                                 left=f"about {duration(self.seconds_left())} left" if self.left and
                                 self.seconds_left() is not None else "")

    def seconds_left(self) -> float | None:
        """Estimate for what is not done yet, from finished runs of the same model and data set, else of any."""
        known = [seconds for several in self.measured.values() for seconds in several]
        known = known or [seconds for seconds in self.expected.values() if seconds is not None]
        if not known:
            return None
        mean, now, total = sum(known) / len(known), time.monotonic(), 0.0
        for key in self.left:
            seconds, elapsed = self._estimate(key), now - self.running[key][1] if key in self.running else 0.0
            total += max(0.0, (mean if seconds is None else seconds) - elapsed)
        return total / min(self.workers, max(1, len(self.left)))

    def _estimate(self, key: str) -> float | None:
        measured = self.measured.get(self.kinds[key])
        return sum(measured) / len(measured) if measured else self.expected[key]

    def _state(self) -> str:
        """Done, running and failed, in words."""
        names = ", ".join(name(cell) for cell, _ in self.running.values())
        done = self.count["done"] + self.count["found"]
        failed = f", {self.count['failed']} failed" if self.count["failed"] else ""
        return escape(f"{done} done{failed}, {len(self.running)} running" + (f": {names}" if names else ""))

    def _line(self, text: str) -> None:
        left = self.seconds_left() if self.left else None
        rest = f"; about {duration(left)} left" if left is not None and not self.progress else ""
        ended = sum(self.count.values())
        self.console.print(f"[{ended}/{self.total}] {text}{rest}", markup=False, highlight=False,
                           soft_wrap=not self.console.is_terminal)


def name(cell: Cell) -> str:
    """A cell in words."""
    return f"{cell.row} on {cell.data}" + (f", seed {cell.seed}" if cell.spec["kind"] == "model" else "")


def duration(seconds: float | None) -> str:
    """A time for people: 45 s, 12 min, 3 h 20 min."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
