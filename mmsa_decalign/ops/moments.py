"""Mean, covariance and skewness of a batch, and the distance between two batches' moments (paper, section 3.3).

May change: the arithmetic, as long as the NumPy reference agrees. Twin: reference/moments.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import mse_loss

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
    mean = z.mean(dim=0)
    centred = z - mean
    cov = centred.mT @ centred / max(z.shape[0] - 1, 1)
    variance = centred.square().mean(dim=0).clamp_min(VARIANCE_FLOOR)
    return cast(Moments(mean, cov, centred.pow(3).mean(dim=0) / variance.pow(1.5)), dtype)


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
