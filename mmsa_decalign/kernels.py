"""Linear layer, convolution, dropout and attention: what torch's own functions compute, faster on a CPU.

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
_KEPT_WEIGHTS = 1 << 24  # attention weights that a layer may keep for the backward pass; beyond, memory comes first
_FEW = 1 << 14  # attention weights, with which it is not worth looking whether they are moderate
_MODERATE = 60.0  # 2^60 times any number of steps is far from overflow, 2^-60 from underflow
_LEVELS = 1 << 16  # of the random numbers that decide on dropout


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., R, D), weight (O, D), bias (O,) to (..., R, O).

    G such layers at once: x (G, ..., R, D), weight (G, O, D), bias (G, O).
    """
    if weight.dim() == 3:
        flat = x.flatten(1, -2)
        out = flat @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight.mT)
        return out.unflatten(1, x.shape[1:-1])
    work = x.numel() * len(weight)
    fast = _ONEDNN is not None and torch.backends.mkldnn.enabled and _plain_cpu(x) and weight.dtype == torch.float32
    if fast and work >= _ONEDNN_FROM and x.dtype == torch.float32:
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


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
    return x * _noise(x.shape, rate, x) if _plain_cpu(x) else F.dropout(x, rate)


def add_dropped(x: Tensor, y: Tensor, rate: float) -> Tensor:
    """x + dropout(y), in one pass over the memory."""
    return torch.addcmul(x, y, _noise(y.shape, rate, y)) if rate and _plain_cpu(y) else x + dropout(y, rate)


def dropped_relu(x: Tensor, rate: float) -> Tensor:
    """dropout(relu(x)).

    What is kept for the backward pass is the result alone: where it is not zero the derivative is 1 / (1 - rate).
    """
    return _DroppedRelu.apply(x, rate) if _plain_cpu(x) else dropout(F.relu(x), rate)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float | Tensor) -> Tensor:
    """drop(softmax(q^T k / sqrt(e))) v^T: q (..., e, T), k and v (..., e, S), steps last, to (..., e, T).

    mask: None, or broadcastable to (..., T, S), True where attention may go, somewhere in each row. rate: of `drop`, a
    number, or a tensor that broadcasts to the weights (..., T, S).

    The matrix library is three times as fast with many steps last as with few features last; the exponential to base 2
    is four times as fast as the natural one; and what is divided by the sum of the weights is their product with the
    values, which is smaller than they are.
    """
    n_weights = q.numel() // q.shape[-2] * k.shape[-1]
    if isinstance(rate, Tensor):
        if not _plain_cpu(q):
            return _attention_step_by_step(q, k, v, mask, rate)
    elif not _plain_cpu(q) or n_weights > _KEPT_WEIGHTS:
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT, attn_mask=mask, dropout_p=rate).mT
    shape = (*q.shape[:-2], q.shape[-1], k.shape[-1])
    bias = None if mask is None else torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    flat = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    return _Attention.apply(*flat, bias, rate, shape).view(q.shape)


def _attention_step_by_step(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: Tensor) -> Tensor:
    """`attention` by torch's own functions, none of which takes several rates."""
    scores = q.mT @ k / math.sqrt(q.shape[-2])
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), dim=-1)
    kept = torch.rand(weights.shape, device=weights.device) >= rate
    return v @ (weights * kept / (1 - rate)).mT


def _plain_cpu(x: Tensor) -> bool:
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


def _noise(shape: Any, rate: float | Tensor, like: Tensor) -> Tensor:
    """Independent factors for dropout: 0 with probability `rate`, else 1 / (1 - rate)."""
    dropped, count = _dropped(rate), math.prod(shape)
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=like.device)
    draws = draws.random_(-(1 << 63), None).view(torch.int16)  # -32768 to 32767, four from each 64 bits
    levels = draws[:count].view(shape).to(like.dtype)  # comparing floats is faster than comparing integers
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
        grad_weight = _product(rows.mT, x.flatten(0, -2)) if of_weight else None
        return grad_x, grad_weight, rows.sum(dim=0) if ctx.has_bias else None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b by oneDNN, which first copies a factor that is transposed: the smaller one, if there is a choice."""
    if len(a) <= b.shape[1]:
        return _ONEDNN(a, b.mT, None, "none", [], "")
    return _ONEDNN(b.mT, a, None, "none", [], "").mT


class _DroppedRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        out, ctx.factor = x.clamp_min(0.0), 1.0
        if rate:
            ctx.factor = _factor(_dropped(rate))
            out.mul_(_noise(x.shape, rate, x))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0.0).mul_(ctx.factor), None


class _Attention(torch.autograd.Function):
    """`attention` for q, k, v (B, e, .), with `bias` added to the scores.

    bias: None, or broadcastable to `shape`, (..., T, S) with B in all before; rate: likewise, or a number.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float | Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        ctx.scale = 1 / math.sqrt(q.shape[1])
        weights = torch.bmm((q * (ctx.scale * math.log2(math.e))).mT, k)
        # The largest score of each row is taken off where an exponential could overflow: rarely, for it is slow.
        large = weights.numel() < _FEW or not _within(weights, _MODERATE)
        if bias is not None:
            weights.view(shape).add_(bias)
        if large:
            weights.sub_(weights.amax(dim=2, keepdim=True))
        weights.exp2_()
        total = weights.sum(dim=2).unsqueeze(1)
        ctx.dropped = isinstance(rate, Tensor) or rate > 0
        used = _noise(shape, rate, q).view(weights.shape).mul_(weights) if ctx.dropped else weights
        out = torch.bmm(v, used.mT).div_(total)
        ctx.save_for_backward(q, k, v, weights, used, total, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, used, total, out = ctx.saved_tensors
        grad = grad / total
        grad_v = torch.bmm(grad, used)
        grad = grad * ctx.scale
        scores = torch.bmm(grad.mT, v)
        # The softmax's own gradient needs sum_s weight * gradient: with or without dropout that is <grad, out>.
        mean = (grad * out).sum(dim=1).unsqueeze(2)
        if ctx.dropped:
            scores.mul_(used).addcmul_(weights, mean, value=-1)
        else:
            scores.sub_(mean).mul_(weights)
        return torch.bmm(k, scores.mT), torch.bmm(q, scores), grad_v, None, None, None


def _within(x: Tensor, bound: float) -> bool:
    return bool(x.amin() > -bound) and bool(x.amax() < bound)
