"""Data sets of classes instead of a scale (IEMOCAP): labels, metrics, the majority row, and the split protocols.

A data set is one of classes where its settings say ``train_mode: classification``; its ``label_names`` are the classes
in their order, and a file that names its own is brought into that order. What may change here: further metrics. Which
of MMSA's models can be trained on classes is in needs.py.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..data.schema import Features, Split
from ..errors import InputError
from .config import PAPER_COUNT
from .patching import View, replace

LOGGER = logging.getLogger("MMSA")
# What raw releases call the classes, too.
_SHORT = {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated",
          "happiness": "happy", "sadness": "sad", "anger": "angry", "excitement": "excited",
          "frustration": "frustrated"}


# Labels


def with_labels(args: Mapping[str, Any], features: Features) -> Features:
    """The features with the labels that this task learns, and the splits of its protocol.

    Raises InputError for a file that has no such labels, or classes that do not fit the data set.
    """
    if args.get("train_mode") != "classification":
        for name, split in features.splits.items():
            if split.labels is None:
                raise InputError(f"{features.path}: split {name!r} has classes and no key 'regression_labels', which "
                                 f"data set {args.get('dataset_name')!r} is about; use -d iemocap or -d iemocap4")
        return features
    names = list(args["label_names"])
    splits = {name: numbered(split, names, args, features) for name, split in features.splits.items()}
    lacking = [label for number, label in enumerate(names) if not (splits["train"].labels == number).any()]
    if lacking:
        other = "; a file of four classes is for -d iemocap4" if args.get("dataset_name") == "iemocap" else ""
        raise InputError(f"{features.path}: split 'train' has no sample of class {lacking[0]!r}, which a model of "
                         f"{len(names)} classes has to learn{other}")
    if selects_on_test(args):
        splits = {"train": _joined("train", [splits["train"], splits["valid"]], features),
                  "valid": dataclasses.replace(splits["test"], name="valid"), "test": splits["test"]}
    return dataclasses.replace(features, splits=splits)


def numbered(split: Split, names: Sequence[str], args: Mapping[str, Any], features: Features) -> Split:
    """With ``labels`` (N,) int64 in the order of ``names``, by the names that the file has, else by its numbers.

    Raises InputError for a split without classes, and for classes or names that the data set does not have.
    """
    dataset, order = args.get("dataset_name"), _order(features, names, args.get("dataset_name"))
    if split.classes is None:
        raise InputError(f"{features.path}: split {split.name!r} has no key 'classification_labels' with whole numbers "
                         f"from 0, which data set {dataset!r} is about")
    for number in np.unique(split.classes).tolist():
        if number not in order:
            sample = split.ids[int((split.classes == number).argmax())]
            known = ", ".join(f"{own} {names[place]}" for own, place in sorted(order.items()))
            raise InputError(f"{features.path}: split {split.name!r} has the class {number} in sample {sample!r}; "
                             f"data set {dataset!r} has {len(names)}: {known}")
    labels = np.array([order[number] for number in split.classes.tolist()], dtype=np.int64)
    return dataclasses.replace(split, labels=labels, unimodal_labels={})


def _order(features: Features, names: Sequence[str], dataset: str | None) -> dict[int, int]:
    """{class in the file: its place in ``names``}, by the names in the file, or the same number where it has none."""
    own: dict[int, str] = {}
    for split in features.splits.values():
        for number, given in split.class_names.items():
            name = _SHORT.get(given.lower(), given.lower())
            here = f"{features.path}: split {split.name!r} calls the class {number} {given!r}"
            if name not in names:
                raise InputError(f"{here}; data set {dataset!r} has {', '.join(names)}")
            if own.setdefault(number, name) != name:
                raise InputError(f"{here}, and another split {own[number]!r}; give each class one name")
    if twice := [name for name in names if list(own.values()).count(name) > 1]:
        raise InputError(f"{features.path}: two classes are called {twice[0]!r}; give each class one number")
    order = {number: names.index(name) for number, name in own.items()}
    rest = [place for place in range(len(names)) if place not in order.values()]
    return order | {place: place for place in rest if place not in order}


def _joined(name: str, parts: Sequence[Split], features: Features) -> Split:
    """Several splits as one; sequences of different lengths are padded with zeros at their ends."""

    def joined(field: str) -> Any:
        values = [getattr(part, field) for part in parts]
        if any(value is None for value in values):
            return None
        if isinstance(values[0], list):
            return [one for value in values for one in value]
        if values[0].ndim == 3 and field != "text_bert":
            steps = max(value.shape[1] for value in values)
            values = [np.pad(value, ((0, 0), (0, steps - value.shape[1]), (0, 0))) for value in values]
        return np.concatenate(values)

    fields = ("text", "text_bert", "audio", "vision", "labels", "ids", "raw_text", "classes")
    lengths = {m: np.concatenate([part.lengths[m] for part in parts]) for m in parts[0].lengths}
    return dataclasses.replace(parts[0], name=name, lengths=lengths, **{field: joined(field) for field in fields})


# Metrics


def class_rules(names: Sequence[str]) -> dict[str, str]:
    """Metric name -> by which rule, for classes of these names."""
    return {
        "WA": "weighted accuracy: the share of all samples that are right, which is the mean of the classes' recalls "
              "weighted by their frequency (DecAlign's release: WAcc)",
        "UA": "unweighted accuracy: the mean of the recalls of the classes that the split has, each counting the same",
        "Weighted_F1": "mean of the classes' F1, weighted by their frequency (DecAlign's release: WAF1)",
        **{f"F1_{name}": f"F1 of class {name!r} against the rest" for name in names},
    }


def class_metrics(names: Sequence[str]) -> Callable[[Any, Any], dict[str, float]]:
    """What MMSA's trainers call with scores (N, classes) and labels (N,): the metrics of ``class_rules``.

    F1 of a class that a split neither has nor is told to have is not a number.
    """
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    def metrics(scores: Any, labels: Any) -> dict[str, float]:
        predicted = scores.detach().cpu().numpy().argmax(axis=1)
        true = labels.detach().cpu().numpy().reshape(-1).astype(np.int64)
        numbers = list(range(len(names)))
        each = f1_score(true, predicted, labels=numbers, average=None, zero_division=np.nan)
        found = {
            "WA": accuracy_score(true, predicted),
            "UA": recall_score(true, predicted, labels=np.unique(true), average="macro"),
            "Weighted_F1": f1_score(true, predicted, labels=numbers, average="weighted", zero_division=0),
            **{f"F1_{name}": value for name, value in zip(names, each, strict=True)},
        }
        return {name: float(value) for name, value in found.items()}

    return metrics


def account(args: Mapping[str, Any], splits: Mapping[str, Any], test_split: str = "test") -> dict[str, Any] | None:
    """What a record says of a task of classes, None for any other.

    labels, samples {split: {label: number}}, protocol and the split that the checkpoint was selected on, and majority:
    the commonest class of the training split and the figures of saying nothing else on the test split.
    """
    if args.get("train_mode") != "classification":
        return None
    import torch

    names = list(args["label_names"])
    counts = {split: np.bincount(one.labels["M"].view(-1).numpy(), minlength=len(names))
              for split, one in splits.items()}
    most = int(counts["train"].argmax())
    labels = splits[test_split].labels["M"].view(-1)
    always = torch.nn.functional.one_hot(torch.full_like(labels, most), len(names))
    return {
        "labels": names,
        "samples": {split: dict(zip(names, count.tolist(), strict=True)) for split, count in counts.items()},
        "protocol": args.get("protocol"),
        "selected_on": "test" if selects_on_test(args) else "valid",
        "majority": {"class": names[most], test_split: class_metrics(names)(always, labels)},
    }


# Protocols


def selects_on_test(args: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is chosen by the test split, as DecAlign's release offers it."""
    return args.get("protocol") == PAPER_COUNT


def cautions(args: Mapping[str, Any], features: Features, splits: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said in the log before a training on classes."""
    if args.get("train_mode") != "classification":
        return
    names = list(args["label_names"])
    if selects_on_test(args):
        yield (f"SELECTED ON TEST: protocol {PAPER_COUNT} trains on train and valid together and chooses the epoch by "
               "the test split, so that the test figures are too good; they compare with nothing that is chosen on "
               "validation. What the lines of the training call valid or VAL is the test split")
    if not all(split.class_names for split in features.splits.values()):
        order = ", ".join(f"{number} {name}" for number, name in enumerate(names))
        yield f"the file does not name its classes (key 'annotations'): taken for {order}"
    for split, one in splits.items():
        for number, name in enumerate(names):
            if not bool((one.labels["M"] == number).any()):
                yield f"split {split!r} has no sample of class {name!r}"


# Trainers


def taught_classes(trainer: Any, args: Mapping[str, Any]) -> Any:
    """The trainer itself; mfm's, which takes the absolute difference in any mode, takes cross entropy on classes."""
    if args.get("train_mode") != "classification" or args.get("model_name") != "mfm":
        return trainer
    from torch import nn

    class ClassLoss(nn.CrossEntropyLoss):
        def forward(self, scores: Any, labels: Any) -> Any:
            return super().forward(scores, labels.reshape(-1).long())

    module = sys.modules[type(trainer).__module__]

    def with_class_loss(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            undo = replace(module, "nn", View(module.nn, L1Loss=ClassLoss))
            try:
                return function(*args, **kwargs)
            finally:
                undo()

        return run

    trainer.do_train, trainer.do_test = with_class_loss(trainer.do_train), with_class_loss(trainer.do_test)
    return trainer
