"""A number with a derivative that is already known when the number is.

Lives here: the one node that the transport value, the prototype loss and the kernels put into autograd's graph instead
of the operations that lead to them. It relies on the result being a single number: then the derivative is one tensor
per input, worked out once with the numbers at hand, and the backward pass only scales it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Envelope(torch.autograd.Function):
    """(value, slopes, *inputs) to the value; its derivative in the i-th input is the i-th slope, as given.

    Called so for the envelope theorem: of an optimum the slopes are the plan and the potentials, and nothing is
    differentiated through the rounds that found them. There is no second derivative: slopes are constants.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, slopes: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*slopes)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * slope for slope in ctx.saved_tensors)


def wants_slopes(*inputs: Tensor) -> bool:
    """Whether anybody will ask for the derivative."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
