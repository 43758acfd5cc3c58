"""Inputs that Hypothesis draws for the operators: sizes over the whole range, and numbers that break naive arithmetic.

A draw picks sizes, the kind of numbers and a seed; all numbers follow from these, so that a failure is short to read.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mmsa_decalign import reference
from mmsa_decalign.verify.comparison import Case, loss_numbers, value_only

KINDS = ("normal", "far", "identical", "few", "clusters", "narrow", "wide", "constant", "outlier")
COVARIANCE = st.sampled_from(["diag", "full"])
REDUCTION = st.sampled_from(["mean", "sum"])
BANDWIDTH = st.one_of(st.sampled_from([0.5, 1.0, "median"]), st.lists(st.floats(0.1, 100.0), min_size=1, max_size=3))


def features(kind: str, n: int, d: int, modalities: int, seed: int) -> list[np.ndarray]:
    """M batches (N, d)."""
    rng = np.random.default_rng(seed)

    def one(m: int) -> np.ndarray:
        x = rng.normal(size=(n, d)) + m / 2
        if kind == "far":
            return 1e4 + 1e-2 * x
        if kind == "identical":
            return np.repeat(x[:1], n, axis=0)
        if kind == "few":  # duplicate prototypes: three points among all samples
            return x[rng.integers(0, min(n, 3), n)]
        if kind == "clusters":  # components that lose all their mass
            return x * 0.1 + 100.0 * rng.integers(-1, 2, (n, 1))
        if kind == "constant":
            x[:, ::2] = 3.0
        if kind == "outlier":
            x[rng.integers(n)] += 1e4
        return x * {"narrow": 1e-3, "wide": 1e2}.get(kind, 1.0)

    return [one(m) for m in range(modalities)]


@st.composite
def sizes(draw: Any, most: int = 100_000) -> tuple[int, int, int]:
    """N in 1..512, d in 1..128, K in 1..32, with N d K <= most."""
    n = draw(st.integers(1, 8) | st.integers(1, 512))
    d = draw(st.integers(1, min(128, most // n)))
    return n, d, draw(st.integers(1, min(32, most // (n * d))))


@st.composite
def batches(draw: Any, modalities: int | None = None, most: int = 100_000) -> tuple[list[np.ndarray], int]:
    """M batches of one drawn kind, and K."""
    n, d, k = draw(sizes(most))
    m = draw(st.integers(2, 4)) if modalities is None else modalities
    return features(draw(st.sampled_from(KINDS)), n, d, m, draw(st.integers(0, 2**32 - 1))), k


@st.composite
def problems(draw: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """A cost and marginals for reg = 1: cost over reg from 1e-6 to 1e5; masses zero, tiny, equal, in sixteenths."""
    m = draw(st.integers(2, 4))
    shape = [draw(st.integers(1, {2: 32, 3: 16, 4: 8}[m])) for _ in range(m)]
    kind = draw(st.sampled_from(["independent", "points", "duplicates", "whole numbers"]))
    ratio, offset = 10.0 ** draw(st.floats(-6, 5)), draw(st.sampled_from([0.0, 0.0, -1.0, 1e3]))
    masses = [draw(st.sampled_from(["dirichlet", "sparse", "sixteenths", "tiny", "equal"])) for _ in shape]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind in ("points", "duplicates"):
        points = [rng.normal(size=(k, 3)) for k in shape]
        if kind == "duplicates":
            points = [p[rng.integers(0, (len(p) + 2) // 3, len(p))] for p in points]
        cost = np.zeros(shape)
        for i, j in itertools.combinations(range(m), 2):
            pair = ((points[i][:, None] - points[j]) ** 2).sum(axis=2)
            cost = cost + pair.reshape([shape[a] if a in (i, j) else 1 for a in range(m)])
    else:
        cost = rng.random(shape) if kind == "independent" else rng.integers(0, 4, shape).astype(float)
    marginals = [_mass(how, k, rng) for how, k in zip(masses, shape, strict=True)]
    return (cost / max(cost.max(), 1e-9) + offset) * ratio, marginals


def unit_of(x: list[np.ndarray]) -> float:
    """Squared length of the batches: floors and reg in proportion keep the problem's digits within float64."""
    return float(np.var(np.stack(x))) + 1e-2


def _mass(how: str, k: int, rng: np.random.Generator) -> np.ndarray:
    if how == "dirichlet":
        return rng.dirichlet(np.ones(k))
    if how == "sparse":
        nu = np.where(rng.random(k) < 0.5, 0.0, rng.random(k))
        nu[rng.integers(k)] += 0.1
    elif how == "sixteenths":
        nu = np.bincount(rng.integers(0, k, 16), minlength=k) / 16
    elif how == "tiny":
        nu = np.where(rng.random(k) < 0.5, 10.0 ** rng.uniform(-12, -4, k), 1.0)
    else:
        nu = np.ones(k)
    return nu / nu.sum()


@st.composite
def drawn_case(draw: Any, operator: str) -> Case:
    """A call of `operator` with drawn sizes, numbers and options."""
    if operator == "multimarginal_sinkhorn":
        # Potentials of atoms that hardly have mass are not determined by what a marginal error of 1e-9 can see.
        return Case(operator, draw(problems()), {"reg": 1.0}, lambda result: (result.value, result.plan), value_only)
    covariance, reduction = draw(COVARIANCE), draw(REDUCTION)
    most = 100_000 if covariance == "diag" else 4000  # the reference takes matrix roots one by one
    if operator in ("batch_moments", "fit_gaussian_mixture"):
        (x,), k = draw(batches(1, most))
        if operator == "batch_moments":
            return Case(operator, (x,))
        options = {"covariance": covariance, "n_iter": draw(st.integers(0, 6)), "var_floor": 1e-2 * unit_of([x])}
        return Case(operator, (x, k), options)
    if operator in ("mmd", "homo_loss", "moment_distance", "decoupling_loss"):
        x, _ = draw(batches(2 if operator in ("mmd", "moment_distance") else None, most=2000))
        if operator == "moment_distance":
            return Case(operator, tuple(reference.batch_moments(z) for z in x))
        if operator == "decoupling_loss":
            power = draw(st.sampled_from([1, 2]))
            tensors = [np.stack([z, z[::-1]], axis=2) for z in x]
            return Case(operator, (tensors, [t + 1.0 for t in tensors]), {"power": power})
        return Case(operator, tuple(x) if operator == "mmd" else (x,), {"bandwidth": draw(BANDWIDTH)})
    x, k = draw(batches(2 if operator == "gaussian_cost" else None, most))
    k = min(k, {2: 32, 3: 16, 4: 8}[len(x)] if covariance == "diag" else 6)
    unit = unit_of(x)
    mahalanobis = draw(st.booleans())
    if operator == "hetero_loss":
        options = {"n_components": k, "reg": unit, "reduction": reduction, "covariance": covariance,
                   "mahalanobis": mahalanobis, "var_floor": 1e-2 * unit}  # fmt: skip
        return Case(operator, (x,), options, loss_numbers, loss_numbers, unit)
    mixtures = [reference.fit_gaussian_mixture(z, k, covariance=covariance, var_floor=1e-2 * unit) for z in x]
    if operator == "prototype_loss":
        return Case(operator, (x, mixtures), {"reduction": reduction, "mahalanobis": mahalanobis}, unit=unit)
    return Case(operator, tuple(mixtures) if operator == "gaussian_cost" else (mixtures,), {"reduction": reduction},
                unit=unit)  # fmt: skip
