"""Maximum mean discrepancy with Gaussian kernels (paper, section 3.3).

Lives here: the call and the median bandwidth, which is differentiated pair by pair; the rest is in kernels.py.
May change: how distances are computed, as long as the NumPy reference agrees. Twin: reference/mmd.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distances import squared_distances
from .kernels import pooled_mmd
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
    widths = bandwidths(bandwidth)
    dtype, (x, y) = x.dtype, widen((x, y))
    if widths is not None:
        return pooled_mmd(torch.cat([x, y]), (len(x), len(y)), widths).to(dtype)
    xx, yy, xy = squared_distances(x, x), squared_distances(y, y), squared_distances(x, y)
    kernels = [torch.exp(d2 / (-2 * _median(xx, yy, xy))) for d2 in (xx, yy, xy)]
    return (kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean()).to(dtype)


def bandwidths(given: float | str | Sequence[float]) -> tuple[float, ...] | None:
    """The bandwidths as numbers; None for "median". Raises ValueError for anything else."""
    if isinstance(given, str):
        if given != "median":
            raise ValueError(f"bandwidth={given!r}, expected a positive number, several, or 'median'")
        return None
    widths = tuple(given) if isinstance(given, Sequence) else (given,)
    if not widths or not all(s > 0 for s in widths):
        raise ValueError(f"bandwidth={given!r}, expected positive squared lengths")
    return widths


def _median(xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    def pairs(d2: Tensor) -> Tensor:
        i, j = torch.triu_indices(*d2.shape, offset=1, device=d2.device)
        return d2[i, j]

    values = torch.cat([pairs(xx), pairs(yy), xy.flatten()])
    n = values.numel()  # >= 1: two samples of one row have one pair between them
    middle = [values.kthvalue(k).values for k in ((n + 1) // 2, n // 2 + 1)]
    return (0.5 * (middle[0] + middle[1])).clamp_min(MEDIAN_FLOOR)
