"""Mean, covariance and skewness of a batch, and the distance between two batches' moments (paper, section 3.3).

Lives here: the moments, the distance of two, and `semantic_loss`, its mean over all pairs with the derivative.
May change: the arithmetic, as long as the NumPy reference agrees. Twin: reference/moments.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from .envelope import Envelope, wants_slopes
from .precision import cast, widen

VARIANCE_FLOOR = 1e-6  # a constant column has no skewness: 0 / floor^1.5 = 0 instead of 0 / 0


class Moments(NamedTuple):
    """The first three moments of N samples in p dimensions."""

    mean: Tensor  # (p,)
    cov: Tensor  # (p, p), N - 1 in the denominator
    skew: Tensor  # (p,), dimensionless


def batch_moments(z: Tensor) -> Moments:
    r"""Mean, covariance and per-dimension skewness of the rows of `z`.

    mean = (1/N) sum_n z_n; cov = (1/max(N-1, 1)) sum_n (z_n - mean)(z_n - mean)^T;
    skew = (1/N) sum_n (z_n - mean)^3 / max(v, 1e-6)^{1.5} with v the population variance (1/N).

    Args:
        z: (N, p) samples, N >= 1.

    Raises:
        ValueError: when `z` is not a non-empty matrix.

    >>> import torch
    >>> batch_moments(torch.tensor([[0.0], [0.0], [3.0]])).cov.item()
    3.0
    """
    if z.dim() != 2 or z.shape[0] < 1:
        raise ValueError(f"z has shape {tuple(z.shape)}, expected (N, p) with N >= 1")
    dtype, z = z.dtype, widen(z)
    centre = _centred(z)
    return cast(Moments(centre.mean[0], centre.cov, centre.skew[0]), dtype)


class _Centre(NamedTuple):
    """(M, N, p) or (N, p) samples about their mean, and what follows; the sum over samples leaves a 1 in its place."""

    mean: Tensor
    centred: Tensor
    cov: Tensor
    variance: Tensor  # floored
    skew: Tensor


def _centred(z: Tensor) -> _Centre:
    mean = z.mean(dim=-2, keepdim=True)
    centred = z - mean
    square = centred * centred
    variance = square.mean(dim=-2, keepdim=True).clamp_min(VARIANCE_FLOOR)
    skew = (square * centred).mean(dim=-2, keepdim=True) / variance.pow(1.5)
    return _Centre(mean, centred, centred.mT @ centred / max(z.shape[-2] - 1, 1), variance, skew)


def moment_distance(a: Moments, b: Moments) -> Tensor:
    """Sum of the mean squared differences of means, of covariances and of skewnesses (each over its entries).

    Args:
        a, b: moments in the same dimension p.

    Raises:
        ValueError: when the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions cannot be compared")
    dtype, a, b = a.mean.dtype, widen(a), widen(b)
    return (mse_loss(a.mean, b.mean) + mse_loss(a.cov, b.cov) + mse_loss(a.skew, b.skew)).to(dtype)


def semantic_loss(groups: Sequence[Tensor]) -> Tensor:
    """Mean over unordered pairs of `moment_distance` between M >= 2 batches, finite and in float64.

    groups: tensors (M_g, N_g, p) of batches with the same number of samples. Relies on two identities: the sum over
    pairs of |a_i - a_j|^2 is M times the sum of |a_i - average|^2, so that no pair is formed; and its derivative is
    known with the value, so that autograd sees one operation (envelope.py).
    """
    differentiable = wants_slopes(*groups)
    with torch.no_grad():
        centres = [_centred(z) for z in groups]
        rows = [torch.cat([c.mean.flatten(1), c.cov.flatten(1), c.skew.flatten(1)], dim=1) for c in centres]
        moments = rows[0] if len(rows) == 1 else torch.cat(rows)  # (M, p + p^2 + p)
        deviations = moments - moments.mean(dim=0)
        to_moments = deviations * _entry_weights(len(moments), groups[0].shape[2], moments.dtype, moments.device)
        value = 0.5 * (deviations * to_moments).sum()
        if not differentiable:
            return value
        parts = to_moments.split([len(z) for z in groups])
        slopes = [_to_samples(centre, part) for centre, part in zip(centres, parts, strict=True)]
    return Envelope.apply(value, slopes, *groups)


@lru_cache(maxsize=64)
def _entry_weights(m: int, p: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(p + p^2 + p,): the derivative of the mean over pairs and entries in an entry's deviation from the average."""
    counts = torch.tensor([p, p * p, p])
    return (4 / (m - 1) / counts.to(dtype)).repeat_interleave(counts).to(device)


def _to_samples(centre: _Centre, to_moments: Tensor) -> Tensor:
    """The derivative in the samples (M, N, p) from that in their moments (M, p + p^2 + p), in cov symmetric."""
    _, n, p = centre.centred.shape
    to_mean, to_cov, to_skew = to_moments.unsqueeze(1).split([p, p * p, p], dim=2)
    to_cov, variance = to_cov.unflatten(2, (p, p)).squeeze(1), centre.variance
    free = variance > VARIANCE_FLOOR  # a variance on its floor does not move
    by_third, by_variance = to_skew * variance.pow(-1.5), to_skew * centre.skew / variance * free
    inner = (centre.centred * by_third).sub_(by_variance).mul_(3 / n)
    inner = torch.baddbmm(inner.mul_(centre.centred), centre.centred, to_cov, alpha=2 / max(n - 1, 1))
    return inner + (to_mean / n - inner.mean(dim=1, keepdim=True))
