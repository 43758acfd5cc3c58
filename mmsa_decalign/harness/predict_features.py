"""Features to predict for: files with text, audio and vision, as wide as those that a checkpoint was trained on.

Read are files of a training (pickles in MMSA's layout or converted), files without labels, ids or some of the splits,
dictionaries of arrays without splits, and one sample as MMSA-FET writes it: arrays (steps, width). What a training
refuses is refused here in the same words, since the same function checks it. How many steps are kept
is in predict_steps.py. What may change here: further layouts.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import as_strings
from ..data.reading import read_file, replace_modality
from ..data.schema import LABEL_KEYS, MODALITIES, Split, read_split
from ..errors import InputError, nearest
from .checkpoints import Origin

LOGGER = logging.getLogger("MMSA")
WHOLE = "all"  # the name of what has no splits
_ARRAYS = (*MODALITIES, "text_bert")
_PER_SAMPLE = ("id", "raw_text", "text_lengths", "audio_lengths", "vision_lengths", "annotations",
               *LABEL_KEYS, *(f"regression_labels_{letter}" for letter in "TAV"))


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """One split of the file. labelled (N,): which samples have a label; absent: modalities that the file lacks."""

    split: Split
    labelled: np.ndarray
    absent: tuple[str, ...] = ()


def read_given(
    path: Path, files: Mapping[str, str | Path | None], origin: Origin, splits: Sequence[str] = ()
) -> tuple[dict[str, Given], dict[str, list[str]]]:
    """The splits named (none or "all": every one that is not empty) of a feature file, ``files`` replacing a modality
    each, checked, as wide as in training; and the ids in the other splits, which are not read further.

    Raises InputError for a split that is not there or empty, for what a training refuses too, and for features of
    another width than the checkpoint's.
    """
    data, others = _wanted(_splits(read_file(path), path), splits, path)
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
    return given, {name: _ids(raw) for name, raw in others.items()}


def _wanted(
    data: Mapping[str, dict[str, Any]], splits: Sequence[str], path: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The splits to predict for, in the order asked for, and the others."""
    named = not (not splits or WHOLE in splits)
    names = list(dict.fromkeys(splits)) if named else list(data)
    for name in names:
        if name not in data:
            raise InputError(f"--split {name}: the file has no such split; {nearest(name, [*data, WHOLE])}")
    empty = [name for name in names if not _samples(data[name])]
    if empty and (named or len(empty) == len(names)):
        raise InputError(f"{path}: split {empty[0]!r} is empty: there is nothing to predict")
    if empty:
        LOGGER.warning("%s: nothing to predict for split %s, which is empty", path, ", ".join(map(repr, empty)))
    wanted = {name: data[name] for name in names if name not in empty}
    return wanted, {name: raw for name, raw in data.items() if name not in wanted}


def _samples(raw: Mapping[str, Any]) -> int:
    """How many samples a split has."""
    return next((count for key in (*_ARRAYS, "id") if (count := _rows(raw.get(key)))), 0)


def _ids(raw: Mapping[str, Any]) -> list[str]:
    """The ids in a split that has not been checked, as far as they can be read."""
    try:
        return as_strings(raw.get("id", []), "ids")
    except InputError:
        return []


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
    several = any(_rows(raw.get(key)) > 1 for key in ("id", *LABEL_KEYS))
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
    rows = _samples(raw)
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
    own, other = reversed(LABEL_KEYS) if classes else LABEL_KEYS
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


def chosen(
    given: Mapping[str, Given], samples: Sequence[str], elsewhere: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """The rows to predict for, by split: those with the ids named, or all. ``elsewhere``: the ids of other splits.

    Raises InputError for an id that is not there, with the split that has it or the nearest id.
    """
    if not samples:
        return {name: list(range(len(one.split))) for name, one in given.items()}
    rows = {name: [row for row, sample in enumerate(one.split.ids) if sample in set(samples)]
            for name, one in given.items()}
    present = {given[name].split.ids[row] for name, own in rows.items() for row in own}
    for sample in samples:
        if sample not in present:
            other = next((name for name, ids in elsewhere.items() if sample in ids), None)
            raise InputError(f"--sample {sample}: " + (
                f"is in split {other}, not in {', '.join(given)}" if other is not None else
                f"not among the samples of {', '.join(given)}; {_closest(sample, given, elsewhere)}"))
    return {name: own for name, own in rows.items() if own}


def _closest(sample: str, given: Mapping[str, Given], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """The nearest id, never all of them: a file has thousands."""
    where = {one: f" (of split {name})" for name, ids in elsewhere.items() for one in ids}
    where |= {one: "" for split in given.values() for one in split.split.ids}
    close = difflib.get_close_matches(sample, where, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}{where[close[0]]}?" if close else f"ids there look like {next(iter(where))!r}"
