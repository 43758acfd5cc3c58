"""Maximum mean discrepancy with Gaussian kernels (paper: homogeneity alignment, latent distributions).

Lives here: the kernel, the bandwidth rules and the biased estimate. `bandwidth` is a squared length s everywhere.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from . import _checks as check

MEDIAN_FLOOR = 1e-12  # more than half of the pairs coincide: distinct points then count as far apart


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x_i - y_j|^2, (N, M), from the differences themselves: |x|^2 + |y|^2 - 2xy would cancel."""
    return np.array([((y - row) ** 2).sum(axis=1) for row in x])


def _median_bandwidth(x: np.ndarray, y: np.ndarray) -> float:
    """Median of |p - q|^2 over the unordered pairs of rows of the pooled sample (x, y)."""
    pairs = [((p - q) ** 2).sum() for p, q in combinations(np.concatenate([x, y]), 2)]
    return max(float(np.median(pairs)), MEDIAN_FLOOR)


def mmd(x, y, *, bandwidth: float | str | Sequence[float] = 1.0) -> float:
    """Biased squared MMD: mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j), 0 or more.

    k(u, v) = sum over s of exp(-|u - v|^2 / (2 s)), for s in `bandwidth`:
        a number: that one s, in squared units of x (1.0 in the release); a sequence of numbers: all of them;
        "median": the median of the squared distances over the unordered pairs of the pooled sample, at least 1e-12
            (not halved, and not the square of a median length).

    x: (N, d). y: (M, d). Raises ValueError for a wrong shape, width or bandwidth.

    >>> round(mmd([[0.0]], [[2.0]], bandwidth=2.0), 6)  # 2 - 2 / e
    1.264241
    """
    x, y = check.finite("x", x, ndim=2), check.finite("y", y, ndim=2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have one width, got shapes {x.shape} and {y.shape}: project them to one width")
    if isinstance(bandwidth, str):
        check.choice("bandwidth", bandwidth, ("median",))
        bandwidth = _median_bandwidth(x, y)
    bandwidths = [bandwidth] if np.ndim(bandwidth) == 0 else list(bandwidth)
    if not bandwidths:
        raise ValueError("bandwidth must hold at least one number, got an empty sequence: pass 1.0 or 'median'")
    total = 0.0
    for s in bandwidths:
        check.positive("bandwidth", s)
        k_xx, k_yy, k_xy = (np.exp(-_squared_distances(u, v) / (2 * s)).mean() for u, v in ((x, x), (y, y), (x, y)))
        total += k_xx + k_yy - 2 * k_xy
    return float(total)
