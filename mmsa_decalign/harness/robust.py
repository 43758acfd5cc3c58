"""How models fare as modalities go missing: each is trained once a seed and its one checkpoint tested at every rate.

Training sees complete samples unless the job says otherwise. The test split is read when the checkpoint has been
chosen: complete first, then at each missing rate of each modality, the others being there. What is finished is kept:
after every seed a record is stored and the table of figures written anew. How curves are shown is in robust_report.py.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, Interrupted, RunError, nearest
from .absence import MASKED, ZEROS, AbsentSplit, check_rates, in_use, parse_rate
from .classification import selects_on_test
from .config import PAPER_COUNT
from .datasets import load_features, make_splits
from .destinations import check_destination, write_destination
from .job import Job, check_folders
from .metrics import LOWER_IS_BETTER, metric_rules
from .records import plain, write_record
from .runner import LOGGER, session, warn_of_labels
from .training import train_and_test

DEFAULT_RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ALL = "all"  # in place of a modality: every one at the rate, but never all of a sample


@dataclass(frozen=True)
class Robustness:
    """The figures of every model, what went missing, rate and seed: rows of "model", "missing", "rate", "seed", and
    the metrics by name under "test". ``how`` says by model what it saw of an absent modality, ``wanted`` which
    metrics to show, if not all."""

    dataset: str
    rates: tuple[float, ...]
    missing: tuple[str, ...]
    how: dict[str, str]
    wanted: tuple[str, ...] = ()
    metrics: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)

    def models(self) -> list[str]:
        """Those with figures, in order."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    def shown(self) -> list[str]:
        """The metrics to show; the loss, which is each model's own, only if it was asked for."""
        return [name for name in self.metrics if (name in self.wanted if self.wanted else name != "Loss")]

    def figures(self, model: str, missing: str, rate: float, metric: str) -> list[float]:
        """A number for each seed that has one."""
        found = [row["test"].get(metric) for row in self.rows
                 if (row["model"], row["missing"], row["rate"]) == (model, missing, rate)]
        return [value for value in found if value is not None]

    def curve(self, model: str, missing: str, metric: str) -> list[tuple[float, float, float]]:
        """(rate, mean, population standard deviation over the seeds) by rate, where there is a number."""
        points = [(rate, self.figures(model, missing, rate, metric)) for rate in self.rates]
        return [(rate, statistics.fmean(values), statistics.pstdev(values)) for rate, values in points if values]


def parse_grid(text: str) -> tuple[float, ...]:
    """ "0,0.5,1" as missing rates in rising order. Raises InputError."""
    return tuple(sorted({parse_rate(part.strip(), f"--rates {text!r}: {part.strip()!r}") for part in text.split(",")}))


def plan(
    jobs: Mapping[str, Job], missing: Sequence[str], rates: Sequence[float] | None = None, metrics: Sequence[str] = ()
) -> Robustness:
    """What is to be measured, checked: nothing has been trained yet. Raises InputError."""
    grid = tuple(DEFAULT_RATES if rates is None else rates)
    dataset = next(iter(jobs.values())).dataset
    for metric in metrics:
        if metric not in metric_rules(dataset):
            raise InputError(f"--metric {metric!r}: no metric of {dataset}; {nearest(metric, metric_rules(dataset))}")
    names = tuple(dict.fromkeys(missing)) or in_use_by_all(jobs)
    if ALL in names and 1.0 in grid:
        if rates is not None:
            raise InputError("--modality all with a rate of 1: nothing would be left to look at; give --rates below 1")
        grid = grid[:-1]
    for label, job in jobs.items():
        if selects_on_test(job.resolved.settings):  # rate 0 would be too good, and the fall from there too steep
            raise InputError(f"{label}: protocol={PAPER_COUNT} chooses the checkpoint by the test split, which the "
                             "curve is then measured on; leave the protocol out")
        for name in names:
            for rate in grid:
                try:
                    check_rates(rates_of(name, rate, job), job.resolved.settings, "--modality")
                except InputError as error:
                    raise InputError(f"{label}: {error}") from error
    how = {label: MASKED if job.told else ZEROS for label, job in jobs.items()}
    return Robustness(dataset, grid, names, how, tuple(metrics))


def in_use_by_all(jobs: Mapping[str, Job]) -> tuple[str, ...]:
    """The modalities that every model looks at and that can go missing without leaving nothing."""
    used = [in_use(job.resolved.settings) for job in jobs.values()]
    common = tuple(m for m in used[0] if all(m in names for names in used))
    if any(len(names) < 2 for names in used) or not common:
        raise InputError("there is no modality that every model can lose: each needs one beside it")
    return common


def rates_of(missing: str, rate: float, job: Job) -> dict[str, float]:
    """The rates by modality for one name on the axis."""
    names = in_use(job.resolved.settings) if missing == ALL else (missing,)
    return dict.fromkeys(names, rate) if rate else {}


def measure(jobs: Mapping[str, Job], result: Robustness, out: Path | None = None) -> Robustness:
    """Train and test every job (by its label) as planned, filling ``result``; ``out`` is written after each seed.

    Raises RunError for a seed that fails and Interrupted by a signal, ``result`` then holding what was finished.
    """
    total, done = sum(len(job.seeds) for job in jobs.values()), 0
    prepared = {}
    for label, job in jobs.items():  # whatever does not fit is known before anything is trained
        features = load_features(job.feature_file, job.files)
        prepared[label] = features, make_splits(job.resolved.settings, features)
        check_folders(job)
    for label, job in jobs.items():
        features, splits = prepared[label]
        with session(job) as bars:
            warn_of_labels(job.dataset, splits)
            for number, seed in enumerate(job.seeds, start=1):
                LOGGER.info("%s, seed %d (training %d of %d)", label, seed, done + 1, total)
                settings = job.resolved.settings
                wanted = {
                    f"{name} {rate:g}": AbsentSplit(splits["test"], rates_of(name, rate, job), settings, seed)
                    for name in result.missing for rate in result.rates if rate
                }
                try:
                    record = train_and_test(job, features, splits, seed, number, bars(), more_tests=wanted)
                except KeyboardInterrupt as stop:
                    raise Interrupted.after(stop, _kept(f"{done} of {total} trainings finished", out)) from None
                except RunError as error:
                    text = f"{label} on {job.dataset}, seed {seed}: {error}"
                    raise RunError(_kept(f"{text}\n{done} of {total} trainings finished", out)) from error
                result.records.append(write_record(job.res_save_dir, record))
                result.metrics.extend(name for name in record["test"] if name not in result.metrics)
                for name in result.missing:
                    for rate in result.rates:
                        test = record["more_tests"][f"{name} {rate:g}"] if rate else record["test"]
                        absent = wanted[f"{name} {rate:g}"].counts() if rate else {}
                        result.rows.append({"model": label, "missing": name, "rate": rate, "seed": seed,
                                            "absent": absent, "test": test})
                done += 1
                if out is not None:
                    write_table(result, out)
    return result


def document(result: Robustness) -> dict[str, Any]:
    """What ``--json`` and an ``--out`` that ends with .json hold."""
    curves = [
        {"model": model, "missing": missing, "metric": metric,
         "points": [dict(zip(("rate", "mean", "std"), point, strict=True))
                    for point in result.curve(model, missing, metric)]}
        for model in result.models() for missing in result.missing for metric in result.metrics
    ]
    return plain({
        "schema_version": 1, "dataset": result.dataset, "rates": result.rates, "missing": result.missing,
        "how": result.how, "spread": "population standard deviation over the seeds",
        "lower_is_better": [name for name in result.metrics if name in LOWER_IS_BETTER],
        "curves": curves, "tests": result.rows, "records": [str(path) for path in result.records],
    })


def table_path(out: str | Path) -> Path:
    """``out``, if figures can be written there, as its suffix says; raises InputError where not."""
    path = Path(out).expanduser()
    if path.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"--out {out}: expected a name that ends with .csv or .json")
    return check_destination("--out", out)


def write_table(result: Robustness, out: Path) -> None:
    """One row for each model, modality, rate and seed as CSV, or the document as JSON, in one step."""
    if out.suffix.lower() == ".json":
        write_destination(out, json.dumps(document(result), indent=1, allow_nan=False) + "\n")
        return
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "dataset", "missing", "rate", "seed", "absence", *result.metrics])
    for row in result.rows:
        figures = ["" if row["test"].get(name) is None else row["test"][name] for name in result.metrics]
        writer.writerow([row["model"], result.dataset, row["missing"], f"{row['rate']:g}", row["seed"],
                         "masked" if result.how[row["model"]] == MASKED else "zeros", *figures])
    write_destination(out, stream.getvalue())


def _kept(text: str, out: Path | None) -> str:
    return text if out is None or not out.exists() else f"{text}; their figures are in {out}"
