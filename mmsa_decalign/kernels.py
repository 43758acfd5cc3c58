"""Linear layer, convolution, dropout and layer norm: what torch's own functions compute, faster on a CPU.

Lives here: functions that stand for those of `torch.nn.functional`, which they call wherever they have nothing better
to offer (another device or type, autocast, a compiler at work). They have first derivatives only. May change: how they
are fast; what they compute may not. Each says what its gain relies on; `benchmarks/profile_step.py` measures it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# The matrix product of oneDNN, which torch's compiler calls, too. MKL, which torch's own linear layer calls, does not
# use the widest instructions on processors of other makers than Intel: there oneDNN is twice as fast.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_ONEDNN_FROM = 1 << 20  # multiplications, below which its overhead outweighs its speed
_NORM_FLOOR = 1e-5  # added to a variance
_LEVELS = 1 << 16  # of the random numbers that decide on dropout


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., R, D), weight (O, D), bias (O,) to (..., R, O)."""
    if _by_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_first(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """W x + b, features first: weight (O, D), x (D, R), bias (O,) to (O, R).

    G such layers at once: weight (G, O, D), x (G, D, R), bias (G, O). Here none of oneDNN's three products has to copy
    a factor before it starts, which takes half as long again where features are last.
    """
    if weight.dim() == 3:
        return torch.baddbmm(bias.unsqueeze(2), weight, x)
    if _by_onednn(x, weight):
        return _LinearFirst.apply(weight, x, bias)
    return torch.addmm(bias.unsqueeze(1), weight, x)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    fast = _ONEDNN is not None and torch.backends.mkldnn.enabled and plain_cpu(x) and weight.dtype == torch.float32
    return fast and x.numel() * len(weight) >= _ONEDNN_FROM and x.dtype == torch.float32


def window_sum(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution over time without padding: x (N, T, D), weight (O, D, k), like nn.Conv1d's, to (N, T - k + 1, O).

    One matrix product for all k places of the window, then the sum of its k parts, each shifted by a step.
    """
    window = weight.shape[2]
    if window == 1:
        return linear(x, weight[:, :, 0])
    steps = x.shape[1] - window + 1
    parts = linear(x, weight.permute(2, 0, 1).flatten(0, 1)).chunk(window, dim=2)
    return sum(part[:, place : place + steps] for place, part in enumerate(parts))


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zeros with probability `rate`, else x / (1 - rate); `rate` in steps of 1 / 65536 on the CPU.

    torch draws a random number of 24 bits or more for each element, one after the other; here one of 64 bits is good
    for four, and all that follows is vectorised.
    """
    if rate == 0.0:
        return x
    return x * noise(x.shape, rate, x) if plain_cpu(x) else F.dropout(x, rate)


def normed_sum(x: Tensor, y: Tensor, rate: float, gain: Tensor, shift: Tensor) -> Tensor:
    """gain * norm(x + dropout(y)) + shift, features first: x, y (..., D, R), gain, shift (..., D).

    norm takes off the mean over D and divides by the root of the variance + 1e-5, as torch's layer norm does.
    """
    if plain_cpu(y):
        return _NormedSum.apply(x, y, rate, gain, shift)
    normed = F.layer_norm((x + dropout(y, rate)).mT, gain.shape[-1:]).mT
    return torch.addcmul(shift.unsqueeze(-1), normed, gain.unsqueeze(-1))


def dropped_relu(x: Tensor, rate: float) -> Tensor:
    """dropout(relu(x)).

    What is kept for the backward pass is the result alone: where it is not zero the derivative is 1 / (1 - rate).
    """
    return _DroppedRelu.apply(x, rate) if plain_cpu(x) else dropout(F.relu(x), rate)


def plain_cpu(x: Tensor) -> bool:
    """Whether the functions here may do as they like: not where a compiler or autocast has plans of its own."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    return not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def _dropped(rate: float | Tensor) -> Any:
    """How many of the 65536 levels mean that an element is dropped; never all."""
    if isinstance(rate, Tensor):
        return (rate * _LEVELS).round().clamp_max(_LEVELS - 1)
    return min(round(rate * _LEVELS), _LEVELS - 1)


def _factor(dropped: Any) -> Any:
    return _LEVELS / (_LEVELS - dropped)


def draws(count: int, device: torch.device) -> Tensor:
    """Random numbers from -32768 to 32767, four from each 64 bits."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    return words.random_(-(1 << 63), None).view(torch.int16)[:count]


def noise(
    shape: Any, rate: float | Tensor, like: Tensor, drawn: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """Independent factors for dropout: 0 with probability `rate`, else 1 / (1 - rate).

    drawn: by `draws`, so that the same can be had again; None: now. scratch: memory for the result, or more than that.
    """
    dropped = _dropped(rate)
    drawn = (draws(math.prod(shape), like.device) if drawn is None else drawn).view(shape)
    # Comparing floats is faster than comparing integers.
    levels = drawn.to(like.dtype) if scratch is None else scratch[: shape[0]].copy_(drawn)
    return levels.ge_(dropped - _LEVELS // 2).mul_(_factor(dropped))


class _Linear(torch.autograd.Function):
    """x W^T + b and its three gradients, each product by oneDNN: (x, w) -> x w^T is all that it offers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _ONEDNN(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, _ = ctx.needs_input_grad
        grad = grad.contiguous()  # that of a sum is one number, seen as many: oneDNN takes ages over it
        rows = grad.flatten(0, -2)
        grad_x = _ONEDNN(grad, weight.mT, None, "none", [], "") if of_x else None
        grad_weight = _by_product(rows.mT, x.flatten(0, -2)) if of_weight else None
        return grad_x, grad_weight, rows.sum(dim=0) if ctx.has_bias else None


def _by_product(a: Tensor, b: Tensor) -> Tensor:
    """a b by oneDNN, which first copies a factor that is transposed: the smaller one, if there is a choice."""
    if len(a) <= b.shape[1]:
        return _ONEDNN(a, b.mT, None, "none", [], "")
    return _ONEDNN(b.mT, a, None, "none", [], "").mT


class _LinearFirst(torch.autograd.Function):
    """W x + b, W (O, D), x (D, R), and its three gradients."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        return _ONEDNN(weight, x.mT, None, "none", [], "").add_(bias.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        of_weight, of_x, _ = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_weight = _ONEDNN(grad, x, None, "none", [], "") if of_weight else None
        grad_x = _ONEDNN(weight.mT, grad.mT, None, "none", [], "") if of_x else None
        return grad_weight, grad_x, grad.sum(dim=1)


class _NormedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rate: float, gain: Tensor, shift: Tensor) -> Tensor:
        factors = noise(y.shape, rate, y) if rate else None
        total = x + y if factors is None else torch.addcmul(x, y, factors)
        normed = total.sub_(total.mean(dim=-2, keepdim=True))
        scale = (normed * normed).mean(dim=-2, keepdim=True).add_(_NORM_FLOOR).rsqrt_()
        ctx.save_for_backward(normed.mul_(scale), scale, factors, gain)
        return (normed * gain.unsqueeze(-1)).add_(shift.unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, factors, gain = ctx.saved_tensors
        row = gain.unsqueeze(-2) / gain.shape[-1]
        product = grad * normed
        grad_x = torch.addcmul(row @ grad, normed, row @ product)  # means over D, with the gain
        grad_x = torch.addcmul(grad_x.neg_(), grad, gain.unsqueeze(-1)).mul_(scale)
        grad_y = grad_x if factors is None else grad_x * factors
        return grad_x, grad_y, None, product.sum(dim=-1), grad.sum(dim=-1)


class _DroppedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        out, ctx.factor = x.clamp_min(0.0), 1.0
        if rate:
            ctx.factor = _factor(_dropped(rate))
            out.mul_(noise(x.shape, rate, x))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0.0).mul_(ctx.factor), None
