"""Features to predict for: files with text, audio and vision, brought into the shape that a checkpoint was trained on.

Read are files of a training (pickles in MMSA's layout or converted), files without labels, ids or some of the splits,
dictionaries of arrays without splits, and one sample as MMSA-FET writes it: arrays (steps, width). What a training
refuses is refused here in the same words, since the same function checks it. What may change here: further layouts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading import read_file, replace_modality
from ..data.schema import MODALITIES, Split, read_split
from ..errors import InputError, nearest
from .checkpoints import Origin

LOGGER = logging.getLogger("MMSA")
WHOLE = "all"  # the name of what has no splits
_LABELS = ("regression_labels", "classification_labels")
_ARRAYS = (*MODALITIES, "text_bert")
_PER_SAMPLE = ("id", "raw_text", "text_lengths", "audio_lengths", "vision_lengths", "annotations",
               *_LABELS, *(f"regression_labels_{letter}" for letter in "TAV"))


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """One split of the file. labelled (N,): which samples have a label; absent: modalities that the file lacks."""

    split: Split
    labelled: np.ndarray
    absent: tuple[str, ...] = ()


def read_given(path: Path, files: Mapping[str, str | Path | None], origin: Origin) -> dict[str, Given]:
    """Every split of a feature file, ``files`` replacing a modality each, checked, as long and wide as in training.

    Raises InputError for what a training refuses too, and for features of another width than the checkpoint's.
    """
    data = _splits(read_file(path), path)
    sources = {m: Path(file).expanduser() for m in MODALITIES if (file := files.get(m))}
    for modality, source in sources.items():
        other = _splits(read_file(source), source)
        for name, raw in data.items():
            if name not in other:
                raise InputError(f"{source}: has no split {name!r}, which {path} has; found: {', '.join(other)}.\n"
                                 "Give a file with the same splits.")
            replace_modality(raw, other[name], modality, name, path, source)
    zeroed: dict[str, int] = {}
    given = {name: _given(name, raw, path, sources, origin, zeroed) for name, raw in data.items()}
    if zeroed:
        listing = ", ".join(f"{name} {count}" for name, count in zeroed.items())
        LOGGER.warning("%s: values of -inf in 'audio' were set to 0 (%s)", sources.get("audio", path), listing)
    return given


def _splits(data: Any, path: Path) -> dict[str, dict[str, Any]]:
    """{name: arrays of its samples}, whichever of the layouts this is."""
    if isinstance(data, Mapping):
        if any(key in data and not isinstance(data[key], Mapping) for key in _ARRAYS):
            return {WHOLE: _as_batch(data, path)}
        found = {str(name): dict(raw) for name, raw in data.items()
                 if isinstance(raw, Mapping) and any(key in raw for key in _ARRAYS)}
        if found:
            return found
    raise InputError(f"{path}: holds no features: neither arrays text, audio and vision, nor splits with such arrays.\n"
                     "Give a feature file, or one sample with arrays of shape (steps, width).")


def _as_batch(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The dictionary itself, or one sample as a batch of one. GloVe's vectors come as texts from MMSA-FET."""
    arrays = {key: raw[key] for key in _ARRAYS if raw.get(key) is not None}
    several = any(_rows(raw.get(key)) > 1 for key in ("id", *_LABELS))
    if several or not all(getattr(value, "ndim", 0) == 2 for value in arrays.values()):
        return dict(raw)
    batch: dict[str, Any] = {}
    for key, value in arrays.items():
        try:
            batch[key] = np.asarray(value, dtype=np.float32 if value.dtype.kind in "SU" else None)[None]
        except ValueError:
            raise InputError(f"{path}: key {key!r} holds texts that are no numbers; expected (steps, width).") from None
    for key in _PER_SAMPLE:
        if raw.get(key) is not None:
            batch[key] = raw[key] if _rows(raw[key]) else [raw[key]]
    return batch


def _rows(value: Any) -> int:
    """How many samples a value of a split has rows for; 0 for one that is no list and no array."""
    return len(value) if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) else 0


def _given(
    name: str, raw: dict[str, Any], path: Path, sources: Mapping[str, Path], origin: Origin, zeroed: dict[str, int]
) -> Given:
    """One split, checked: with stand-ins for what prediction does not need, so that the checks of training apply."""
    settings = origin.settings
    tokens = bool(settings.get("use_bert"))
    rows = next((count for key in (*_ARRAYS, "id") if (count := _rows(raw.get(key)))), 0)
    absent = []
    for modality, width in zip(MODALITIES, origin.widths, strict=True):
        unread = modality not in settings.get("modalities", MODALITIES) or (modality == "text" and tokens)
        if unread or (raw.get(modality) is None and origin.model == "decalign"):
            if not unread:
                absent.append(modality)
            raw[modality] = np.zeros((rows, 1, width), dtype=np.float32)
            raw.pop(f"{modality}_lengths", None)
    if tokens and raw.get("text_bert") is None and "text" in settings.get("modalities", MODALITIES):
        raise InputError(f"{path}: split {name!r} has no key 'text_bert', and model {origin.model!r} was trained on "
                         "token ids; extract the tokens too (MMSA-FET does with a BERT)")
    if len(absent) == len(MODALITIES):
        raise InputError(f"{path}: split {name!r} has none of text, audio and vision")
    if absent:
        LOGGER.warning("%s: split %r has no %s: predicted without, from the other modalities alone", path, name,
                       " and no ".join(absent))
    labelled = _make_labels(raw, rows, f"{path}: split {name!r}", classes=settings["train_mode"] == "classification")
    raw.setdefault("id", [path.stem] if name == WHOLE and rows == 1 else [str(row) for row in range(rows)])
    raw.setdefault("raw_text", [""] * rows)
    split = read_split(name, raw, path, sources, zeroed)
    _check_widths(split, origin, path, sources)
    return Given(split, labelled, tuple(absent))


def _make_labels(raw: dict[str, Any], rows: int, where: str, *, classes: bool) -> np.ndarray:
    """Which samples have a label. Zeros take the place of those that are absent: no prediction depends on them."""
    own, other = reversed(_LABELS) if classes else _LABELS
    values = raw.get(own)
    if classes:
        raw[other] = np.zeros(rows, dtype=np.float32)
    else:
        raw.pop(other, None)
    labelled = np.zeros(rows, dtype=bool)
    if values is not None:
        try:
            numbers = np.asarray(values, dtype=np.float64)
        except (ValueError, TypeError):
            raise InputError(f"{where}, key {own!r}: expected a number for each sample, or none at all.") from None
        if numbers.size == rows:  # other counts are refused below, with the rest of the file
            labelled = ~np.isnan(numbers.reshape(-1))
        if np.isnan(numbers).any():
            raw[own] = np.nan_to_num(numbers, posinf=np.inf, neginf=-np.inf)
    if not labelled.any():
        raw[own] = np.zeros(rows, dtype=np.int64 if classes else np.float32)
    for letter in "TAV":
        raw[f"regression_labels_{letter}"] = np.zeros(rows, dtype=np.float32)
    return labelled


def _check_widths(split: Split, origin: Origin, path: Path, sources: Mapping[str, Path]) -> None:
    for modality, width in zip(MODALITIES, origin.widths, strict=True):
        found = getattr(split, modality).shape[2]
        if found != width:
            raise InputError(f"{sources.get(modality, path)}: {modality!r} has {found} features a step, and the "
                             f"checkpoint was trained on {width}; extract them as those of {origin.dataset!r} were")


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
    if truncate and steps > 1:
        LOGGER.warning("%s: cut (--truncate)", text)
        return steps
    if not flexible:
        raise InputError(f"{text};\n" + ("give one average over the steps of a sample, as in training"
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


def chosen(given: Mapping[str, Given], splits: Sequence[str], samples: Sequence[str]) -> dict[str, list[int]]:
    """The rows to predict for, by split: of the splits named (none or "all": every one) those with the ids named.

    Raises InputError for a split or an id that is not there.
    """
    names = list(given) if not splits or WHOLE in splits else list(dict.fromkeys(splits))
    for name in names:
        if name not in given:
            raise InputError(f"--split {name}: the file has no such split; {nearest(name, [*given, WHOLE])}")
    if not samples:
        return {name: list(range(len(given[name].split))) for name in names}
    rows = {name: [row for row, one in enumerate(given[name].split.ids) if one in set(samples)] for name in names}
    present = {given[name].split.ids[row] for name, own in rows.items() for row in own}
    for sample in samples:
        if sample not in present:
            close = nearest(sample, [one for name in names for one in given[name].split.ids])
            raise InputError(f"--sample {sample}: not among the samples of {', '.join(names)}; {close[:200]}")
    return {name: own for name, own in rows.items() if own}
