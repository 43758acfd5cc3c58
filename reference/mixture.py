"""Gaussian mixtures fitted by a fixed number of EM steps (paper: heterogeneity alignment, prototypes).

Lives here: the mixture record, its log density and the EM loop. Start and floors belong to the method, not to taste.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from . import _checks as check

MASS_FLOOR = 1e-6  # a component without mass divides by this, not by zero
WEIGHT_FLOOR = 1e-8  # log weight of a component without mass stays finite


class GaussianMixture(NamedTuple):
    """A fitted mixture of K components over N samples of width d."""
    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, d)
    covariances: np.ndarray  # (K, d) variances, or (K, d, d)
    responsibilities: np.ndarray  # (N, K), rows sum to 1


def squared_mahalanobis(centred: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """maha_n = c_n' Sigma^-1 c_n for the rows c_n of `centred`, (N,). Sigma: (d,) variances or (d, d)."""
    if covariance.ndim == 1:
        return (centred**2 / covariance).sum(axis=1)
    return (centred * np.linalg.solve(covariance, centred.T).T).sum(axis=1)


def component_log_density(x: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """log N(x_n; mu_k, Sigma_k) = -(d log 2 pi + log det Sigma_k + maha_nk) / 2, (N, K)."""
    log_density = np.empty((len(x), len(means)))
    for k, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        log_det = np.log(covariance).sum() if covariance.ndim == 1 else np.linalg.slogdet(covariance)[1]
        log_density[:, k] = -(x.shape[1] * np.log(2 * np.pi) + log_det + squared_mahalanobis(x - mean, covariance)) / 2
    return log_density


def _covariance(x: np.ndarray, mean: np.ndarray, shares: np.ndarray, var_floor: float, kind: str) -> np.ndarray:
    """sum_n shares_n (x_n - mean)(x_n - mean)', about the mean itself: E[x^2] - mean^2 would cancel."""
    centred = x - mean
    if kind == "diag":
        return np.maximum(shares @ centred**2, var_floor)
    return (shares[:, None] * centred).T @ centred + var_floor * np.eye(x.shape[1])


def _e_step(x: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """r_nk = softmax over k of (log weight_k + log density), (N, K)."""
    joint = np.log(np.maximum(weights, WEIGHT_FLOOR)) + component_log_density(x, means, covariances)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def fit_gaussian_mixture(
    x, n_components: int, *, n_iter: int = 5, var_floor: float = 1e-4, covariance: str = "diag"
) -> GaussianMixture:
    """Mixture weights pi, means mu, covariances Sigma and responsibilities r after `n_iter` EM steps on x.

    E step: r_nk proportional to pi_k N(x_n; mu_k, Sigma_k). M step, with n_k = max(sum_n r_nk, 1e-6):
        pi_k = n_k / N,   mu_k = sum_n r_nk x_n / n_k,   Sigma_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)' / n_k.
    Start: mu are the rows round(linspace(0, N - 1, K)), ties to even; with N < K the rows repeat in order, 0..N-1, 0..;
    every Sigma is the population covariance of x; pi = 1/K. The responsibilities are those of the final parameters.
    The paper writes full covariances, the release fits diagonal ones.

    x: (N, d), any finite values. n_components: K >= 1. n_iter: >= 0.
    var_floor: > 0, in squared units of x. "diag": variances below it are set to it. "full": var_floor * I is added to
        every covariance, the start included, which keeps it invertible. Raises ValueError for a wrong shape or range.
    >>> fit_gaussian_mixture([[0.0], [2.0]], 1, n_iter=1).covariances.tolist()
    [[1.0]]
    """
    x = check.finite("x", x, ndim=2)
    check.require("n_components", n_components, n_components == int(n_components) >= 1, "a whole number of at least 1")
    check.require("n_iter", n_iter, n_iter == int(n_iter) >= 0, "a whole number of at least 0")
    check.require("var_floor", var_floor, 0 < var_floor < np.inf, "a finite number above 0")
    check.require("covariance", covariance, covariance in ("diag", "full"), "one of ['diag', 'full']")
    n = len(x)
    spaced = np.rint(np.arange(n_components) * (n - 1) / max(n_components - 1, 1)).astype(int)  # ties are exact here
    means = x[spaced if n >= n_components else np.arange(n_components) % n]
    weights = np.full(n_components, 1 / n_components)
    covariances = np.stack([_covariance(x, x.mean(axis=0), np.full(n, 1 / n), var_floor, covariance)] * n_components)
    responsibilities = _e_step(x, weights, means, covariances)
    for _ in range(n_iter):
        mass = np.maximum(responsibilities.sum(axis=0), MASS_FLOOR)  # (K,)
        weights = mass / n
        means = responsibilities.T @ x / mass[:, None]  # (K, d)
        pairs = zip(means, (responsibilities / mass).T, strict=True)
        covariances = np.stack([_covariance(x, mean, shares, var_floor, covariance) for mean, shares in pairs])
        responsibilities = _e_step(x, weights, means, covariances)
    return GaussianMixture(weights, means, covariances, responsibilities)
