"""The account of a search: an Optuna study in an SQLite file, that several processes and calls share.

Whoever does a trial holds a token (compare/claims.py), so that the system says when its process is gone; the trial then
goes back into the queue. A trial counts when it is complete, pruned, running, or failed for good.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from ..compare import claims
from ..data.schema import Features
from ..errors import InputError, RunError
from ..harness.job import Job
from ..harness.metrics import direction
from ..locks import guarded
from .space import parameters, signature, untried

STARTUP, WARMUP = 5, 2  # the median pruner waits for so many trials, and for so many epochs of each
_RETRIES = 3  # how often a trial whose process ended is begun again
_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Search:
    """What is searched, where the account is kept, and how many trials it is to have in all."""

    job: Job
    name: str
    storage: Path
    trials: int
    prune: bool = True

    @property
    def metric(self) -> str:
        """What a trial is scored by on the validation split."""
        return self.job.resolved.settings.get("KeyEval", "Loss")

    @property
    def files(self) -> Path:
        """Folder of what stands beside the storage."""
        return self.storage.parent / f"{self.storage.name}.files"


def name_of(job: Job, features: Features) -> str:
    """Name of the study: what is searched, and a hash of all that its scores depend on."""
    counts = {
        "model": job.model, "source": job.resolved.model.source, "settings": job.resolved.settings,
        "space": job.resolved.space, "seeds": job.seeds, "mended": job.mended, "sha256": features.sha256,
        "replaced": dict(features.overrides),
    }
    text = json.dumps(counts, sort_keys=True, default=str)
    return f"{job.model}-{job.dataset}{'-mended' if job.mended else ''}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def open_study(search: Search) -> optuna.Study:
    """The study, made if it is not there. Raises InputError for a storage that is none."""
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        search.storage.parent.mkdir(parents=True, exist_ok=True)
        with locked(search):
            url = sqlalchemy.URL.create("sqlite", database=str(search.storage))
            storage = optuna.storages.RDBStorage(url.render_as_string(), engine_kwargs={
                "connect_args": {"timeout": _WAIT_SECONDS}})
            goal = "minimize" if direction(search.metric) == "min" else "maximize"
            return optuna.create_study(
                storage=storage, study_name=search.name, direction=goal, load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP))
    except RunError:
        raise
    except (OSError, RuntimeError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise InputError(f"--storage {search.storage} cannot be used as a study's storage "
                         f"({str(error).splitlines()[0]}): choose another file") from error


@contextmanager
def locked(search: Search) -> Iterator[None]:
    """One process at a time takes or gives back trials; the lock of a dead one is free.

    Raises RunError where another process keeps it.
    """
    with guarded(search.files / "trials"):
        yield


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those that were asked for."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) or error_of(trial) is not None


def error_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None for one that did not, or that went back into the queue."""
    if trial.state != TrialState.FAIL:
        return None
    if trial.user_attrs.get("losses", 0) >= _RETRIES:
        return f"its process ended before it did, {_RETRIES + 1} times"
    return trial.user_attrs.get("error")


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count and have ended, in their order."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts(trial) and trial.state.is_finished()]


def next_trial(search: Search, study: optuna.Study, token: str) -> Trial | None:
    """A trial for the owner of the token, with settings that were not tried yet; None when there is nothing to do.

    Depends on the trials so far and on the first seed alone: with one process, a search that was stopped goes on as
    if it had not been.
    """
    choices = parameters(search.job.resolved.space)
    with locked(search):
        take_back(search, study)
        taken = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
        if len(taken) >= search.trials:
            return None
        # A seed of its own for each trial, or a second call would begin with the draws of the first.
        seed = (search.job.seeds[0] * 100_003 + len(taken)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        distributions = {name: CategoricalDistribution(list(values)) for name, values in choices.items()}
        tried = {signature(trial.params) for trial in taken}
        trial = study.ask(distributions)
        if signature(trial.params) in tried:  # training is decided by its seed: nothing new would come of it
            study.tell(trial, state=TrialState.FAIL)
            params = untried(choices, tried, random.Random(seed))
            if params is None:
                return None
            study.enqueue_trial(params)
            trial = study.ask(distributions)
        trial.set_user_attr("token", token)
        return trial


def take_back(search: Search, study: optuna.Study) -> int:
    """Put the trials of processes that are gone into the queue again; returns how many. Under the lock."""
    lost = [trial for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if not claims.alive(search.files / "claims", trial.user_attrs.get("token", "nobody"))]
    for trial in lost:
        _requeue(study, trial.number, trial.params, trial.user_attrs.get("losses", 0) + 1)
    return len(lost)


def give_back(search: Search, study: optuna.Study, trial: Trial) -> None:
    """Put one's own trial into the queue again, as it was."""
    with locked(search):
        _requeue(study, trial.number, trial.params, trial.user_attrs.get("losses", 0))


def _requeue(study: optuna.Study, number: int, params: dict[str, Any], losses: int) -> None:
    study.tell(number, state=TrialState.FAIL)
    if losses <= _RETRIES and params:
        study.enqueue_trial(params, user_attrs={"losses": losses})


def best_first(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials: complete ones by their value, then pruned ones, then failed ones."""
    sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
    order: Sequence[TrialState] = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

    def rank(trial: FrozenTrial) -> tuple[int, float, int]:
        value = sign * trial.value if trial.state == TrialState.COMPLETE else 0.0
        return order.index(trial.state), value, trial.number

    return sorted(finished(study), key=rank)
