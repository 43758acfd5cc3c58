"""Squared distances between two sets of points, with a derivative that never holds an array per pair and dimension.

Lives here: the one operation under the transport cost, the prototype loss and the kernels.
May change: the arithmetic, but distances stay sums of squared differences: |x|^2 + |y|^2 - 2 x.y cancels when the
points lie far from the origin, and loses all digits of two that are close.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class SquaredDistances(torch.autograd.Function):
    """|x_i - y_j|^2 (..., P, Q) of x (..., P, d) and y (..., Q, d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        # sum_j g_ij (x_i - y_j) as x_i sum_j g_ij - sum_j g_ij y_j: products of matrices. The cancellation is that of
        # coordinates, not of their squares: at 1e4 with a spread of 1e-2 ten digits are left.
        x, y = ctx.saved_tensors
        twice = 2 * gradient
        to_x = to_y = None
        if ctx.needs_input_grad[0]:
            to_x = torch.addcmul(-(twice @ y), x, twice.sum(dim=-1, keepdim=True))
        if ctx.needs_input_grad[1]:
            to_y = torch.addcmul(-(twice.mT @ x), y, twice.sum(dim=-2).unsqueeze(-1))
        return to_x, to_y


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2 (..., P, Q) of x (..., P, d) and y (..., Q, d)."""
    return SquaredDistances.apply(x, y)
