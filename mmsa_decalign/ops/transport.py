"""Entropic multi-marginal optimal transport between mixtures (paper, section 3.2).

Lives here: the ground cost between Gaussians, the joint cost of M mixtures, and the call `multimarginal_sinkhorn`
with its result record. The stable solver itself is in `sinkhorn.py`. Twin: reference/transport.py.
May change: how a solver gets there, as long as the result record stays truthful and the reference agrees.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .distances import squared_distances
from .envelope import Envelope, wants_slopes
from .mixture import GaussianMixture, cholesky
from .newton import two_way
from .precision import cast, widen
from .release import RELEASE_ROUNDS, release_rounds
from .sinkhorn import DualSolution, solve_dual


class TransportResult(NamedTuple):
    """What a solver reached, and how well."""

    value: Tensor  # scalar: <P, C> + reg * sum P (log P - 1); differentiable in cost and marginals
    plan: Tensor  # (K_1, ..., K_M), >= 0
    potentials: tuple[Tensor, ...]  # dual variables f_m (K_m,), in units of the cost, -inf where the marginal is 0; the
    # stable solver settles their free constants so that <f_m, nu_m> is the same for all m
    marginal_error: float  # largest L1 distance between a marginal of the plan and the one asked for, in float64 before
    # the plan is rounded to the input's type
    n_iter: int
    converged: bool  # marginal_error <= tol


def gaussian_cost(
    a: GaussianMixture, b: GaussianMixture, *, reduction: str = "mean", product_floor: float = 0.0
) -> Tensor:
    r"""Squared 2-Wasserstein distances between the components of two mixtures.

    C[k, l] = |mu_k - mu'_l|^2 + tr(A_k + B_l - 2 (A_k^{1/2} B_l A_k^{1/2})^{1/2}); for diagonal covariances the
    second term is sum_d (sqrt(a_d) - sqrt(b_d))^2.

    Args:
        a, b: mixtures of K_a and K_b components in the same dimension, both diagonal or both full.
        reduction: "mean" divides by the dimension (the release), "sum" does not (the paper).
        product_floor: >= 0, added to a_d * b_d under the root; the release uses 1e-8. Diagonal covariances only.

    Returns:
        (K_a, K_b) in squared feature units, >= 0 when product_floor is 0.

    Raises:
        ValueError: for mixtures that cannot be compared or an unknown reduction.

    Source: Dowson & Landau, J. Multivariate Analysis 12 (1982) 450-455.
    """
    scale = scale_of(reduction, a.means.shape[-1])
    if a.means.shape[-1] != b.means.shape[-1] or a.covariances.dim() != b.covariances.dim():
        raise ValueError(
            f"mixtures with means {tuple(a.means.shape)}, {tuple(b.means.shape)} and covariances "
            f"{tuple(a.covariances.shape)}, {tuple(b.covariances.shape)}: expected one dimension, one covariance type"
        )
    dtype, a, b = a.means.dtype, widen(a), widen(b)
    if a.covariances.dim() == 2 and product_floor == 0:
        return (squared_distances(_points(*a[1:3]), _points(*b[1:3])) * scale).to(dtype)
    between_means = squared_distances(a.means, b.means)
    if a.covariances.dim() == 2:
        var_a, var_b = a.covariances.unsqueeze(1), b.covariances.unsqueeze(0)
        spread = (var_a + var_b - 2 * (var_a * var_b + product_floor).sqrt()).sum(dim=-1)
    else:
        # tr (A^1/2 B A^1/2)^1/2 is the sum of the singular values of L_A^T L_B with A = L_A L_A^T: no matrix
        # square root, and a gradient that exists for repeated eigenvalues.
        factor_a, factor_b = cholesky(a.covariances), cholesky(b.covariances)
        product = factor_a.mT.unsqueeze(1) @ factor_b.unsqueeze(0)
        cross = torch.linalg.svdvals(product).sum(dim=-1)
        trace_a = a.covariances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        trace_b = b.covariances.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        spread = trace_a.unsqueeze(1) + trace_b.unsqueeze(0) - 2 * cross
    return ((between_means + spread) * scale).to(dtype)


def _points(means: Tensor, variances: Tensor) -> Tensor:
    """Means and standard deviations (..., K, 2d): their squared distances are those of the diagonal Gaussians."""
    return torch.cat([means, variances.sqrt()], dim=-1)


def joint_cost(
    mixtures: Sequence[GaussianMixture], *, reduction: str = "mean", product_floor: float = 0.0
) -> Tensor:
    """Cost of taking one component from each mixture: C[k_1..k_M] = sum over i < j of gaussian_cost(i, j)[k_i, k_j].

    Args:
        mixtures: M >= 2, in the order of the modalities.
        reduction, product_floor: as in `gaussian_cost`.

    Returns:
        (K_1, ..., K_M).

    Raises:
        ValueError: for fewer than two mixtures, or two that `gaussian_cost` cannot compare.
    """
    if len(mixtures) < 2:
        raise ValueError(f"{len(mixtures)} mixtures, expected at least 2: one alone has nothing to be aligned with")
    dtype, mixtures = mixtures[0].means.dtype, widen(mixtures)
    pairs = {
        (i, j): gaussian_cost(mixtures[i], mixtures[j], reduction=reduction, product_floor=product_floor)
        for i, j in combinations(range(len(mixtures)), 2)
    }
    return _outer_sum(pairs, len(mixtures)).to(dtype)


def multimarginal_sinkhorn(
    cost: Tensor,
    marginals: Sequence[Tensor],
    *,
    reg: float,
    tol: float = 1e-9,
    max_iter: int | None = None,
    solver: str = "log",
) -> TransportResult:
    r"""Entropic transport between M distributions at once.

    value = min_P <P, C> + reg * sum P (log P - 1) over P >= 0 whose m-th marginal is `marginals[m]`.
    At the optimum log P[k_1..k_M] = (sum_m f_m[k_m] - C[k_1..k_M]) / reg with the potentials f_m.

    Gradients use the envelope theorem: d value / d C = P and d value / d marginals[m] = f_m (up to a constant, which
    normalised marginals do not feel). Nothing is stored per round; there is no second derivative.

    Args:
        cost: (K_1, ..., K_M), any finite real numbers, M >= 2.
        marginals: M vectors (K_m,), >= 0 with sum 1 (to 1e-4; rescaled exactly). Zeros are allowed.
        reg: entropic weight, > 0, in units of the cost.
        tol: largest accepted L1 error of a marginal. The stable solver works in float64 whatever the input's type.
        max_iter: rounds at most; default 1000, or 50 for the release's arithmetic.
        solver: "log" (stable, default) or "release": the authors' arithmetic, which underflows where cost / reg is
            large and is differentiated through its rounds. For numbers that must match theirs only.

    Warns:
        RuntimeWarning: when the stable solver stops above `tol`; the record then says converged=False.

    Raises:
        ValueError: for shapes, marginals, numbers or options outside the above.

    >>> r = multimarginal_sinkhorn(torch.zeros(2, 2), [torch.tensor([0.5, 0.5])] * 2, reg=1.0)
    >>> r.plan.tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    _check_options(reg, tol, max_iter, solver)
    dtype, cost, marginals = cost.dtype, widen(cost), _checked_marginals(cost, widen(marginals))
    if solver == "release":
        rounds = RELEASE_ROUNDS if max_iter is None else max_iter
        return cast(TransportResult(*release_rounds(cost, marginals, reg, tol, rounds)), dtype)
    solution = _solved(cost.detach(), [nu.detach() for nu in marginals], reg, tol, max_iter)
    # Where the marginal is zero f is -inf, but so flat is everything upstream that any finite number will do.
    slopes = [solution.plan, *(torch.nan_to_num(f, neginf=0.0) for f in solution.potentials)]
    return cast(_result(Envelope.apply(solution.value, slopes, cost, *marginals), solution, tol), dtype)


def mixture_transport(
    means: Tensor, variances: Tensor, marginals: Tensor, *, reduction: str, reg: float, tol: float, max_iter: int | None
) -> TransportResult:
    """`multimarginal_sinkhorn` of the `joint_cost` of M diagonal mixtures: means and variances (M, K, d),
    marginals (M, K), finite and in float64, each marginal of sum 1.

    Relies on the joint cost being a sum over pairs: what the derivative needs of the plan are its two-way marginals,
    (M K)^2 numbers, so that autograd never meets the K^M of the joint problem.
    """
    _check_options(reg, tol, max_iter, "log")
    m, k, d = means.shape
    scale = scale_of(reduction, d)
    differentiable = wants_slopes(means, variances, marginals)
    with torch.no_grad():
        deviations = variances.sqrt()
        points = torch.cat([means, deviations], dim=2).flatten(0, 1)
        costs = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(scale)
        blocks = costs.view(m, k, m, k)
        joint = _outer_sum({(i, j): blocks[i, :, j] for i, j in combinations(range(m), 2)}, m)
        solution = _solved(joint, list(marginals.unbind()), reg, tol, max_iter)
        if not differentiable:
            return _result(solution.value, solution, tol)
        shared = _all_two_way(solution.plan)
        to_points = torch.addcmul(-(shared @ points), points, shared.sum(dim=1, keepdim=True))
        to_means, to_deviations = to_points.mul_(2 * scale).view(m, k, 2 * d).chunk(2, dim=2)
        to_marginals = torch.nan_to_num(torch.stack(solution.potentials), neginf=0.0)
        slopes = to_means, to_deviations / (2 * deviations), to_marginals
    return _result(Envelope.apply(solution.value, slopes, means, variances, marginals), solution, tol)


def _all_two_way(plan: Tensor) -> Tensor:
    """(M K, M K): the two-way marginals of all pairs of axes, from both sides; zeros where an axis meets itself."""
    m = plan.dim()
    pairs = {}
    for i, j in combinations(range(m), 2):
        pairs[i, j] = two_way(plan, i, j)
        pairs[j, i] = pairs[i, j].mT
    nothing = plan.new_zeros(plan.shape[0], plan.shape[0])
    return torch.cat([torch.cat([pairs.get((i, j), nothing) for j in range(m)], dim=1) for i in range(m)])


def _outer_sum(pairs: dict[tuple[int, int], Tensor], m: int) -> Tensor:
    """sum over i < j of pairs[i, j][k_i, k_j]: (K_1, ..., K_M)."""
    total = None
    for (i, j), pair in pairs.items():
        shape = [1] * m
        shape[i], shape[j] = pair.shape
        total = pair.reshape(shape) if total is None else total + pair.reshape(shape)
    return total


def _check_options(reg: float, tol: float, max_iter: int | None, solver: str) -> None:
    if not (reg > 0 and math.isfinite(reg)):
        raise ValueError(f"reg={reg}, expected a positive, finite entropic weight in units of the cost")
    if not tol > 0 or (max_iter is not None and max_iter < 1):
        raise ValueError(f"tol={tol}, max_iter={max_iter}: expected a number above 0, and None or at least 1 round")
    if solver not in ("log", "release"):
        raise ValueError(f"solver={solver!r}, expected 'log' or 'release'")


def _solved(cost: Tensor, marginals: list[Tensor], reg: float, tol: float, max_iter: int | None) -> DualSolution:
    solution = solve_dual(cost, marginals, reg, tol, 1000 if max_iter is None else max_iter)
    if not solution.error <= tol:
        warnings.warn(
            f"transport stopped at a marginal error of {solution.error:.1e} (tol {tol:.1e}) after {solution.n_iter} "
            "rounds: raise max_iter, or reg if cost / reg is very large",
            RuntimeWarning,
            stacklevel=3,
        )
    return solution


def _result(value: Tensor, solution: DualSolution, tol: float) -> TransportResult:
    reached = solution.error <= tol
    return TransportResult(value, solution.plan, solution.potentials, solution.error, solution.n_iter, reached)


def _checked_marginals(cost: Tensor, marginals: Sequence[Tensor]) -> list[Tensor]:
    shapes = tuple(tuple(nu.shape) for nu in marginals)
    if cost.dim() < 2 or shapes != tuple((k,) for k in cost.shape):
        raise ValueError(f"cost {tuple(cost.shape)} with marginals {shapes}: expected one vector (K_m,) per axis")
    total = torch.stack([nu.sum() for nu in marginals])
    low = torch.stack([nu.min() for nu in marginals])
    if not bool((low >= 0).all() and ((total - 1).abs() <= 1e-4).all()):
        raise ValueError(f"marginals sum to {total.tolist()} with minima {low.tolist()}: expected >= 0 and sum 1")
    return [nu / s for nu, s in zip(marginals, total, strict=True)]


def scale_of(reduction: str, dimension: int) -> float:
    """1/d for "mean", 1 for "sum": the factor that turns a sum over dimensions into the reduction asked for."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r}, expected 'mean' or 'sum'")
    return 1.0 / dimension if reduction == "mean" else 1.0
