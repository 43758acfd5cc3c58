"""A search from the outside: in this process, or in worker processes of their own on one storage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..compare import grid
from ..data.schema import Features
from ..errors import InputError, Interrupted, RunError
from ..harness.datasets import load_features, make_splits
from ..harness.interrupts import held, remembered
from ..harness.job import Job, check_folders, prepare
from ..harness.progress import stderr_console
from ..harness.runner import session
from . import worker
from .result import Found, collect
from .space import parameters, settings_of
from .study import Search, error_of, finished, locked, name_of, open_study, take_back
from .trial import work

_POLL_SECONDS = 0.3
_CRASHES = 3  # worker ends in a row, without a trial finished between them, that end the search
WORKER = worker.__name__


def tune(options: Mapping[str, Any], trials: int, *, storage: str | Path | None = None, prune: bool = True,
         jobs: int = 1) -> Found:
    """Search a model's tuning space until the study has ``trials`` finished trials in all; the test split stays shut.

    options: those of ``prepare``. storage: SQLite file (default: <res-save-dir>/tune/tune.sqlite). The study's name
    holds all that its scores depend on, so that the same call goes on with the same study and no other does. prune:
    give a trial up whose validation metric is worse than the median of the earlier ones' at the same epoch. jobs:
    processes that share the CPUs, or the GPUs.

    A trial that fails is kept with its error. Raises InputError where there is nothing to tune, RunError when the
    workers keep crashing, Interrupted by a signal; what is finished stays, and what was running is tried again.
    """
    job = prepare(**{**options, "tuning": True})
    search, features = _prepare(job, trials, storage, prune)
    study = open_study(search)
    lines = _Lines(search, study)
    _run(search, study, features, lines, options if jobs > 1 else None, jobs)
    return collect(search, study, lines.earlier)


def tune_job(job: Job, trials: int, *, storage: str | Path | None = None, prune: bool = True) -> Found:
    """The same in this process, from a job that was prepared with ``tuning``."""
    search, features = _prepare(job, trials, storage, prune)
    study = open_study(search)
    lines = _Lines(search, study)
    _run(search, study, features, lines, None, 1)
    return collect(search, study, lines.earlier)


def _prepare(job: Job, trials: int, storage: str | Path | None, prune: bool) -> tuple[Search, Features]:
    space = job.resolved.space
    if not space:
        raise InputError(f"model {job.model!r} has nothing to tune: its settings have no debugParams")
    features = load_features(job.feature_file, job.files)
    first = {name: next(iter(values)) for name, values in parameters(space).items()}
    make_splits({**job.resolved.settings, **settings_of(first, space)}, features)  # refuses what is missing
    check_folders(job)
    path = Path(storage).expanduser() if storage else job.res_save_dir / "tune" / "tune.sqlite"
    return Search(job, name_of(job, features), path.absolute(), trials, prune), features


def _run(search: Search, study: optuna.Study, features: Features, lines: _Lines,
         options: Mapping[str, Any] | None, jobs: int) -> None:
    try:
        if options is None:
            with session(search.job) as bars:
                work(search, study, features, bars, lines.look)
        else:
            _Workers(search, study, lines, options, jobs).run()
    except KeyboardInterrupt as stop:
        raise Interrupted.after(stop, f"{len(finished(study))} of {search.trials} trials finished, in "
                                      f"{search.storage}; the same call goes on from there") from None


class _Workers:
    """The worker processes; one that ends before its time is replaced."""

    def __init__(self, search: Search, study: optuna.Study, lines: _Lines, options: Mapping[str, Any], jobs: int
                 ) -> None:
        self.search, self.study, self.lines, self.jobs = search, study, lines, jobs
        self.options = {**options, "tuning": True}
        self.threads, self.gpus = grid.threads_each(jobs), grid.visible_gpus(options.get("device", "auto"))
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.crashes = 0

    def run(self) -> None:
        """Until every worker has found nothing more to do."""
        with remembered() as check, held("stopping the workers"), self.lines.live():
            try:
                for slot in range(min(self.jobs, max(1, self.search.trials - len(finished(self.study))))):
                    self._start(slot)
                while self.running:
                    check()
                    time.sleep(_POLL_SECONDS)
                    if self.lines.look():
                        self.crashes = 0
                    for slot, process in list(self.running.items()):
                        if process.poll() is not None:
                            self._ended(slot, process)
            finally:
                self._stop()
                self.lines.look()

    def _start(self, slot: int) -> None:
        search = self.search
        given = {"options": self.options, "name": search.name, "storage": str(search.storage), "trials": search.trials,
                 "prune": search.prune}
        with self._log(slot).open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then ends its workers.
            self.running[slot] = subprocess.Popen(
                [sys.executable, "-m", WORKER, json.dumps(given, default=str)], stdin=subprocess.PIPE, stdout=log,
                stderr=log, env=grid.environment(self.threads, self.gpus, slot), start_new_session=True)

    def _log(self, slot: int) -> Path:
        return self.search.files / f"{self.search.name}-worker{slot}.log"

    def _ended(self, slot: int, process: subprocess.Popen[bytes]) -> None:
        del self.running[slot]
        _close(process)
        if process.returncode == 0:
            return
        self.crashes += 1
        with locked(self.search):
            take_back(self.search, self.study)
        self.lines.say(f"{grid.ending(process.returncode)}; its output: {self._log(slot)}")
        if self.crashes >= _CRASHES:
            tail = grid.tail(self._log(slot), 300).strip().splitlines()
            raise RunError(f"{_CRASHES} workers in a row ended before they finished a trial: "
                           f"{tail[-1] if tail else grid.ending(process.returncode)}; output: {self._log(slot)}")
        self._start(slot)

    def _stop(self) -> None:
        stopped = list(self.running.values())
        try:
            grid.stop_all(stopped)
        finally:
            for process in stopped:
                _close(process)
        if stopped:
            with locked(self.search):
                take_back(self.search, self.study)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


class _Lines:
    """A line on standard error for each trial that ends, with the best so far; on a terminal a live one beside."""

    def __init__(self, search: Search, study: optuna.Study) -> None:
        self.search, self.study, self.console = search, study, stderr_console()
        self.earlier = {trial.number for trial in finished(study)}
        self.seen = set(self.earlier)
        self.progress: Progress | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Inside the block there is a bar, where there is a terminal and the run is not silent."""
        if not (self.console.is_terminal and self.search.job.verbose):
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as self.progress:
            self.task = self.progress.add_task("tuning", total=self.search.trials, completed=len(self.seen))
            yield
        self.progress = None

    def look(self) -> int:
        """Show what has ended since the last look; returns how many trials that were."""
        ended = finished(self.study)
        new = [trial for trial in ended if trial.number not in self.seen]
        for trial in new:
            self.seen.add(trial.number)
            self.say(f"[{len(self.seen)}/{self.search.trials}] trial {trial.number}: {_outcome(trial)}; "
                     f"{self._best(ended)}")
        if self.progress:
            self.progress.update(self.task, completed=len(self.seen), description=self._best(ended))
        return len(new)

    def say(self, text: str) -> None:
        """One line, unless the run is silent."""
        if self.search.job.verbose:
            self.console.print(text, markup=False, highlight=False, soft_wrap=not self.console.is_terminal)

    def _best(self, ended: list[Any]) -> str:
        complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
        if not complete:
            return f"no validation {self.search.metric} yet"
        lowest = self.study.direction == optuna.study.StudyDirection.MINIMIZE
        best = (min if lowest else max)(complete, key=lambda trial: trial.value)
        return f"best validation {self.search.metric} {best.value:.4f} (trial {best.number})"


def _outcome(trial: Any) -> str:
    if trial.state == TrialState.COMPLETE:
        return f"{trial.value:.4f}"
    if trial.state == TrialState.PRUNED:
        return f"given up after epoch {trial.last_step}"
    return f"failed: {error_of(trial)}"
