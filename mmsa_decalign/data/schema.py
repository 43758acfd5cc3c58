"""What a feature file must hold: the frozen records the rest of the package reads, and the one check at the border.

A raw file is a dictionary of splits, each a dictionary of arrays (MMSA's layout). `features_from_dict` turns it into
`Features` or stops with one `InputError` that names file, split, key, what was expected and the remedy. Nothing behind
this border checks a feature file again. What may change here: further optional keys; unknown keys are ignored.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, nearest
from .arrays import (
    as_strings,
    class_array,
    clip_lengths,
    feature_array,
    label_array,
    last_nonzero,
    length_array,
    refuse_non_finite,
    token_array,
)

logger = logging.getLogger("MMSA")

SPLITS = ("train", "valid", "test")
MODALITIES = ("text", "audio", "vision")
UNIMODAL = ("T", "A", "V")
LABEL_KEYS = ("regression_labels", "classification_labels")
REQUIRED_KEYS = (*MODALITIES, "regression_labels", "id", "raw_text")


@dataclass(frozen=True, eq=False)  # arrays have no single answer to ==
class Split:
    """One split. `lengths[m]` counts the steps before the trailing padding of modality m, 1..T."""

    name: str
    text: np.ndarray  # (N, T_t, D_t) float32
    text_bert: np.ndarray | None  # (N, 3, L) int64: token ids, attention mask, segment ids
    audio: np.ndarray  # (N, T_a, D_a) float32
    vision: np.ndarray  # (N, T_v, D_v) float32
    lengths: dict[str, np.ndarray]  # "text", "audio", "vision" -> (N,) int64
    labels: np.ndarray | None  # (N,) float32, or None in a file that has classes alone
    unimodal_labels: dict[str, np.ndarray]  # those of "T", "A", "V" that the file has -> (N,) float32
    ids: list[str]
    raw_text: list[str]
    classes: np.ndarray | None = None  # (N,) int64 from 0 on, if the file has usable ones
    class_names: dict[int, str] = field(default_factory=dict)  # those that `annotations` tell, for some classes

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Features:
    """A checked feature file. `overrides` holds the SHA-256 of each file that replaced a modality."""

    path: Path
    sha256: str
    splits: dict[str, Split]
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def feature_dims(self) -> tuple[int, int, int]:
        """(D_text, D_audio, D_vision), the same in every split."""
        train = self.splits["train"]
        return train.text.shape[2], train.audio.shape[2], train.vision.shape[2]

    @property
    def seq_lens(self) -> tuple[int, int, int]:
        """(T_text, T_audio, T_vision), padding included: the longest of the splits where they differ."""
        text, audio, vision = (max(getattr(s, m).shape[1] for s in self.splits.values()) for m in MODALITIES)
        return text, audio, vision


def features_from_dict(
    data: Any,
    path: Path,
    sha256: str,
    *,
    sources: Mapping[str, Path] | None = None,
    overrides: dict[str, str] | None = None,
) -> Features:
    """Check an unpickled feature file and return it as records.

    `data` is used up: arrays are taken out of it one by one, so that a float64 array does not stay beside its float32
    copy; float32 arrays are passed on without copying. `sources` says which file a modality came from when it is not
    `path`. Raises InputError. A value of -inf in `audio` is set to 0 with one logged warning (the published files
    hold such values and MMSA reads them so); any other value that is not finite is refused.
    """
    sources = sources or {}
    check_splits(data, path)
    for name in SPLITS:
        data[name] = dict(data[name])  # emptied below; files exist whose splits share one dictionary
    zeroed: dict[str, int] = {}
    splits = {name: read_split(name, data[name], path, sources, zeroed) for name in SPLITS}
    for modality in MODALITIES:
        widths = {name: getattr(split, modality).shape[2] for name, split in splits.items()}
        if len(set(widths.values())) > 1:
            raise InputError(
                f"{sources.get(modality, path)}: the width of {modality!r} differs between splits "
                f"({_listing(widths)}).\nExtract all splits with the same feature extractor."
            )
    if zeroed:
        logger.warning("%s: values of -inf in 'audio' were set to 0 (%s)", sources.get("audio", path), _listing(zeroed))
    for name, split in splits.items():
        if twice := repeated(split.ids):
            logger.warning("%s: split %r has %d samples whose id another one has, too (%s); each is taken for a sample "
                           "of its own", path, name, sum(one in twice for one in split.ids), few(list(twice)))
    return Features(Path(path), sha256, splits, overrides or {})


def repeated(ids: Iterable[str]) -> dict[str, int]:
    """{id: how often} of those that occur more than once, in their order."""
    return {one: number for one, number in Counter(ids).items() if number > 1}


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of several names, quoted."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def check_splits(data: Any, path: Path) -> None:
    """Refuse anything that is not a dictionary with the splits train, valid and test, each a dictionary."""
    if not isinstance(data, MutableMapping):
        raw = isinstance(data, tuple | list) and len(data) > 5 and isinstance(data[0], Mapping)
        raise InputError(
            f"{path}: holds a {type(data).__name__}, not a dictionary of the splits {', '.join(SPLITS)}.\n" + (
                "If it is a raw IEMOCAP release, `mmsa data convert` makes a feature file of it." if raw else
                "Give a feature file in MMSA's layout; `mmsa data synth` writes an example.")
        )
    for name in SPLITS:
        if name not in data:
            raise InputError(f"{path}: has no split {name!r}; {_nearest_found(name, data)}.\n"
                             f"A feature file needs the splits {', '.join(SPLITS)}.")
        if not isinstance(data[name], MutableMapping):
            raise InputError(f"{path}: split {name!r} is a {type(data[name]).__name__}, not a dictionary of arrays.\n"
                             f"It needs the keys {', '.join(REQUIRED_KEYS)}.")


def require_key(raw: Mapping[str, Any], key: str, split: str, path: Path) -> None:
    """Refuse a split without `key`, naming the nearest key that it has."""
    if key not in raw:
        raise InputError(f"{path}: split {split!r} has no key {key!r}; {_nearest_found(key, raw)}.\n"
                         f"MMSA's layout needs {', '.join(REQUIRED_KEYS)} in every split.")


def _require_labels(raw: Mapping[str, Any], split: str, path: Path) -> None:
    """Refuse a split that has no key of labels, naming another only where it is a misspelt one."""
    if "regression_labels" in raw:
        return
    others = {str(key).lower(): str(key) for key in raw if not str(key).startswith("regression_labels")}
    meant = [others[close] for key in LABEL_KEYS for close in difflib.get_close_matches(key, others, n=1, cutoff=0.8)]
    raise InputError(f"{path}: split {split!r} has no key {' and no '.join(map(repr, LABEL_KEYS))}, so that it has no "
                     f"labels{f'; did you mean {meant[0]!r}?' if meant else '.'}\n"
                     "One of the two is needed in every split, a number or a class for each sample.")


def read_split(
    name: str, raw: MutableMapping[str, Any], path: Path, sources: Mapping[str, Path], zeroed: dict[str, int]
) -> Split:
    where = {m: f"{sources.get(m, path)}: split {name!r}" for m in MODALITIES}
    here = f"{path}: split {name!r}"
    only_classes = raw.get("regression_labels") is None and raw.get("classification_labels") is not None
    for key in REQUIRED_KEYS:
        if key == "regression_labels" and not only_classes:
            _require_labels(raw, name, path)
        elif key != "regression_labels":
            require_key(raw, key, name, sources.get(key, path))

    ids, raw_text = (as_strings(raw.pop(k), f"{here}, key {k!r}") for k in ("id", "raw_text"))
    if not ids:
        raise InputError(f"{here} is empty; expected at least one sample in each of train, valid and test.\n"
                         "Move samples of another split, from other videos, into it.")
    classes = classes_of(raw, here)
    labels = None if only_classes else label_array(raw.pop("regression_labels"), f"{here}, key 'regression_labels'")
    unimodal = {u: label_array(raw.pop(f"regression_labels_{u}"), f"{here}, key 'regression_labels_{u}'")
                for u in UNIMODAL if raw.get(f"regression_labels_{u}") is not None}
    arrays = {m: feature_array(raw.pop(m), f"{where[m]}, key {m!r}") for m in MODALITIES}
    bert = raw.pop("text_bert", None)
    text_bert = None if bert is None else token_array(bert, f"{where['text']}, key 'text_bert'")
    given = {m: length_array(raw.pop(f"{m}_lengths"), f"{where[m]}, key '{m}_lengths'")
             for m in MODALITIES if raw.get(f"{m}_lengths") is not None}

    rows = {m: len(arrays[m]) for m in MODALITIES}
    rows |= {"id": len(ids), "raw_text": len(raw_text)}
    rows |= {} if labels is None else {"regression_labels": len(labels)}
    if classes is not None and (only_classes or len(classes) == len(ids)):
        rows["classification_labels"] = len(classes)
    rows |= {f"regression_labels_{u}": len(v) for u, v in unimodal.items()}
    rows |= {f"{m}_lengths": len(v) for m, v in given.items()}
    if text_bert is not None:
        rows["text_bert"] = len(text_bert)
    if len(set(rows.values())) > 1:
        files = ", ".join(str(p) for p in dict.fromkeys([path, *sources.values()]))
        raise InputError(f"{files}: split {name!r} has keys of different row counts ({_listing(rows)}).\n"
                         "Every key of a split needs one row per sample, in the same order.")
    for m in MODALITIES:
        arrays[m], changed = refuse_non_finite(arrays[m], f"{where[m]}, key {m!r}", ids, zero_minus_inf=m == "audio")
        if changed:
            zeroed[name] = changed
    if labels is not None:
        refuse_non_finite(labels, f"{here}, key 'regression_labels'", ids)
    for u, values in unimodal.items():
        refuse_non_finite(values, f"{here}, key 'regression_labels_{u}'", ids)

    lengths = {}
    for m in MODALITIES:
        steps = arrays[m].shape[1]
        if m == "text" and text_bert is not None and text_bert.shape[2] == steps:
            lengths[m] = last_nonzero(text_bert[:, 1, :, None])  # the attention mask
        elif m in given:
            lengths[m] = clip_lengths(given[m], steps, f"{where[m]}, key '{m}_lengths'", ids)
        else:
            lengths[m] = last_nonzero(arrays[m])
    if classes is not None and len(classes) != len(ids):
        classes = None
    names = {} if classes is None else class_names(classes, raw.get("annotations"))
    return Split(name, arrays["text"], text_bert, arrays["audio"], arrays["vision"],
                 lengths, labels, unimodal, ids, raw_text, classes, names)


def classes_of(raw: Mapping[str, Any], where: str) -> np.ndarray | None:
    """(N,) int64: the key `classification_labels` of a split, None where it has none.

    Raises InputError for labels that are no whole numbers from 0, if they are the only ones of the split: beside
    regression labels they may be anything, and are then left aside.
    """
    values = raw.get("classification_labels")
    if values is None:
        return None
    try:
        return class_array(values, f"{where}, key 'classification_labels'")
    except InputError:
        if raw.get("regression_labels") is None:
            raise
        return None


def class_names(classes: np.ndarray, annotations: Any) -> dict[int, str]:
    """{class: name} from MMSA's key `annotations`, a text for each sample; {} where it does not name the classes."""
    if not isinstance(annotations, (list, tuple, np.ndarray)) or len(annotations) != len(classes):
        return {}
    named = {(number, str(name)) for number, name in zip(classes.tolist(), annotations, strict=True)}
    found = dict(sorted(named))
    return found if len(named) == len(found) == len(set(found.values())) else {}


def _nearest_found(name: str, found: Mapping[str, Any]) -> str:
    """`nearest`, worded for what a file has instead of what a user may type."""
    return nearest(name, map(str, found)).replace("valid:", "found:") if found else "it is empty"


def _listing(values: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
