"""What is seen of a grid: counts, failures with their errors, and an estimate that comes from runs like these."""

from __future__ import annotations

import io
import time

import pytest
from compare_stub import cell, record_of
from rich.console import Console

from mmsa_decalign.compare.display import Display, duration
from mmsa_decalign.compare.store import Store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_say_what_happens_and_how_long_it_will_take(store: Store, clock: list[float]) -> None:
    cells = [cell("known", 1), cell("known", 2), cell("new", 1), cell("bad", 1)]
    store.add([cells[0].entry()])
    assert store.claim(cells[0].key, "t", 0)
    assert store.finish(cells[0].key, "t", record_of(cells[0].spec, {}), {}, seconds=60.0)
    text = io.StringIO()
    shown = Display(Console(file=text, width=200), cells, store, workers=2)
    assert shown.seconds_left() == 120, "four runs of 60 s, where nothing else is known, by two workers"
    with shown.live():
        shown.ended(cells[0], "found", None)
        shown.started(cells[1])
        shown.started(cells[3])
        clock[0] += 20
        shown.ended(cells[3], "failed", "the loss is [not] a number")
        clock[0] += 20
        shown.ended(cells[1], "done", None)
    assert text.getvalue().splitlines() == [
        "[1/4] known on mosi, seed 2: started; about 2 min left",
        "[1/4] bad on mosi, seed 1: started; about 2 min left",
        "[2/4] bad on mosi, seed 1: failed: the loss is [not] a number; about 50 s left",
        "[3/4] known on mosi, seed 2: done in 40 s; about 40 s left"]


def test_a_terminal_sees_one_live_line(store: Store) -> None:
    text = io.StringIO()
    cells = [cell("one", 1), cell("two", 1)]
    shown = Display(Console(file=text, force_terminal=True, width=120), cells, store, workers=1)
    with shown.live():
        shown.started(cells[0])
        shown.ended(cells[0], "failed", "out of memory")
        shown.started(cells[1])
        shown.tick()
        assert shown.progress is not None
        shown.progress.refresh()
    assert "one on mosi, seed 1: failed: out of memory" in text.getvalue()
    assert "0 done, 1 failed, 1 running: two on mosi" in text.getvalue()


def test_times_for_people() -> None:
    assert [duration(seconds) for seconds in (None, 5.4, 89, 91, 3600, 12_000)] == [
        "unknown", "5 s", "89 s", "2 min", "60 min", "3 h 20 min"]
