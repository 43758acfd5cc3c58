"""Random search over a model's tuning space, scored on the validation split.

MMSA's own search scores every trial on the test split; the best row of such a table is chosen by test labels and does
not come back on new data. Here the test split stays shut for the whole search. The CSV has MMSA's columns and, last,
``Split`` (always "valid"), so that the two kinds of table cannot be taken for each other.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from .config import choose
from .datasets import load_features, make_splits
from .files import append_row
from .job import Job, check_folders
from .metrics import direction, metric_rules
from .records import plain
from .runner import LOGGER, RunInterrupted, session
from .training import train_and_test

_MAX_REPEATS = 200  # draws in a row that were all tried before: the space counts as used up


@dataclass(frozen=True)
class Search:
    """The trials of this call, best first, and the faults that had an effect; ``csv`` also holds earlier trials."""

    job: Job
    metric: str
    mode: str
    csv: Path
    trials: list[dict[str, Any]] = field(default_factory=list)
    flags: list[dict[str, Any]] = field(default_factory=list)


def tune(job: Job, times: int) -> Search:
    """Train ``times`` settings drawn from the tuning space, with the first seed, each scored on validation.

    Settings that the CSV already holds are not tried again. A trial that fails is stored without figures and the
    search goes on. Raises InputError for an empty space or a CSV of another kind, RunInterrupted on Ctrl-C.
    """
    space, seed = job.resolved.space, job.seeds[0]
    if not space:
        raise InputError(f"model {job.model!r} has nothing to tune: its settings have no debugParams")
    path = job.res_save_dir / "tune" / f"{job.dataset}-{job.model}{'-mended' if job.mended else ''}.csv"
    header = [*space, *metric_rules(job.dataset), "Split"]
    tried = _tried(path, header, list(space))
    metric = job.resolved.settings.get("KeyEval", "Loss")
    features = load_features(job.feature_file, job.files)
    make_splits({**job.resolved.settings, **_draw(space, random.Random(seed))}, features)  # refuses what is missing
    check_folders(job)
    # Seeded, so that a search can be repeated; what was tried is skipped, so that a second call goes on from there.
    generator, trials = random.Random(seed), []
    found: dict[str, dict[str, Any]] = {}  # what is drawn decides whether a fault has an effect
    with session(job) as bars:
        for number in range(1, times + 1):
            drawn = _new(space, generator, tried)
            if drawn is None:
                LOGGER.info("the tuning space is used up after %d settings", len(tried))
                break
            LOGGER.info("trial %d of %d: %s", number, times, json.dumps(drawn))
            settings = {**job.resolved.settings, **drawn}
            try:
                splits = make_splits(settings, features)
                record = train_and_test(job, features, splits, seed, number, bars(), settings=settings,
                                        test_split="valid")
                scores = record["valid"]
                found.update({flag["name"]: flag for flag in record["flags"]})
            except KeyboardInterrupt:
                raise RunInterrupted(f"interrupted; {len(trials)} of {times} trials finished, in {path}") from None
            except (RunError, InputError) as error:  # settings that a model refuses are part of MMSA's own spaces
                LOGGER.warning("trial %d failed: %s", number, error)
                scores = {}
            figures = [scores.get(name) for name in header[len(drawn):-1]]
            append_row(path, header, [*map(_cell, drawn.values()), *figures, "valid"])
            trials.append({"settings": drawn, "valid": scores})
    mode = direction(metric)
    trials.sort(key=lambda trial: _rank(trial["valid"].get(metric), mode))
    return Search(job, metric, mode, path, trials, list(found.values()))


def search_document(search: Search) -> dict[str, Any]:
    """What ``--json`` prints after a search."""
    rule = {"metric": search.metric, "mode": search.mode, "split": "valid"}
    job = search.job
    return plain({"schema_version": 1, "model": job.model, "dataset": job.dataset, "mended": job.mended,
                  "flags": search.flags, "scored_by": rule, "seed": job.seeds[0], "trials": search.trials,
                  "csv": str(search.csv)})


def _rank(value: float | None, mode: str) -> float:
    if value is None:
        return float("inf")
    return value if mode == "min" else -value


def _new(space: Mapping[str, Any], generator: random.Random, tried: set[tuple[str, ...]]) -> dict[str, Any] | None:
    for _ in range(_MAX_REPEATS):
        drawn = _draw(space, generator)
        key = tuple(_cell(value) for value in drawn.values())
        if key not in tried:
            tried.add(key)
            return drawn
    return None


def _draw(space: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    return {key: choose(choices, generator.choice) for key, choices in space.items()}


def _cell(value: Any) -> str:
    return json.dumps(value)


def _tried(path: Path, header: list[str], keys: list[str]) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        if list(rows.fieldnames or []) != header:
            raise InputError(f"{path} has other columns than this search (MMSA's own search, scored on the test split, "
                             "or another space): move it away or choose another --res-save-dir")
        return {tuple(row[key] for key in keys) for row in rows}
