"""One run in a process of its own: ``python -m mmsa_decalign.compare.worker STORE KEY TOKEN ATTEMPTS DEVICE [EVENTS]``.

Claims the cell, does the run, and commits record and predictions in one transaction; nobody has to be there to collect
them. Exit codes: DONE; FAILED, with the error in the store; NOT_MINE, when another process has or had the cell; 143
after SIGTERM, when the state of the run is kept. Any other end is a crash, which the grid records. When its standard
input ends the one who started it is gone, and so is it. The state of a run lies in the cell's folder, and whoever does
the cell next goes on from there.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, Interrupted, RunError
from ..harness import states
from . import claims
from .store import Store

DONE, FAILED, NOT_MINE = 0, 1, 75


def main(argv: list[str]) -> int:
    """Do what the module says, and return the exit code."""
    began = time.perf_counter()
    path, key, token, attempts, device, *events = argv
    threading.Thread(target=end_with_parent, daemon=True).start()
    store = Store(path, create=False)
    lock = claims.hold(store.files / "claims", token)
    try:
        if not store.claim(key, token, int(attempts)):
            return NOT_MINE
        try:
            spec, folder = store.spec(key), store.folder(key)
            _tidy(folder, store.checkpoint(key), *states.SUFFIXES)
            record, samples = do(spec, folder, device, *events)
        except Interrupted as stop:
            store.release(key, token)
            return stop.exit_code
        except BaseException as error:
            store.fail(key, token, describe(error), traceback.format_exc())
            return FAILED
        if not store.finish(key, token, record, samples, time.perf_counter() - began):
            return NOT_MINE
        _tidy(folder, store.checkpoint(key))
        return DONE
    finally:
        claims.drop(lock)


def do(spec: Mapping[str, Any], folder: Path, device: str, events: str | None = None
       ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run that a spec describes: its record, and its predictions on valid and test where the trainer shows them.

    Raises InputError where the feature file is not the one that the spec means.
    """
    from ..data.reading import sha256_of

    found = sha256_of(spec["feature_file"])
    if found != spec["sha256"]:
        raise InputError(f"{spec['feature_file']} is not the file that this run was planned with: SHA-256 "
                         f"{found[:12]}..., expected {spec['sha256'][:12]}...")
    if spec["kind"] == "sanity":
        from . import sanity

        return sanity.run(spec)
    from ..harness.datasets import load_features, make_splits
    from ..harness.job import check_folders
    from ..harness.resume import kept
    from ..harness.runner import session, warn_of_labels
    from ..harness.training import train_and_test

    left = folder.is_dir() and any(path.suffix in states.SUFFIXES for path in folder.iterdir())
    job = dataclasses.replace(job_of(spec, folder, device), tensorboard=Path(events) if events else None, resume=left)
    features = load_features(job.feature_file, job.files)
    splits = make_splits(job.resolved.settings, features)
    check_folders(job)
    samples: dict[str, Any] = {}
    with session(job) as bars, kept(job, features, spec["seed"]) as run_kept:
        warn_of_labels(job.dataset, splits)
        record = train_and_test(job, features, splits, spec["seed"], 1, bars(), samples=samples, kept=run_kept)
    return record, {name: one for name, one in samples.items() if one is not None}


def job_of(spec: Mapping[str, Any], folder: Path, device: str) -> Any:
    """The job of a spec, whose settings were resolved and checked when it was planned."""
    from ..harness.catalogue import catalogue, find_model
    from ..harness.config import Resolved
    from ..harness.job import Job
    from ..harness.machine import pick_device

    model = find_model(catalogue(), spec["model"])
    if model.plugin is not None and model.plugin.check is not None:
        model.plugin.check(spec["settings"])
    resolved = Resolved(model, spec["dataset"], dict(spec["settings"]), dict(spec["overrides"]), "",
                        settings_of=spec["settings_of"])
    return Job(resolved=resolved, feature_file=Path(spec["feature_file"]), files={}, seeds=(spec["seed"],),
               device=pick_device(device), model_save_dir=folder, res_save_dir=folder, log_dir=folder, verbose=1,
               mended=spec["mended"])


def describe(error: BaseException) -> str:
    """An error as the table names it."""
    if isinstance(error, (InputError, RunError)):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _tidy(folder: Path, checkpoint: Path | None, *keep: str) -> None:
    """Remove what earlier attempts left in the cell's folder, except for the log, the finished run's checkpoint and
    files that end in one of ``keep``."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_file() and path != checkpoint and path.suffix not in (".log", *keep):
                path.unlink(missing_ok=True)


def end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(FAILED)  # at once: an open transaction is undone by the database


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
