"""Moments of a batch and the distance between two of them (paper: homogeneity alignment, semantic consistency).

Lives here: the three moments and their mean squared difference. Denominators and the floor are part of the method.
"""

from typing import NamedTuple

import numpy as np

from . import _checks as check


class Moments(NamedTuple):
    """First three moments over the batch."""
    mean: np.ndarray  # (d,)
    cov: np.ndarray  # (d, d), N - 1 in the denominator
    skew: np.ndarray  # (d,), population moments


def batch_moments(z) -> Moments:
    """Mean m, covariance and skewness of the rows of z.

        cov = sum_n (z_n - m)(z_n - m)' / max(N - 1, 1)
        skew = mean_n (z_n - m)^3 / max(mean_n (z_n - m)^2, 1e-6)^1.5   (per dimension)

    z: (N, d). Raises ValueError for a wrong shape.
    >>> batch_moments([[0.0], [0.0], [3.0]]).cov.tolist()
    [[3.0]]
    """
    z = check.finite("z", z, ndim=2)
    mean = z.mean(axis=0)
    centred = z - mean
    cov = centred.T @ centred / max(len(z) - 1, 1)
    variance = np.maximum((centred**2).mean(axis=0), 1e-6)  # a constant column has skewness 0 instead of 0/0
    return Moments(mean, cov, (centred**3).mean(axis=0) / variance**1.5)


def moment_distance(a: Moments, b: Moments) -> float:
    """Mean over entries of the squared difference, for mean, covariance and skewness each, added up.

    a, b: moments of two batches of the same width. Raises ValueError if the widths differ.
    >>> zero = batch_moments([[0.0, 0.0]])
    >>> moment_distance(zero, batch_moments([[3.0, 4.0]]))
    12.5
    """
    if np.shape(a.mean) != np.shape(b.mean):
        raise ValueError(f"moments must have one width, got {np.shape(a.mean)} and {np.shape(b.mean)}: project to one")
    return float(sum(np.mean(np.subtract(left, right) ** 2) for left, right in zip(a, b, strict=True)))
