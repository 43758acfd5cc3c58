"""The grid: every cell once, failures recorded, nothing lost and nobody left behind whatever is killed."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from compare_stub import cell

from mmsa_decalign.compare import grid
from mmsa_decalign.compare.plan import Data, Plan, Row
from mmsa_decalign.compare.store import Store
from mmsa_decalign.compare.table import make_table


class Events:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str | None]] = []

    def started(self, cell: grid.Cell) -> None:
        self.seen.append(("started", cell.row, None))

    def ended(self, cell: grid.Cell, outcome: str, error: str | None) -> None:
        self.seen.append((outcome, cell.row, error))

    def tick(self) -> None: ...


def lines(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def gone(pid: int) -> bool:
    """Whether a process has ended, waiting a moment for it; one that nobody has reaped yet has."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_failures_are_recorded_the_grid_goes_on_and_only_they_are_tried_again(
        store: Store, stub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(grid, "cores", lambda: 4)
    log = tmp_path / "log"
    cells = [cell("good", log=str(log)), cell("bad", log=str(log), behaviour="fail"),
             cell("shot", log=str(log), behaviour="killed"), cell("gone", log=str(log), behaviour="exit")]
    events = Events()
    outcome = grid.run(cells, store, events, workers=2, device="cpu")
    assert outcome.done == [cells[0].key]
    assert set(outcome.failed) == {one.key for one in cells[1:]}
    states = store.states(one.key for one in cells)
    errors = [states[one.key].error for one in cells]
    assert errors[:2] == [None, "the loss is not a number"]
    assert errors[2] is not None
    assert "killed by SIGKILL" in errors[2]
    assert "memory" in errors[2]
    assert errors[3] is not None
    assert "exit code 3" in errors[3]
    assert {state.claim for state in states.values()} == {None}
    assert not (store.folder(cells[0].key) / "half.pth").exists()
    assert list((store.files / "claims").iterdir()) == []
    again = grid.run(cells, store, events, workers=2, device="cpu")
    assert again.found == [cells[0].key]
    assert len(again.failed) == 3
    assert Counter(name for name, *_ in lines(log)) == {"good": 1, "bad": 2, "shot": 2, "gone": 2}
    assert {threads for *_, threads in lines(log)} == {"2"}, "four cores for two workers"
    run = states[cells[0].key].run
    assert grid.run(cells[:1], store, events, device="cpu", again=True).done == [cells[0].key]
    assert store.states([cells[0].key])[cells[0].key].run != run


def parent(store: Path, log: Path, cells: int, workers: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "compare_parent", str(store), str(log), str(cells), str(workers), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def table_of(path: Path, log: Path, cells: int, seconds: float) -> dict[str, Any]:
    """The table of the parent's cells, those of odd seeds as a row of their own; without the runs' random ids."""
    rows = ("even", "odd")
    made = [dataclasses.replace(cell("slow", number, log=str(log), seconds=seconds), row=rows[number % 2])
            for number in range(cells)]
    store = Store(path)
    document = make_table(Plan([Row(row, "slow") for row in rows], [Data("mosi", "mosi")], tuple(range(cells)), "even",
                               made), store)
    assert store.database.execute("SELECT count(*), count(DISTINCT cell) FROM runs").fetchone() == (cells, cells)
    assert store.database.execute("SELECT count(*) FROM cells WHERE claim IS NOT NULL OR error IS NOT NULL"
                                  ).fetchone() == (0,)
    store.close()
    for row in document["data"][0]["rows"]:
        assert len(set(row.pop("runs"))) == cells / 2
    return document


@pytest.mark.slow
def test_a_grid_killed_at_random_moments_ends_in_the_table_of_an_undisturbed_one(stub: None, tmp_path: Path) -> None:
    path, calm, log = tmp_path / "store.sqlite", tmp_path / "calm.sqlite", tmp_path / "log"
    unfinished, rng = 0, random.Random(0)
    for _ in range(4):
        with parent(path, log, 6, 2, 0.2) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first worker is there
            time.sleep(rng.uniform(0, 2))
            unfinished += process.poll() is None
            process.kill()
        for _, _, pid, _ in lines(log):
            assert gone(int(pid)), "a worker outlived its grid"
    assert unfinished, "no kill came before the end"
    for store, rest in ((path, None), (calm, "0 6 0")):
        with parent(store, log, 6, 2, 0.2) as process:
            end = process.communicate(timeout=120)[0].splitlines()[-1]
        assert rest in (None, end)
    disturbed = table_of(path, log, 6, 0.2)
    assert disturbed == table_of(calm, log, 6, 0.2)
    odd = disturbed["data"][0]["rows"][1]
    assert odd["metrics"]["MAE"]["low"] < odd["metrics"]["MAE"]["mean"]
    assert odd["against"]["MAE"]["p"] is not None


@pytest.mark.slow
def test_workers_end_with_a_grid_that_is_killed(stub: None, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with parent(tmp_path / "store.sqlite", log, 2, 2, 600.0) as process:
        until = time.monotonic() + 60
        while len(lines(log)) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    assert len(lines(log)) == 2
    assert all(gone(int(pid)) for _, _, pid, _ in lines(log))


@pytest.mark.slow
def test_two_grids_at_once_do_no_cell_twice(stub: None, tmp_path: Path) -> None:
    path, log = tmp_path / "store.sqlite", tmp_path / "log"
    Store(path).close()
    with parent(path, log, 4, 2, 0.3) as one, parent(path, log, 4, 2, 0.3) as other:
        ends = [process.communicate(timeout=120)[0].splitlines()[-1] for process in (one, other)]
    assert sorted(Counter(seed for _, seed, *_ in lines(log)).values()) == [1, 1, 1, 1]
    assert [sum(map(int, end.split()[:2])) for end in ends] == [4, 4]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_workers_and_keeps_what_is_finished(
        number: signal.Signals, code: int, stub: None, tmp_path: Path) -> None:
    path, log = tmp_path / "store.sqlite", tmp_path / "log"
    with parent(path, log, 2, 1, 0.0) as process:
        process.communicate(timeout=60)
    with parent(path, log, 2, 2, 60.0) as process:
        until = time.monotonic() + 60
        while len(lines(log)) < 4 and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert len(lines(log)) == 4
    assert all(gone(int(pid)) for _, _, pid, _ in lines(log))
    store = Store(path)
    assert store.database.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    assert store.database.execute("SELECT count(*) FROM cells WHERE claim IS NOT NULL").fetchone() == (0,)
    assert list((store.files / "claims").iterdir()) == []
    store.close()


def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    own = [grid.environment(1, ["2", "5"], slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert own == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7, 3")
    assert grid.environment(1, [], 0)["CUDA_VISIBLE_DEVICES"] == "7, 3", "as it was, where none is shared out"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [grid.visible_gpus(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == [["7", "3"]] * 2 + [[], []]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert grid.visible_gpus("auto") == ["0", "1", "2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert grid.visible_gpus("auto") == []


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(grid, "cores", lambda: 8)
    assert [grid.threads_each(workers) for workers in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert grid.threads_each(1) == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"
