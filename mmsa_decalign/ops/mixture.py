"""Gaussian mixtures of a batch, fitted by a fixed number of differentiable EM steps (paper, section 3.2).

Lives here: the mixture record, the fit, and its two steps. Every sum over samples is made in `fit_gaussian_mixtures`,
`_start` and `_m_step`, nowhere else: that is where a data-parallel version would add its reductions.
May change: the arithmetic, as long as the NumPy reference agrees. Twin: reference/mixture.py.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import cast, widen

COUNT_FLOOR = 1e-6  # expected samples of a component; below it the division that makes its mean is meaningless
RIDGES = (0.0, 1e-15, 1e-12, 1e-9, 1e-6)  # of the largest variance
WEIGHT_FLOOR = 1e-8  # keeps log(weight) finite for a component that has lost all of its samples


class GaussianMixture(NamedTuple):
    """A K-component mixture in d dimensions and what it says of the N samples it was fitted to."""

    weights: Tensor  # (K,) sums to 1
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d) variances, or (K, d, d)
    responsibilities: Tensor  # (N, K) rows sum to 1


def fit_gaussian_mixture(
    x: Tensor, n_components: int, *, n_iter: int = 5, var_floor: float = 1e-4, covariance: str = "diag"
) -> GaussianMixture:
    r"""Fit :math:`\sum_k \pi_k \mathcal N(x; \mu_k, \Sigma_k)` to the rows of `x` by `n_iter` EM steps.

    E step: r[n,k] = softmax_k(log pi_k + log N(x_n; mu_k, Sigma_k)).
    M step: n_k = sum_n r[n,k]; pi_k = n_k / N; mu_k = sum_n r[n,k] x_n / n_k; Sigma_k = the weighted mean of
    (x_n - mu_k)(x_n - mu_k)^T about the new mean. The start is deterministic: means are rows of `x` at evenly
    spaced indices (rows repeat in order when N < K), covariances those of the whole batch, weights 1/K. The
    responsibilities returned belong to the final parameters. Everything is differentiable in `x`.

    Args:
        x: (N, d) samples, N >= 1.
        n_components: K >= 1.
        n_iter: EM steps, >= 0.
        var_floor: smallest variance per dimension (squared feature units), > 0; with covariance="full" it is
            added to the diagonal instead.
        covariance: "diag" (the published code) or "full" (the paper).

    Raises:
        ValueError: for a shape, count or option outside the above.

    Source: DecAlign (arXiv 2503.11892), section 3.2. Samples are centred before they are squared, since
    E[x^2] - mean^2, which the authors' release computes, loses all digits in float32 when |mean| >> spread.

    >>> x = torch.tensor([[0.0], [0.0], [4.0], [4.0]])
    >>> fit_gaussian_mixture(x, 2, n_iter=20).means.flatten().round().tolist()
    [0.0, 4.0]
    """
    if x.dim() != 2 or x.shape[0] < 1 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (N, d) with N, d >= 1: average over time first")
    return fit_gaussian_mixtures(
        x.unsqueeze(0), n_components, n_iter=n_iter, var_floor=var_floor, covariance=covariance
    )[0]


def fit_gaussian_mixtures(
    x: Tensor, n_components: int, *, n_iter: int, var_floor: float, covariance: str
) -> list[GaussianMixture]:
    """`fit_gaussian_mixture` for each of the M batches in `x` (M, N, d), all in the same tensor operations."""
    if n_components < 1 or n_iter < 0 or not 0 < var_floor < math.inf:
        raise ValueError(
            f"n_components={n_components}, n_iter={n_iter}, var_floor={var_floor}: expected >= 1, >= 0 and > 0, finite"
        )
    if covariance not in ("diag", "full"):
        raise ValueError(f"covariance={covariance!r}, expected 'diag' or 'full'")
    dtype, x = x.dtype, widen(x)
    weights, means, covariances = _start(x, n_components, var_floor, covariance)
    responsibilities = _e_step(x, weights, means, covariances)
    for _ in range(n_iter):
        weights, means, covariances = _m_step(x, responsibilities, var_floor, covariance)
        responsibilities = _e_step(x, weights, means, covariances)
    fitted = zip(weights, means, covariances, responsibilities, strict=True)
    return [cast(GaussianMixture(*parts), dtype) for parts in fitted]


def _start(x: Tensor, k: int, var_floor: float, covariance: str) -> tuple[Tensor, Tensor, Tensor]:
    m, n, d = x.shape
    # Fractions: where a position ends in .5, rounding errors of linspace would decide which row is taken.
    spaced = [round(Fraction(i * (n - 1), max(k - 1, 1))) for i in range(k)]
    means = x[:, spaced if n >= k else [i % n for i in range(k)]]  # (M, K, d)
    weights = x.new_full((m, k), 1.0 / k)
    centred = x - x.mean(dim=1, keepdim=True)
    if covariance == "diag":
        one = centred.square().mean(dim=1).clamp_min(var_floor)  # (M, d)
        return weights, means, one.unsqueeze(1).expand(m, k, d)
    one = centred.mT @ centred / n + var_floor * torch.eye(d, dtype=x.dtype, device=x.device)
    return weights, means, one.unsqueeze(1).expand(m, k, d, d)


def _e_step(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Responsibilities (M, N, K), from logarithms: a density underflows long before its logarithm does."""
    diff = x.unsqueeze(2) - means.unsqueeze(1)  # (M, N, K, d)
    mahalanobis = squared_mahalanobis(diff, covariances)
    if covariances.dim() == 3:
        log_det = covariances.log().sum(dim=-1)
    else:
        log_det = 2 * cholesky(covariances).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    log_density = -0.5 * (mahalanobis + log_det.unsqueeze(1))  # but for d log 2 pi, which is the same for every k
    return torch.softmax(weights.clamp_min(WEIGHT_FLOOR).log().unsqueeze(1) + log_density, dim=-1)


def cholesky(covariances: Tensor) -> Tensor:
    """Lower factors of (..., d, d); one that its own rounding has made indefinite gets the smallest ridge that helps.

    That happens where a variance is far above the floor: stored in float32, or 1e15 times the floor.

    Raises:
        ValueError: when no ridge of rounding's size helps.
    """
    largest = covariances.diagonal(dim1=-2, dim2=-1).amax(dim=-1, keepdim=True)
    failed = torch.zeros_like(largest)
    for share in RIDGES:
        covariances = covariances + torch.diag_embed((share * largest * (failed > 0)).expand(covariances.shape[:-1]))
        factors, info = torch.linalg.cholesky_ex(covariances)
        failed = info.unsqueeze(-1)
        if not bool(failed.any()):
            return factors
    raise ValueError("covariances are not positive definite: raise var_floor")


def squared_mahalanobis(diff: Tensor, covariances: Tensor) -> Tensor:
    """diff^T Sigma_k^{-1} diff (..., N, K) of differences (..., N, K, d); covariances (..., K, d) or (..., K, d, d)."""
    if covariances.dim() < diff.dim():
        return (diff.square() / covariances.unsqueeze(-3)).sum(dim=-1)
    factor = cholesky(covariances)
    white = torch.linalg.solve_triangular(factor, diff.movedim(-3, -1), upper=False)  # (..., K, d, N)
    return white.square().sum(dim=-2).mT


def _m_step(x: Tensor, resp: Tensor, var_floor: float, covariance: str) -> tuple[Tensor, Tensor, Tensor]:
    count = resp.sum(dim=1).clamp_min(COUNT_FLOOR)  # (M, K)
    means = resp.mT @ x / count.unsqueeze(-1)
    diff = x.unsqueeze(2) - means.unsqueeze(1)  # (M, N, K, d)
    if covariance == "diag":
        spread = torch.einsum("mnk,mnkd->mkd", resp, diff.square()) / count.unsqueeze(-1)
        return count / x.shape[1], means, spread.clamp_min(var_floor)
    spread = torch.einsum("mnk,mnkd,mnke->mkde", resp, diff, diff) / count[..., None, None]
    floor = var_floor * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return count / x.shape[1], means, spread + floor
