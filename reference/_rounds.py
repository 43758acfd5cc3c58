"""The iterations behind multimarginal_sinkhorn: log-domain rounds with Newton steps, and the release's arithmetic.

Lives here: what only has to be fast and stable. The problem is stated in transport.py, which also checks the input.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

ROUNDING = 1e-9  # a rise of the dual by less, in units of reg, cannot be told from rounding
LONGEST_STEP = 20.0  # a Newton step may change a factor of the plan by exp(20); further out its model is worthless


def axes_but(ndim: int, *kept: int) -> tuple[int, ...]:
    """All axes of a tensor but the kept ones."""
    return tuple(axis for axis in range(ndim) if axis not in kept)


def plan_marginals(plan: np.ndarray) -> list[np.ndarray]:
    """Sums of the plan over all axes but one, for each axis."""
    return [plan.sum(axis=axes_but(plan.ndim, m)) for m in range(plan.ndim)]


def marginal_error(plan: np.ndarray, marginals: Sequence[np.ndarray]) -> float:
    """max over m of |marginal m of the plan - nu_m|_1."""
    return float(max(np.abs(p - nu).sum() for p, nu in zip(plan_marginals(plan), marginals, strict=True)))


def log_plan(potentials: Sequence[np.ndarray], cost: np.ndarray, reg: float) -> np.ndarray:
    """(f_1[k_1] + ... + f_M[k_M] - C) / reg."""
    return (reduce(np.add.outer, potentials) - cost) / reg


class _State(NamedTuple):
    """Potentials with the plan they make, its marginal error, and the dual value (up to reg sum P) in units of reg."""
    potentials: list
    plan: np.ndarray
    error: float
    dual: float


def _advance(potentials: list[np.ndarray], cost: np.ndarray, marginals: list[np.ndarray], reg: float) -> _State:
    """A Sinkhorn round: each potential in turn makes its own marginal exact; the last one then holds, and mass is 1."""
    potentials = list(potentials)
    for m, nu in enumerate(marginals):
        log_marginal = logsumexp(log_plan(potentials, cost, reg), axis=axes_but(cost.ndim, m))
        potentials[m] = potentials[m] + reg * (np.log(nu) - log_marginal)
    plan = np.exp(log_plan(potentials, cost, reg))
    dual = sum(nu @ f for nu, f in zip(marginals, potentials, strict=True)) / reg
    return _State(potentials, plan, marginal_error(plan, marginals), dual)


def _newton_step(plan: np.ndarray, marginals: list[np.ndarray], damping: float) -> list[np.ndarray]:
    """Damped Newton step on the concave dual sum_m <nu_m, f_m> - reg sum P, in units of reg.

    Gradient: nu_m - p_m, with p_m the marginals of the plan. Minus the Hessian, times reg: p_m on the diagonal, the
    plan's two-way marginals elsewhere. In the variables sqrt(mass) f its eigenvalues lie in [0, M], near 0 where the
    dual is flat (constants that potentials can exchange, parts of the plan that hardly touch): hence the damping.
    """
    ends = np.cumsum(plan.shape)
    blocks = [slice(end - size, end) for end, size in zip(ends, plan.shape, strict=True)]
    sums, masses = np.concatenate(plan_marginals(plan)), np.concatenate(marginals)
    hessian = np.diag(sums)
    for i, j in combinations(range(plan.ndim), 2):
        two_way = plan.sum(axis=axes_but(plan.ndim, i, j))
        hessian[blocks[i], blocks[j]], hessian[blocks[j], blocks[i]] = two_way, two_way.T
    root = np.sqrt(np.maximum(masses, sums))
    curvature, axes = np.linalg.eigh(hessian / np.outer(root, root))
    step = axes @ (axes.T @ ((masses - sums) / root) / (np.maximum(curvature, 0) + damping)) / root
    return [np.clip(step[block], -LONGEST_STEP, LONGEST_STEP) for block in blocks]


def log_rounds(cost: np.ndarray, marginals: list, reg: float, tol: float, max_iter: int) -> tuple[list, int]:
    """Potentials of the entropic problem for positive marginals, and the number of rounds spent.

    Sinkhorn rounds alone reach the optimum, but slowly when reg is small against the cost. So (1) reg starts at the
    range of the cost and is halved down to the one asked for, each solution starting the next; (2) each round is tried
    from where a Newton step leads (Levenberg's damping), and done from the old point if the dual does not rise there.
    """
    potentials, n_iter = [np.zeros(len(nu)) for nu in marginals], 0
    n_halvings = int(np.ceil(np.log2(max(np.ptp(cost) / reg, 1.0))))
    for halvings_left in range(n_halvings, -1, -1):
        level_reg, damping = reg * 2.0**halvings_left, 1e-6
        # The way down needs little accuracy, and must leave rounds for the reg asked for.
        level_tol, last_iter = (max(tol, 1e-3), max_iter // 2) if halvings_left else (tol, max_iter)
        if n_iter >= last_iter:
            continue
        state, n_iter = _advance(potentials, cost, marginals, level_reg), n_iter + 1
        while state.error > level_tol and n_iter < last_iter:
            step = _newton_step(state.plan, marginals, damping)
            moved = [f + level_reg * s for f, s in zip(state.potentials, step, strict=True)]
            trial, n_iter = _advance(moved, cost, marginals, level_reg), n_iter + 1
            gain = trial.dual - state.dual
            helped = gain > ROUNDING or (gain > -ROUNDING and trial.error < state.error)
            damping = max(damping / 10, 1e-14) if helped else min(damping * 10, 1.0)
            state = trial if helped else _advance(state.potentials, cost, marginals, level_reg)
        potentials = state.potentials
    return potentials, n_iter


def release_rounds(cost: np.ndarray, marginals: list, reg: float, n_rounds: int) -> tuple[np.ndarray, list, float]:
    """Plan exp(-C / reg) u_1 ... u_M with the release's clamp and padded denominators, its potentials and its value."""
    kernel = np.maximum(np.exp(-cost / max(reg, 1e-6)), 1e-30)
    scalings = [np.ones(len(nu)) for nu in marginals]
    for _ in range(n_rounds):
        for m, nu in enumerate(marginals):
            others = [np.ones(len(u)) if i == m else u for i, u in enumerate(scalings)]
            scaled = kernel * reduce(np.multiply.outer, others)
            scalings[m] = nu / (scaled.sum(axis=axes_but(cost.ndim, m)) + 1e-8)
    plan = kernel * reduce(np.multiply.outer, scalings)
    value = (plan * cost).sum() + reg * (plan * (np.log(np.maximum(plan, 1e-8)) - 1)).sum()
    potentials = [reg * np.log(u, out=np.full(len(u), -np.inf), where=u > 0) for u in scalings]
    return plan, potentials, float(value)
