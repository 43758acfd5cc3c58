"""Metrics as functions of sums over samples, so that resampling and swapping samples are matrix products.

A metric is ``value(sum over samples of parts)``: for an accuracy the parts of a sample are (correct, counted) and the
value their ratio; F1 needs the cells of the confusion matrix, a correlation the first and second moments. The rules are
those that harness/metrics.py states and MMSA computes; the table compares with MMSA's figure before it relies on one.
What may change here: further metrics. One that is not here has no interval and no test, and the table says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..harness.metrics import direction

_ROUNDING = 1e-13  # a variance below this share of the mean square is that of a constant

Parts = Callable[[np.ndarray, np.ndarray], np.ndarray]  # predictions (..., N) and labels (N,) -> (..., N, k)
Value = Callable[[np.ndarray], np.ndarray]  # sums (..., k) -> (...)


@dataclass(frozen=True)
class Measure:
    """One metric. simple: a mean over the samples that count, which do not depend on the predictions; then a sample
    has a loss of its own, parts[..., 0], and whether it counts, parts[..., 1]."""

    name: str
    parts: Parts
    value: Value
    simple: bool

    @property
    def lower_is_better(self) -> bool:
        return direction(self.name) == "min"

    def of(self, predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The metric of predictions (..., N)."""
        return self.value(self.parts(predictions, labels).sum(axis=-2))


def measures(settings: Mapping[str, Any], names: list[str]) -> dict[str, Measure]:
    """Those of the named metrics that this module knows, for a data set with these settings (MMSA's keys).

    A task of classes is one with ``label_names``: records do not hold ``train_mode``.
    """
    from ..harness.datasets import metrics_family

    if settings.get("label_names"):
        known = _classification(settings["label_names"])
    elif metrics_family(settings["dataset_name"]).startswith("sims"):
        known = _sims()
    else:
        known = _mosi()
    return {name: known[name] for name in names if name in known}


def ratio(sums: np.ndarray) -> np.ndarray:
    """sums[0] / sums[1]; NaN where nothing counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def weighted_f1(sums: np.ndarray) -> np.ndarray:
    """F1 of each class, weighted by the class's share of the labels, from confusion counts (true, predicted) in rows.

    F1_c = 2 n_cc / (labels c + predictions c), 0 where both are none.
    """
    classes = int(round(sums.shape[-1] ** 0.5))
    counts = sums.reshape(*sums.shape[:-1], classes, classes)
    hits = np.einsum("...cc->...c", counts)
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true + predicted > 0, 2 * hits / (true + predicted), 0.0)
        return (f1 * true).sum(axis=-1) / true.sum(axis=-1)


def mean_recall(sums: np.ndarray) -> np.ndarray:
    """The mean of the recalls of the classes that have labels, from confusion counts (true, predicted) in rows."""
    classes = int(round(sums.shape[-1] ** 0.5))
    counts = sums.reshape(*sums.shape[:-1], classes, classes)
    true, hits = counts.sum(axis=-1), np.einsum("...cc->...c", counts)
    recalls = np.where(true > 0, hits / np.maximum(true, 1e-300), 0.0)
    return recalls.sum(axis=-1) / (true > 0).sum(axis=-1)


def correlation(sums: np.ndarray) -> np.ndarray:
    """Pearson's correlation from the sums of 1, p, y, p^2, y^2, p y; NaN where either is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        p, y, pp, yy, py = np.moveaxis(sums[..., 1:] / sums[..., :1], -1, 0)
        own, true = pp - p * p, yy - y * y
        varies = (own > _ROUNDING * pp) & (true > _ROUNDING * yy)
        return np.where(varies, (py - p * y) / np.sqrt(np.where(varies, own * true, 1.0)), np.nan)


def _accuracy(name: str, bins: Callable[[np.ndarray], np.ndarray], counts: Callable[[np.ndarray], np.ndarray]
              ) -> Measure:
    def parts(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        counted = np.broadcast_to(counts(labels), predictions.shape).astype(float)
        return np.stack([(bins(predictions) == bins(labels)) * counted, counted], axis=-1)

    return Measure(name, parts, ratio, simple=True)


def _f1(name: str, bins: Callable[[np.ndarray], np.ndarray], counts: Callable[[np.ndarray], np.ndarray],
        classes: int) -> Measure:
    def parts(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        cell = classes * bins(labels).astype(int) + bins(predictions).astype(int)
        return (cell[..., None] == np.arange(classes**2)) * counts(labels)[:, None].astype(float)

    return Measure(name, parts, weighted_f1, simple=False)


def _error(clip: Callable[[np.ndarray], np.ndarray]) -> Measure:
    def parts(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        error = np.abs(clip(predictions) - clip(labels)).astype(float)
        return np.stack([error, np.ones_like(error)], axis=-1)

    return Measure("MAE", parts, ratio, simple=True)


def _corr(clip: Callable[[np.ndarray], np.ndarray]) -> Measure:
    def parts(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        # The same shift for every row, for the sake of rounding: rows may exchange their samples.
        shift = clip(labels).astype(float).mean()
        y = np.broadcast_to(clip(labels).astype(float) - shift, predictions.shape)
        p = clip(predictions).astype(float) - shift
        return np.stack([np.ones_like(p), p, y, p * p, y * y, p * y], axis=-1)

    return Measure("Corr", parts, correlation, simple=False)


def _everything(labels: np.ndarray) -> np.ndarray:
    return np.ones(labels.shape, dtype=bool)


def _not_neutral(labels: np.ndarray) -> np.ndarray:
    return labels != 0


def _by_name(found: list[Measure]) -> dict[str, Measure]:
    return {one.name: one for one in found}


def _mosi() -> dict[str, Measure]:
    def not_negative(x: np.ndarray) -> np.ndarray:
        return x >= 0

    def positive(x: np.ndarray) -> np.ndarray:
        return x > 0

    def rounded(limit: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: np.round(np.clip(x, -limit, limit))

    def same(x: np.ndarray) -> np.ndarray:
        return x

    return _by_name([
        _accuracy("Has0_acc_2", not_negative, _everything), _f1("Has0_F1_score", not_negative, _everything, 2),
        _accuracy("Non0_acc_2", positive, _not_neutral), _f1("Non0_F1_score", positive, _not_neutral, 2),
        _accuracy("Mult_acc_5", rounded(2), _everything), _accuracy("Mult_acc_7", rounded(3), _everything),
        _error(same), _corr(same),
    ])


def _sims() -> dict[str, Measure]:
    def clipped(x: np.ndarray) -> np.ndarray:
        return np.clip(x, -1, 1)

    def interval(*borders: float) -> Callable[[np.ndarray], np.ndarray]:
        # A border belongs to the interval below it. As float32, which is what MMSA compares with.
        return lambda x: np.searchsorted(np.asarray(borders, dtype=np.float32), clipped(x).astype(np.float32))

    return _by_name([
        _accuracy("Mult_acc_2", interval(0.0), _everything), _f1("F1_score", interval(0.0), _everything, 2),
        _accuracy("Mult_acc_3", interval(-0.1, 0.1), _everything),
        _accuracy("Mult_acc_5", interval(-0.7, -0.1, 0.1, 0.7), _everything), _error(clipped), _corr(clipped),
    ])


def _classification(names: Sequence[str]) -> dict[str, Measure]:
    """Predictions (..., N, C) are scores, and the largest is the class."""
    classes = len(names)

    def parts(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        cell = classes * labels.astype(int) + predictions.argmax(axis=-1)
        return (cell[..., None] == np.arange(classes**2)).astype(float)

    def right(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
        hits = (predictions.argmax(axis=-1) == labels.astype(int)).astype(float)
        return np.stack([hits, np.ones_like(hits)], axis=-1)

    def one_class(number: int) -> Parts:
        def own(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
            predicted, true = predictions.argmax(axis=-1) == number, labels.astype(int) == number
            return np.stack([2.0 * (predicted & true), predicted.astype(float) + true], axis=-1)

        return own

    return _by_name([
        Measure("WA", right, ratio, simple=True), Measure("UA", parts, mean_recall, simple=False),
        Measure("Weighted_F1", parts, weighted_f1, simple=False),
        *(Measure(f"F1_{name}", one_class(number), ratio, simple=False) for number, name in enumerate(names)),
    ])
