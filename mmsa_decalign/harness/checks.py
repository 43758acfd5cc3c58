"""What every model must do, whoever wrote it: one small function a check, each of which returns a verdict.

A model is trained on a tiny file made on the spot, through the runner that users train with, and looked at from
outside. Whatever it raises is the failure of that check; running them is the business of conformance.py. To add a
check, write the function and give it a place in ``CHECKS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError
from .datasets import load_features
from .job import Job
from .probe import Trial, batches_of, predict_in_new_process, state_of

BATCH = 8
SAMPLES = (32, 16, 12)  # train, valid, test
ODD_SAMPLES = (33, 17, 9)  # in batches of 8 one sample is left over in each
SEED = 1111
EPOCHS = 8
PATIENCE = 5  # times as many epochs for a model that learns slowly
SHORT = 2  # epochs, where the point is not to learn
FALL = 0.9  # the error after training over that before: at most
FAST = 0.001  # and at least this learning rate
SAME = 1e-4  # largest difference of predictions that arithmetic in another order can make


@dataclass(frozen=True)
class Verdict:
    """passed, flagged, failed or skipped, and why in one line."""

    status: str
    detail: str


class Bench:
    """What the checks share: the job, a temporary folder, and the trainings that several of them look at."""

    def __init__(self, job: Job, folder: Path, write: Callable[..., Path], bars: Callable[[], Any]) -> None:
        self.job, self.folder, self.write, self.bars = job, folder, write, bars
        self.settings, self.built_in = job.resolved.settings, job.resolved.model.plugin is None
        self.classes = len(self.settings.get("label_names", ()))  # 0: labels are on a scale

    def prepare(self, seed: int = SEED, file: Path | None = None, changed: Mapping[str, Any] | None = None) -> Trial:
        """A training on the tiny file, or on another, that has not begun."""
        settings = {**self.settings, **(changed or {}), "batch_size": BATCH}
        if "update_epochs" in settings:  # the batches of a tiny epoch are few
            settings["update_epochs"] = min(settings["update_epochs"], 2)
        job = replace(self.job, feature_file=file or self.job.feature_file)
        return Trial(job, load_features(job.feature_file, {}), seed, settings)

    def train(self, seed: int = SEED, epochs: int = SHORT, file: Path | None = None) -> Trial:
        """The same, done, for at most so many epochs."""
        return self.prepare(seed, file).train(epochs, self.bars())

    @cached_property
    def trial(self) -> Trial:
        """The one long training."""
        return self.train(epochs=EPOCHS)

    @cached_property
    def short_trial(self) -> Trial:
        """The first of the short ones."""
        return self.train()

    @cached_property
    def predictions(self) -> Any:
        """(N, ...) on the test split, in the batches of a run."""
        return self.trial.predict(batches_of(self.trial.splits["test"], BATCH))


def trains(bench: Bench) -> Verdict:
    """It trains on the tiny file, and tests, without raising."""
    record = bench.trial.record
    return passed(f"{len(record['epochs'])} epochs, {record['parameters']} parameters")


def learns(bench: Bench) -> Verdict:
    """The error on the training split, in evaluation mode: clearly lower than before the first step.

    Settings for fine-tuning are slow on a tiny file, so that there is a second chance with more and larger steps.
    """
    what = "cross entropy" if bench.classes else "mean absolute error"
    (first, last), how = _errors(bench.trial), f"{len(bench.trial.record['epochs'])} epochs"
    if not last <= FALL * first:
        faster = {key: max(value, FAST) for key, value in bench.settings.items()
                  if re.search(r"learning_rate|(^|_)lr(_|$)", key) and isinstance(value, float)}
        patient = bench.prepare(changed=faster).train(PATIENCE * EPOCHS, bench.bars())
        first, last = _errors(patient)
        how = f"{len(patient.record['epochs'])} epochs" + (f", {' and '.join(faster)} >= {FAST}" if faster else "")
    text = f"{what} on the training split {first:.3f} -> {last:.3f} ({how})"
    return passed(text) if last <= FALL * first else failed(f"{text}; expected at most {FALL * first:.3f}")


def _errors(trial: Trial) -> tuple[float, float]:
    """Mean absolute error, of classes cross entropy, on the training split before training, and of the checkpoint."""
    from torch.nn import functional

    split = trial.splits["train"]
    labels, batches, chosen = split.labels["M"].view(-1), batches_of(split, BATCH), state_of(trial.model)

    def error() -> float:
        rows = trial.predict(batches).reshape(len(labels), -1)
        if trial.settings.get("label_names"):
            return float(functional.cross_entropy(rows, labels))
        return float((rows[:, 0] - labels).abs().mean())

    last = error()
    trial.model.load_state_dict(trial.before)
    try:
        return error(), last
    finally:
        trial.model.load_state_dict(chosen)


def saves_best(bench: Bench) -> Verdict:
    """do_train wrote a checkpoint, and it is that of the epoch with the best validation figure."""
    trial = bench.trial
    if not trial.saved:
        return failed("do_train wrote no state dict to args.model_save_path")
    chosen = trial.record["selection"]
    try:
        figures = {entry["epoch"]: entry["valid"].get(chosen["metric"]) for entry in trial.record["epochs"]}
    except (KeyError, TypeError, AttributeError):  # the runner takes a trainer's own account where it keeps one
        return failed("trainer.history: expected a list of {'epoch': 1, 'valid': {metric: number}, ...}, or none")
    numbers = [value for value in figures.values() if value is not None and value == value]
    if not numbers:
        return failed(f"do_test never gave a number for {chosen['metric']} on the validation split")
    best = min(numbers) if chosen["mode"] == "min" else max(numbers)
    value = figures.get(chosen["epoch"])
    if value is None or abs(value - best) > 1e-3 * max(1.0, abs(best)):
        return failed(f"saved epoch {chosen['epoch']} with {chosen['metric']} {value}; the best was {best}")
    return passed(f"epoch {chosen['epoch']} of {len(figures)}, {chosen['metric']} {best:.4g}")


def test_stays_shut(bench: Bench) -> Verdict:
    """Training does not read the test split."""
    return failed("do_train read the test split") if bench.trial.read_test else passed("not read by do_train")


def same_seed(bench: Bench) -> Verdict:
    """Two runs with one seed: equal metrics and equal weights, to the last bit."""
    one, other = bench.short_trial, bench.train()
    differing = _unequal(_trained(one), _trained(other))
    if differing:
        return failed(f"two runs with seed {SEED} differ in {_some(differing)}")
    if one.record["test"] != other.record["test"]:
        return failed(f"two runs with seed {SEED} have equal weights and other test metrics")
    return passed(f"seed {SEED} twice: all weights and metrics equal")


def _trained(trial: Trial) -> dict[str, Any]:
    """Parameters, and the buffers that training changed: others may be memory that nobody reads, as in tfr_net."""
    parameters = {name for name, _ in trial.model.named_parameters()}
    return {name: value for name, value in state_of(trial.model).items()
            if name in parameters or name not in trial.before or not _equal(value, trial.before[name])}


def other_seed(bench: Bench) -> Verdict:
    """Another seed gives other weights, before training already unless each tensor starts as a constant."""
    one, other = bench.short_trial, bench.train(seed=SEED + 1)
    remedy = "is a seed set in the model or trainer?"
    if not _unequal(one.before, other.before) and not all(_constant(value) for value in one.before.values()):
        return failed(f"seeds {SEED} and {SEED + 1} give the same weights before training: {remedy}")
    if not _unequal(_trained(one), _trained(other)):
        return failed(f"seeds {SEED} and {SEED + 1} give the same weights after training: {remedy}")
    return passed(f"seeds {SEED} and {SEED + 1} differ")


def predictions_fit(bench: Bench) -> Verdict:
    """One finite number for each sample, or for each class: "M" has the shape (N, 1), or (N, classes)."""
    import torch

    found, samples, width = bench.predictions, SAMPLES[2], bench.classes or 1
    # MMSA's own models that return no "M" hand predictions (N,) to their metrics.
    if found.shape != (samples, width) and not (bench.built_in and found.numel() == samples * width):
        shape = tuple(found.shape)
        return failed(f"predictions of {samples} samples have shape {shape}; expected ({samples}, {width})")
    if not bool(torch.isfinite(found).all()):
        return failed("predictions are not finite")
    return passed(f"shape ({samples}, {width}), finite")


def evaluation_changes_nothing(bench: Bench) -> Verdict:
    """do_test twice: the same predictions, and the same parameters and buffers as before."""
    before, first = state_of(bench.trial.model), bench.predictions
    again = bench.trial.predict(batches_of(bench.trial.splits["test"], BATCH))
    changed = _unequal(before, state_of(bench.trial.model))
    if changed:
        return failed(f"do_test changes {_some(changed)}")
    if not _equal(first, again):
        return failed("do_test twice gave other predictions: does it call model.eval()?")
    return passed("do_test twice: same predictions, parameters and buffers")


def batch_composition(bench: Bench) -> Verdict:
    """A sample's prediction does not depend on what else is in its batch."""
    split, trial = bench.trial.splits["test"], bench.trial
    whole = trial.predict(batches_of(split, len(split)))
    backwards = list(reversed(range(len(split))))
    others = {"in pairs": trial.predict(batches_of(split, 2)),
              "in reversed order": trial.predict(batches_of(split, BATCH, backwards)).flip(0)}
    with suppress(Exception):  # a model that fails on one sample is the business of single_sample
        others["one by one"] = trial.predict(batches_of(split, 1))
    gaps = {how: _gap(whole, found) for how, found in others.items()}
    how, gap = max(gaps.items(), key=lambda item: item[1])
    if not gap <= SAME:
        return failed(f"predictions {how} differ from those in one batch by up to {gap:.2g}")
    return passed(f"{', '.join(gaps)}: equal within {SAME:g}")


def single_sample(bench: Bench) -> Verdict:
    """Evaluation works on a batch of one sample. The harness makes none, but a user who predicts may."""
    split = bench.trial.splits["test"]
    try:
        bench.trial.predict(batches_of(split, 1)[:1])
    except Exception as error:
        text = f"do_test on one sample: {text_of(error)}"
        return flagged(f"{text}; the harness makes no such batch") if bench.built_in else failed(text)
    return passed("do_test works on one sample")


def odd_last_batch(bench: Bench) -> Verdict:
    """k batches and one sample left over, in every split."""
    bench.train(epochs=1, file=bench.write(bench.folder / "odd.pkl", samples=ODD_SAMPLES))
    return passed(f"{ODD_SAMPLES[0]} samples in batches of {BATCH}")


def token_ids(bench: Bench) -> Verdict:
    """A model that reads token ids refuses a file without them before training; another does not miss them."""
    file = bench.write(bench.folder / "no_tokens.pkl", tokens=False)
    if not bench.settings.get("use_bert"):
        bench.train(epochs=1, file=file)
        return passed("trains on a file without token ids")
    try:
        bench.prepare(file=file)
    except InputError:
        return passed("a file without token ids is refused")
    return failed("a file without token ids is accepted although use_bert is set")


def new_process(bench: Bench) -> Verdict:
    """The checkpoint, loaded by a fresh Python with another seed, gives exactly the predictions of this process."""
    found = predict_in_new_process(bench.trial, bench.job, BATCH, bench.folder)
    if found.shape != bench.predictions.shape or not _equal(found, bench.predictions):
        gap = _gap(bench.predictions, found)
        return failed(f"predictions from the checkpoint differ by up to {gap:.2g}: is all of the model registered?")
    return passed("equal predictions in a new process")


def every_parameter_trained(bench: Bench) -> Verdict:
    """Every parameter that may be trained has another value than before the first step."""
    trial = bench.trial
    after, names = state_of(trial.model), [name for name, p in trial.model.named_parameters() if p.requires_grad]
    still = [name for name in names if _equal(trial.before[name], after[name])]
    if still:
        return flagged(f"{len(still)} of {len(names)} never trained: {_some(still)}")
    return passed(f"all {len(names)} parameter tensors changed")


CHECKS: dict[str, Callable[[Bench], Verdict]] = {
    "trains": trains,
    "loss falls": learns,
    "saves the best epoch": saves_best,
    "test split stays shut": test_stays_shut,
    "same seed, same numbers": same_seed,
    "other seed, other weights": other_seed,
    "shape of predictions": predictions_fit,
    "evaluation changes nothing": evaluation_changes_nothing,
    "batch composition": batch_composition,
    "single sample": single_sample,
    "odd last batch": odd_last_batch,
    "token ids": token_ids,
    "checkpoint in a new process": new_process,
    "every parameter trained": every_parameter_trained,
}


def passed(detail: str) -> Verdict:
    """As it must be."""
    return Verdict("passed", detail)


def flagged(detail: str) -> Verdict:
    """Worth knowing, and no failure."""
    return Verdict("flagged", detail)


def failed(detail: str) -> Verdict:
    """Not as it must be."""
    return Verdict("failed", detail)


def text_of(error: BaseException) -> str:
    """The type and the first line of an exception's message; our own errors speak for themselves."""
    lines = str(error).strip().splitlines()
    if lines and isinstance(error, (InputError, RunError)):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _equal(one: Any, other: Any) -> bool:
    """Whether two tensors are equal to the last bit; NaN equals NaN."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _constant(value: Any) -> bool:
    return bool((value == value.flatten()[:1]).all())


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names that only one of two state dicts has, or with other values."""
    return [name for name in {**one, **other} if name not in one or name not in other
            or not _equal(one[name], other[name])]


def _gap(one: Any, other: Any) -> float:
    """Largest difference of predictions, over their size where that is above 1; infinite for other shapes."""
    if one.numel() != other.numel():
        return float("inf")
    return float((one.flatten() - other.flatten()).abs().max() / max(1.0, float(one.abs().max())))


def _some(names: Sequence[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
