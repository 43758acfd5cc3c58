"""Costs between mixtures and multi-marginal entropic transport (paper: heterogeneity alignment, prototype transport).

Lives here: the cost of two Gaussians, the joint cost tensor, and three solvers of one problem: log-domain Sinkhorn (the
default), the release's arithmetic, and the linear programme. Speed may change, values may not.
"""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.linalg import sqrtm
from scipy.optimize import linprog

from . import _checks as check
from ._rounds import axes_but, log_plan, log_rounds, marginal_error, release_rounds
from .mixture import GaussianMixture


class TransportResult(NamedTuple):
    """What a transport solver found, and how well."""
    value: float
    plan: np.ndarray  # (K_1, ..., K_M)
    potentials: tuple[np.ndarray, ...]  # M arrays (K_m,), units of the cost
    marginal_error: float  # largest L1 distance of a marginal of the plan from the given one
    n_iter: int
    converged: bool  # marginal_error <= tol


def gaussian_cost(
    a: GaussianMixture, b: GaussianMixture, *, reduction: str = "mean", product_floor: float = 0.0
) -> np.ndarray:
    """Squared 2-Wasserstein distance between every component k of `a` and l of `b`, (K_a, K_b).

    |mu_k - mu_l|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2); for diagonal A, B the trace is sum_d (sqrt a_d - sqrt b_d)^2.

    reduction: "sum" is this (paper); "mean" divides it by d (release).
    product_floor: >= 0. Above 0 the diagonal term is a + b - 2 sqrt(a b + product_floor), the release's arithmetic with
        1e-8, which can fall below 0. The full term has no such product and takes no notice of it.
    Raises ValueError if the widths differ or one mixture is diagonal and the other full.
    >>> point = lambda mean, var: GaussianMixture(np.ones(1), np.array([[mean]]), np.array([[var]]), np.ones((1, 1)))
    >>> gaussian_cost(point(0.0, 1.0), point(3.0, 4.0)).tolist()
    [[10.0]]
    """
    check.require("reduction", reduction, reduction in ("mean", "sum"), "one of ['mean', 'sum']")
    check.require("product_floor", product_floor, product_floor >= 0, "0 or above")
    if a.means.shape[1:] != b.means.shape[1:] or a.covariances.shape[1:] != b.covariances.shape[1:]:
        shapes = f"{a.covariances.shape} and {b.covariances.shape}"
        raise ValueError(f"covariances must agree in width and form, got {shapes}: fit both with one `covariance`")
    cost = np.empty((len(a.means), len(b.means)))
    for i, j in np.ndindex(cost.shape):
        cov_a, cov_b = a.covariances[i], b.covariances[j]
        if cov_a.ndim == 2:
            root = np.real(sqrtm(cov_a))
            spread = np.trace(cov_a + cov_b - 2 * np.real(sqrtm(root @ cov_b @ root)))
        elif product_floor > 0:
            spread = (cov_a + cov_b - 2 * np.sqrt(cov_a * cov_b + product_floor)).sum()
        else:
            spread = ((np.sqrt(cov_a) - np.sqrt(cov_b)) ** 2).sum()
        cost[i, j] = ((a.means[i] - b.means[j]) ** 2).sum() + spread
    return cost / a.means.shape[1] if reduction == "mean" else cost


def joint_cost(
    mixtures: Sequence[GaussianMixture], *, reduction: str = "mean", product_floor: float = 0.0
) -> np.ndarray:
    """C[k_1, ..., k_M] = sum over pairs i < j of gaussian_cost(i, j)[k_i, k_j]. M >= 2; options of gaussian_cost.

    >>> point = lambda mean: GaussianMixture(np.ones(1), np.array([[mean]]), np.ones((1, 1)), np.ones((1, 1)))
    >>> joint_cost([point(0.0), point(1.0), point(3.0)]).tolist()
    [[[14.0]]]
    """
    if len(mixtures) < 2:
        raise ValueError(f"mixtures must hold at least 2 modalities, got {len(mixtures)}: pass one for each")
    cost = np.zeros([len(mixture.means) for mixture in mixtures])
    for i, j in combinations(range(len(mixtures)), 2):
        pair = gaussian_cost(mixtures[i], mixtures[j], reduction=reduction, product_floor=product_floor)
        cost += np.expand_dims(pair, axes_but(cost.ndim, i, j))
    return cost


def _checked_problem(cost, marginals: Sequence) -> tuple[np.ndarray, list[np.ndarray]]:
    cost = check.finite("cost", cost)
    marginals = [check.finite(f"marginals[{m}]", nu, ndim=1) for m, nu in enumerate(marginals)]
    sizes = tuple(len(nu) for nu in marginals)
    if cost.ndim < 2 or cost.shape != sizes:
        raise ValueError(f"cost must have one axis per marginal, 2 or more, got {cost.shape} and {sizes}: match them")
    for m, nu in enumerate(marginals):
        if (nu < 0).any() or abs(nu.sum() - 1) > 1e-6:
            got = f"least entry {nu.min():g} and sum {nu.sum():.9g}"
            raise ValueError(f"marginals[{m}] must be non-negative with sum 1, got {got}: divide it by its sum")
    return cost, [nu / nu.sum() for nu in marginals]  # equal masses, or no plan could meet all of them


def multimarginal_sinkhorn(
    cost, marginals: Sequence, *, reg: float, tol: float = 1e-9, max_iter: int | None = None, solver: str = "log"
) -> TransportResult:
    """min over P of <P, C> + reg * sum P (log P - 1), P >= 0 with marginals nu_1..nu_M (0 log 0 = 0).

    At the optimum log P = (f_1 + ... + f_M - C) / reg with one potential f_m per modality; d value / d C = P and
    d value / d nu_m = f_m. The constants that potentials can exchange are fixed by making all <nu_m, f_m> equal.

    cost: (K_1, ..., K_M), M >= 2, finite. reg: > 0, in its units. marginals: M arrays (K_m,), non-negative, sum 1
        within 1e-6 (divided by it before use). Zero entries are normal: plan 0 and potential -inf there.
    solver="log": at most `max_iter` rounds (10000) until marginal_error <= tol, else a RuntimeWarning, converged=False.
        The value is the dual one, sum_m <nu_m, f_m> - reg sum P: never above the minimum, error of second order.
    solver="release": the authors' arithmetic, exactly `max_iter` rounds (50). Its plan may miss most of the mass:
        marginal_error and converged say so, without a warning, and its value is not the minimum.
    Raises ValueError for a wrong shape, range or solver.
    >>> result = multimarginal_sinkhorn([[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]], reg=1.0)
    >>> result.plan.round(9).tolist()
    [[0.5, 0.0], [0.5, 0.0]]
    """
    cost, marginals = _checked_problem(cost, marginals)
    check.require("reg", reg, 0 < reg < np.inf, "a finite number above 0")
    check.require("tol", tol, 0 < tol < np.inf, "a finite number above 0")
    check.require("solver", solver, solver in ("log", "release"), "one of ['log', 'release']")
    max_iter = {"log": 10000, "release": 50}[solver] if max_iter is None else max_iter
    check.require("max_iter", max_iter, max_iter == int(max_iter) >= 1, "a whole number of at least 1")
    if solver == "release":
        plan, potentials, value = release_rounds(cost, marginals, reg, max_iter)
        error = marginal_error(plan, marginals)
        return TransportResult(value, plan, tuple(potentials), error, max_iter, error <= tol)
    # Entries without mass leave the problem, so that logarithms are finite, and so does the cost's constant part.
    support = [np.flatnonzero(nu) for nu in marginals]
    kept_marginals = [nu[kept] for nu, kept in zip(marginals, support, strict=True)]
    least = cost[np.ix_(*support)].min()
    kept_cost = cost[np.ix_(*support)] - least
    kept_potentials, n_iter = log_rounds(kept_cost, kept_marginals, reg, tol, max_iter)
    plan, potentials = np.zeros(cost.shape), tuple(np.full(len(nu), -np.inf) for nu in marginals)
    plan[np.ix_(*support)] = np.exp(log_plan(kept_potentials, kept_cost, reg))
    parts = [nu @ f for nu, f in zip(kept_marginals, kept_potentials, strict=True)]
    dual = sum(parts) + least
    for m, kept in enumerate(support):
        potentials[m][kept] = kept_potentials[m] - parts[m] + dual / cost.ndim
    error = marginal_error(plan, marginals)
    if error > tol:
        found = f"transport stopped after {n_iter} rounds with marginal error {error:.2e} above tol={tol:.0e}"
        warnings.warn(f"{found}: raise reg (now {reg:g}) or max_iter (now {max_iter})", RuntimeWarning, stacklevel=2)
    return TransportResult(float(dual - reg * plan.sum()), plan, potentials, error, n_iter, error <= tol)


def exact_transport(cost, marginals: Sequence) -> TransportResult:
    """min over P of <P, C>, P >= 0 with marginals nu_1..nu_M: the limit reg -> 0, by linear programming (HiGHS).

    For small problems: K_1 * ... * K_M variables. The potentials are the dual solution: sum_m <nu_m, f_m> = value and
    f_1 + ... + f_M <= C. cost and marginals as in multimarginal_sinkhorn. Raises ValueError for a wrong shape.
    >>> exact_transport([[0.0, 1.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]).value
    0.5
    """
    cost, marginals = _checked_problem(cost, marginals)
    rows = [(index == k).ravel() for index in np.indices(cost.shape) for k in range(index.max() + 1)]
    lp = linprog(cost.ravel(), A_eq=np.array(rows, dtype=float), b_eq=np.concatenate(marginals), method="highs")
    plan, potentials = lp.x.reshape(cost.shape), np.split(lp.eqlin.marginals, np.cumsum(cost.shape)[:-1])
    return TransportResult(lp.fun, plan, tuple(potentials), marginal_error(plan, marginals), lp.nit, lp.success)
