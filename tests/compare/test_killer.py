"""A killer among a grid of short runs: SIGKILL at random moments, to workers and to their parent.

Some of the runs are real ones of DecAlign, which go on from their state. In the end every run is in the store exactly
once, with the numbers of one that nobody disturbed, and nothing is left behind.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import compare_killed
import numpy as np
import pytest

from mmsa_decalign.compare.plan import make_plan
from mmsa_decalign.compare.store import Store
from mmsa_decalign.data.synthetic import write_synthetic

KILLS = 50
STUBS, EPOCHS = 36, 12
SMALL = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": EPOCHS, "early_stop": EPOCHS,
         "batch_size": 16}


def specs(folder: Path) -> list[dict[str, Any]]:
    """Real cells first, so that they are among the killed for long."""
    tiny = write_synthetic(folder / "tiny.pkl", samples=(33, 12, 17))
    plan = make_plan(["decalign"], [f"synthetic={tiny}"], seeds=[1, 2], overrides={None: SMALL}, with_sanity=False)
    real = [json.loads(json.dumps(dataclasses.asdict(cell)["spec"])) for cell in plan.cells]
    made_up = [{"kind": "model", "model": "stub", "dataset": "mosi", "seed": number,
                "settings": {"log": str(folder / "log"), "seconds": 0.02 * (number % 5)}} for number in range(STUBS)]
    return real + made_up


def gone(pid: int) -> bool:
    """Whether a process has ended, waiting a moment for it; one that nobody has reaped yet has."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


class Killer:
    """Keeps a grid going and kills: parents, workers at any moment, and real runs soon after they wrote a state."""

    def __init__(self, folder: Path, plan: list[dict[str, Any]]) -> None:
        self.store, self.plan, self.started = folder / "grid" / "store.sqlite", plan, folder / "started"
        self.started.touch()
        self.rng = random.Random(1)
        self.killed: Counter[str] = Counter()
        self.due: dict[int, float] = {}
        self.states: dict[Path, int] = {}

    def grid(self) -> tuple[Any, Any]:
        """A grid that has just been started, and where it says how it ended."""
        ours, theirs = compare_killed.CONTEXT.Pipe(duplex=False)
        parent = compare_killed.CONTEXT.Process(target=compare_killed.parent,
                                                args=(str(self.store), self.plan, self.started, theirs))
        parent.start()
        theirs.close()
        return parent, ours

    def haunt(self, until: float) -> None:
        """Until there were enough kills, or the time is over."""
        while self.killed.total() < KILLS and time.monotonic() < until:
            parent, _ = self.grid()
            while parent.is_alive() and not self.running():  # the server may still be importing
                time.sleep(0.005)
            end = time.monotonic() + self.rng.uniform(0.2, 4)
            while parent.is_alive() and self.killed.total() < KILLS and time.monotonic() < end:
                self.look()
                time.sleep(0.005)
            workers = self.running()
            self.kill(parent.pid, "parents")
            parent.join()
            assert all(gone(pid) for pid in workers), "a worker outlived its grid"

    def running(self) -> dict[int, str]:
        """Workers that have not ended, as far as is known, by process, with their cells."""
        lines = [line.split() for line in self.started.read_text().splitlines()]
        return {int(pid): key for pid, key in lines if Path(f"/proc/{pid}").exists()}

    def look(self) -> None:
        """Kill the workers whose time has come, and now and then one that has just written a state."""
        now, running = time.monotonic(), self.running()
        for pid in running:
            if pid not in self.due:  # some live
                self.due[pid] = now + (self.rng.uniform(0, 0.25) if self.rng.random() < 0.85 else 1e9)
            if now > self.due[pid]:
                self.kill(pid, "workers")
        for path in self.store.parent.glob("*.files/cells/*/*.state"):
            with suppress(OSError):
                inode = path.stat().st_ino
                if self.states.setdefault(path, inode) != inode and self.rng.random() < 0.3:
                    time.sleep(self.rng.uniform(0, 0.05))
                    for pid in [pid for pid, key in running.items() if key == path.parent.name]:
                        self.kill(pid, "workers in training")
                self.states[path] = inode

    def kill(self, pid: int, what: str) -> None:
        """SIGKILL, which counts if there was somebody to kill."""
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                os.kill(pid, signal.SIGKILL)
                self.killed[what] += 1
                self.due[pid] = time.monotonic() + 1e9


@pytest.fixture
def forking(stub: None) -> Iterator[None]:
    compare_killed.serve()
    yield
    compare_killed.stop_serving()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_nothing_is_lost_to_a_killer(forking: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = specs(tmp_path)
    killer = Killer(tmp_path, plan)
    killer.haunt(time.monotonic() + 300)
    for _ in range(3):  # what was killed has failed, and is tried again
        parent, end = killer.grid()
        found, done, failed = end.recv()
        parent.join()
        if not failed:
            break
    wanted = [compare_killed.cell_of(spec) for spec in plan]
    store = Store(killer.store)
    rows, cells = store.database.execute("SELECT count(*), count(DISTINCT cell) FROM runs").fetchone()
    resumed = [len(store.record(cell.key)["resumed"]) for cell in wanted if cell.row == "decalign"]
    with capsys.disabled():
        print(f"\nkills survived: {killer.killed.total()} ({dict(killer.killed)}); rows expected: {len(wanted)}, "
              f"found: {rows}, of {cells} cells; the real runs went on {resumed} times")
    assert killer.killed.total() >= KILLS
    assert rows == cells == len(wanted)
    assert sum(resumed), "no real run went on from its state"
    assert store.database.execute("SELECT count(*) FROM cells WHERE claim IS NOT NULL OR error IS NOT NULL"
                                  ).fetchone() == (0,)
    assert list((store.files / "claims").iterdir()) == []
    for number, cell in enumerate(wanted):
        calm = tmp_path / f"calm{number}"
        calm.mkdir()
        expected, samples = compare_killed.do(cell.spec, calm, "cpu")
        found = store.record(cell.key)
        assert found["test"] == expected["test"]
        for split, one in samples.items():
            stored = store.samples(cell.key, split)
            assert stored.ids == one.ids
            assert np.array_equal(stored.predictions, one.predictions)
        files = [file.suffix for file in store.folder(cell.key).iterdir()]
        if cell.row == "decalign":
            assert len(found["epochs"]) == EPOCHS
            for epoch, other in zip(found["epochs"], expected["epochs"], strict=True):
                assert {**epoch, "seconds": 0} == {**other, "seconds": 0}
            assert files.count(".pth") == 1
        assert set(files) <= {".log", ".pth"}
    store.close()
