"""Signals are raised at once or where they are waited for, remembered when something swallows them, and the handlers
before come back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from mmsa_decalign.errors import Interrupted
from mmsa_decalign.harness import interrupts
from mmsa_decalign.harness.interrupts import held, remembered

NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_is_swallowed_comes_back(number: int) -> None:
    before = [signal.getsignal(one) for one in NUMBERS]
    with remembered() as check:
        check()
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), number)
        assert (stop.value.exit_code, stop.value.orderly) == (128 + number, False)
        with pytest.raises(Interrupted) as stop:
            check()
        assert (stop.value.exit_code, stop.value.orderly) == (128 + number, True)
    assert [signal.getsignal(one) for one in NUMBERS] == before
    with remembered() as check:  # what was asked of an earlier block is over
        check()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits_where_it_is_held_and_a_second_one_does_not(
        number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def work(check: Callable[[], None]) -> None:
        with held("finishing the batch"):
            os.kill(os.getpid(), number)
            assert "mmsa: finishing the batch; a second signal ends at once" in capfd.readouterr().err
            with pytest.raises(Interrupted) as checked:
                check()
            assert checked.value.orderly

    with remembered() as check:
        with pytest.raises(Interrupted) as stop:
            work(check)
        assert stop.value.orderly, "at the latest at the end of the block"
    with remembered(), held("finishing the batch"):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as second:
            os.kill(os.getpid(), number)
        assert (second.value.exit_code, second.value.orderly) == (128 + number, False)
        interrupts._asked = None


def test_the_handler_of_a_data_loaders_worker_leaves_ctrl_c_to_the_parent() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        interrupts.leave_to_parent(0)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


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
