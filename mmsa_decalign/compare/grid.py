"""The parent of a comparison: a worker process for each cell that is not finished, so many at a time.

It collects nothing: a worker commits its own result. Cells that another comparison is at work on are waited for. What
is started here ends with this process, however it ends (see worker.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..harness.interrupts import held, remembered
from . import worker
from .plan import Cell
from .store import State, Store

POLL_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between looks at a cell that another comparison works on
STOP_SECONDS = 15.0  # what a worker gets to finish its batch and save the state of its run
WORKER = worker.__name__  # the module that does one cell
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS")


class Show(Protocol):
    """Who is told what happens."""

    def started(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, outcome: str, error: str | None) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Outcome:
    """Keys of the cells by how they ended: found finished, done now (here or by another comparison), failed."""

    found: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass
class _Running:
    cell: Cell
    token: str
    attempts: int
    process: subprocess.Popen[bytes]
    slot: int


def run(cells: Sequence[Cell], store: Store, show: Show, *, workers: int = 1, device: str = "auto",
        gpus: Sequence[str] = (), again: bool = False, events: str | None = None) -> Outcome:
    """Do every cell that is not finished, ``workers`` at a time; with ``again`` the finished ones too.

    gpus: what to write into CUDA_VISIBLE_DEVICES, a worker's by its place. events: folder for TensorBoard's event
    files. A failed cell is in the store with its error, and the others go on. On Ctrl-C and SIGTERM the workers are
    stopped, which lets them save the state of their runs, and Interrupted is raised: what is finished stays.
    """
    store.add(cell.entry() for cell in cells)
    return _Grid(cells, store, show, workers, device, gpus, again, events).run()


class _Grid:
    def __init__(self, cells: Sequence[Cell], store: Store, show: Show, workers: int, device: str, gpus: Sequence[str],
                 again: bool, events: str | None = None) -> None:
        self.store, self.show, self.again, self.events = store, show, again, events
        self.device, self.gpus, self.workers = device, gpus, workers
        self.threads = threads_each(workers)
        self.pending = deque(cells)
        self.waiting: list[Cell] = []
        self.running: list[_Running] = []
        self.before = store.states(cell.key for cell in cells)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        looked = 0.0
        with remembered() as check, held("stopping the workers"):
            try:
                while self.pending or self.running or self.waiting:
                    check()
                    self._fill()
                    for one in [one for one in self.running if one.process.poll() is not None]:
                        self.running.remove(one)
                        self._ended(one)
                    if self.waiting and time.monotonic() - looked > LOOK_SECONDS:
                        looked = time.monotonic()
                        self.pending.extend(self.waiting)
                        self.waiting.clear()
                    self.show.tick()
                    if self.running or self.waiting:
                        time.sleep(POLL_SECONDS)
            finally:
                self._stop()
        return self.outcome

    def _fill(self) -> None:
        while self.pending and len(self.running) < self.workers:
            cell = self.pending.popleft()
            before, now = self.before[cell.key], self._state(cell)
            if now.run and (not self.again or now.run != before.run):
                (self.outcome.found if now.run == before.run else self.outcome.done).append(cell.key)
                self.show.ended(cell, "found" if now.run == before.run else "done", None)
            elif now.claim and self.store.alive(now.claim):
                self.waiting.append(cell)
            elif now.error and now.attempts != before.attempts:  # by another comparison, just now
                self._failed(cell, now.error)
            else:
                self._start(cell, now)

    def _state(self, cell: Cell) -> State:
        return self.store.states([cell.key])[cell.key]

    def _start(self, cell: Cell, state: State) -> None:
        token = uuid.uuid4().hex
        slot = min(set(range(self.workers)) - {one.slot for one in self.running})
        folder = self.store.folder(cell.key)
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", WORKER, str(self.store.path), cell.key, token, str(state.attempts),
                   self.device, *([str(Path(self.events) / _file_name(cell.row))] if self.events else [])]
        with (folder / "output.log").open("ab") as log:  # never emptied: another comparison may be at it
            # A session of its own: Ctrl-C reaches this process alone, which then ends its workers.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log,
                                       env=environment(self.threads, self.gpus, slot), start_new_session=True)
        self.running.append(_Running(cell, token, state.attempts, process, slot))
        self.show.started(cell)

    def _ended(self, one: _Running) -> None:
        self._forget(one)
        cell, code = one.cell, one.process.returncode
        now = self._state(cell)
        if now.run and now.run != self.before[cell.key].run:
            self.outcome.done.append(cell.key)
            self.show.ended(cell, "done", None)
        elif code == worker.NOT_MINE:
            self.pending.append(cell)
        elif code == worker.FAILED and now.error and now.attempts == one.attempts + 1:
            self._failed(cell, now.error)
        else:
            self._crashed(one)

    def _crashed(self, one: _Running) -> None:
        """A worker that could not say itself what happened."""
        log = self.store.folder(one.cell.key) / "output.log"
        error = f"{ending(one.process.returncode)}; its output: {log}"
        self.store.claim(one.cell.key, one.token, one.attempts)  # where it died before it could
        if self.store.fail(one.cell.key, one.token, error, tail(log)):
            self._failed(one.cell, error)
        else:  # another comparison has taken it over meanwhile
            self.pending.append(one.cell)

    def _failed(self, cell: Cell, error: str) -> None:
        self.outcome.failed.append(cell.key)
        self.show.ended(cell, "failed", error)

    def _stop(self) -> None:
        """End the workers that still run, and give their claims back."""
        try:
            stop_all(one.process for one in self.running)
        finally:
            for one in self.running:
                self._forget(one)
                self.store.release(one.cell.key, one.token)

    def _forget(self, one: _Running) -> None:
        """A worker that has ended: what it had no time to clear away."""
        assert one.process.stdin is not None
        one.process.stdin.close()
        (self.store.files / "claims" / one.token).unlink(missing_ok=True)


def stop_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Ask workers to end, and kill those that have not after STOP_SECONDS, or when a second signal comes."""
    stopping = list(processes)
    until = time.monotonic() + STOP_SECONDS
    try:
        for process in stopping:
            process.terminate()
        for process in stopping:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
    finally:
        for process in stopping:
            if process.poll() is None:
                process.kill()
                process.wait()


def _file_name(label: str) -> str:
    """A row's label as a folder may be called."""
    return re.sub(r"[^\w.,+-]+", "_", label)


def cores() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """CPU threads for each of so many workers; no more than OMP_NUM_THREADS, where that is set."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    most = int(given) if given.isdigit() and int(given) else cores()
    return max(1, min(cores() // workers, most))


def environment(threads: int, gpus: Sequence[str], slot: int) -> dict[str, str]:
    """Of a worker in this place: so many CPU threads, and its GPU where there are some to share."""
    own = {name: str(threads) for name in _THREADS}
    if not {"", os.getcwd()} & set(sys.path):
        own["PYTHONSAFEPATH"] = "1"  # or a random.py in the user's folder takes the place of Python's
    if gpus:
        own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return {**os.environ, **own}


def visible_gpus(device: str) -> list[str]:
    """The GPUs to share out, as CUDA_VISIBLE_DEVICES names them; none for the CPU or where one GPU was named."""
    import torch

    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return []
    given = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one.strip()]
    return given or [str(number) for number in range(torch.cuda.device_count())]


def ending(code: int) -> str:
    if code >= 0:
        return f"the worker ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"the worker was killed by {name}{memory}"


def tail(log: Path, most: int = 4000) -> str:
    try:
        return log.read_bytes()[-most:].decode("utf-8", "replace")
    except OSError:
        return ""
