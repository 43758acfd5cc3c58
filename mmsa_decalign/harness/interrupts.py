"""Ctrl-C that cannot get lost.

Python drops a KeyboardInterrupt that lands in a destructor or a callback ("Exception ignored in ..."), and a run of
many short seeds has many of both. Here the signal is remembered as well as raised, and asked for again at every epoch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Inside the block Ctrl-C raises at once; the function given raises KeyboardInterrupt if that was swallowed."""
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield check
        return

    def on_signal(number: int, frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
