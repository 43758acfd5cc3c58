"""Ctrl-C and SIGTERM that cannot get lost, and that let a training finish its batch.

Python drops an exception that a signal raises in a destructor or a callback ("Exception ignored in ..."), and a run of
many short seeds has many of both. Here a signal is remembered as well as raised, and asked for again before every
batch. Inside ``held`` it is only remembered: ``check`` raises it where everything is in order, a second one at once.
Handlers belong to the process, and so does what is remembered here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: int | None = None
_held: list[str] = []  # what is done before each of the holders lets a signal through


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Inside the block a signal raises Interrupted, at once or where ``held`` says; yields ``check``."""
    global _asked
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield _never
        return
    earlier, _asked = _asked, None
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked = earlier


@contextmanager
def held(doing: str) -> Iterator[None]:
    """Inside the block a first signal waits for ``check``, at the latest for the end of the block; ``doing`` is what
    the user is told meanwhile."""
    _held.append(doing)
    try:
        yield
    finally:
        _held.pop()
    check()


def check() -> None:
    """Raise Interrupted if a signal has come since ``remembered`` began."""
    if _asked is not None and threading.current_thread() is threading.main_thread():
        raise Interrupted(number=_asked, orderly=True)


def _on_signal(number: int, frame: Any) -> None:
    global _asked
    first, _asked = _asked is None, number
    if not (first and _held):
        raise Interrupted(number=number)
    with suppress(OSError):  # not print: the signal may have come in the middle of one
        os.write(2, f"\nmmsa: {_held[-1]}; a second signal ends at once\n".encode())


def _never() -> None:
    """``check`` of a thread that gets no signals."""


def leave_to_parent(worker: int) -> None:
    """For a data loader's workers: Ctrl-C reaches the whole group, and they end when their parent has ended a batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
