"""Newton's method for the transport problems of a usual training batch: few operations per round, no safety net.

The last potential is eliminated: given the others it is what makes its own marginal exact, a softmax. What remains is
concave and smooth, and from one sweep over the axes Newton's method is at rounding error after 3 to 12 rounds, as
long as costs are up to some hundred times reg. Beyond, or where masses differ by many orders of magnitude, it may run
away: it then says so by returning None, and `sinkhorn.py`, whose rounds cost thrice as much and take no step that
does not help, begins anew. Each round reads one number back from the device.
May change: everything, as long as a plan that is returned meets `tol`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 20
MAX_STEP = 6.0  # of one potential, in units of reg
RIDGE = 1e-10  # of the diagonal: constants that can move between the potentials make the system singular


class Optimum(NamedTuple):
    """Potentials in units of reg, the plan, a bound on the error of its marginals, and the rounds it took."""

    potentials: list[Tensor]
    plan: Tensor
    error: float
    n_iter: int


def solve(cost: Tensor, nus: Sequence[Tensor], tol: float, rounds: int) -> Optimum | None:
    """Maximise  sum_m <g_m, nu_m> - sum exp(sum_m g_m - cost)  with cost in units of reg and all masses above 0."""
    *first, last = nus
    m, sizes = len(nus), [nu.numel() for nu in first]
    axes = [[-1 if a == axis else 1 for a in range(m)] for axis in range(m - 1)]  # shapes to add a potential to a plan
    scores = -cost.contiguous()
    wanted, compensation = torch.cat(first).unsqueeze(1), -last.reciprocal()
    potentials = torch.cat(_sweep(scores, first)).unsqueeze(1)
    for n_iter in range(min(rounds, ROUNDS) + 1):
        total = scores
        for g, shape in zip(potentials.split(sizes), axes, strict=True):
            total = total + g.view(shape)
        plan = torch.softmax(total.view(-1, last.numel()), dim=0).mul_(last).view(cost.shape)
        with_last = torch.cat([two_way(plan, axis, m - 1) for axis in range(m - 1)])
        margins = with_last.sum(dim=1, keepdim=True)
        missing = wanted - margins
        error = float(torch.linalg.vector_norm(missing, 1))  # of all axes together: at least that of the worst
        if error <= tol:
            closing = last.log() - torch.logsumexp(total.view(-1, last.numel()), dim=0)
            found = [*potentials.squeeze(1).split(sizes), closing]
            slip = float((plan.sum(dim=list(range(m - 1))) - last).abs().sum())  # of the last axis: rounding
            return Optimum(found, plan, max(error, slip), max(n_iter, 1))
        if not error < 2.0 * m:  # not a number
            return None
        # The system of all potentials less what the last one compensates.
        system = torch.mm(with_last * compensation, with_last.mT)
        system.diagonal().add_(margins.squeeze(1), alpha=1 + RIDGE)
        _add_blocks(system, plan.sum(dim=-1), sizes)
        # Nothing is checked here: whether a step was good shows in the next error. Cholesky's method does not feel the
        # scale of a row, so that atoms with little mass count like the others as long as the ridge is relative too.
        factor, _ = torch.linalg.cholesky_ex(system)
        potentials = potentials + torch.cholesky_solve(missing, factor).clamp_(-MAX_STEP, MAX_STEP)
    return None


def _sweep(scores: Tensor, first: Sequence[Tensor]) -> list[Tensor]:
    """Each potential but the last in turn at the value that makes its own marginal exact."""
    found, m = [], scores.dim()
    for axis, nu in enumerate(first):
        found.append(nu.log() - torch.logsumexp(scores, dim=[a for a in range(m) if a != axis]))
        if axis < len(first) - 1:
            scores = scores + found[-1].view([-1 if a == axis else 1 for a in range(m)])
    return found


def _add_blocks(system: Tensor, plan: Tensor, sizes: Sequence[int]) -> None:
    """Two-way marginals of the plan without its last axis, below the diagonal: what the factorisation reads."""
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    for i in range(1, len(sizes)):
        rows = system[begins[i] : begins[i] + sizes[i]]
        for j in range(i):
            rows[:, begins[j] : begins[j] + sizes[j]].add_(two_way(plan, j, i).mT)


def two_way(plan: Tensor, i: int, j: int) -> Tensor:
    """The two-way marginal (K_i, K_j) of a plan, for i < j: its sum over all other axes."""
    others = [axis for axis in range(plan.dim()) if axis not in (i, j)]
    return plan.sum(dim=others) if others else plan
