"""Gaussian mixtures of a batch, fitted by a fixed number of differentiable EM steps (paper, section 3.2).

Lives here: the mixture record, the fit, and its two steps for full covariances; those for diagonal ones, which every
preset uses, are in diagonal.py with a derivative of their own. Every sum over samples of the fit is made in `_start`
and `_m_step`, or over there: that is where a data-parallel version would add its reductions.
May change: the arithmetic, as long as the NumPy reference agrees. Twin: reference/mixture.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .diagonal import COUNT_FLOOR, WEIGHT_FLOOR, DiagonalEM
from .precision import cast, widen

RIDGES = (0.0, 1e-15, 1e-12, 1e-9, 1e-6)  # of the largest variance


class GaussianMixture(NamedTuple):
    """A K-component mixture in d dimensions and what it says of the N samples it was fitted to."""

    weights: Tensor  # (K,) sums to 1
    means: Tensor  # (K, d)
    covariances: Tensor  # (K, d) variances, or (K, d, d)
    responsibilities: Tensor  # (N, K) rows sum to 1

    def unbind(self) -> list[GaussianMixture]:
        """The single mixtures of a record whose tensors have one dimension more, in front."""
        return [GaussianMixture(*parts) for parts in zip(*(part.unbind() for part in self), strict=True)]


def fit_gaussian_mixture(
    x: Tensor, n_components: int, *, n_iter: int = 5, var_floor: float = 1e-4, covariance: str = "diag"
) -> GaussianMixture:
    r"""Fit :math:`\sum_k \pi_k \mathcal N(x; \mu_k, \Sigma_k)` to the rows of `x` by `n_iter` EM steps.

    E step: r[n,k] = softmax_k(log pi_k + log N(x_n; mu_k, Sigma_k)).
    M step: n_k = sum_n r[n,k]; pi_k = n_k / N; mu_k = sum_n r[n,k] x_n / n_k; Sigma_k = the weighted mean of
    (x_n - mu_k)(x_n - mu_k)^T about the new mean. The start is deterministic: means are rows of `x` at evenly
    spaced indices (rows repeat in order when N < K), covariances those of the whole batch, weights 1/K. The
    responsibilities returned belong to the final parameters. Everything is differentiable in `x`, with diagonal
    covariances once.

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
    _check_fit(n_components, n_iter, var_floor, covariance)
    dtype, x = x.dtype, widen(x)
    fitted = fit_together(x.unsqueeze(0), n_components, n_iter=n_iter, var_floor=var_floor, covariance=covariance)
    return cast(GaussianMixture(*(part[0] for part in fitted)), dtype)


def fit_together(
    x: Tensor, n_components: int, *, n_iter: int, var_floor: float, covariance: str
) -> GaussianMixture:
    """`fit_gaussian_mixture` for each of the M batches in `x` (M, N, d), finite and in float64, in the same operations.

    The record's tensors have the M in front.
    """
    _check_fit(n_components, n_iter, var_floor, covariance)
    rows = start_rows(x.shape[1], n_components)
    if covariance == "diag":
        *parameters, responsibilities = DiagonalEM.apply(x, rows, n_iter, var_floor)
        return GaussianMixture(*parameters, responsibilities.mT)
    weights, means, covariances = _start(x, rows, var_floor)
    responsibilities = _e_step(x, weights, means, covariances)
    for _ in range(n_iter):
        weights, means, covariances = _m_step(x, responsibilities, var_floor)
        responsibilities = _e_step(x, weights, means, covariances)
    return GaussianMixture(weights, means, covariances, responsibilities)


def _check_fit(n_components: int, n_iter: int, var_floor: float, covariance: str) -> None:
    if n_components < 1 or n_iter < 0 or not 0 < var_floor < math.inf:
        raise ValueError(
            f"n_components={n_components}, n_iter={n_iter}, var_floor={var_floor}: expected >= 1, >= 0 and > 0, finite"
        )
    if covariance not in ("diag", "full"):
        raise ValueError(f"covariance={covariance!r}, expected 'diag' or 'full'")


@lru_cache(maxsize=64)
def start_rows(n: int, k: int) -> tuple[int, ...]:
    """K evenly spaced, rounded row indices of 0..N-1; in order, again and again, when N < K."""
    # Fractions: where a position ends in .5, rounding errors of linspace would decide which row is taken.
    spaced = [round(Fraction(i * (n - 1), max(k - 1, 1))) for i in range(k)]
    return tuple(spaced if n >= k else [i % n for i in range(k)])


def _start(x: Tensor, rows: Sequence[int], var_floor: float) -> tuple[Tensor, Tensor, Tensor]:
    m, n, d = x.shape
    k = len(rows)
    centred = x - x.mean(dim=1, keepdim=True)
    one = centred.mT @ centred / n + var_floor * torch.eye(d, dtype=x.dtype, device=x.device)
    return x.new_full((m, k), 1.0 / k), x[:, rows], one.unsqueeze(1).expand(m, k, d, d)


def _e_step(x: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    diff = x.unsqueeze(2) - means.unsqueeze(1)  # (M, N, K, d)
    log_det = 2 * cholesky(covariances).diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    log_density = -0.5 * (squared_mahalanobis(diff, covariances) + log_det.unsqueeze(1))
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


def _m_step(x: Tensor, resp: Tensor, var_floor: float) -> tuple[Tensor, Tensor, Tensor]:
    count = resp.sum(dim=1).clamp_min(COUNT_FLOOR)  # (M, K)
    means = resp.mT @ x / count.unsqueeze(-1)
    diff = x.unsqueeze(2) - means.unsqueeze(1)  # (M, N, K, d)
    spread = torch.einsum("mnk,mnkd,mnke->mkde", resp, diff, diff) / count[..., None, None]
    floor = var_floor * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return count / x.shape[1], means, spread + floor
