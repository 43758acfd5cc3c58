"""The two alignment losses of a batch: heterogeneity (mixtures and transport) and homogeneity (moments and kernels).

Lives here: what puts the other operators together (paper, sections 3.2 and 3.3). Twin: reference/losses.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, permutations
from typing import NamedTuple

import torch
from torch import Tensor

from .envelope import Envelope, wants_slopes
from .kernels import pooled_mmd
from .mixture import GaussianMixture, fit_together, squared_mahalanobis
from .mmd import bandwidths
from .mmd import mmd as mmd_between
from .moments import semantic_loss
from .precision import cast, widen
from .release import RELEASE_PRODUCT_FLOOR
from .transport import TransportResult, joint_cost, mixture_transport, multimarginal_sinkhorn, scale_of


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
        features: M >= 2 tensors (N_m, d).
        mixtures: M mixtures with the same K, the i-th fitted to features[i].
        reduction: "mean" or "sum" over the d dimensions.
        mahalanobis: measure with the component's covariance, (x - mu)^T Sigma^{-1} (x - mu), instead of |x - mu|^2.

    Raises:
        ValueError: when the counts differ, fewer than two modalities are given, or a mixture does not fit its features.
    """
    if len(features) != len(mixtures) or len(features) < 2:
        raise ValueError(f"{len(features)} features and {len(mixtures)} mixtures, expected M >= 2 of each")
    d, k = features[0].shape[-1], mixtures[0].means.shape[0]
    for x, mixture in zip(features, mixtures, strict=True):
        shapes = tuple(x.shape), tuple(mixture.means.shape), tuple(mixture.responsibilities.shape)
        n = x.shape[0]  # a modality may have fewer samples than another
        if shapes != ((n, d), (k, d), (n, k)):
            raise ValueError(f"features {shapes[0]} with means {shapes[1]} and responsibilities {shapes[2]}, expected "
                             f"{(n, d)}, {(k, d)} and {(n, k)}, with d and K as in the first modality")
    scale = scale_of(reduction, features[0].shape[-1])
    dtype, features, mixtures = features[0].dtype, widen(features), widen(mixtures)
    if mahalanobis:
        return _to_other_components(features, mixtures, scale).to(dtype)
    rows = torch.cat(features), torch.cat([mixture.responsibilities for mixture in mixtures])
    means = torch.stack([mixture.means for mixture in mixtures])
    return _to_other_means(*rows, means, [len(x) for x in features], scale).to(dtype)


def _to_other_components(features: Sequence[Tensor], mixtures: Sequence[GaussianMixture], scale: float) -> Tensor:
    """The prototype loss in each component's own metric."""
    pairs = []
    for i, j in permutations(range(len(features)), 2):
        diff = features[i].unsqueeze(1) - mixtures[j].means.unsqueeze(0)  # (N, K, d)
        distance = squared_mahalanobis(diff, mixtures[j].covariances)
        pairs.append((mixtures[i].responsibilities * distance).sum(dim=1).mean() * scale)
    return torch.stack(pairs).mean()


def _to_other_means(
    samples: Tensor, responsibilities: Tensor, means: Tensor, counts: Sequence[int], scale: float
) -> Tensor:
    """The prototype loss in the plain metric: all samples (N_1 + ... + N_M, d) against all means (M, K, d) at once."""
    differentiable = wants_slopes(samples, responsibilities, means)
    with torch.no_grad():
        weights = _weights_of_others(tuple(counts), scale, means.dtype, means.device)  # (N_1 + ... + N_M, M, 1)
        centres = means.flatten(0, 1)
        distances = torch.cdist(samples, centres, compute_mode="donot_use_mm_for_euclid_dist").square_()
        to_responsibilities = (distances.view(len(samples), *means.shape[:2]) * weights).sum(dim=1)
        value = (to_responsibilities * responsibilities).sum()
        if not differentiable:
            return value
        twice = (weights * (2 * responsibilities.unsqueeze(1))).flatten(1)  # of |x - mu|^2: 2 (x - mu)
        to_samples = torch.addcmul(-(twice @ centres), samples, twice.sum(dim=1, keepdim=True))
        to_centres = torch.addcmul(-(twice.mT @ samples), centres, twice.sum(dim=0).unsqueeze(1))
        slopes = to_samples, to_responsibilities, to_centres.view_as(means)
    return Envelope.apply(value, slopes, samples, responsibilities, means)


@lru_cache(maxsize=64)
def _weights_of_others(counts: tuple[int, ...], scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N_1 + ... + N_M, M, 1): what a sample's distance to a modality's means counts, 0 for its own modality."""
    m = len(counts)
    others = (1 - torch.eye(m, dtype=dtype)) * scale / (m * (m - 1))
    return torch.cat([(others[i] / n).expand(n, m) for i, n in enumerate(counts)]).unsqueeze(2).to(device)


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
        features: M >= 2 tensors (N_m, d), averaged over time.
        n_components, n_iter, var_floor, covariance: as in `fit_gaussian_mixture`.
        reg, solver, tol, max_iter: as in `multimarginal_sinkhorn`.
        reduction, mahalanobis: as in `gaussian_cost` and `prototype_loss`.

    Raises:
        ValueError: when fewer than two modalities are given, one is empty, or their widths differ.

    Source: DecAlign (arXiv 2503.11892), section 3.2.
    """
    shapes = _shapes(features, "d")
    dtype, groups = features[0].dtype, widen(_groups(features, shapes))  # here, so that nothing is rounded on the way
    features = [x for group in groups for x in group.unbind()]
    fits = [
        fit_together(group, n_components, n_iter=n_iter, var_floor=var_floor, covariance=covariance)
        for group in groups
    ]
    if covariance == "diag" and solver == "log":
        means, variances = (torch.cat(parts) for parts in zip(*(fit[1:3] for fit in fits), strict=True))
        marginals = torch.cat([fit.responsibilities.mean(dim=1) for fit in fits])
        options = {"reduction": reduction, "reg": reg, "tol": tol, "max_iter": max_iter}
        result = mixture_transport(means, variances, marginals, **options)
    else:
        mixtures = [mixture for fit in fits for mixture in fit.unbind()]
        floor = RELEASE_PRODUCT_FLOOR if solver == "release" else 0.0
        cost = joint_cost(mixtures, reduction=reduction, product_floor=floor)
        marginals = [mixture.responsibilities.mean(dim=0) for mixture in mixtures]
        result = multimarginal_sinkhorn(cost, marginals, reg=reg, tol=tol, max_iter=max_iter, solver=solver)
    scale = scale_of(reduction, features[0].shape[1])
    if mahalanobis:
        prototype = _to_other_components(features, [mixture for fit in fits for mixture in fit.unbind()], scale)
    else:
        samples = torch.cat([group.flatten(0, 1) for group in groups])
        responsibilities = torch.cat([fit.responsibilities.flatten(0, 1) for fit in fits])
        means, counts = torch.cat([fit.means for fit in fits]), [len(x) for x in features]
        prototype = _to_other_means(samples, responsibilities, means, counts, scale)
    mixtures = tuple(mixture for fit in fits for mixture in cast(fit, dtype).unbind())
    return HeteroLoss(*cast((result.value + prototype, result.value, prototype), dtype), mixtures, cast(result, dtype))


class HomoLoss(NamedTuple):
    """The loss and what it is made of."""

    value: Tensor  # semantic + mmd
    semantic: Tensor  # scalar, >= 0
    mmd: Tensor  # scalar, >= 0


def homo_loss(features: Sequence[Tensor], *, bandwidth: float | str | Sequence[float] = 1.0) -> HomoLoss:
    """Mean over unordered pairs of modalities of `moment_distance` plus the mean over pairs of `mmd`.

    Args:
        features: M >= 2 tensors (N_m, p), the common features after each modality's own perceptron.
        bandwidth: as in `mmd`.

    Raises:
        ValueError: when fewer than two modalities are given, one is empty, or their widths differ.

    Source: DecAlign (arXiv 2503.11892), section 3.3.
    """
    shapes, widths = _shapes(features, "p"), bandwidths(bandwidth)
    dtype, groups = features[0].dtype, widen(_groups(features, shapes))
    semantic = semantic_loss(groups)
    if widths is not None:
        discrepancy = pooled_mmd(torch.cat([z.flatten(0, 1) for z in groups]), [len(z) for z in features], widths)
    else:
        pairs = combinations([z for group in groups for z in group.unbind()], 2)
        discrepancy = torch.stack([mmd_between(x, y, bandwidth=bandwidth) for x, y in pairs]).mean()
    return cast(HomoLoss(semantic + discrepancy, semantic, discrepancy), dtype)


def _shapes(features: Sequence[Tensor], width: str) -> set[tuple[int, ...]]:
    """The shapes of M >= 2 modalities of one width; how many samples have a modality may differ."""
    shapes = {tuple(x.shape) for x in features}
    if len(features) < 2 or any(len(shape) != 2 or 0 in shape for shape in shapes) or len({s[1] for s in shapes}) > 1:
        raise ValueError(f"{len(features)} feature tensors of shapes {sorted(shapes)}, "
                         f"expected M >= 2, all (N, {width}) with one {width}, N >= 1")
    return shapes


def _groups(features: Sequence[Tensor], shapes: set[tuple[int, ...]]) -> list[Tensor]:
    """The batches as one tensor (M, N, d), so that all share their operations; (1, N_m, d) each where sizes differ."""
    return [torch.stack(tuple(features))] if len(shapes) == 1 else [x.unsqueeze(0) for x in features]
