"""What comes out of a search: the trials, the best settings as a file that ``-c`` accepts, a table, a JSON document."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..harness.config import resolve
from ..harness.files import write_text
from ..harness.job import Job
from ..harness.metrics import direction, metric_rules
from ..harness.records import plain
from ..harness.report import fault_lines
from .space import settings_of
from .study import Search, best_first, error_of

_SHOWN = 5
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_OF_THE_DATA = ("model_name", "dataset_name", "train_mode", "label_names")  # what no settings file says


@dataclass(frozen=True)
class Found:
    """The trials of the study, best first, each with "settings", "state", "value" and "valid"; faults with an effect.

    best: file of the best settings, None while no trial is complete. earlier: trials of earlier calls.
    """

    search: Search
    trials: list[dict[str, Any]]
    flags: list[dict[str, Any]]
    csv: Path
    best: Path | None
    earlier: int


def collect(search: Search, study: optuna.Study, earlier: set[int]) -> Found:
    """The study as it is now; writes the table, and the best settings, beside the storage."""
    ordered = best_first(study)
    trials = [_trial(search, trial) for trial in ordered]
    flags = {flag["name"]: flag for trial in ordered for flag in trial.user_attrs.get("flags", [])}
    folder = search.storage.parent
    table = folder / f"{search.name}.csv"
    _write_table(search, trials, table)
    best = None
    if trials and trials[0]["state"] == "complete":
        best = folder / f"{search.name}.json"
        write_best(search.job, trials[0]["settings"], best)
    return Found(search, trials, list(flags.values()), table, best, len(earlier))


def write_best(job: Job, chosen: Mapping[str, Any], path: Path) -> None:
    """Write a file with which ``mmsa -m MODEL -d DATASET -c FILE`` has exactly the settings of the trial.

    They are written flat where that is enough; where the model's settings for searching differ from those for training
    otherwise, as some of MMSA's do, as a whole section in MMSA's schema. Raises InputError where neither will do.
    """
    wanted = {**job.resolved.settings, **chosen}
    flat = {**job.resolved.overrides, **chosen}
    whole = {job.model: {"commonParams": {}, "datasetParams": {
        job.dataset: {key: value for key, value in wanted.items() if key not in _OF_THE_DATA}}}}
    tried = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.json")  # nobody else looks at it
    try:
        for content in (flat, whole):
            write_text(tried, json.dumps(content, indent=1) + "\n")
            try:
                got = resolve(job.model, job.dataset, config=tried).settings
            except InputError:
                continue
            if plain(got) == plain(wanted):
                os.replace(tried, path)
                return
    finally:
        tried.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise InputError(f"{job.model} on {job.dataset}: no file can hold the best settings, since -c would change some of "
                     f"them; use {' '.join(_options(chosen))}")


def document(found: Found) -> dict[str, Any]:
    """What ``--json`` prints after a search."""
    search, job = found.search, found.search.job
    rule = {"metric": search.metric, "mode": direction(search.metric), "split": "valid"}
    return plain({"schema_version": 2, "model": job.model, "dataset": job.dataset, "mended": job.mended,
                  "flags": found.flags, "scored_by": rule, "seeds": list(job.seeds), "study": search.name,
                  "storage": str(search.storage), "asked": search.trials, "earlier": found.earlier,
                  "trials": found.trials, "best": str(found.best) if found.best else None, "csv": str(found.csv)})


def print_found(found: Found, console: Console) -> None:
    """The best trials with the figures they were ranked by, and how to use the first."""
    search, job = found.search, found.search.job
    lowest = "lowest" if direction(search.metric) == "min" else "highest"
    table = Table(title=f"{job.label} on {job.dataset}: best trials, validation split", title_justify="left")
    for name in (search.metric, "settings"):
        table.add_column(name, overflow="fold")
    for trial in found.trials[:_SHOWN]:
        value = f"{trial['value']:.4f}" if trial["state"] == "complete" else trial["state"]
        table.add_row(value, json.dumps(trial["settings"]))
    console.print(table)
    counts = {state: sum(trial["state"] == state for trial in found.trials) for state in _STATES.values()}
    seeds = f"seed {job.seeds[0]}" if len(job.seeds) == 1 else f"mean over the seeds {', '.join(map(str, job.seeds))}"
    lines = [f"ranked by the {lowest} validation {search.metric}, {seeds}; unlike in MMSA the test split was not read",
             f"{len(found.trials)} trials ({found.earlier} of them by earlier calls): {counts['complete']} complete, "
             f"{counts['pruned']} given up early, {counts['failed']} failed; study {search.name} in {search.storage}"]
    if len(found.trials) < search.trials:
        lines.append(f"{search.trials} were asked for, but the tuning space has no more settings")
    lines += [f"trial {trial['number']} failed: {trial['error']}" for trial in found.trials if trial["error"]][:_SHOWN]
    lines.append(f"all trials: {found.csv}")
    if found.best:
        lines.append(f"use it: mmsa -m {job.model} -d {job.dataset} {'--mended ' if job.mended else ''}"
                     f"-c {shlex.quote(str(found.best))}")
    lines += fault_lines(job.model, found.flags)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _trial(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    more = trial.user_attrs
    state = _STATES[trial.state]
    return {"number": trial.number, "state": state, "settings": settings_of(trial.params, search.job.resolved.space),
            "value": trial.value if state == "complete" else None,
            "valid": more.get("valid", {}) if state == "complete" else {}, "epochs": more.get("epochs"),
            "by_epoch": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
            "seconds": more.get("seconds"), "error": error_of(trial)}


def _write_table(search: Search, trials: list[dict[str, Any]], path: Path) -> None:
    """MMSA's columns, and last which split they are of, so that the two kinds of table are not mixed up."""
    metrics = list(metric_rules(search.job.dataset))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*search.job.resolved.space, *metrics, "Trial", "State", "Split"])
    for trial in trials:
        writer.writerow([*map(json.dumps, trial["settings"].values()), *(trial["valid"].get(name) for name in metrics),
                         trial["number"], trial["state"], "valid"])
    write_text(path, stream.getvalue())


def _options(chosen: Mapping[str, Any]) -> list[str]:
    return [f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in chosen.items()]
