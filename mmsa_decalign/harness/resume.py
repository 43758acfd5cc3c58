"""Going on with a run that something ended: what is kept of it meanwhile, and how that is found again.

A run is known by its fingerprint, a hash of all that decides its numbers. After every epoch, and in the middle of one
when a signal ends it, its state goes into a file beside the checkpoints (states.py); when its record is stored the file
is removed. A trainer takes part by ``state()``, ``restore(state)`` and ``after_epoch`` (see plugins.py); without them a
run starts at its beginning. What may change here: what else is kept, with VERSION of states.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import glob
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.schema import Features
from ..errors import RunError
from . import machine
from .job import Job
from .records import plain
from .states import StateFile
from .watch import EpochWatch

LOGGER = logging.getLogger("MMSA")


def fingerprint(job: Job, features: Features, seed: int) -> str:
    """Hash of what decides a run's numbers; neither the device, nor where anything lies, nor when it is."""
    decisive = {
        "model": job.model, "source": job.resolved.model.source, "dataset": job.dataset,
        "settings": job.resolved.settings, "seed": seed, "mended": job.mended,
        "missing": dataclasses.asdict(job.absence), "features": features.sha256, "replaced": dict(features.overrides),
        "versions": machine.versions(),
    }
    return hashlib.sha256(json.dumps(plain(decisive), sort_keys=True).encode()).hexdigest()[:20]


def finished(job: Job, mark: str, seed: int) -> tuple[dict[str, Any], Path] | None:
    """The record of a run with this fingerprint among the results, and where it lies; None if it is not finished."""
    pattern = f"{glob.escape(f'{job.model}-{job.dataset}-{seed}-')}*.json"
    for path in sorted((job.res_save_dir / "runs").glob(pattern), reverse=True):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # somebody else's file
        if isinstance(record, dict) and record.get("fingerprint") == mark:
            return record, path
    return None


@contextmanager
def kept(job: Job, features: Features, seed: int) -> Iterator[Kept]:
    """What is kept of one run for the time of the block; with ``job.resume`` also what was found of it.

    Raises RunError where it is to go on and another process is at it.
    """
    mark = fingerprint(job, features, seed)
    file = StateFile(job.model_save_dir / f"{job.model}-{job.dataset}-{seed}-{mark[:12]}.state")
    with file.owned() as own:
        if not own and job.resume:
            raise RunError(f"another process is at work on this very run and keeps its state in {file.path}: wait for "
                           "it, or give this one another --model-save-dir")
        found = file.read() if job.resume else None
        if found is not None and found["run"]["fingerprint"] != mark:
            found = None
        yield Kept(mark, file if own else None, job.resume, found)


class Kept:
    """A run as a whole, over all the processes that had a part in it; without a file, one in a single process.

    id, started: its own. resumed: one entry for each time that it went on.
    """

    def __init__(self, mark: str | None = None, file: StateFile | None = None, wanted: bool = False,
                 found: dict[str, Any] | None = None) -> None:
        self.mark, self.path = mark, None if file is None else file.path
        self._file, self._wanted, self._found, self._began = file, wanted, found, time.perf_counter()
        run = found["run"] if found else {"id": uuid.uuid4().hex[:8], "started": _now(), "seconds": 0.0, "resumed": []}
        self.id, self.started, self.resumed = run["id"], run["started"], list(run["resumed"])
        self._seconds_before = run["seconds"]
        self._trainer: Any = None

    @property
    def seconds(self) -> float:
        """What it has taken so far; of an earlier process what that had saved."""
        return self._seconds_before + time.perf_counter() - self._began

    def follow(self, trainer: Any, watch: EpochWatch) -> None:
        """Before the training: let it go on from what was found, and keep its state after every epoch."""
        if self._file is None or not all(hasattr(trainer, name) for name in ("state", "restore", "after_epoch")):
            if self._wanted:
                LOGGER.info("this model's trainer keeps no state between epochs: the run starts at its beginning")
            return
        self._trainer, self._watch = trainer, watch
        trainer.after_epoch = self.save
        if self._found is None:
            if self._wanted:
                LOGGER.info("no state of this run in %s: it starts at its beginning", self._file.path.parent)
            return
        found, self._found = self._found, None
        trainer.restore(found["trainer"])
        watch.go_on(found["epochs"], found["checkpoint"])
        self.resumed.append({"at": _now(), "epoch": len(found["epochs"]), "batch": found["trainer"].get("batch", 0)})
        LOGGER.info("goes on after epoch %d, batch %d", self.resumed[-1]["epoch"], self.resumed[-1]["batch"])

    def save(self) -> None:
        """Write the state, between two batches or two epochs. Raises RunError where it cannot be written."""
        if self._trainer is None:
            return
        checkpoint = self._watch.content()
        self._file.write({
            "run": {"fingerprint": self.mark, "id": self.id, "started": self.started, "seconds": self.seconds,
                    "resumed": self.resumed},
            "epochs": self._watch.epochs, "checkpoint": checkpoint, "trainer": self._trainer.state(),
        })

    def where(self) -> str:
        """Of a run that a signal ends: where it will go on."""
        if self._trainer is None:
            return "starts at its beginning"
        return f"goes on in epoch {len(self._watch.epochs) + 1}"

    def remove(self) -> None:
        """The run is finished and its record stored."""
        if self._file is not None:
            self._file.remove()


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
