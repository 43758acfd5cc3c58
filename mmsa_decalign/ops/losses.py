"""The two alignment losses of a batch: heterogeneity (mixtures and transport) and homogeneity (moments and kernels).

Lives here: what puts the other operators together (paper, sections 3.2 and 3.3). Twin: reference/losses.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from .mixture import GaussianMixture, fit_gaussian_mixtures, squared_mahalanobis
from .mmd import mmd as mmd_between
from .moments import batch_moments, moment_distance
from .precision import cast, widen
from .transport import RELEASE_PRODUCT_FLOOR, TransportResult, joint_cost, multimarginal_sinkhorn, scale_of


class HeteroLoss(NamedTuple):
    """The loss and what it is made of."""

    value: Tensor  # transport + prototype
    transport: Tensor  # scalar, the optimal value of the transport problem (can be negative: it holds an entropy)
    prototype: Tensor  # scalar, >= 0
    mixtures: tuple[GaussianMixture, ...]
    result: TransportResult


def prototype_loss(
    features: Sequence[Tensor],
    mixtures: Sequence[GaussianMixture],
    *,
    reduction: str = "mean",
    mahalanobis: bool = False,
) -> Tensor:
    r"""Distance of each modality's samples to the other modalities' prototypes.

    Mean over ordered pairs i != j of  mean_n sum_k r_i[n, k] * |x_i[n] - mu_j[k]|^2.

    Args:
        features: M >= 2 tensors (N, d).
        mixtures: M mixtures with the same K, the i-th fitted to features[i].
        reduction: "mean" or "sum" over the d dimensions.
        mahalanobis: measure with the component's covariance, (x - mu)^T Sigma^{-1} (x - mu), instead of |x - mu|^2.

    Raises:
        ValueError: when the counts differ, fewer than two modalities are given, or a mixture does not fit its features.
    """
    if len(features) != len(mixtures) or len(features) < 2:
        raise ValueError(f"{len(features)} features and {len(mixtures)} mixtures, expected M >= 2 of each")
    n, d = features[0].shape
    k = mixtures[0].means.shape[0]
    for x, mixture in zip(features, mixtures, strict=True):
        shapes = tuple(x.shape), tuple(mixture.means.shape), tuple(mixture.responsibilities.shape)
        if shapes != ((n, d), (k, d), (n, k)):
            raise ValueError(f"features {shapes[0]} with means {shapes[1]} and responsibilities {shapes[2]}, expected "
                             f"{(n, d)}, {(k, d)} and {(n, k)} as in the first modality")
    scale = scale_of(reduction, features[0].shape[-1])
    dtype, features, mixtures = features[0].dtype, widen(features), widen(mixtures)
    pairs = []
    for i, j in permutations(range(len(features)), 2):
        diff = features[i].unsqueeze(1) - mixtures[j].means.unsqueeze(0)  # (N, K, d)
        distance = squared_mahalanobis(diff, mixtures[j].covariances) if mahalanobis else diff.square().sum(dim=-1)
        pairs.append((mixtures[i].responsibilities * distance).sum(dim=1).mean() * scale)
    return torch.stack(pairs).mean().to(dtype)


def hetero_loss(
    features: Sequence[Tensor],
    *,
    n_components: int,
    reg: float = 0.1,
    n_iter: int = 5,
    var_floor: float = 1e-4,
    covariance: str = "diag",
    reduction: str = "mean",
    mahalanobis: bool = False,
    solver: str = "log",
    tol: float = 1e-9,
    max_iter: int | None = None,
) -> HeteroLoss:
    r"""Transport value between the modalities' mixtures plus the prototype loss.

    A mixture is fitted to each modality; its marginal nu_m is the mean of its responsibilities; the joint cost of the
    mixtures and the nu_m make the transport problem.

    Args:
        features: M >= 2 tensors (N, d), averaged over time.
        n_components, n_iter, var_floor, covariance: as in `fit_gaussian_mixture`.
        reg, solver, tol, max_iter: as in `multimarginal_sinkhorn`.
        reduction, mahalanobis: as in `gaussian_cost` and `prototype_loss`.

    Raises:
        ValueError: when fewer than two modalities are given or their shapes differ.

    Source: DecAlign (arXiv 2503.11892), section 3.2.
    """
    shapes = {tuple(x.shape) for x in features}
    if len(features) < 2 or len(shapes) != 1 or features[0].dim() != 2:
        raise ValueError(f"{len(features)} feature tensors of shapes {sorted(shapes)}, expected M >= 2, all (N, d)")
    dtype, features = features[0].dtype, widen(features)  # here, so that nothing is rounded on the way
    mixtures = fit_gaussian_mixtures(
        torch.stack(features), n_components, n_iter=n_iter, var_floor=var_floor, covariance=covariance
    )
    floor = RELEASE_PRODUCT_FLOOR if solver == "release" else 0.0
    cost = joint_cost(mixtures, reduction=reduction, product_floor=floor)
    marginals = [mixture.responsibilities.mean(dim=0) for mixture in mixtures]
    result = multimarginal_sinkhorn(cost, marginals, reg=reg, tol=tol, max_iter=max_iter, solver=solver)
    prototype = prototype_loss(features, mixtures, reduction=reduction, mahalanobis=mahalanobis)
    return cast(HeteroLoss(result.value + prototype, result.value, prototype, tuple(mixtures), result), dtype)


class HomoLoss(NamedTuple):
    """The loss and what it is made of."""

    value: Tensor  # semantic + mmd
    semantic: Tensor  # scalar, >= 0
    mmd: Tensor  # scalar, >= 0


def homo_loss(features: Sequence[Tensor], *, bandwidth: float | str | Sequence[float] = 1.0) -> HomoLoss:
    """Mean over unordered pairs of modalities of `moment_distance` plus the mean over pairs of `mmd`.

    Args:
        features: M >= 2 tensors (N, p), the common features after each modality's own perceptron.
        bandwidth: as in `mmd`.

    Raises:
        ValueError: when fewer than two modalities are given or their shapes differ.

    Source: DecAlign (arXiv 2503.11892), section 3.3.
    """
    shapes = {tuple(z.shape) for z in features}
    if len(features) < 2 or len(shapes) != 1:
        raise ValueError(f"{len(features)} feature tensors of shapes {sorted(shapes)}, expected at least 2, all (N, p)")
    dtype, features = features[0].dtype, widen(features)  # here, so that nothing is rounded on the way
    moments = [batch_moments(z) for z in features]
    pairs = list(combinations(range(len(features)), 2))
    semantic = torch.stack([moment_distance(moments[i], moments[j]) for i, j in pairs]).mean()
    discrepancy = torch.stack([mmd_between(features[i], features[j], bandwidth=bandwidth) for i, j in pairs]).mean()
    return cast(HomoLoss(semantic + discrepancy, semantic, discrepancy), dtype)
