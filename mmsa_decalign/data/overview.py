"""What is in a feature file, good or bad: the measurements behind `mmsa data inspect`.

`inspect_file` reads as safely as a training does but refuses nothing that can be measured: what a training would refuse
it reports, beside everything else. The result is one dictionary that JSON can hold. What may change here: further
measurements and findings; `schema_version` with a change of what is there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .arrays import as_strings, blocks, last_nonzero
from .leaks import probe, shared, video_of
from .published import file_with_hash
from .reading import embedding_of, read_file, sha256_of
from .schema import MODALITIES, SPLITS, class_names, classes_of, features_from_dict

LABELS = ("regression_labels", "classification_labels", "labels", "label")
QUANTILES = tuple(range(0, 101, 5))  # percent, of the lengths
_BINS = 12


def inspect_file(path: str | Path, *, probing: bool = True) -> dict[str, Any]:
    """Measure a feature file; raises InputError only for a file that cannot be read at all.

    Keys: path, size, sha256, published (data set, kind, path; or None), embedded (see `embedding_of`), refusal (why a
    training would not read it, or None), splits {name: see `_split`}, histogram {key, classes or edges, counts {split},
    names of classes}, shared {what {"train/valid": number}} of ids, videos, raw_text and features, probe {modality: see
    `leaks.probe`}, findings [str]. Shares are in
    0..1. Without `probing` the linear probe is left out.
    """
    path = Path(path).expanduser()
    data = read_file(path)
    sha256 = sha256_of(path)
    published = file_with_hash(sha256)
    raw: dict[str, Mapping[str, Any]] = {}
    if isinstance(data, Mapping):
        raw = {str(name): data[name] for name in sorted(data, key=_order) if _is_split(data[name])}
    parts = {name: _Part(content) for name, content in raw.items()}
    document: dict[str, Any] = {
        "schema_version": 1, "path": str(path), "size": path.stat().st_size, "sha256": sha256,
        "published": published and {"dataset": published.dataset, "kind": published.kind, "path": published.path},
        "embedded": embedding_of(path),
        "splits": {name: part.document() for name, part in parts.items()},
        "histogram": _histogram(parts),
        "shared": {what: _shared(parts, what) for what in ("ids", "videos", "raw_text", "features")},
        "probe": _probes(parts["train"], parts["valid"]) if probing and {"train", "valid"} <= set(parts) else {},
    }  # fmt: skip
    document["refusal"] = _refusal(data, path)  # last: it uses the data up
    document["findings"] = list(_findings(document))
    return document


class _Part:
    """One split, with what several measurements need: modalities as arrays, lengths, labels, ids."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = {str(key): value for key, value in raw.items()}
        self.arrays = {m: a for m in MODALITIES if (a := _three_axes(_numbers(self.raw.get(m)))) is not None}
        self.lengths = {m: self._lengths(m) for m in self.arrays}
        self.ids, self.raw_text = (self._strings(key) for key in ("id", "raw_text"))
        self.videos = [video_of(one) for one in self.ids]
        self.label_key = next((key for key in LABELS if key in self.raw), None)
        self.labels = None if self.label_key is None else _numbers(self.raw[self.label_key], "fiuUS")
        if self.labels is not None:
            self.labels = self.labels.reshape(-1)
            if self.labels.dtype.kind == "S":
                self.labels = np.array(as_strings(self.labels, "labels"))
        self.features = [] if not self.arrays else [
            hashlib.blake2b(b"".join(np.ascontiguousarray(a[i]).tobytes() for a in self.arrays.values())).hexdigest()
            for i in range(min(map(len, self.arrays.values())))
        ]  # fmt: skip

    def _strings(self, key: str) -> list[str]:
        values = self.raw.get(key)
        return [str(v) for v in values] if isinstance(values, list | tuple) or np.ndim(values) == 1 else []

    def _lengths(self, modality: str) -> tuple[str, np.ndarray]:
        array = self.arrays[modality]
        tokens = _numbers(self.raw.get("text_bert")) if modality == "text" else None
        if tokens is not None and tokens.ndim == 3 and tokens.shape == (len(array), 3, array.shape[1]):
            return "attention mask", last_nonzero(tokens[:, 1, :, None])
        given = _numbers(self.raw.get(f"{modality}_lengths"))
        if given is not None and given.size == len(array) and np.isfinite(given).all():
            return f"{modality}_lengths", np.clip(given.reshape(-1), 1, array.shape[1]).astype(np.int64)
        return "last step that is not zero", last_nonzero(array) if array.size else np.ones(len(array), np.int64)

    def means(self, modality: str) -> np.ndarray:
        """(N, D): the mean over the steps before the padding."""
        array, lengths = self.arrays[modality], self.lengths[modality][1]
        sums = np.empty((len(array), array.shape[2]))
        for rows in blocks(array):
            inside = np.arange(array.shape[1]) < lengths[rows, None]
            sums[rows] = np.where(inside[:, :, None], np.nan_to_num(array[rows], posinf=0.0, neginf=0.0), 0).sum(axis=1)
        return sums / lengths[:, None]

    def document(self) -> dict[str, Any]:
        """Samples, videos, layout, keys {name: type, shape, dtype, nan, inf}, modalities, repeated {what: number}."""
        steps = {array.shape[1] for array in self.arrays.values()}
        layout = "unaligned" if len(steps) > 1 else "utterance" if steps == {1} else "aligned"
        samples = {key: rows for key, value in self.raw.items() if (rows := _rows(value)) is not None}
        return {
            "samples": max(samples.values(), default=0),
            "videos": len(set(self.videos)) if self.videos and None not in self.videos else None,
            "layout": layout if self.arrays else None,
            "keys": {key: _describe(value) for key, value in self.raw.items()},
            "modalities": {m: self._modality(m) for m in self.arrays},
            "labels": _summary(self.labels),
            "repeated": {what: len(getattr(self, what)) - len(set(getattr(self, what)))
                         for what in ("ids", "raw_text", "features")},
        }  # fmt: skip

    def _modality(self, modality: str) -> dict[str, Any]:
        array, (source, lengths) = self.arrays[modality], self.lengths[modality]
        n, steps, width = array.shape
        low, high = np.full(width, np.inf), np.full(width, -np.inf)
        leading = empty = 0
        for rows in blocks(array):
            block = array[rows]
            inside = (np.arange(steps) < lengths[rows, None])[:, :, None]
            finite = inside & np.isfinite(block)
            low = np.minimum(low, np.where(finite, block, np.inf).min(axis=(0, 1), initial=np.inf))
            high = np.maximum(high, np.where(finite, block, -np.inf).max(axis=(0, 1), initial=-np.inf))
            filled = (block != 0).any(axis=2)
            leading += int(np.where(filled.any(axis=1), filled.argmax(axis=1), 0).sum()) if steps else 0
            empty += int((~filled.any(axis=1)).sum())
        known = low <= high
        return {
            "steps": steps, "width": width, "lengths_from": source,
            "lengths": [float(q) for q in np.percentile(lengths, QUANTILES)] if n else [],
            "padding": 1 - float(lengths.sum()) / (n * steps) if n * steps else 0.0,
            "leading_zeros": leading / (n * steps) if n * steps else 0.0,
            "empty_samples": empty,
            "constant_columns": np.flatnonzero(known & (low == high)).tolist() if n > 1 else [],
            "min": float(low[known].min()) if known.any() else None,
            "max": float(high[known].max()) if known.any() else None,
        }  # fmt: skip


def _order(name: Any) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), str(name))


def _is_split(content: Any) -> bool:
    """Files may hold notes beside the splits; a split has at least something of a sample."""
    return isinstance(content, Mapping) and bool({*MODALITIES, "id", "raw_text", *LABELS} & set(content))


def _shared(parts: Mapping[str, _Part], what: str) -> dict[str, int]:
    return {pair: len(both) for pair, both in shared({n: getattr(p, what) for n, p in parts.items()}).items()}


def _numbers(values: Any, kinds: str = "fiu") -> np.ndarray | None:
    """As an array of numbers, or None for what is not one: nothing, text, rows of unequal lengths, nesting."""
    if not isinstance(values, list | tuple | np.ndarray):
        return None
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in kinds and array.ndim else None


def _three_axes(array: np.ndarray | None) -> np.ndarray | None:
    if array is not None and array.ndim == 2:
        return array[:, None, :]
    return array if array is not None and array.ndim == 3 else None


def _rows(value: Any) -> int | None:
    try:
        return len(value)
    except TypeError:  # also of an array without axes
        return None


def _describe(value: Any) -> dict[str, Any]:
    array = _numbers(value)
    if array is None:
        is_array = isinstance(value, np.ndarray)
        shape = list(value.shape) if is_array else [] if (rows := _rows(value)) is None else [rows]
        kinds = {type(v).__name__ for v in value[:1000]} if isinstance(value, list | tuple) else set()
        inner = f" of {' and '.join(sorted(kinds))}" if kinds else ""
        dtype = f" {value.dtype}" if is_array else ""
        return {"type": type(value).__name__ + dtype + inner, "shape": shape}
    nan = inf = 0
    if array.dtype.kind == "f":
        for rows in blocks(array):
            nan += int(np.isnan(array[rows]).sum())
            inf += int(np.isinf(array[rows]).sum())
    return {"type": type(value).__name__, "shape": list(array.shape), "dtype": str(array.dtype), "nan": nan, "inf": inf}


def _summary(labels: np.ndarray | None) -> dict[str, Any] | None:
    if labels is None or labels.dtype.kind not in "fiu":
        return None
    finite = labels[np.abs(labels) <= np.finfo(np.float32).max].astype(np.float64)  # a training reads more as Inf
    if not finite.size:
        return None
    return {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean()),
            "std": float(finite.std()), "negative": int((finite < 0).sum()), "zero": int((finite == 0).sum()),
            "positive": int((finite > 0).sum())}


def _histogram(parts: Mapping[str, _Part]) -> dict[str, Any] | None:
    """Counts of the labels by split, in classes where there are few values, else in bins of equal width."""
    labels = {name: part.labels for name, part in parts.items() if part.labels is not None and part.labels.size}
    if not labels:
        return None
    key = next(parts[name].label_key for name in labels)
    text = any(values.dtype.kind in "US" for values in labels.values())
    labels = {n: v.astype(str) if text else v[np.isfinite(v)] for n, v in labels.items()}
    values = np.unique(np.concatenate(list(labels.values())))
    if text or len(values) <= _BINS:
        counts = {n: [int((v == one).sum()) for one in values] for n, v in labels.items()}
        return {"key": key, "classes": values.tolist(), "counts": counts, **_named(key, parts)}
    edges = np.linspace(float(values[0]), float(values[-1]), _BINS + 1)
    counts = {n: np.histogram(v, bins=edges)[0].tolist() for n, v in labels.items()}
    return {"key": key, "edges": edges.tolist(), "counts": counts}


def _named(key: str | None, parts: Mapping[str, _Part]) -> dict[str, Any]:
    """{"names": {class: name}} where the annotations name the classes of all splits."""
    if key != "classification_labels":
        return {}
    names: dict[int, str] = {}
    for part in parts.values():
        try:
            classes = classes_of(part.raw, "")
        except InputError:
            return {}
        if classes is not None:
            names |= class_names(classes, part.raw.get("annotations"))
    return {"names": {str(number): name for number, name in sorted(names.items())}} if names else {}


def _probes(train: _Part, valid: _Part) -> dict[str, Any]:
    """The linear probe of each modality that both splits have; of classes the one with the largest gap."""
    found: dict[str, Any] = {}
    if train.labels is None or valid.labels is None or train.label_key != valid.label_key:
        return found
    if train.label_key == "regression_labels" and "U" in (train.labels.dtype.kind, valid.labels.dtype.kind):
        return found
    targets: list[tuple[Any, np.ndarray, np.ndarray]] = [(None, train.labels, valid.labels)]
    if train.label_key != "regression_labels":
        classes = np.unique(train.labels)[:_BINS]
        targets = [(c, (train.labels == c).astype(float), (valid.labels == c).astype(float)) for c in classes.tolist()]
    for m in MODALITIES:
        sides = [part for part in (train, valid) if m in part.arrays and len(part.arrays[m]) == len(part.labels)]
        if len(sides) < 2 or train.arrays[m].shape[2] != valid.arrays[m].shape[2]:
            continue
        x, xv = train.means(m), valid.means(m)
        groups = [p.videos if len(p.videos) == len(p.labels) else None for p in sides]
        tried = [{"class": c, **probe(x, y, groups[0], xv, yv, groups[1])} for c, y, yv in targets]
        found[m] = max(tried, key=lambda one: (one["alarm"] is not None, one["gap"] or 0.0))
    return found


def _refusal(data: Any, path: Path) -> str | None:
    """Why a training would not read this, or None."""
    logger = logging.getLogger("MMSA")
    before, logger.disabled = logger.disabled, True  # what it would warn of is among the findings
    try:
        features_from_dict(data, path, "")
    except InputError as error:
        return str(error).removeprefix(f"{path}: ")
    finally:
        logger.disabled = before
    return None


def _findings(document: Mapping[str, Any]) -> Iterator[str]:
    """What is worth knowing before a training, worst first, one sentence each."""
    if document["refusal"] is not None:
        yield f"a training refuses this file: {document['refusal'].splitlines()[0]}"
    for modality, one in document["probe"].items():
        if one["alarm"] == "train":
            yield (f"label leak? {modality}: a linear model reaches a correlation of {one['gap'] + one['valid']:.2f} "
                   f"inside train, {one['valid']:.2f} on valid. Were the features trained with train's labels?")
        if one["alarm"] == "label":
            yield f"label leak? {modality}: a linear model finds the label (correlation {one['valid']:.3f} on valid)."
    if (histogram := document["histogram"]) is not None and histogram["key"] == "classification_labels":
        yield from _class_findings(histogram)
    for what, pairs in document["shared"].items():
        for pair, number in pairs.items():
            if what != "raw_text":  # short sentences are said twice in all innocence
                yield f"{pair} share {number} {_COUNTED[what]}"
    for name, split in document["splits"].items():
        for what in ("ids", "features"):
            if split["repeated"][what]:
                yield f"{name}: {split['repeated'][what]} samples repeat the {what} of another"
        for key, about in split["keys"].items():
            if about.get("nan") or about.get("inf"):
                yield f"{name}: {key} holds {about['nan']} NaN and {about['inf']} Inf"
        for modality, about in split["modalities"].items():
            if about["constant_columns"] and name == "train":
                yield f"{name}: {modality} has {len(about['constant_columns'])} of {about['width']} columns constant"
            if about["empty_samples"]:
                yield f"{name}: {modality} is all zeros in {about['empty_samples']} of {split['samples']} samples"
            if about["leading_zeros"] > 0.05 and about["leading_zeros"] > about["padding"]:
                yield f"{name}: {modality} is padded in front ({about['leading_zeros']:.0%} of the steps), not behind"
        if split["videos"] is None and split["samples"]:
            yield f"{name}: the ids do not tell the videos, so that videos shared between splits cannot be found"


def _class_findings(histogram: Mapping[str, Any]) -> Iterator[str]:
    """Per split what always saying its commonest class gets right, and which classes it lacks."""
    if "classes" not in histogram:
        return
    known = histogram.get("names", {})
    names = [known.get(f"{one:g}", str(one)) if isinstance(one, int | float) else one for one in histogram["classes"]]
    for split, counts in histogram["counts"].items():
        if sum(counts):
            most = int(np.argmax(counts))
            yield f"{split}: always {names[most]!r} would be right in {counts[most] / sum(counts):.1%} of the samples"
        if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
            yield f"{split}: has no sample of {', '.join(map(str, absent))}"


_COUNTED = {"ids": "id(s)", "videos": "video(s)", "features": "sample(s) with the same features"}
