"""The two alignment losses, composed from the operator files (paper: heterogeneity and homogeneity alignment).

Lives here: what a loss consists of. What each of its terms is worth is decided in the operator files.
"""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from . import _checks as check
from .mixture import GaussianMixture, fit_gaussian_mixture, squared_mahalanobis
from .mmd import mmd
from .moments import batch_moments, moment_distance
from .transport import TransportResult, joint_cost, multimarginal_sinkhorn


class HeteroLoss(NamedTuple):
    """value = transport + prototype, and what they came from."""
    value: float
    transport: float
    prototype: float
    mixtures: tuple[GaussianMixture, ...]
    result: TransportResult


class HomoLoss(NamedTuple):
    """value = semantic + mmd."""
    value: float
    semantic: float
    mmd: float


def prototype_loss(
    features: Sequence, mixtures: Sequence[GaussianMixture], *, reduction: str = "mean", mahalanobis: bool = False
) -> float:
    """Samples of one modality pulled towards the prototypes of the others, component by component.

    Mean over ordered pairs i != j of mean over n of sum_k r_i[n, k] * |x_i[n] - mu_j[k]|^2.

    features: M arrays (N, d). mixtures: one per modality, all with the same K.
    reduction: "mean" divides the squared distance by d, "sum" does not. mahalanobis: it is x' Sigma_j[k]^-1 x instead.
    Raises ValueError for a wrong shape or a differing number of components.
    >>> point = lambda mean: GaussianMixture(np.ones(1), np.array([[mean]]), np.ones((1, 1)), np.ones((1, 1)))
    >>> prototype_loss([[[1.0]], [[3.0]]], [point(1.0), point(3.0)])
    4.0
    """
    features = check.batch("features", features)
    check.require("reduction", reduction, reduction in ("mean", "sum"), "one of ['mean', 'sum']")
    (n, d), n_components = features[0].shape, len(mixtures[0].means) if mixtures else 0
    forms = [(mixture.responsibilities.shape, mixture.means.shape) for mixture in mixtures]
    if forms != [((n, n_components), (n_components, d))] * len(features):
        wanted = f"{len(features)}, with responsibilities ({n}, K) and means (K, {d}) for one K"
        remedy = "fit one mixture per modality on these features, all with the same n_components"
        raise ValueError(f"mixtures must be {wanted}, got the shapes {forms}: {remedy}")
    losses = []
    for i, j in permutations(range(len(features)), 2):
        metrics = mixtures[j].covariances if mahalanobis else np.ones((n_components, d))
        pairs = zip(mixtures[j].means, metrics, strict=True)
        distances = np.stack([squared_mahalanobis(features[i] - mean, metric) for mean, metric in pairs], axis=1)
        losses.append((mixtures[i].responsibilities * distances).sum(axis=1).mean())
    return float(np.mean(losses) / (d if reduction == "mean" else 1))


def hetero_loss(
    features: Sequence, *, n_components: int, reg: float = 0.1, n_iter: int = 5, var_floor: float = 1e-4,
    covariance: str = "diag", reduction: str = "mean", mahalanobis: bool = False,
    solver: str = "log", tol: float = 1e-9, max_iter: int | None = None,
) -> HeteroLoss:  # fmt: skip
    """L_hetero = transport value + prototype loss.

    A mixture is fitted per modality; the value is the entropic optimum (weight `reg`) for the joint cost of the
    components and the marginals nu_m[k] = mean over n of r_m[n, k].

    features: M >= 2 arrays (N, d). Options and errors are those of fit_gaussian_mixture, gaussian_cost (reduction),
    prototype_loss and multimarginal_sinkhorn. solver="release" also takes the release's cost, product_floor = 1e-8.
    >>> same = [[0.0], [2.0]]
    >>> loss = hetero_loss([same, same], n_components=1, reg=0.5)
    >>> round(loss.transport, 9), round(loss.prototype, 9)
    (-0.5, 1.0)
    """
    features = check.batch("features", features)
    em = {"n_iter": n_iter, "var_floor": var_floor, "covariance": covariance}
    mixtures = tuple(fit_gaussian_mixture(x, n_components, **em) for x in features)
    cost = joint_cost(mixtures, reduction=reduction, product_floor=1e-8 if solver == "release" else 0.0)
    marginals = [mixture.responsibilities.mean(axis=0) for mixture in mixtures]
    result = multimarginal_sinkhorn(cost, marginals, reg=reg, tol=tol, max_iter=max_iter, solver=solver)
    prototype = prototype_loss(features, mixtures, reduction=reduction, mahalanobis=mahalanobis)
    return HeteroLoss(result.value + prototype, result.value, prototype, mixtures, result)


def homo_loss(features: Sequence, *, bandwidth: float | str | Sequence[float] = 1.0) -> HomoLoss:
    """L_homo = semantic loss + MMD, each the mean over unordered pairs of modalities.

    semantic: moment_distance of the batches. mmd: mmd of the batches; bandwidth="median" is taken pair by pair.

    features: M >= 2 arrays z_m (N, d). Raises ValueError for a wrong shape or bandwidth.
    >>> homo_loss([[[0.0]], [[2.0]]], bandwidth=2.0).semantic
    4.0
    """
    pairs = list(combinations(check.batch("features", features), 2))
    semantic = float(np.mean([moment_distance(batch_moments(a), batch_moments(b)) for a, b in pairs]))
    discrepancy = float(np.mean([mmd(a, b, bandwidth=bandwidth) for a, b in pairs]))
    return HomoLoss(semantic + discrepancy, semantic, discrepancy)
