"""What a run is to do: ``prepare`` checks everything that can be checked before data is read, and makes a ``Job``.

What may change here: further options of a run. How one training goes is in training.py, how a run goes over the seeds
in runner.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from . import machine
from .absence import Absence, check_rates, parse_rates
from .classification import selects_on_test
from .config import Resolved, resolve
from .datasets import locate
from .encoders import check_encoder
from .event_files import check_tensorboard
from .mended import mendable
from .metrics import metric_rules
from .needs import check_combination

DEFAULT_SEEDS = (1111, 1112, 1113, 1114, 1115)


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
    mended: bool = False
    absence: Absence = field(default_factory=Absence)
    tensorboard: Path | None = None
    resume: bool = False

    @property
    def model(self) -> str:
        return self.resolved.model.name

    @property
    def label(self) -> str:
        """The model as tables name it: a repaired one is never taken for the one that MMSA ships, nor one that was
        selected on the test split, or short of modalities, for one that was not."""
        marks = [mark for mark, wanted in (
            ("mended", self.mended), ("selected on test", selects_on_test(self.resolved.settings))) if wanted]
        marks += [self.absence.label()] if self.absence else []
        return f"{self.model} ({', '.join(marks)})" if marks else self.model

    @property
    def told(self) -> bool:
        """Whether the model is told which modalities a sample has; otherwise an absent one is zeros to it."""
        return self.resolved.model.plugin is not None and self.resolved.model.plugin.presence

    @property
    def dataset(self) -> str:
        return self.resolved.dataset


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
    mended: bool = False,
    missing: str | None = None,
    missing_train: str | None = None,
    tensorboard: str | Path | None = None,
    resume: bool = False,
) -> Job:
    """Resolve settings, find the feature file and pick the device. Raises InputError.

    mended: repair the faults inside one of MMSA's own models. missing, missing_train: rates such as
    "vision=1.0,audio=0.3" at which modalities are absent from the test split, and from training and validation.
    tensorboard: folder for the event files of each training. resume: go on with what is unfinished of this very run.
    Nothing is written but the synthetic data set, on its first use.
    """
    if tensorboard is not None:
        check_tensorboard()
    given = dict(overrides or {})
    if pretrained is not None:
        given.update(pretrained=pretrained, use_bert=True)
    resolved = resolve(model, dataset, config=config, overrides=given, tuning=tuning)
    settings = resolved.settings
    check_combination(resolved.model, resolved.dataset, settings)
    absence = _absence(missing, missing_train, settings, tuning)
    if mended and not mendable(resolved.model):
        raise InputError(f"--mended: there is no fault in model {resolved.model.name!r} that it repairs; leave it out, "
                         "or choose a model that `mmsa list` marks")
    if settings.get("use_bert") and settings.get("pretrained"):
        check_encoder(settings["pretrained"], baseline=settings if resolved.model.plugin is None else None)
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
        mended=mended,
        absence=absence,
        tensorboard=None if tensorboard is None else Path(tensorboard).expanduser(),
        resume=resume,
    )


def _absence(missing: str | None, missing_train: str | None, settings: Mapping[str, Any], tuning: bool) -> Absence:
    rates = []
    for text, option in ((missing, "--missing"), (missing_train, "--missing-train")):
        rates.append({} if text is None else parse_rates(text, option))
        check_rates(rates[-1], settings, option)
    if tuning and any(rates):
        raise InputError("--missing and --missing-train: a search ranks settings on complete samples; leave them out "
                         "with -t")
    return Absence(*rates)


def check_folders(job: Job) -> None:
    """Make the three folders of results, and refuse one that cannot be written, before anything is trained."""
    for option in ("model_save_dir", "res_save_dir", "log_dir"):
        check_folder(getattr(job, option), f"--{option.replace('_', '-')}")


def check_folder(folder: Path, option: str) -> None:
    """Make the folder that an option names, and refuse one that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{option} {folder} is no folder that can be written ({error.strerror or error}): "
                         "choose another") from error
