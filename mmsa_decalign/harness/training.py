"""One model trained and tested with one seed: the protocol, the same for every model.

The run is decided by its seed, the checkpoint is chosen on the validation split, and the test split is read once after
that. MMSA_run is not used: it tests whatever checkpoint lies at the path, and writes nothing before the last seed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..data.reading import embedding_of
from ..data.schema import Features
from ..errors import InputError, Interrupted, RunError
from . import absence, advice, interrupts, machine
from .accumulation import last_window
from .checkpoints import attach, describe
from .classification import account, selects_on_test
from .datasets import make_loaders
from .evaluation import directed, whole_splits
from .event_files import EventFiles, event_files
from .faults import flags
from .job import Job
from .metrics import direction, metric_rules, why_no_number
from .records import SCHEMA_VERSION, plain
from .resume import Kept
from .samples import Listener, Samples
from .storage import not_written, refused, writing
from .unfinished import Batches, best_kept, check_losses, clear
from .watch import EnoughEpochs, EpochWatch, GivenUp, SealedLoader, TrainLoader, is_number

MAX_EPOCHS = 500  # where the settings name no max_epochs; MMSA's trainers stop early or never
LOGGER = logging.getLogger("MMSA")
# Keys that belong to one execution; the rest of args is what a record calls its settings.
_BOOKKEEPING = ("model_save_path", "device", "custom_feature", "feature_T", "feature_A", "feature_V", "cur_seed",
                "featurePath", "train_mode", "res_save_dir")


def train_and_test(
    job: Job,
    features: Features,
    splits: Mapping[str, Any],
    seed: int,
    number: int = 1,
    show: Any = iter,
    *,
    settings: Mapping[str, Any] | None = None,
    test_split: str = "test",
    max_epochs: int | None = None,
    samples: MutableMapping[str, Samples | None] | None = None,
    more_tests: Mapping[str, Any] | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """Train with one seed and evaluate the checkpoint chosen on validation; returns the record.

    ``test_split="valid"`` is for tuning: the test split then stays shut and no checkpoint is kept. ``max_epochs``
    takes the place of the setting, which a plugin may not know. ``samples`` is given what the checkpoint predicts on
    valid and test: for the latter the very numbers that the metrics were computed from. ``more_tests`` are further
    splits by name, which the checkpoint is tested on afterwards; their figures are the record's ``more_tests``.
    ``after_epoch`` is told each epoch's entry (see EpochWatch) and may end it all with GivenUp. ``kept`` keeps the
    state, so that the run can go on after a signal, which ends it between two batches, or after a crash.
    """
    import MMSA.run
    import torch
    from easydict import EasyDict
    from MMSA.utils import count_parameters, setup_seed

    kept = kept or Kept()
    with writing("folder", job.model_save_dir):
        job.model_save_dir.mkdir(parents=True, exist_ok=True)
    # The record's own: a stale file cannot be tested, and no later run replaces what a record points at.
    final = job.model_save_dir / f"{job.model}-{job.dataset}-{seed}-{kept.id}.pth"
    checkpoint = final.with_name(f".{final.name}")
    setup_seed(seed)
    args = EasyDict(copy.deepcopy(dict(settings or job.resolved.settings)))
    args.update({
        "model_save_path": checkpoint, "device": job.device, "cur_seed": number,
        "train_mode": args.get("train_mode", "regression"),
        "custom_feature": str(job.feature_file), "featurePath": str(job.feature_file),
        **{f"feature_{m[0].upper()}": job.files.get(m) or "" for m in ("text", "audio", "vision")},
    })
    try:
        splits = absence.hide(splits, job.absence, args, seed)
        made = make_loaders(args, {**splits, **(more_tests or {})}, seed=seed, num_workers=job.num_workers)
        further = {name: made.pop(name) for name in more_tests or {}}
        loaders: dict[str, Any] = dict(made)
        watch = EpochWatch(checkpoint, loaders["valid"], max_epochs or args.get("max_epochs", MAX_EPOCHS))
        model, trainer = _build(MMSA.run, args, job)

        def account_of() -> list[dict[str, Any]]:
            return getattr(trainer, "history", None) or watch.epochs

        built_in = job.resolved.model.plugin is None
        listener = Listener(trainer)
        metric = args.get("KeyEval", "Loss")
        with ExitStack() as mended:
            end_of_pass = mended.enter_context(_mended(trainer)) if built_in else _nothing
            batches = Batches(show, lambda: len(watch.epochs))
            loaders["train"] = TrainLoader(loaders["train"], watch.before_pass, batches, end_of_pass)
            loaders["test"] = SealedLoader(loaders["test"])
            with ExitStack() as training:
                if test_split == "test":
                    training.enter_context(best_kept(
                        checkpoint, final, lambda: getattr(trainer, "best_epoch", None) or watch.best_epoch(),
                        lambda: _unfinished(job, args, features, splits, seed, kept.id)))
                events = training.enter_context(event_files(job.tensorboard and job.tensorboard / final.stem))
                watch.after_epoch = _tell(after_epoch, events, trainer, watch,
                                          functools.partial(check_losses, model) if built_in else None)
                training.enter_context(watch.watching(trainer))
                if built_in:
                    training.enter_context(directed(trainer, metric))
                    training.enter_context(batches.checking(model))
                training.enter_context(_failures_named(checkpoint))
                training.enter_context(interrupts.held("finishing the batch at hand"))
                kept.follow(trainer, watch)
                try:
                    trainer.do_train(model, loaders)
                except Interrupted as stop:
                    if stop.orderly:
                        kept.save()
                    raise
                except EnoughEpochs:
                    LOGGER.info("stopped after %d epochs (max_epochs)", len(watch.epochs))
                finally:
                    if events is not None:
                        events.catch_up(account_of())
            if not checkpoint.exists():
                if watch.best_epoch() or not checkpoint.parent.is_dir():
                    raise refused("checkpoint", checkpoint, "it or its folder has vanished")
                raise RunError(f"no checkpoint was written in {len(watch.epochs)} epochs: validation {metric} was "
                               f"never a number that improved; {_remedy(metric)}")
            with _failures_named(checkpoint):
                model.load_state_dict(torch.load(checkpoint, map_location=job.device, weights_only=True))
                model.to(job.device)
                if test_split == "test":
                    loaders["test"].open()
                listener.forget()
                results = trainer.do_test(model, loaders[test_split], mode=test_split.upper())
                found = listener.heard(splits[test_split].ids)
                if samples is not None:
                    samples[test_split] = found
                    if test_split != "valid":
                        listener.forget()
                        trainer.do_test(model, loaders["valid"], mode="VAL")
                        samples["valid"] = listener.heard(splits["valid"].ids)
                more = {name: trainer.do_test(model, loader, mode="TEST") for name, loader in further.items()}
        for name, value in results.items():
            if is_number(value) and value != value:
                LOGGER.warning("%s on the %s split is not a number: %s", name, test_split, why_no_number(name))
        selection = _selection(trainer, watch, args)
        record = plain({
            "schema_version": SCHEMA_VERSION,
            "id": kept.id,
            "started": kept.started,
            "fingerprint": kept.mark,
            "resumed": kept.resumed,
            "command": job.command,
            "model": job.model,
            "model_source": job.resolved.model.source,
            "dataset": job.dataset,
            "seed": seed,
            "settings": {key: value for key, value in _complete(job, args, splits["train"].seq_lens).items()
                         if key not in _BOOKKEEPING},
            "overrides": job.resolved.overrides,
            "settings_of": job.resolved.settings_of,
            "classification": account(args, splits, test_split),
            "mended": job.mended,
            "missing": absence.describe(job.absence, splits, seed, told=job.told),
            "flags": flags(job.resolved.model, args, splits["train"].seq_lens, mended=job.mended),
            "features": _describe(features, splits),
            "versions": machine.versions(),
            "device": machine.describe_device(job.device),
            "git_commit": machine.git_commit(Path(__file__).parent),
            "working_directory_commit": machine.git_commit(Path.cwd()),
            "parameters": count_parameters(model),
            "epochs": account_of(),
            "selection": selection,
            "warnings": advice.advise(trainer, account_of(), selection, args, found, test_split),
            test_split: {name: value for name, value in results.items() if is_number(value)},
            **({"more_tests": {split: {name: value for name, value in figures.items() if is_number(value)}
                               for split, figures in more.items()}} if more else {}),
            "metric_rules": {name: rule for name, rule in metric_rules(job.dataset).items() if name in results},
            "checkpoint": str(final) if test_split == "test" else None,
            "peak_memory_mib": machine.peak_memory(job.device),
            "wall_seconds": round(kept.seconds, 3),
        })
        if test_split == "test":
            with writing("checkpoint", final):
                attach(checkpoint, describe(record, train_mode=args.train_mode, steps=_steps(args, features)))
                os.utime(checkpoint)  # its time stamp was in use, see EpochWatch
                os.replace(checkpoint, final)
                clear(final)
        return record
    finally:
        with suppress(OSError):  # its folder may have vanished
            checkpoint.unlink(missing_ok=True)


def _complete(job: Job, args: Mapping[str, Any], seq_lens: Any) -> dict[str, Any]:
    """The settings with the defaults that a plugin fills in itself, so that a record does not depend on them.

    ``seq_lens`` are those the model was built from: MMSA's aligned models put one number in their place.
    """
    plugin = job.resolved.model.plugin
    checked = plugin.check(args) if plugin is not None and plugin.check is not None else None
    return {**args, **(dataclasses.asdict(checked) if dataclasses.is_dataclass(checked) else {}), "seq_lens": seq_lens}


@contextmanager
def _mended(trainer: Any) -> Iterator[Callable[[], None]]:
    """One of MMSA's own trainers without its silent faults; yields what is to be called after each training pass."""
    with whole_splits(trainer), last_window(trainer) as end_of_pass:
        yield end_of_pass


def _tell(
    listener: Callable[[dict[str, Any]], None] | None, events: EventFiles | None, trainer: Any, watch: EpochWatch,
    check: Callable[[dict[str, Any]], None] | None,
) -> Callable[[dict[str, Any]], None]:
    """What is called after each epoch. A trainer that keeps its own account adds the epoch only after validation."""

    def tell(entry: dict[str, Any]) -> None:
        if events is not None:
            events.catch_up(getattr(trainer, "history", watch.epochs))
        for hear in (check, listener):
            if hear is not None:
                hear(entry)

    return tell


def _nothing() -> None:
    """What is called after each training pass of a plugin."""


def _remedy(metric: str) -> str:
    return "try a lower learning_rate" if metric == "Loss" else "try a lower learning_rate, or KeyEval=Loss"


def _build(mmsa_run: Any, args: Any, job: Job) -> tuple[Any, Any]:
    with _failures_named(args.model_save_path):
        model = mmsa_run.AMIO(args).to(job.device)
        return model, mmsa_run.ATIO().getTrain(args)


@contextmanager
def _failures_named(checkpoint: Path) -> Iterator[None]:
    """Whatever a model or trainer raises becomes a RunError; the user's own mistakes and signals pass."""
    try:
        yield
    except (InputError, RunError, EnoughEpochs, GivenUp):
        raise
    except Exception as error:
        interrupts.check()  # a signal to the whole group ends the data loader's workers first
        raise not_written(error, checkpoint) or RunError(
            f"{type(error).__name__}: {str(error).strip() or 'no message'}") from error


def _selection(trainer: Any, watch: EpochWatch, args: Mapping[str, Any]) -> dict[str, Any]:
    """Which epoch was chosen and by what rule, from the trainer itself where it says so."""
    metric = args.get("KeyEval", "Loss")
    chosen = getattr(trainer, "best_epoch", None) or watch.best_epoch()
    values = {entry["epoch"]: entry["valid"].get(metric) for entry in watch.epochs}
    rule = {"metric": metric, "mode": direction(metric), "split": "valid", "value": values.get(chosen)}
    where = {"split": "test"} if selects_on_test(args) else {}
    return {"epoch": chosen, **(getattr(trainer, "selection", None) or rule), **where}


def _unfinished(
    job: Job, args: Mapping[str, Any], features: Features, splits: Mapping[str, Any], seed: int, identity: str
) -> dict[str, Any]:
    """What the checkpoint of a run that failed carries: all that prediction needs, and no test figures."""
    settings = _complete(job, args, splits["train"].seq_lens)
    return describe(plain({
        "schema_version": SCHEMA_VERSION, "id": identity, "model": job.model, "model_source": job.resolved.model.source,
        "dataset": job.dataset, "seed": seed, "mended": job.mended, "versions": machine.versions(),
        "settings": {key: value for key, value in settings.items() if key not in _BOOKKEEPING},
        "features": _describe(features, splits),
    }), train_mode=args["train_mode"], steps=_steps(args, features))


def _steps(args: Mapping[str, Any], features: Features) -> list[int]:
    """Steps of text, audio and vision in the training split of the file, before averages are taken."""
    train = features.splits["train"]
    tokens = args.get("use_bert") and train.text_bert is not None
    text = train.text_bert.shape[2] if tokens else train.text.shape[1]
    return [text, train.audio.shape[1], train.vision.shape[1]]


def _describe(features: Features, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": str(features.path.absolute()),
        "sha256": features.sha256,
        "replaced": dict(features.overrides),
        "embedded": embedding_of(features.path),
        "samples": {name: len(split) for name, split in splits.items()},
        "feature_dims": features.feature_dims,
        "seq_lens": features.seq_lens,
    }
