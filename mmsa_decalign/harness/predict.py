"""``mmsa predict``: a checkpoint's predictions for features that it was not trained on.

The model is built from the settings that the checkpoint carries and predicts through its own trainer, as in the test
run that made it, and in calls of the same shape: that run's predictions come back bit for bit. What
training measured, the statistics of standardisation and clipping, is in the state dict; nothing is measured on the
features to predict for. What may change here: how a model is brought to predict. Files are read in predict_features.py
and predict_steps.py, results written in predict_output.py.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading import converted_from, sha256_of
from ..data.schema import Features
from ..errors import InputError, RunError
from . import machine
from .calls import calls_of
from .catalogue import Model, catalogue, find_dataset, find_model
from .checkpoints import Origin, origin_of
from .classification import numbered, selects_on_test
from .compat import overlaid
from .config import PAPER_COUNT
from .datasets import SplitDataset
from .encoders import check_encoder, check_tokens
from .faults import faults_of
from .mended import repaired
from .predict_features import Given, chosen, read_given
from .predict_steps import fit_steps
from .probe import predict as predict_by_trainer
from .probe import quiet
from .progress import quiet_mmsa
from .registry import active
from .safe_reading import read_checkpoint

LOGGER = logging.getLogger("MMSA")


@dataclass(frozen=True)
class Predicted:
    """Predictions of one split. outputs (N, k) float32: the values, or a logit for each class; labels (N,) or None."""

    name: str
    ids: list[str]
    outputs: Any
    labels: list[float | None]
    metrics: dict[str, float] | None


@dataclass(frozen=True)
class Predictions:
    """What ``predict`` found, and from what: the checkpoint, its run, the features."""

    checkpoint: Path
    origin: Origin
    features: Path
    sha256: str
    replaced: dict[str, str]
    device: str
    batch_size: int
    splits: list[Predicted]

    @property
    def classification(self) -> bool:
        """Whether the outputs are logits of classes."""
        return self.origin.settings["train_mode"] == "classification"

    @property
    def class_names(self) -> list[str]:
        """Of the classes in the order of their logits: their names, or numbers where they have none."""
        return [str(name) for name in self.origin.settings.get("label_names") or range(self.splits[0].outputs.shape[1])]


def predict(
    checkpoint: str | Path,
    features: str | Path,
    *,
    files: Mapping[str, str | Path | None] | None = None,
    splits: Sequence[str] = (),
    samples: Sequence[str] = (),
    record: str | Path | None = None,
    pretrained: str | None = None,
    truncate: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
) -> Predictions:
    """The predictions of a checkpoint for the samples of a feature file, in the file's order.

    files: feature files by modality that replace it, as in training. splits, samples: names and ids, none for all.
    record: of the run, for a checkpoint that carries no settings. pretrained: where the text encoder lies now.
    truncate: cut sequences that are longer than those of training. batch_size: samples at once, at most; None, and
    the most, is the run's.

    Raises InputError for a checkpoint or features that cannot be used, RunError where the model fails on them.
    """
    path, file = Path(checkpoint).expanduser(), Path(features).expanduser()
    state = read_checkpoint(path)
    origin = origin_of(path, record)
    model = find_model(catalogue(), origin.model)
    find_dataset(catalogue(), origin.dataset)
    if not origin.mended and any(fault.name == "batch_as_time" for fault in faults_of(model)):
        raise InputError(f"checkpoint {path}: model {model.name!r} reads the samples of a batch as steps of a "
                         "sequence, so that it has no prediction for a sample by itself; train it with --mended")
    if pretrained is not None:
        if not origin.settings.get("use_bert"):
            raise InputError(f"--pretrained {pretrained}: the checkpoint, of {model.name!r}, has no text encoder; "
                             "leave the option out")
        origin.settings["pretrained"] = pretrained
    if selects_on_test(origin.settings):
        LOGGER.warning("checkpoint %s: SELECTED ON TEST (protocol %s): it was trained on train and valid, and test "
                       "chose its epoch; none of these splits is held out", path, PAPER_COUNT)
    if origin.settings.get("use_bert") and origin.settings.get("pretrained"):
        check_encoder(origin.settings["pretrained"], baseline=origin.settings if model.plugin is None else None)
    files = {m: one for m, one in (files or {}).items() if one}
    everything, elsewhere = read_given(file, files, origin, splits)
    rows = chosen(everything, samples, elsewhere)
    flexible = model.plugin is not None
    given = {name: fit_steps(everything[name], origin, file, truncate=truncate, flexible=flexible) for name in rows}
    where = machine.pick_device(device)
    size = origin.batch_size
    most = min(batch_size or size, size)
    digest, hashes = sha256_of(file), {m: sha256_of(Path(one).expanduser()) for m, one in files.items()}
    same = origin.sha256 in (digest, converted_from(file)) and hashes == origin.replaced
    args = _arguments(origin, where, path)
    given = _with_classes(args, file, given)
    check_tokens(args, Features(file, "", {name: one.split for name, one in given.items()}))
    if args.get("data_missing"):
        LOGGER.warning("model %r is tested on incomplete data, and predicts so too: shares %s of the steps of text, "
                       "audio and vision are hidden, drawn from missing_seed", origin.model, args["missing_rate"])
    found = []
    with _built(model, origin, args, state, path) as (module, trainer):
        for name, own in rows.items():
            calls = calls_of(own, len(given[name].split), size, most=most, as_in_run=same)
            found.append(_split(name, given[name], own, calls, args, module, trainer))
    return Predictions(path, origin, file, digest, hashes, str(where), most, found)


def _arguments(origin: Origin, device: Any, path: Path) -> Any:
    """MMSA's ``args`` as in the run that made the checkpoint."""
    from easydict import EasyDict

    bookkeeping = {"model_name": origin.model, "dataset_name": origin.dataset, "model_save_path": path,
                   "device": device, "cur_seed": 1, "custom_feature": "", "featurePath": "",
                   "feature_T": "", "feature_A": "", "feature_V": ""}
    return EasyDict({**origin.settings, **bookkeeping})


def _with_classes(args: Any, file: Path, given: Mapping[str, Given]) -> dict[str, Given]:
    """For a checkpoint of classes: labels as numbers in its own order of them; left out where the file's do not fit."""
    if args.train_mode != "classification" or not args.get("label_names"):
        return dict(given)
    features, found = Features(file, "", {name: one.split for name, one in given.items()}), {}
    for name, one in given.items():
        split, labelled = one.split, one.labelled
        try:
            if labelled.any():
                split = numbered(split, list(args.label_names), args, features)
        except InputError as error:
            LOGGER.warning("%s; predicted without labels", error)
            labelled = np.zeros_like(labelled)
        if not labelled.any():
            split = replace(split, labels=np.zeros(len(split), dtype=np.int64))
        found[name] = replace(one, split=split, labelled=labelled)
    return found


@contextmanager
def _built(
    model: Model, origin: Origin, args: Any, state: Mapping[str, Any], path: Path
) -> Iterator[tuple[Any, Any]]:
    """The model with the checkpoint's weights, and its trainer; MMSA is extended inside the block, and quiet."""
    import MMSA.run
    import torch

    with active(), repaired(model, origin.mended), quiet_mmsa(), quiet(), torch.random.fork_rng(devices=[]):
        try:
            module = MMSA.run.AMIO(args).to(args.device)
            trainer = MMSA.run.ATIO().getTrain(args)
        except (InputError, RunError):
            raise
        except Exception as error:
            raise InputError(f"{origin.source}: model {origin.model!r} cannot be built from these settings "
                             f"({type(error).__name__}: {str(error).strip()[:200]})") from error
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
            raise InputError(f"checkpoint {path}: its weights are not those of {origin.model!r} with the settings in "
                             f"{origin.source}: {lines[0][:200]}") from error
        if model.plugin is None:
            trainer.model = module  # some of MMSA's trainers test the model that they were last given for training
        yield module, trainer


def _split(
    name: str, given: Given, rows: Sequence[int], calls: Iterable[tuple[list[int], list[int]]], args: Any, module: Any,
    trainer: Any
) -> Predicted:
    """Predictions for the rows of one split."""
    import torch

    dataset = SplitDataset(given.split, args, Path(name))
    batches, keep, computed = [], [], 0
    for call, kept in calls:
        batches.append(_with_absence(dataset[call], given.absent))
        keep += [computed + place for place in kept]
        computed += len(call)
    with ExitStack() as stack:
        if callable(getattr(trainer, "metrics", None)):  # of labels that may not be there
            stack.enter_context(overlaid(trainer, "metrics", lambda *_: defaultdict(float)))
        try:
            outputs = predict_by_trainer(module, trainer, batches)
        except (InputError, RunError):
            raise
        except Exception as error:
            raise RunError(f"model {args.model_name!r} cannot predict for split {name!r}: {type(error).__name__}: "
                           f"{str(error).strip()[:200]}") from error
    outputs = outputs.reshape(computed, -1)[torch.tensor(keep)].float()
    if lost := int((~torch.isfinite(outputs)).any(dim=1).sum()):
        raise RunError(f"{lost} of {len(rows)} predictions for split {name!r} are not finite numbers: the features are "
                       "far from those of training, or the checkpoint is damaged")
    targets = dataset.labels["M"].view(-1)[rows]
    labels = [float(label) if given.labelled[row] else None for row, label in zip(rows, targets, strict=True)]
    metrics = _metrics(outputs, targets, args) if None not in labels and len(rows) > 1 else None
    return Predicted(name, [given.split.ids[row] for row in rows], outputs.numpy(), labels, metrics)


def _with_absence(batch: dict[str, Any], absent: Sequence[str]) -> dict[str, Any]:
    """The batch, saying of modalities that the file lacks that no sample has them."""
    import torch

    return {**batch, **{f"{m}_present": torch.zeros(len(batch["id"]), dtype=torch.bool) for m in absent}}


def _metrics(outputs: Any, targets: Any, args: Any) -> dict[str, float]:
    """MMSA's metrics of the data set, for samples that all have a label."""
    from MMSA.utils import MetricsTop

    found = MetricsTop(args.train_mode).getMetics(args.dataset_name)(outputs.squeeze(1), targets)
    return {name: float(value) for name, value in found.items()}
