"""One model on one data set over the seeds: ``prepare`` checks everything that can be checked, ``run`` does it.

The protocol is fixed here and holds for every model: a run is decided by its seed, the checkpoint is chosen on the
validation split, the test split is read once after that, and a result is on disk before the next seed begins.
MMSA_run is not used: it tests whatever checkpoint lies at the path, and writes nothing before the last seed is done.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.schema import Features
from ..errors import InputError, RunError, nearest
from . import machine
from .config import Resolved, resolve
from .datasets import check_encoder, load_features, locate, make_loaders, make_splits
from .interrupts import remembered
from .metrics import metric_rules
from .progress import epoch_bars, logging_to, quiet_mmsa, stderr_console
from .records import SCHEMA_VERSION, Summary, append_summary, plain, summarise, write_record
from .registry import active
from .watch import EnoughEpochs, EpochWatch, SealedLoader, TrainLoader, is_number

DEFAULT_SEEDS = (1111, 1112, 1113, 1114, 1115)
LOGGER = logging.getLogger("MMSA")
# Keys that belong to one execution; the rest of args is what a record calls its settings.
_BOOKKEEPING = ("model_save_path", "device", "custom_feature", "feature_T", "feature_A", "feature_V", "cur_seed",
                "featurePath", "train_mode", "res_save_dir")


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the text says which seeds were finished and where their results are."""


@dataclass(frozen=True)
class Job:
    """Everything that ``run`` needs, checked."""

    resolved: Resolved
    feature_file: Path
    files: dict[str, str | None]
    seeds: tuple[int, ...]
    device: Any
    num_workers: int = 0
    model_save_dir: Path = Path()
    res_save_dir: Path = Path()
    log_dir: Path = Path()
    verbose: int = 1
    command: str | None = None

    @property
    def model(self) -> str:
        return self.resolved.model.name

    @property
    def dataset(self) -> str:
        return self.resolved.dataset


@dataclass(frozen=True)
class Outcome:
    """What came out: a record per seed, where each lies, mean and population standard deviation, MMSA's CSV."""

    job: Job
    records: list[dict[str, Any]]
    record_paths: list[Path]
    csv: Path | None
    summary: Summary


def prepare(
    model: str,
    dataset: str,
    *,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (),
    feature_file: str | Path | None = None,
    data_root: str | Path | None = None,
    files: Mapping[str, str | None] | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    gpu_ids: Sequence[int] = (),
    num_workers: int = 0,
    model_save_dir: str | Path | None = None,
    res_save_dir: str | Path | None = None,
    log_dir: str | Path | None = None,
    verbose: int = 1,
    command: str | None = None,
    tuning: bool = False,
) -> Job:
    """Resolve settings, find the feature file and pick the device. Raises InputError.

    Nothing is written but the synthetic data set, on its first use.
    """
    given = dict(overrides or {})
    if pretrained is not None:
        given.update(pretrained=pretrained, use_bert=True)
    resolved = resolve(model, dataset, config=config, overrides=given, tuning=tuning)
    settings = resolved.settings
    if settings.get("use_bert") and settings.get("pretrained"):
        check_encoder(settings["pretrained"])
    key_eval, rules = settings.get("KeyEval", "Loss"), metric_rules(resolved.dataset)
    if not isinstance(key_eval, str) or key_eval not in rules:
        close = nearest(str(key_eval), rules)
        raise InputError(f"setting KeyEval={key_eval!r}: no metric of {resolved.dataset}; {close}")
    if resolved.model.plugin is not None and resolved.model.plugin.check is not None:
        resolved.model.plugin.check(settings)
    path = locate(resolved.dataset, resolved.feature_path, feature_file=feature_file, root=data_root,
                  config_root=resolved.config_root)
    home = Path.home() / "MMSA"
    return Job(
        resolved=resolved,
        feature_file=path,
        files=dict(files or {}),
        seeds=tuple(dict.fromkeys(seeds)) or DEFAULT_SEEDS,
        device=machine.pick_device(device, list(gpu_ids)),
        num_workers=num_workers,
        model_save_dir=Path(model_save_dir or home / "saved_models").expanduser(),
        res_save_dir=Path(res_save_dir or home / "results").expanduser(),
        log_dir=Path(log_dir or home / "logs").expanduser(),
        verbose=verbose,
        command=command,
    )


def run(job: Job) -> Outcome:
    """Train and test over the seeds.

    Raises InputError for a feature file or setting that cannot be used (nothing is stored then but the log), RunError
    for a seed that failed, RunInterrupted on Ctrl-C; in both the records of the finished seeds stay.
    """
    features = load_features(job.feature_file, job.files)
    splits = make_splits(job.resolved.settings, features)
    check_labels(job.dataset, splits, features.path)
    check_folders(job)
    records: list[dict[str, Any]] = []
    paths: list[Path] = []
    with session(job) as bars:
        LOGGER.info("%s on %s: seeds %s, %s, features %s", job.model, job.dataset,
                    ", ".join(map(str, job.seeds)), job.device, job.feature_file)
        seed = job.seeds[0]
        try:
            for number, seed in enumerate(job.seeds, start=1):
                LOGGER.info("seed %d (%d of %d)", seed, number, len(job.seeds))
                record = train_and_test(job, features, splits, seed, number, bars())
                paths.append(write_record(job.res_save_dir, record))
                records.append(record)
                LOGGER.info("seed %d done in %.0f s", seed, record["wall_seconds"])
        except KeyboardInterrupt:
            raise RunInterrupted(_finished("interrupted", job, paths)) from None
        except RunError as error:
            text = f"{job.model} on {job.dataset}, seed {seed}: {error}"
            raise RunError(f"{text}\n{_finished('', job, paths)}" if paths else text) from error
        summary = summarise(records)
        table = append_summary(job.res_save_dir, job.model, job.dataset, summary)
    return Outcome(job, records, paths, table, summary)


def check_labels(dataset: str, splits: Mapping[str, Any], path: Path) -> None:
    """Refuse a split whose labels are all zero where MMSA's metrics leave zeros out: they fail on nothing."""
    for name, split in splits.items():
        if "Non0_acc_2" in metric_rules(dataset) and not bool((split.labels["M"] != 0).any()):
            raise InputError(f"{path}: split {name!r} has only neutral labels (0), so Non0_acc_2 has no sample; "
                             "expected at least one label that is not 0")


def check_folders(job: Job) -> None:
    """Make the three folders of results, and refuse one that cannot be written, before anything is trained."""
    for option in ("model_save_dir", "res_save_dir", "log_dir"):
        folder = getattr(job, option)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"--{option.replace('_', '-')} {folder} is no folder that can be written "
                             f"({error.strerror or error}): choose another") from error


@contextmanager
def session(job: Job) -> Iterator[Any]:
    """MMSA extended, quiet and logged to the right places; yields what makes the bars of one training's epochs."""
    import MMSA.run  # noqa: F401  (quiet_mmsa looks for its modules)

    console = stderr_console()
    log_file = job.log_dir / f"{job.model}-{job.dataset}.log"
    with active(), logging_to(console, log_file, job.verbose), quiet_mmsa(), remembered() as check_interrupt:

        def bars() -> Callable[[Any], Any]:
            show = epoch_bars(console, enabled=job.verbose > 0)

            def one_pass(loader: Any) -> Any:
                check_interrupt()
                return show(loader)

            return one_pass

        yield bars


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
) -> dict[str, Any]:
    """Train with one seed and evaluate the checkpoint chosen on validation; returns the record.

    ``test_split="valid"`` is for tuning: the test split then stays shut and no checkpoint is kept.
    """
    import MMSA.run
    import torch
    from easydict import EasyDict
    from MMSA.utils import count_parameters, setup_seed

    started, clock = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    identity = uuid.uuid4().hex[:8]
    job.model_save_dir.mkdir(parents=True, exist_ok=True)
    # The record's own: a stale file cannot be tested, and no later run replaces what a record points at.
    final = job.model_save_dir / f"{job.model}-{job.dataset}-{seed}-{identity}.pth"
    checkpoint = final.with_name(f".{final.name}")
    setup_seed(seed)
    args = EasyDict(copy.deepcopy(dict(settings or job.resolved.settings)))
    args.update({
        "model_save_path": checkpoint, "device": job.device, "train_mode": "regression", "cur_seed": number,
        "custom_feature": str(job.feature_file), "featurePath": str(job.feature_file),
        **{f"feature_{m[0].upper()}": job.files.get(m) or "" for m in ("text", "audio", "vision")},
    })
    try:
        loaders: dict[str, Any] = dict(make_loaders(args, splits, seed=seed, num_workers=job.num_workers))
        watch = EpochWatch(checkpoint, loaders["valid"], args.get("max_epochs"))
        loaders["train"] = TrainLoader(loaders["train"], watch.before_pass, show)
        loaders["test"] = SealedLoader(loaders["test"])
        model, trainer = _build(MMSA.run, args, job)
        with watch.watching(trainer), _failures_named():
            try:
                trainer.do_train(model, loaders)
            except EnoughEpochs:
                LOGGER.info("stopped after %d epochs (max_epochs)", len(watch.epochs))
        if not checkpoint.exists():
            raise RunError(f"no checkpoint was written in {len(watch.epochs)} epochs: validation "
                           f"{args.get('KeyEval', 'Loss')} was never a number that improved; try a lower learning_rate")
        with _failures_named():
            model.load_state_dict(torch.load(checkpoint, map_location=job.device, weights_only=True))
            model.to(job.device)
            if test_split == "test":
                loaders["test"].open()
            results = trainer.do_test(model, loaders[test_split], mode=test_split.upper())
        if test_split == "test":
            os.utime(checkpoint)  # its time stamp was in use, see EpochWatch
            os.replace(checkpoint, final)
    finally:
        checkpoint.unlink(missing_ok=True)
    return plain({
        "schema_version": SCHEMA_VERSION,
        "id": identity,
        "started": started.isoformat(timespec="seconds"),
        "command": job.command,
        "model": job.model,
        "model_source": job.resolved.model.source,
        "dataset": job.dataset,
        "seed": seed,
        "settings": {key: value for key, value in _complete(job, args).items() if key not in _BOOKKEEPING},
        "overrides": job.resolved.overrides,
        "features": _describe(features, splits),
        "versions": machine.versions(),
        "device": machine.describe_device(job.device),
        "git_commit": machine.git_commit(Path(__file__).parent),
        "working_directory_commit": machine.git_commit(Path.cwd()),
        "parameters": count_parameters(model),
        "epochs": getattr(trainer, "history", None) or watch.epochs,
        "selection": _selection(trainer, watch, args),
        test_split: {name: value for name, value in results.items() if is_number(value)},
        "metric_rules": {name: rule for name, rule in metric_rules(job.dataset).items() if name in results},
        "checkpoint": str(final) if test_split == "test" else None,
        "peak_memory_mib": machine.peak_memory(job.device),
        "wall_seconds": round(time.perf_counter() - clock, 3),
    })


def _complete(job: Job, args: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the defaults that a plugin fills in itself, so that a record does not depend on them."""
    plugin = job.resolved.model.plugin
    checked = plugin.check(args) if plugin is not None and plugin.check is not None else None
    return {**args, **(dataclasses.asdict(checked) if dataclasses.is_dataclass(checked) else {})}


def _build(mmsa_run: Any, args: Any, job: Job) -> tuple[Any, Any]:
    with _failures_named():
        model = mmsa_run.AMIO(args).to(job.device)
        return model, mmsa_run.ATIO().getTrain(args)


@contextmanager
def _failures_named() -> Iterator[None]:
    """Whatever a model or trainer raises becomes a RunError; the user's own mistakes and Ctrl-C pass."""
    try:
        yield
    except (InputError, RunError, EnoughEpochs):
        raise
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {str(error).strip() or 'no message'}") from error


def _selection(trainer: Any, watch: EpochWatch, args: Mapping[str, Any]) -> dict[str, Any]:
    """Which epoch was chosen and by what rule, from the trainer itself where it says so."""
    metric = args.get("KeyEval", "Loss")
    chosen = getattr(trainer, "best_epoch", None) or watch.best_epoch()
    values = {entry["epoch"]: entry["valid"].get(metric) for entry in watch.epochs}
    mode = "min" if metric == "Loss" else "max"  # MMSA's trainers
    rule = {"metric": metric, "mode": mode, "split": "valid", "value": values.get(chosen)}
    return {"epoch": chosen, **(getattr(trainer, "selection", None) or rule)}


def _describe(features: Features, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": str(features.path.absolute()),
        "sha256": features.sha256,
        "replaced": dict(features.overrides),
        "samples": {name: len(split) for name, split in splits.items()},
        "feature_dims": features.feature_dims,
        "seq_lens": features.seq_lens,
    }


def _finished(what: str, job: Job, paths: Sequence[Path]) -> str:
    folder = job.res_save_dir / "runs"
    done = f"{len(paths)} of {len(job.seeds)} seeds finished"
    return (f"{what}; " if what else "") + (f"{done}, their results are in {folder}" if paths else f"{done}")
