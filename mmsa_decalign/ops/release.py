"""The transport arithmetic of the authors' release, for any M: exponentials, a clamped kernel, padded denominators.

For numbers that must match theirs, and only for that. May change: nothing that changes a digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sinkhorn import marginal

RELEASE_ROUNDS = 50  # the authors' release always does this many, converged or not
RELEASE_PRODUCT_FLOOR = 1e-8  # and adds this under the square root of the covariance cost


def release_rounds(
    cost: Tensor, marginals: list[Tensor], reg: float, tol: float, rounds: int
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], float, int, bool]:
    """The fields of a `TransportResult` after so many rounds; the value is differentiated through all of them."""
    kernel = torch.exp(-cost / max(reg, 1e-6)).clamp_min(1e-30)
    m = cost.dim()
    scalings = [torch.ones_like(nu) for nu in marginals]

    def scaled(skip: int | None = None) -> Tensor:
        out = kernel
        for axis, s in enumerate(scalings):
            if axis != skip:
                out = out * s.reshape([-1 if a == axis else 1 for a in range(m)])
        return out

    for _ in range(rounds):
        for axis in range(m):
            scalings[axis] = marginals[axis] / (marginal(scaled(skip=axis), axis) + 1e-8)
    plan = scaled()
    value = (plan * cost).sum() + reg * (plan * (plan.clamp_min(1e-8).log() - 1)).sum()
    with torch.no_grad():
        error = max(float((marginal(plan, a) - nu).abs().sum()) for a, nu in enumerate(marginals))
        potentials = tuple(reg * s.log() for s in scalings)
    return value, plan.detach(), potentials, error, rounds, error <= tol
