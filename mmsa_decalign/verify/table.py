"""The calls that are compared: every operator with all of its options. A new operator needs an entry here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import reference
from .comparison import Case, loss_numbers, transport_numbers, value_only


def batch(n: int, d: int, modalities: int, offset: float = 0.0, spread: float = 1.0) -> list[np.ndarray]:
    """M batches (N, d) whose means differ."""
    rng = np.random.default_rng([n, d, modalities])
    return [offset + spread * (rng.normal(size=(n, d)) + m / 2) for m in range(modalities)]


def mixtures_of(features: Sequence[np.ndarray], k: int, covariance: str = "diag") -> list[Any]:
    return [reference.fit_gaussian_mixture(x, k, covariance=covariance, var_floor=1e-2) for x in features]


SHAPES = [(1, 1, 1), (2, 3, 4), (16, 4, 3), (33, 8, 5)]  # samples N, width d, prototypes K


def cases() -> Iterator[Case]:
    """Every operator with all of its options, over shapes with one sample, N < K and M = 2..4."""
    for n, d, k in SHAPES:
        for modalities in (2, 3, 4):
            yield from _cases_of_all_modalities(n, d, k, modalities)
        one, other = batch(n, d, 2)
        for covariance in ("diag", "full"):
            yield Case("fit_gaussian_mixture", (one, k), {"covariance": covariance, "var_floor": 1e-2})
            for reduction in ("mean", "sum"):
                pair = tuple(mixtures_of([one, other], k, covariance))
                yield Case("gaussian_cost", pair, {"reduction": reduction})
        yield Case("gaussian_cost", tuple(mixtures_of([one, other], k)), {"product_floor": 1e-8})
        yield Case("batch_moments", (one,))
        yield Case("moment_distance", (reference.batch_moments(one), reference.batch_moments(other)))
        for bandwidth in (0.5, "median", [0.5, 2.0, 8.0]):
            yield Case("mmd", (one, other), {"bandwidth": bandwidth})
    # Far from the origin: E[x^2] - mean^2, or TF32, would leave no digit. The reference itself keeps nine of them here,
    # and its differences too few for a gradient.
    far = batch(40, 8, 3, offset=1e4, spread=1e-2)
    values = {"differentiated": None}
    yield Case("fit_gaussian_mixture", (far[0], 3), {"var_floor": 1e-6}, **values)
    yield Case("batch_moments", (far[0],), **values)
    yield Case("mmd", (far[0], far[1]), {"bandwidth": "median"}, **values)
    yield Case("homo_loss", (far,), {"bandwidth": 1e-4}, **values)
    yield Case("hetero_loss", (far,), {"n_components": 3, "reg": 1e-5, "var_floor": 1e-6}, loss_numbers, None, 1e-4)


def _cases_of_all_modalities(n: int, d: int, k: int, modalities: int) -> Iterator[Case]:
    x = batch(n, d, modalities)
    tensors = [np.stack([v, v[::-1] * 2, v + 1], axis=2) for v in x]
    for power in (1, 2):
        yield Case("decoupling_loss", (tensors, tensors[::-1]), {"power": power})
    for bandwidth in (0.5, "median", [0.5, 2.0]):
        yield Case("homo_loss", (x,), {"bandwidth": bandwidth})
    for reduction in ("mean", "sum"):
        yield Case("joint_cost", (mixtures_of(x, k),), {"reduction": reduction})
        for covariance in ("diag", "full"):
            for mahalanobis in (False, True):
                options = {"reduction": reduction, "mahalanobis": mahalanobis}
                yield Case("prototype_loss", (x, mixtures_of(x, k, covariance)), options)
            for solver in ("log", "release") if reduction == "mean" else ("log",):
                tight = {"tol": 1e-13} if solver == "log" else {}
                options = {"n_components": k, "reg": 0.3, "reduction": reduction, "covariance": covariance,
                           "mahalanobis": True, "solver": solver, "var_floor": 1e-2, **tight}  # fmt: skip
                yield Case("hetero_loss", (x,), options, loss_numbers, loss_numbers)
    rng = np.random.default_rng(7)
    cost, marginals = rng.random([k + 1] * modalities), rng.random((modalities, k + 1))
    marginals[0, 0] = 0.0
    marginals = list(marginals / marginals.sum(axis=1, keepdims=True))
    for reg in (0.05, 1.0):
        for solver in ("log", "release"):
            options = {"reg": reg, "solver": solver}
            # The release's value is not the optimum, and its gradient follows its rounds, not the sum of the marginal.
            differentiated = value_only if solver == "log" else None
            yield Case("multimarginal_sinkhorn", (cost, marginals), options, transport_numbers, differentiated)
