"""What is seen while a run goes on, all of it on standard error: log lines, and a bar per epoch on a terminal.

Log handlers are attached for the time of one ``with`` block, so that each line appears once however many runs a
process makes. Standard output belongs to results.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOGGER = logging.getLogger("MMSA")
LEVELS = {0: logging.ERROR, 1: logging.INFO, 2: logging.DEBUG}


def stderr_console() -> Console:
    """A console on what is standard error now (tests and notebooks exchange it)."""
    console = Console(stderr=True, highlight=False)
    console.soft_wrap = not console.is_terminal  # a terminal breaks lines between words, a file keeps them whole
    return console


@contextmanager
def logging_to(console: Console, log_file: Path | None, verbose: int) -> Iterator[None]:
    """MMSA's logger writes to the console, from the level MMSA gives ``verbose``, and everything to ``log_file``.

    Handlers that were there before rest meanwhile: each MMSA_run leaves two behind, which would repeat every line.
    """
    handlers: list[logging.Handler] = [_ConsoleHandler(console, LEVELS[verbose])]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(log_file, console))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s - %(name)s [%(levelname)s] - %(message)s"))
    level, propagate, earlier = LOGGER.level, LOGGER.propagate, list(LOGGER.handlers)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False  # a handler of the root logger would print every line a second time
    LOGGER.handlers[:] = handlers
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
        LOGGER.handlers[:] = earlier
        for handler in handlers:
            handler.close()


class _LogFile(logging.FileHandler):
    """A full disk costs its lines, not the run: it says so once and falls silent."""

    def __init__(self, path: Path, console: Console) -> None:
        super().__init__(path, encoding="utf-8")
        self._console, self._told = console, False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            self._console.print(f"log {self.baseFilename} cannot be written ({sys.exc_info()[1]}); the run goes on "
                                "without it", markup=False)

    def close(self) -> None:
        with suppress(OSError):  # what is left in its buffer
            super().close()


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: Console, level: int) -> None:
        super().__init__(level)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False)


def epoch_bars(console: Console, *, enabled: bool = True) -> Callable[[Any], Iterable[Any]]:
    """A function that turns a loader into one pass over it, with a bar if the console is a terminal."""
    passes = 0

    def show(loader: Any) -> Iterator[Any]:
        nonlocal passes
        passes += 1
        if not (enabled and console.is_terminal):
            yield from loader
            return
        columns = (TextColumn("epoch {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            yield from progress.track(loader, total=len(loader), description=str(passes))

    return show


@contextmanager
def quiet_mmsa() -> Iterator[None]:
    """MMSA's own bars are off, and the warnings that its metrics give on constant predictions are not shown."""
    from tqdm import tqdm

    silent = functools.partial(tqdm, disable=True)
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("MMSA.trains.") and hasattr(m, "tqdm")]
    before = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = silent
    try:
        with warnings.catch_warnings():
            # numpy.corrcoef of a constant; the record then has null for Corr
            for message in ("invalid value encountered in", "divide by zero encountered in", "Degrees of freedom"):
                warnings.filterwarnings("ignore", message, RuntimeWarning, "numpy")
            yield
    finally:
        for module, function in zip(modules, before, strict=True):
            module.tqdm = function
