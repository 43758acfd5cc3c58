"""Maximum mean discrepancy with Gaussian kernels (paper: homogeneity alignment, latent distributions).

Lives here: the kernel, the bandwidth rules and the biased estimate. `bandwidth` is a squared length s everywhere.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist, pdist

from . import _checks as check


def mmd(x, y, *, bandwidth: float | str | Sequence[float] = 1.0) -> float:
    """Biased squared MMD: mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j), 0 or more.

    k(u, v) = sum over s of exp(-|u - v|^2 / (2 s)), for s in `bandwidth`:
        a number: that one s, in squared units of x (1.0 in the release); a sequence of numbers: all of them;
        "median": the median of the squared distances over the unordered pairs of the pooled sample, at least 1e-12
            for when most points coincide (not halved, and not the square of a median length).

    x: (N, d). y: (M, d). Raises ValueError for a wrong shape, width or bandwidth.
    >>> round(mmd([[0.0]], [[2.0]], bandwidth=2.0), 6)  # 2 - 2 / e
    1.264241
    """
    x, y = check.finite("x", x, ndim=2), check.finite("y", y, ndim=2)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have one width, got shapes {x.shape} and {y.shape}: project them to one width")
    if isinstance(bandwidth, str):
        check.require("bandwidth", bandwidth, bandwidth in ("median",), "one of ['median']")
        bandwidth = max(np.median(pdist(np.concatenate([x, y]), "sqeuclidean")), 1e-12)
    bandwidths = [bandwidth] if np.ndim(bandwidth) == 0 else list(bandwidth)
    if not bandwidths:
        raise ValueError("bandwidth must hold at least one number, got an empty sequence: pass 1.0 or 'median'")
    total = 0.0
    for s in bandwidths:
        check.require("bandwidth", s, 0 < s < np.inf, "a finite number above 0")
        for u, v, weight in ((x, x, 1), (y, y, 1), (x, y, -2)):
            total += weight * np.exp(-cdist(u, v, "sqeuclidean") / (2 * s)).mean()
    return float(total)
