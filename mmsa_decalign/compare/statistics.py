"""What a difference between models is worth: intervals by bootstrap, paired permutation tests, Holm's correction.

The question answered is about the trained models at hand: how far would their metric, averaged over the seeds, move on
other test samples drawn like these? Samples count as independent, and the spread over seeds is not part of it.

scipy.stats.bootstrap and scipy.stats.permutation_test call the statistic on whole resampled data sets: for ten models,
five seeds and eight metrics of some thousand samples that is minutes. Every metric is a function of sums over samples
here (measures.py), so that all resamples of all metrics are one matrix product; the tests compare with SciPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .measures import Measure

RESAMPLES = 4999  # with the data at hand 5000, so that 0.05 is a multiple of the smallest p-value
LEVEL = 0.95
ALPHA = 0.05
SEED = 0  # of the resamples: the same table each time
_TIE = 1e-10  # differences closer than this are equal but for rounding
_BLOCK = 1 << 22  # numbers of a weight matrix at once


@dataclass(frozen=True)
class Scores:
    """One row's metrics by sample: per measure the parts (S, N, k) over S seeds and N samples, in ``measures``'
    order."""

    measures: tuple[Measure, ...]
    parts: tuple[np.ndarray, ...]

    @property
    def samples(self) -> int:
        return self.parts[0].shape[1]


@dataclass(frozen=True)
class Difference:
    """A row minus another, of one metric averaged over the seeds.

    low, high: interval of the difference. p: two-sided, by swapping the two rows' predictions of samples. effect: mean
    over standard deviation of the samples' differences; None where a sample has no loss of its own (F1, correlation).
    All None where one of the two has no figure.
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    effect: float | None


def scores(predictions: np.ndarray, labels: np.ndarray, measures: Sequence[Measure]) -> Scores:
    """From predictions (S, N) of S seeds (or (S, N, C) of C classes), and labels (N,)."""
    return Scores(tuple(measures), tuple(one.parts(predictions, labels) for one in measures))


def resampled(rows: Sequence[Scores], *, resamples: int = RESAMPLES, seed: int = SEED) -> list[np.ndarray]:
    """For each row (measures, resamples): its metrics, averaged over seeds, of bootstrap samples.

    All rows hold the same samples and meet the same resamples, so that their values are paired.
    """
    columns = [_columns(row) for row in rows]
    sums: list[list[np.ndarray]] = [[] for _ in rows]
    for weights in _weights(rows[0].samples, resamples, seed):
        for own, found in zip(columns, sums, strict=True):
            found.append(weights @ own)
    return [_values(row, np.concatenate(found)) for row, found in zip(rows, sums, strict=True)]


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float | None, float | None]:
    """The percentile interval of resampled values (those that are numbers); None where there is none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(rows: Sequence[Scores], other: Scores, boots: Sequence[np.ndarray], other_boots: np.ndarray, *,
            resamples: int = RESAMPLES, seed: int = SEED) -> list[list[Difference]]:
    """For each row and measure the row minus ``other``, on the same samples in the same order.

    boots, other_boots: what ``resampled`` gave for the rows and for ``other``. The test is exact, up to the number of
    permutations, where the two rows' predictions of a sample could be exchanged. Seeds are paired in their order, as
    many as both have; a row with one run stands for each of the other's.
    """
    pairs = [_paired(row, other) for row in rows]
    columns = [(_columns(own), _columns(theirs)) for own, theirs in pairs]
    totals = [(own.sum(axis=0), theirs.sum(axis=0)) for own, theirs in columns]
    observed = [_values(one, a) - _values(two, b) for (one, two), (a, b) in zip(pairs, totals, strict=True)]
    as_extreme = [np.ones(len(values)) for values in observed]  # the data at hand are one of the permutations
    for flips in _flips(other.samples, resamples, seed):
        for (one, two), (own, theirs), (a, b), values, count in zip(pairs, columns, totals, observed, as_extreme,
                                                                    strict=True):
            moved = flips @ (theirs - own)
            permuted = np.abs(_values(one, a + moved) - _values(two, b - moved))
            count += (~(permuted < np.abs(values)[:, None] - _TIE)).sum(axis=1)
    return [[_difference(row, other, number, float(count[number] / (resamples + 1)), own - other_boots)
             for number in range(len(row.measures))]
            for row, own, count in zip(rows, boots, as_extreme, strict=True)]


def _difference(row: Scores, other: Scores, number: int, p: float, boots: np.ndarray) -> Difference:
    measure = row.measures[number]
    value = float(_mean(row, number) - _mean(other, number))
    if not np.isfinite(value):
        return Difference(None, None, None, None, None)
    low, high = interval(boots[number])
    effect = _effect(row.parts[number], other.parts[number]) if measure.simple else None
    return Difference(value, low, high, p, effect)


def _mean(row: Scores, number: int) -> np.floating:
    return row.measures[number].value(row.parts[number].sum(axis=1)).mean()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: the i-th smallest of m p-values times m - i + 1, made monotone, at most 1.

    SciPy has the procedures for false discoveries alone; this one controls the chance of any false claim.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    result = np.empty(len(order))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    return result.tolist()


def _paired(row: Scores, other: Scores) -> tuple[Scores, Scores]:
    if row.samples != other.samples or [m.name for m in row.measures] != [m.name for m in other.measures]:
        raise ValueError("two rows can be compared on the same samples by the same metrics alone")
    counts = [each.parts[0].shape[0] for each in (row, other)]
    seeds = max(counts) if min(counts) == 1 else min(counts)
    return _first_seeds(row, seeds), _first_seeds(other, seeds)


def _first_seeds(row: Scores, seeds: int) -> Scores:
    return Scores(row.measures, tuple(
        np.broadcast_to(parts, (seeds, *parts.shape[1:])) if parts.shape[0] == 1 else parts[:seeds]
        for parts in row.parts))


def _columns(row: Scores) -> np.ndarray:
    """(N, columns): of a simple measure the parts averaged over seeds, since its value is linear in them; else all."""
    columns = []
    for measure, parts in zip(row.measures, row.parts, strict=True):
        kept = parts.mean(axis=0, keepdims=True) if measure.simple else parts
        columns.append(np.moveaxis(kept, 0, 1).reshape(row.samples, -1))
    return np.concatenate(columns, axis=1)


def _values(row: Scores, sums: np.ndarray) -> np.ndarray:
    """(measures, ...) from sums (..., columns): each metric averaged over the seeds."""
    found, start = [], 0
    for measure, parts in zip(row.measures, row.parts, strict=True):
        seeds, width = (1 if measure.simple else parts.shape[0]), parts.shape[2]
        own = sums[..., start:start + seeds * width].reshape(*sums.shape[:-1], seeds, width)
        found.append(measure.value(own).mean(axis=-1))
        start += seeds * width
    return np.stack(found)


def _weights(samples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (draws, N) of how often each sample is drawn."""
    rng = np.random.default_rng([seed, 1])
    for draws in _blocks(samples, resamples):
        yield rng.multinomial(samples, np.full(samples, 1 / samples), size=draws).astype(float)


def _flips(samples: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (draws, N) of 0 and 1: whether a sample's predictions are swapped."""
    rng = np.random.default_rng([seed, 2])
    for draws in _blocks(samples, resamples):
        yield rng.integers(0, 2, size=(draws, samples)).astype(float)


def _blocks(samples: int, resamples: int) -> list[int]:
    block = max(1, _BLOCK // samples)
    return [min(block, resamples - start) for start in range(0, resamples, block)]


def _effect(own: np.ndarray, theirs: np.ndarray) -> float | None:
    counted = own[0, :, 1] > 0
    difference = (own[..., 0].mean(axis=0) - theirs[..., 0].mean(axis=0))[counted]
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    return float(difference.mean() / spread) if spread > 0 else (0.0 if not difference.any() else None)
