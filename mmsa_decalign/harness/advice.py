"""Warnings that help, at the end of a run: what looks wrong in any model's account and predictions, and what to try.

Lives here: one small rule each, for every model alike; DecAlign's own are in its trainer (diagnosis.py), whose
``advice`` comes first. An advice is {"what": ..., "try": ...}. To add a rule: a function that returns one or None.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .samples import Samples
from .watch import is_number

LOGGER = logging.getLogger("MMSA")

Advice = dict[str, str]

FLAT = 0.01  # of the labels' range: predictions within less than this are as good as constant
_LIMITS = ("num_epochs", "epochs", "max_epochs")  # what ends a training at so many epochs, by model


def advise(
    trainer: Any, epochs: Sequence[Mapping[str, Any]], selection: Mapping[str, Any], settings: Mapping[str, Any],
    found: Samples | None, split: str,
) -> list[Advice]:
    """All that is to be said of a run, each once; what the trainer has not said itself goes to the log.

    ``found`` is what the checkpoint predicted on ``split``; None where the trainer does not show it.
    """
    account = [entry for entry in epochs if isinstance(entry, Mapping)]  # a plugin's own may hold anything
    rules = (losses(account), epoch(epochs, selection, settings), predictions(found, settings, split))
    own = [one for one in rules if one is not None]
    for one in own:
        LOGGER.warning("%s; try %s", one["what"], one["try"])
    return [*(getattr(trainer, "advice", None) or []), *own]


def losses(epochs: Sequence[Mapping[str, Any]]) -> Advice | None:
    """A training loss that was no finite number, in a run that was not stopped for it."""
    bad = {name: sum(not _finite(entry.get("train", {}).get(name)) for entry in epochs)
           for entry in epochs for name in entry.get("train", {}) if not _finite(entry["train"][name])}
    if not bad:
        return None
    name, times = next(iter(bad.items()))
    return {"what": f"the training {name.replace('_', ' ')} was not a finite number in {times} of {len(epochs)} "
                    "epochs, while the weights stayed finite",
            "try": "a larger batch_size, or another learning_rate; and do not read that loss"}


def _finite(value: Any) -> bool:
    return not is_number(value) or math.isfinite(value)


def epoch(
    epochs: Sequence[Mapping[str, Any]], selection: Mapping[str, Any], settings: Mapping[str, Any]
) -> Advice | None:
    """The epoch that was chosen is the first or the last one."""
    last, chosen, metric = len(epochs), selection["epoch"], selection["metric"]
    if last < 2 or chosen not in (1, last):
        return None
    if chosen == 1:
        return {"what": f"validation {metric} was best after the first of {last} epochs and never again",
                "try": "a lower learning_rate, or stronger regularisation"}
    limit = next((name for name in _LIMITS if settings.get(name) == last), "max_epochs")
    return {"what": f"validation {metric} was best in the last epoch, {last}: it was still getting better",
            "try": f"more epochs ({limit})"}


def predictions(found: Samples | None, settings: Mapping[str, Any], split: str) -> Advice | None:
    """What the checkpoint predicts says nothing, or no more than the commonest answer."""
    if found is None or len(found.labels) < 2 or not np.isfinite(found.predictions).all():
        return None
    return _classes(found, settings["label_names"], split) if settings.get("label_names") else _scale(found, split)


def _classes(found: Samples, names: Sequence[str], split: str) -> Advice | None:
    predicted, labels = found.predictions.argmax(axis=1), found.labels.astype(int)
    remedy = "more epochs, a higher learning_rate, or class weights where the model has them"
    if len(set(predicted.tolist())) == 1:
        return {"what": f"every sample of the {split} split is predicted to be {names[predicted[0]]!r}", "try": remedy}
    right, common = float((predicted == labels).mean()), np.bincount(labels, minlength=len(names))
    if right > (share := float(common.max() / len(labels))):
        return None
    return {"what": f"accuracy on the {split} split is {right:.1%}, and always saying {names[int(common.argmax())]!r} "
                    f"gives {share:.1%}", "try": remedy}


def _scale(found: Samples, split: str) -> Advice | None:
    predicted, labels = found.predictions[:, 0], found.labels
    remedy = "another learning_rate, more epochs, or a look at the features (mmsa data inspect)"
    if np.ptp(predicted) <= FLAT * np.ptp(labels) and np.ptp(labels) > 0:
        return {"what": f"predictions on the {split} split are as good as constant: all between {predicted.min():.3g} "
                        f"and {predicted.max():.3g}, labels between {labels.min():.3g} and {labels.max():.3g}",
                "try": remedy}
    rated = labels != 0
    positive, said = labels[rated] > 0, predicted[rated] > 0
    if positive.all() or not positive.any():
        return None
    share = float(max(positive.mean(), 1 - positive.mean()))
    side = "positive" if positive.mean() >= 0.5 else "negative"
    if said.all() or not said.any():
        return {"what": f"all predictions on the {split} split are {'positive' if said.all() else 'negative'}, so that "
                        f"Acc-2 is the share of such labels ({side} labels: {share:.1%})", "try": remedy}
    if (right := float((said == positive).mean())) > share:
        return None
    return {"what": f"Acc-2 of labels that are not zero is {right:.1%} on the {split} split, and always saying {side} "
                    f"gives {share:.1%}", "try": remedy}
