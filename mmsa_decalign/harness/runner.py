"""A run: one model on one data set over the seeds. ``prepare`` (job.py) makes the job, ``run`` does it.

A result is on disk before the next seed begins, and what is finished stays whatever happens to the rest.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Interrupted, RunError
from .classification import cautions
from .datasets import load_features, make_splits
from .interrupts import remembered
from .job import Job, check_folders, prepare
from .mended import repaired
from .metrics import metric_rules
from .progress import epoch_bars, logging_to, quiet_mmsa, stderr_console
from .records import Summary, append_summary, summarise, write_record
from .registry import active
from .resume import finished, kept
from .storage import writing
from .training import train_and_test

__all__ = ["Job", "Outcome", "prepare", "run", "session"]

LOGGER = logging.getLogger("MMSA")


@dataclass(frozen=True)
class Outcome:
    """What came out: a record per seed, where each lies, mean and population standard deviation, MMSA's CSV."""

    job: Job
    records: list[dict[str, Any]]
    record_paths: list[Path]
    csv: Path | None
    summary: Summary


def run(job: Job) -> Outcome:
    """Train and test over the seeds.

    With ``job.resume`` seeds whose records are among the results count as they are, and one that was interrupted goes
    on from its state.

    Raises InputError for a feature file or setting that cannot be used (nothing is stored then but the log), RunError
    for a seed that failed, Interrupted on Ctrl-C and SIGTERM; in both the records of the finished seeds stay.
    """
    features = load_features(job.feature_file, job.files)
    splits = make_splits(job.resolved.settings, features)
    check_folders(job)
    records: list[dict[str, Any]] = []
    paths: list[Path] = []
    with session(job) as bars:
        LOGGER.info("%s on %s: seeds %s, %s, features %s", job.model, job.dataset,
                    ", ".join(map(str, job.seeds)), job.device, job.feature_file)
        for caution in cautions(job.resolved.settings, features, splits):
            LOGGER.warning("%s", caution)
        warn_of_labels(job.dataset, splits)
        trained, at_hand, seed = 0, None, job.seeds[0]
        try:
            for number, seed in enumerate(job.seeds, start=1):
                LOGGER.info("seed %d (%d of %d)", seed, number, len(job.seeds))
                with kept(job, features, seed) as run_kept:
                    done = finished(job, run_kept.mark, seed) if job.resume else None
                    if done is None:
                        at_hand = run_kept
                        record = train_and_test(job, features, splits, seed, number, bars(), kept=run_kept)
                        with writing("record", job.res_save_dir / "runs"):
                            done = record, write_record(job.res_save_dir, record)
                        trained, at_hand = trained + 1, None
                        LOGGER.info("seed %d done in %.0f s", seed, record["wall_seconds"])
                    else:
                        LOGGER.info("seed %d was finished before: %s", seed, done[1])
                    run_kept.remove()
                    records.append(done[0])
                    paths.append(done[1])
        except KeyboardInterrupt as stop:
            rest = f"; seed {seed} {at_hand.where()}" if at_hand is not None else ""
            raise Interrupted.after(stop, f"{_finished(job, paths)}\nThe same command with --resume does the rest{rest}"
                                    ) from None
        except RunError as error:
            text = f"{job.model} on {job.dataset}, seed {seed}: {error}"
            raise RunError(f"{text}\n{_finished(job, paths)}" if paths else text) from error
        summary = summarise(records)
        with writing("table", job.res_save_dir / "normal"):
            table = append_summary(job.res_save_dir, job.label, job.dataset, summary, again=not trained)
    return Outcome(job, records, paths, table, summary)


def warn_of_labels(dataset: str, splits: Mapping[str, Any]) -> None:
    """Say where the metrics of this data set leave labels out: zeros, or what lies beyond the scale of CH-SIMS."""
    rules = metric_rules(dataset)
    for name, split in splits.items():
        labels = split.labels["M"]
        if "Non0_acc_2" in rules and not bool((labels != 0).any()):
            LOGGER.warning("split %r has only neutral labels (0): Non0_acc_2 and Non0_F1_score have no sample there",
                           name)
        if "clipped to [-1, 1]" in rules.get("MAE", "") and bool((labels.abs() > 1).any()):
            LOGGER.warning("split %r has labels up to %.3g: the metrics of %s clip labels and predictions to [-1, 1]",
                           name, float(labels.abs().max()), dataset)


@contextmanager
def session(job: Job) -> Iterator[Any]:
    """MMSA extended, quiet and logged to the right places; yields what makes the bars of one training's epochs."""
    import MMSA.run  # noqa: F401  (quiet_mmsa looks for its modules)

    console = stderr_console()
    log_file = job.log_dir / f"{job.model}-{job.dataset}.log"
    # Whatever a model or trainer prints goes where the log goes: standard output belongs to results.
    with (active(), repaired(job.resolved.model, job.mended), logging_to(console, log_file, job.verbose), quiet_mmsa(),
          redirect_stdout(sys.stderr), remembered() as check):

        def bars() -> Callable[[Any], Any]:
            show = epoch_bars(console, enabled=job.verbose > 0)

            def one_pass(loader: Any) -> Iterator[Any]:
                check()
                for batch in show(loader):
                    check()  # a training that is to end here has done all batches before
                    yield batch

            return one_pass

        yield bars


def _finished(job: Job, paths: Sequence[Path]) -> str:
    done = f"{len(paths)} of {len(job.seeds)} seeds finished"
    return f"{done}, their results are in {job.res_save_dir / 'runs'}" if paths else done
