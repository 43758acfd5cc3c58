"""Sequences to predict for, brought to the number of steps that a checkpoint was trained on: padded, cut or refused.

What may change here: what is done with sequences that are longer than those of training.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.schema import MODALITIES, Split
from ..errors import InputError
from .checkpoints import Origin
from .predict_features import Given

LOGGER = logging.getLogger("MMSA")


def fit_steps(given: Given, origin: Origin, path: Path, *, truncate: bool = False, flexible: bool = False) -> Given:
    """The split with as many steps of each modality as the training split had.

    Shorter sequences get zeros at the end, as they have them in a file of that length: models that average over all
    steps, or run over the padding, would give another prediction without. Of longer arrays the padding is cut off. A
    sample that is longer itself is cut with ``truncate``, left whole by a ``flexible`` model, which works on any
    length, and refused otherwise (InputError).
    """
    split, tokens = given.split, bool(origin.settings.get("use_bert"))
    keys = {"text": "text_bert" if tokens else "text", "audio": "audio", "vision": "vision"}
    used = [m for m in MODALITIES if m in origin.settings.get("modalities", MODALITIES) and m not in given.absent]
    found = {m: getattr(split, keys[m]).shape[2 if keys[m] == "text_bert" else 1] for m in used}
    trained = dict(zip(MODALITIES, origin.steps, strict=True))
    _check_aligned(origin, found, {m: trained[m] for m in used}, path)
    changed: dict[str, Any] = {}
    lengths = dict(split.lengths)
    for m in used:
        array, steps = getattr(split, keys[m]), trained[m]
        if keys[m] == "text_bert":
            array, own = array.transpose(0, 2, 1), array[:, 1].sum(axis=1)
        else:
            own = lengths[m]
        if found[m] > steps and (own > steps).any():
            steps = _longer(m, own, steps, split, path, truncate=truncate, flexible=flexible and steps > 1)
        if found[m] != steps:
            cut, last = array[:, :steps], array[np.arange(len(array)), np.maximum(own, 1) - 1]
            array = np.zeros((len(array), steps, array.shape[2]), dtype=array.dtype)
            array[:, :cut.shape[1]] = cut
            if keys[m] == "text_bert":  # a sentence that was cut still ends with [SEP]
                array[own > steps, -1] = last[own > steps]
            changed[keys[m]] = np.ascontiguousarray(array.transpose(0, 2, 1)) if keys[m] == "text_bert" else array
            lengths[m] = np.minimum(own, steps)
    if not tokens:
        changed["text_bert"] = None  # it has told the lengths of text, and no more
    return dataclasses.replace(given, split=dataclasses.replace(split, lengths=lengths, **changed))


def _longer(
    modality: str, own: np.ndarray, steps: int, split: Split, path: Path, *, truncate: bool, flexible: bool
) -> int:
    """How many steps to keep where a sample has more than those of training had."""
    count, longest = int((own > steps).sum()), int(own.argmax())
    text = (f"{path}: {count} of {len(own)} samples have more than the {steps} step{'s' * (steps > 1)} of {modality} "
            f"that the checkpoint was trained on, {split.ids[longest]!r} has {own[longest]}")
    if truncate:
        LOGGER.warning("%s: cut (--truncate)%s", text,
                       "; the first step is kept, not the average over them all" if steps == 1 else "")
        return steps
    if not flexible:
        raise InputError(f"{text};\n" + (
            "give one average over the steps of a sample, as in training (--truncate would keep the first step alone)"
            if steps == 1 else "cut them with --truncate, as MMSA-FET cuts outliers"))
    LOGGER.warning("%s: the model takes them whole, but has seen none so long; --truncate cuts them", text)
    return int(own.max())


def _check_aligned(origin: Origin, found: Mapping[str, int], trained: Mapping[str, int], path: Path) -> None:
    """Refuse unaligned sequences for a model that was trained on one step of audio and vision for each word."""
    aligned = origin.settings.get("need_data_aligned") and len(set(trained.values())) == 1 and len(trained) > 1
    if aligned and max(trained.values()) > 1 and len(set(found.values())) > 1:
        steps = ", ".join(f"{modality} {count}" for modality, count in found.items())
        raise InputError(f"{path}: has {steps} steps, and the checkpoint was trained on aligned features, where word, "
                         "sound and picture share a step; align them first (MMSA-FET: \"align\" in its config)")
