"""The trials that one process does: draw settings, train with each seed, tell the study. The test split stays shut."""

from __future__ import annotations

import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from ..compare import claims
from ..data.schema import Features
from ..errors import InputError, RunError
from ..harness.datasets import make_splits
from ..harness.records import plain, summarise
from ..harness.runner import LOGGER
from ..harness.training import train_and_test
from ..harness.watch import GivenUp, is_number
from .space import settings_of
from .study import Search, give_back, next_trial

# Settings that a model cannot work with are part of MMSA's own spaces; whatever else a stranger's model raises has
# become a RunError in training.
_FAILURES = (InputError, RunError)


def work(search: Search, study: optuna.Study, features: Features, bars: Callable[[], Any],
         ended: Callable[[], None] = lambda: None) -> None:
    """Do trials until there are enough, or none is left; ``ended`` is called after each.

    On an interrupt the trial at hand goes back into the queue.
    """
    with _token(search) as token:
        while (trial := next_trial(search, study, token)) is not None:
            LOGGER.info("trial %d: %s", trial.number, trial.params)
            began = time.perf_counter()
            try:
                value = _score(search, trial, features, bars)
            except GivenUp:
                trial.set_user_attr("seconds", round(time.perf_counter() - began, 3))
                study.tell(trial, state=TrialState.PRUNED)
            except _FAILURES as error:
                trial.set_user_attr("error", str(error))
                study.tell(trial, state=TrialState.FAIL)
            except BaseException:
                give_back(search, study, trial)
                raise
            else:
                trial.set_user_attr("seconds", round(time.perf_counter() - began, 3))
                study.tell(trial, value)
            ended()


def _score(search: Search, trial: Trial, features: Features, bars: Callable[[], Any]) -> float:
    """Mean over the seeds of the metric on validation, of each run's checkpoint; the first seed may be given up."""
    job, metric = search.job, search.metric
    settings = {**job.resolved.settings, **settings_of(trial.params, job.resolved.space)}
    splits = make_splits(settings, features)
    records = []

    def after_epoch(entry: dict[str, Any]) -> None:
        value = entry["valid"].get(metric)
        if is_number(value) and math.isfinite(value):
            trial.report(float(value), entry["epoch"])
            if search.prune and trial.should_prune():
                raise GivenUp

    for number, seed in enumerate(job.seeds):
        # Epochs of the first seed alone are compared with those of other trials.
        records.append(train_and_test(job, features, splits, seed, number + 1, bars(), settings=settings,
                                      test_split="valid", after_epoch=after_epoch if number == 0 else None))
    valid = {name: figures["mean"] for name, figures in summarise(records, "valid").items()}
    trial.set_user_attr("valid", plain(valid))
    trial.set_user_attr("epochs", [record["selection"]["epoch"] for record in records])
    trial.set_user_attr("flags", records[0]["flags"])
    if valid.get(metric) is None:
        raise RunError(f"validation {metric} is not a number")
    return float(valid[metric])


@contextmanager
def _token(search: Search) -> Iterator[str]:
    """A token of this process for the time of the block."""
    token = f"{os.getpid()}-{uuid.uuid4().hex}"
    lock = claims.hold(search.files / "claims", token)
    try:
        yield token
    finally:
        claims.drop(lock)
