"""Maximum mean discrepancy with Gaussian kernels (paper, section 3.3).

May change: how distances are computed, as long as the NumPy reference agrees. Twin: reference/mmd.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .precision import widen

MEDIAN_FLOOR = 1e-12  # all samples equal: any bandwidth gives the same kernel, 0 would give 0 / 0


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | str | Sequence[float] = 1.0) -> Tensor:
    r"""Biased squared maximum mean discrepancy (V-statistic) between two samples.

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k(u, v) = exp(-|u - v|^2 / (2 s)).
    It is >= 0 and 0 for a sample with itself; for one Gaussian kernel it is < 2.

    Args:
        x: (N, p).
        y: (N', p).
        bandwidth: s > 0, a squared length; "median": the median of the squared distances between the distinct
            rows of both samples together (the gradient goes through it); several values: the sum of their MMDs.

    Raises:
        ValueError: when widths differ, a sample is empty or a bandwidth is not positive.

    Source: Gretton et al., JMLR 13 (2012) 723-773, equation 5.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd(x, x).item()
    0.0
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or 0 in (x.shape[0], y.shape[0]):
        raise ValueError(f"samples of shape {tuple(x.shape)} and {tuple(y.shape)}, expected (N, p) and (N', p), N >= 1")
    dtype, x, y = x.dtype, widen(x), widen(y)
    xx, yy, xy = _squared_distances(x, x), _squared_distances(y, y), _squared_distances(x, y)
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(f"bandwidth={bandwidth!r}, expected a positive number, several, or 'median'")
        widths: Sequence[float | Tensor] = [_median(xx, yy, xy)]
    else:
        widths = list(bandwidth) if isinstance(bandwidth, Sequence) else [bandwidth]
        if not widths or not all(s > 0 for s in widths):
            raise ValueError(f"bandwidth={bandwidth!r}, expected positive squared lengths")
    terms = [_discrepancy(xx, yy, xy, s) for s in widths]
    return torch.stack(terms).sum().to(dtype)


def _discrepancy(xx: Tensor, yy: Tensor, xy: Tensor, s: float | Tensor) -> Tensor:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y) from squared distances, for one bandwidth."""

    def kernel_mean(d2: Tensor) -> Tensor:
        return torch.exp(-d2 / (2 * s)).mean()

    return kernel_mean(xx) + kernel_mean(yy) - 2 * kernel_mean(xy)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # Differences first: |x|^2 + |y|^2 - 2 x.y cancels when the samples lie far from the origin.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _median(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    def pairs(d2: Tensor) -> Tensor:
        i, j = torch.triu_indices(*d2.shape, offset=1, device=d2.device)
        return d2[i, j]

    values = torch.cat([pairs(xx), pairs(yy), xy.flatten()])
    n = values.numel()  # >= 1: two samples of one row have one pair between them
    middle = [values.kthvalue(k).values for k in ((n + 1) // 2, n // 2 + 1)]
    return (0.5 * (middle[0] + middle[1])).clamp_min(MEDIAN_FLOOR)
