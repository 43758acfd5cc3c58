"""The measures of features, on constructed features whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from mmsa_decalign.harness.diagnostics import (
    canonical_correlation,
    energy_distance,
    held,
    idle,
    mean_over_pairs,
    recovered,
    retrieved,
    separation,
    told_apart,
)

N = 400
RNG = np.random.default_rng(0)
FACTORS, OTHERS, NOISE = RNG.standard_normal((3, 2 * N, 2))
TURN = np.linalg.qr(RNG.standard_normal((6, 6)))[0]


def halves(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[:N], rows[N:]


def r2(features: np.ndarray, factors: np.ndarray) -> float:
    (seen, unseen), (truth, unseen_truth) = halves(features), halves(factors)
    return recovered(seen, truth, unseen, unseen_truth)


# What is in the features


def test_factors_themselves_are_recovered_and_independent_ones_are_not() -> None:
    assert r2(FACTORS, FACTORS) == pytest.approx(1.0, abs=1e-6)
    assert abs(r2(OTHERS, FACTORS)) < 0.03
    assert r2(FACTORS, np.stack([FACTORS[:, 0], OTHERS[:, 0]], axis=1)) == pytest.approx(0.5, abs=0.03)  # one of two


def test_noise_of_equal_variance_leaves_half() -> None:
    assert r2(FACTORS + NOISE, FACTORS) == pytest.approx(0.5, abs=0.06)
    assert held(FACTORS + NOISE, FACTORS) == pytest.approx(0.5, abs=0.06)


def test_what_is_held_is_a_share_of_variance() -> None:
    both = np.hstack([FACTORS, OTHERS])
    assert held(FACTORS, FACTORS) == pytest.approx(1.0)
    assert held(both * [2, 2, 1, 1], FACTORS) == pytest.approx(0.8, abs=0.02)  # 4 of 4 + 1
    assert held(both * [2, 2, 1, 1], OTHERS) == pytest.approx(0.2, abs=0.02)
    assert abs(held(NOISE, FACTORS)) < 0.01
    assert held(np.zeros((N, 3)), FACTORS[:N]) == 0.0
    assert held(3 + 1e-7 * FACTORS, FACTORS) == 0.0  # single precision's rounding is nothing
    assert held(3e-7 + 1e-7 * FACTORS, FACTORS) == pytest.approx(1.0)


def test_what_is_held_is_adjusted_for_the_number_of_factors() -> None:
    draws = [np.random.default_rng(seed) for seed in range(200)]
    shares = [held(rng.standard_normal((12, 50)), rng.standard_normal((12, 4))) for rng in draws]
    assert abs(np.mean(shares)) < 0.015  # 4 / 11 without


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_turning_and_scaling_features_changes_nothing(scale: float) -> None:
    features = np.hstack([FACTORS, 0.3 * OTHERS, NOISE])
    turned = scale * features @ TURN + 5 * scale
    assert held(turned, FACTORS) == pytest.approx(held(features, FACTORS))
    assert r2(turned, FACTORS + OTHERS) == pytest.approx(r2(features, FACTORS + OTHERS), abs=1e-6)
    one, other = halves(features), halves(turned)
    assert canonical_correlation(one[0], other[0], one[1], other[1], 6) == pytest.approx(1.0, abs=1e-3)
    assert retrieved(turned, scale * (features + 0.1) @ TURN + 5 * scale) == pytest.approx(
        retrieved(features, features + 0.1))


def test_canonical_correlation_finds_what_two_share() -> None:
    one, other = np.hstack([FACTORS, OTHERS]) @ TURN[:4, :4], np.hstack([NOISE, FACTORS])
    (a, unseen_a), (b, unseen_b) = halves(one), halves(other)
    assert canonical_correlation(a, b, unseen_a, unseen_b, 2) == pytest.approx(1.0, abs=1e-3)
    assert canonical_correlation(a, b, unseen_a, unseen_b, 4) == pytest.approx(0.5, abs=0.08)
    (a, unseen_a), (b, unseen_b) = halves(OTHERS), halves(NOISE)
    assert abs(canonical_correlation(a, b, unseen_a, unseen_b, 2)) < 0.12  # on the rows it was fitted to it is larger


# How far apart


def test_equal_clouds_cannot_be_told_apart() -> None:
    assert told_apart([OTHERS, OTHERS]) == pytest.approx(0.5, abs=0.02)
    assert told_apart([OTHERS, NOISE, FACTORS]) == pytest.approx(1 / 3, abs=0.04)
    assert energy_distance(OTHERS, OTHERS) == pytest.approx(0.0, abs=1e-12)
    assert energy_distance(OTHERS, NOISE) < 0.01


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_clouds_do_not_come_nearer_by_shrinking(scale: float) -> None:
    near, far = scale * OTHERS, scale * (NOISE + 20)
    assert told_apart([near, far]) == 1.0
    assert energy_distance(near, far) == pytest.approx(energy_distance(OTHERS, NOISE + 20))
    assert separation(near, far) == pytest.approx(separation(OTHERS, NOISE + 20))


def test_energy_distance_of_points_and_of_constants() -> None:
    assert energy_distance(np.zeros((3, 1)), np.ones((4, 1))) == 1.0
    assert energy_distance(np.zeros((3, 1)), np.zeros((4, 1))) == 0.0
    # E|a - b| = (1 + 3 + 1 + 1) / 4, E|a - a'| = 1, E|b - b'| = 1 for a of {0, 2} and b of {1, 3}
    assert energy_distance(np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])) == pytest.approx(1 / 3)


def test_distance_of_clouds_is_in_units_of_their_spread() -> None:
    cloud = np.array([[1.0, 0.0], [-1.0, 0.0]])  # total variance 1
    assert separation(cloud, cloud + [0.0, 3.0]) == pytest.approx(3.0)
    assert separation(cloud, cloud) == 0.0
    assert separation(cloud, 2 * cloud + [0.0, 1.0]) == pytest.approx(1 / np.sqrt(2.5))


def test_a_partner_is_retrieved() -> None:
    assert retrieved(OTHERS, OTHERS) == 1.0
    assert retrieved(OTHERS, NOISE) == pytest.approx(0.5, abs=0.03)
    assert retrieved(np.ones((5, 2)), np.zeros((5, 2))) == 0.5  # all equally far: chance
    line = np.array([[0.0], [1.0], [2.0]])
    assert retrieved(line, line[::-1]) == pytest.approx((0 + 1 + 0) / 3)  # the ends have the furthest


def test_a_mean_over_pairs_takes_each_pair_once() -> None:
    groups = [np.array([[0.0]]), np.array([[1.0]]), np.array([[5.0]])]
    assert mean_over_pairs(lambda a, b: float(b[0, 0] - a[0, 0]), groups) == pytest.approx((1 + 5 + 4) / 3)


def test_prototypes_with_less_than_a_sample_are_idle() -> None:
    assert idle(np.array([0.5, 0.4, 0.09, 0.01]), 10) == 2
    assert idle(np.array([0.5, 0.4, 0.09, 0.01]), 100) == 0
    assert idle(np.array([1.0, 0.0]), 1000) == 1
