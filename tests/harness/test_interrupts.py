"""Ctrl-C is raised at once, remembered when something swallows it, and the handler before comes back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from mmsa_decalign.harness.interrupts import remembered


def test_an_interrupt_that_is_swallowed_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with remembered() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_thread_may_run_too() -> None:
    seen = []

    def work() -> None:
        with remembered() as check:
            check()
            seen.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
