"""Intervals cover, tests keep their level, and both agree with SciPy and with what can be counted by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mmsa_decalign.compare import statistics
from mmsa_decalign.compare.measures import measures
from mmsa_decalign.compare.statistics import Scores, compare, holm, interval, resampled, scores

NAMES = ["MAE", "Non0_acc_2", "Has0_F1_score", "Mult_acc_7", "Corr"]
MEASURES = list(measures({"dataset_name": "mosi"}, NAMES).values())


def drawn(rng: np.random.Generator, n: int, rows: int = 1, seeds: int = 2) -> tuple[np.ndarray, list[np.ndarray]]:
    """Labels like MOSI's, and predictions of equally good rows, whose seeds share most of their error."""
    labels = np.clip(np.round(rng.normal(0, 1.5, n) * 3) / 3, -3, 3).astype(np.float32)
    predictions = [(0.6 * labels + rng.normal(0, 0.8, n) + rng.normal(0, 0.3, (seeds, n))).astype(np.float32)
                   for _ in range(rows)]
    return labels, predictions


def differences(row: Scores, other: Scores, resamples: int, seed: int = 0) -> list[statistics.Difference]:
    own, theirs = resampled([row, other], resamples=resamples, seed=seed)
    return compare([row], other, [own], theirs, resamples=resamples, seed=seed)[0]


def test_intervals_cover_the_truth_at_their_level() -> None:
    rng, runs = np.random.default_rng(0), 600
    labels, (predictions,) = drawn(rng, 300_000)
    truth = [measure.of(predictions, labels).mean() for measure in MEASURES]
    covered = np.zeros(len(MEASURES))
    for run in range(runs):
        labels, (predictions,) = drawn(rng, 150)
        (values,) = resampled([scores(predictions, labels, MEASURES)], resamples=299, seed=run)
        spans = [interval(own) for own in values]
        covered += [low <= true <= high for (low, high), true in zip(spans, truth, strict=True)]
    error = 3 * (0.95 * 0.05 / runs) ** 0.5
    # Percentile intervals are a little short at this size: 0.01 for that, the rest is Monte Carlo error.
    assert (covered / runs > 0.95 - 0.01 - error).all(), dict(zip(NAMES, covered / runs, strict=True))
    assert (covered / runs < 0.95 + error).all(), dict(zip(NAMES, covered / runs, strict=True))


def test_under_the_null_the_test_rejects_at_its_level() -> None:
    rng, runs = np.random.default_rng(1), 1000
    p = np.empty((runs, len(MEASURES)))
    for run in range(runs):
        labels, (one, two) = drawn(rng, 80, rows=2)
        found = differences(scores(one, labels, MEASURES), scores(two, labels, MEASURES), 99, seed=run)
        p[run] = [entry.p for entry in found]
    for level in (0.05, 0.2):
        error = 3 * (level * (1 - level) / runs) ** 0.5
        rates = (p <= level).mean(axis=0)
        assert (rates < level + error).all(), dict(zip(NAMES, rates, strict=True))
        assert rates[0] > level - error, "MAE has no ties, so that its test is exact"
        assert rates[-1] > level - error - 0.01, "so is that of the correlation, but for what is swapped at once"
        assert (rates > level - error - 0.03).all(), "ties among accuracies make the test a little shy, not blind"


def test_a_true_difference_is_found_and_has_its_sign_and_size() -> None:
    rng = np.random.default_rng(2)
    labels, (good,) = drawn(rng, 500)
    bad = (good + rng.normal(0, 1.5, good.shape)).astype(np.float32)
    found = differences(scores(bad, labels, MEASURES), scores(good, labels, MEASURES), 999)
    assert [entry.p for entry in found] == pytest.approx([0.001] * len(NAMES))
    assert found[0].value is not None
    assert found[0].value > 0 > found[-1].value
    errors = [np.abs(each - labels).mean(axis=0) for each in (bad, good)]
    difference = errors[0] - errors[1]
    assert found[0].value == pytest.approx(difference.mean(), abs=1e-6)
    assert found[0].effect == pytest.approx(difference.mean() / difference.std(ddof=1), abs=1e-6)
    assert found[2].effect is None
    assert found[0].low < found[0].value < found[0].high
    counted = labels != 0
    right = [((each > 0) == (labels > 0))[:, counted].mean(axis=0) for each in (bad, good)]
    assert found[1].effect == pytest.approx(np.mean(right[0] - right[1]) / np.std(right[0] - right[1], ddof=1))


def test_the_p_value_of_few_samples_is_the_share_of_all_swaps() -> None:
    rng = np.random.default_rng(3)
    labels, (one, two) = drawn(rng, 9, rows=2, seeds=1)
    (mae,) = [measure for measure in MEASURES if measure.name == "MAE"]
    difference = np.abs(one - labels)[0] - np.abs(two - labels)[0]
    means = [abs(np.dot(signs, difference)) for signs in itertools.product((1, -1), repeat=9)]
    exact = np.mean(np.array(means) >= abs(difference.sum()) - 1e-12)
    (found,) = differences(scores(one, labels, [mae]), scores(two, labels, [mae]), 19_999)
    assert found.p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5)


def test_scipy_says_the_same() -> None:
    rng = np.random.default_rng(4)
    labels, (one, two) = drawn(rng, 100, rows=2, seeds=1)
    for measure in MEASURES:
        a, b = (scores(each, labels, [measure]) for each in (one, two))

        def value(chosen: np.ndarray, predictions: np.ndarray = one, own: object = measure) -> float:
            index = chosen.astype(int)
            return float(own.of(predictions[0, index], labels[index]))  # type: ignore[attr-defined]

        low, high = interval(resampled([a], resamples=1999)[0][0])
        theirs = scipy.stats.bootstrap((np.arange(100.0),), value, n_resamples=1999, method="percentile",
                                       vectorized=False, rng=np.random.default_rng(5)).confidence_interval
        width = theirs.high - theirs.low
        assert abs(low - theirs.low) < 0.12 * width, measure.name
        assert abs(high - theirs.high) < 0.12 * width, measure.name

        def apart(x: np.ndarray, y: np.ndarray, own: object = measure) -> float:
            return float(own.of(x, labels) - own.of(y, labels))  # type: ignore[attr-defined]

        expected = scipy.stats.permutation_test((one[0], two[0]), apart, permutation_type="samples", n_resamples=9999,
                                                vectorized=False, rng=np.random.default_rng(6)).pvalue
        (found,) = differences(a, b, 9999)
        assert found.p == pytest.approx(expected, abs=0.04), measure.name


def test_equal_rows_are_not_told_apart_and_a_constant_has_no_correlation() -> None:
    labels, (one,) = drawn(np.random.default_rng(7), 40)
    own = scores(one, labels, MEASURES)
    for entry in differences(own, own, 99):
        assert (entry.value, entry.p) == (0.0, 1.0)
        assert entry.effect in (0.0, None)
    constant = differences(scores(np.zeros((1, 40), dtype=np.float32), labels, MEASURES), own, 99)
    assert constant[-1] == statistics.Difference(None, None, None, None, None)
    assert constant[0].p is not None


def test_a_row_of_one_run_stands_for_each_seed_of_the_other() -> None:
    labels, (one, two) = drawn(np.random.default_rng(8), 60, rows=2, seeds=3)
    repeated = scores(np.repeat(two[:1], 3, axis=0), labels, MEASURES)
    own = scores(one, labels, MEASURES)
    once = differences(own, scores(two[:1], labels, MEASURES), 199)
    for entry, expected in zip(once, differences(own, repeated, 199), strict=True):
        assert entry.p == expected.p
        assert entry.value == pytest.approx(expected.value, abs=1e-12)
    with pytest.raises(ValueError, match="same samples"):
        compare([own], scores(two[:, :50], labels[:50], MEASURES), [], np.empty(0))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2, 0.001, 0.2]) == pytest.approx([0.4, 0.003, 0.4])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """By definition: a claim stands if Bonferroni rejects every set of hypotheses that it belongs to."""
    places = range(len(p))
    sets = [one for size in places for one in itertools.combinations(places, size + 1)]
    expected = [max(min(1.0, len(one) * min(p[other] for other in one)) for one in sets if place in one)
                for place in places]
    assert holm(p) == pytest.approx(expected)


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(9)
    false = np.mean([min(holm(rng.uniform(size=8))) < 0.05 for _ in range(2000)])
    assert false == pytest.approx(0.05, abs=3 * (0.05 * 0.95 / 2000) ** 0.5)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, (one, two) = drawn(np.random.default_rng(10), 30, rows=2)
    rows = scores(one, labels, MEASURES), scores(two, labels, MEASURES)
    whole = differences(*rows, 99)
    monkeypatch.setattr(statistics, "_BLOCK", 30 * 7)
    for entry, expected in zip(differences(*rows, 99), whole, strict=True):
        assert (entry.p, entry.low, entry.high) == pytest.approx((expected.p, expected.low, expected.high))
