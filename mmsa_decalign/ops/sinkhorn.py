"""The stable solver of entropic multi-marginal transport: Sinkhorn sweeps and Newton steps on the dual, in float64.

With g_m = f_m / reg the dual in units of reg is  D(g) = sum_m <g_m, nu_m> - sum exp(sum_m g_m - C / reg).
It is concave. A Sinkhorn sweep maximises it exactly in one g_m after the other, from anywhere, but slowly when C / reg
is large; a Newton step converges quadratically near the optimum but may fail far from it. Each round does both; a
Newton step that neither raises D nor lowers the error is dropped. Large C / reg is approached from larger reg.
Problems as training makes them are solved by newton.py, in a fraction of the time; what it gives up begins here anew.

May change: everything, as long as `solve_dual` stays without side effects and its error is measured on the plan that
it returns. No gradients here: transport.py attaches them by the envelope theorem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import newton

NEWTON_RANGE = 90.0  # (max C - min C) / reg up to which Newton's method is tried on its own
EASY_RANGE = 30.0  # (max C - min C) / reg up to which the solver starts at once; beyond it reg is lowered in stages
STAGE_FACTOR = 4.0  # each stage divides reg by this
MAX_STEP = 30.0  # longest Newton step, in units of reg: a factor of e^30 on an entry of the plan
HALVINGS = 10  # of a step that does not improve matters
STAGE_TOL = 1e-3  # a stage before the last only has to be near enough for the next to start well


class DualSolution(NamedTuple):
    """Potentials and plan on all atoms (float64), with the error that the plan really has."""

    value: Tensor
    plan: Tensor
    potentials: tuple[Tensor, ...]
    error: float
    n_iter: int


@torch.no_grad()
def solve_dual(cost: Tensor, marginals: Sequence[Tensor], reg: float, tol: float, max_iter: int) -> DualSolution:
    """Maximise the dual of `multimarginal_sinkhorn`; arguments as there, already checked, in float64, of sum 1."""
    least, most, lightest = torch.stack([cost.min(), cost.max(), torch.cat(list(marginals)).min()]).tolist()
    # A constant in the cost moves the value, not the plan, and would cost digits.
    n_iter = 0
    if lightest > 0 and most - least <= NEWTON_RANGE * reg:
        found = newton.solve((cost - least) / reg, marginals, tol, max_iter)
        if found is not None:
            potentials, shift = _settled([g * reg for g in found.potentials], marginals, least)
            return DualSolution(shift - reg * found.plan.sum(), found.plan, potentials, found.error, found.n_iter)
        n_iter = min(newton.ROUNDS, max_iter)
    keep = [nu.nonzero().squeeze(1) for nu in marginals]  # atoms without mass take no part: no log(0) anywhere below
    c = cost[torch.meshgrid(*keep, indexing="ij")] - least
    nus = [nu[index] for nu, index in zip(marginals, keep, strict=True)]

    potentials = [torch.zeros_like(nu) for nu in nus]
    for stage_reg, stage_tol in _stages(c, reg, tol):
        g = [f / stage_reg for f in potentials]
        while n_iter < max_iter:
            n_iter += 1
            g, log_plan = _sweep(g, c / stage_reg, nus)
            error = _error(log_plan.exp(), nus)
            if error <= stage_tol:
                break
            g, log_plan, error = _newton_step(g, log_plan, nus, error)
            if error <= stage_tol:
                break
        potentials = [x * stage_reg for x in g]
    # Of the problem asked for: the rounds may have run out in an earlier stage, or before the first. A sweep then sees
    # to it that the plan has a mass of 1 and the last marginal right.
    g = [f / reg for f in potentials]
    log_plan = _add(-c / reg, g)
    error = _error(log_plan.exp(), nus)
    if not error <= tol:
        g, log_plan = _sweep(g, c / reg, nus)
        error = _error(log_plan.exp(), nus)

    potentials, total = _settled([x * reg for x in g], nus, least)
    plan = log_plan.exp()
    value = total - reg * plan.sum()
    full_plan = torch.zeros_like(cost)
    full_plan[torch.meshgrid(*keep, indexing="ij")] = plan
    full_potentials = tuple(
        torch.full_like(nu, -torch.inf).index_copy(0, index, f)
        for nu, index, f in zip(marginals, keep, potentials, strict=True)
    )
    return DualSolution(value, full_plan, full_potentials, error, n_iter)


def _settled(
    potentials: Sequence[Tensor], nus: Sequence[Tensor], least: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Settle the constants that can move between potentials, so that <f_m, nu_m> is the same for every m; and its sum.

    `least` is the constant that was taken off the cost.
    """
    shares = torch.stack([f @ nu for f, nu in zip(potentials, nus, strict=True)])
    total = shares.sum() + least
    moves = total / len(shares) - shares
    return tuple(f + move for f, move in zip(potentials, moves.unbind(), strict=True)), total


def marginal(plan: Tensor, axis: int) -> Tensor:
    """Sum of `plan` over all axes but one."""
    return plan.sum(dim=[a for a in range(plan.dim()) if a != axis])


def _stages(c: Tensor, reg: float, tol: float) -> list[tuple[float, float]]:
    """(reg, tol) from an easy problem down to the one asked for; the least cost is 0."""
    spread = float(c.max())
    stages = [(reg, tol)]
    while spread / stages[0][0] > EASY_RANGE:
        stages.insert(0, (stages[0][0] * STAGE_FACTOR, max(STAGE_TOL, tol)))
    return stages


def _add(tensor: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """tensor[k_1..k_M] + sum_m vectors[m][k_m]."""
    for axis, x in enumerate(vectors):
        tensor = tensor + x.reshape([-1 if a == axis else 1 for a in range(tensor.dim())])
    return tensor


def _sweep(g: Sequence[Tensor], scaled_cost: Tensor, nus: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Give each potential in turn the value that makes its own marginal exact."""
    g, log_plan = list(g), _add(-scaled_cost, g)
    for axis, nu in enumerate(nus):
        others = [a for a in range(len(nus)) if a != axis]
        shift = nu.log() - torch.logsumexp(log_plan, dim=others)
        g[axis] = g[axis] + shift
        log_plan = log_plan + shift.reshape([-1 if a == axis else 1 for a in range(len(nus))])
    return g, log_plan


def _error(plan: Tensor, nus: Sequence[Tensor]) -> float:
    return float(torch.stack([(marginal(plan, a) - nu).abs().sum() for a, nu in enumerate(nus)]).max())


def _newton_step(
    g: list[Tensor], log_plan: Tensor, nus: Sequence[Tensor], error: float
) -> tuple[list[Tensor], Tensor, float]:
    """One damped Newton step on D from a plan; the point given comes back when no step length improves it."""
    plan = log_plan.exp()
    sizes = [nu.numel() for nu in nus]
    margins = [marginal(plan, a) for a in range(len(nus))]
    gradient = torch.cat([nu - p for nu, p in zip(nus, margins, strict=True)])
    hessian = _negative_hessian(plan, margins)
    # Unit diagonal, so that atoms with little mass count like the others.
    scale = hessian.diagonal().clamp_min(1e-300).rsqrt()
    step = scale * _solve(hessian * scale.unsqueeze(0) * scale.unsqueeze(1), scale * gradient)
    # Where groups of atoms hardly exchange mass D is almost flat and the step enormous; the curvature grows like an
    # exponential on the way, so that a bounded step is the better guess.
    step = step * min(1.0, MAX_STEP / max(float(step.abs().max()), 1e-300))
    slope = float(gradient @ step)
    dual = float(sum((x @ nu for x, nu in zip(g, nus, strict=True)), -plan.sum()))
    length = 1.0
    for _ in range(HALVINGS):
        change = [length * s for s in step.split(sizes)]
        trial = [x + s for x, s in zip(g, change, strict=True)]
        trial_log_plan = _add(log_plan, change)
        trial_plan = trial_log_plan.exp()
        trial_error = _error(trial_plan, nus)
        trial_dual = float(sum((x @ nu for x, nu in zip(trial, nus, strict=True)), -trial_plan.sum()))
        if trial_error < error or trial_dual > dual + 1e-4 * length * slope:
            return trial, trial_log_plan, trial_error
        length *= 0.5
    return g, log_plan, error


def _solve(system: Tensor, right: Tensor) -> Tensor:
    """Solve with the smallest ridge that works: the constants that can move between potentials make it singular."""
    for ridge in (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1.0):
        damped = system.clone()
        damped.diagonal().add_(ridge)
        factor, info = torch.linalg.cholesky_ex(damped)
        if not int(info):
            return torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
    return torch.zeros_like(right)  # numbers beyond float64: no step


def _negative_hessian(plan: Tensor, margins: Sequence[Tensor]) -> Tensor:
    """Blocks (m, m): the marginals on the diagonal; blocks (m, n): the two-way marginals of the plan."""
    m = plan.dim()
    rows = []
    for i in range(m):
        row = []
        for j in range(m):
            if i == j:
                row.append(torch.diag(margins[i]))
            else:
                pair = newton.two_way(plan, min(i, j), max(i, j))
                row.append(pair if i < j else pair.mT)
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows, dim=0)
