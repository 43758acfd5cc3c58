"""Linear layer, convolution, dropout and attention: what torch's own functions compute, faster on a CPU.

Lives here: functions that stand for those of `torch.nn.functional`, which they call wherever they have nothing better
to offer (another device or type, autocast, a compiler at work). They have first derivatives only. May change: how they
are fast; what they compute may not. Each says what its gain relies on; `benchmarks/profile_step.py` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# The matrix product of oneDNN, which torch's compiler calls, too. MKL, which torch's own linear layer calls, does not
# use the widest instructions on processors of other makers than Intel: there oneDNN is twice as fast.
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_ONEDNN_FROM = 1 << 20  # multiplications, below which its overhead outweighs its speed
_PIECE = 1 << 18  # attention weights that are worked on at a time, a megabyte
_NORM_FLOOR = 1e-5  # added to a variance
_MODERATE = 60.0  # 2^60 times any number of steps is far from overflow, 2^-60 from underflow
_LEVELS = 1 << 16  # of the random numbers that decide on dropout


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: x (..., R, D), weight (O, D), bias (O,) to (..., R, O)."""
    if _by_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_first(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """W x + b, features first: weight (O, D), x (D, R), bias (O,) to (O, R).

    G such layers at once: weight (G, O, D), x (G, D, R), bias (G, O). Here none of oneDNN's three products has to copy a
    factor before it starts, which takes half as long again where features are last.
    """
    if weight.dim() == 3:
        return torch.baddbmm(bias.unsqueeze(2), weight, x)
    if _by_onednn(x, weight):
        return _LinearFirst.apply(weight, x, bias)
    return torch.addmm(bias.unsqueeze(1), weight, x)


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    fast = _ONEDNN is not None and torch.backends.mkldnn.enabled and _plain_cpu(x) and weight.dtype == torch.float32
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
    return x * _noise(x.shape, rate, x) if _plain_cpu(x) else F.dropout(x, rate)


def normed_sum(x: Tensor, y: Tensor, rate: float, gain: Tensor, shift: Tensor) -> Tensor:
    """gain * norm(x + dropout(y)) + shift, features first: x, y (..., D, R), gain, shift (..., D).

    norm takes off the mean over D and divides by the root of the variance + 1e-5, as torch's layer norm does.
    """
    if _plain_cpu(y):
        return _NormedSum.apply(x, y, rate, gain, shift)
    normed = F.layer_norm((x + dropout(y, rate)).mT, gain.shape[-1:]).mT
    return torch.addcmul(shift.unsqueeze(-1), normed, gain.unsqueeze(-1))


def dropped_relu(x: Tensor, rate: float) -> Tensor:
    """dropout(relu(x)).

    What is kept for the backward pass is the result alone: where it is not zero the derivative is 1 / (1 - rate).
    """
    return _DroppedRelu.apply(x, rate) if _plain_cpu(x) else dropout(F.relu(x), rate)


def attention(q: Tensor, kv: Tensor, mask: Tensor | None, rate: float | Tensor) -> Tensor:
    """drop(softmax(q^T k / sqrt(e))) v^T, features first: q (G, H, e, N, T), k and v in kv (G, 2, H, e, N, S).

    Returns (G, H, e, N, T). mask: None, or broadcastable to (G, N, T, S), True where attention may go, somewhere in each
    row. rate: of `drop`, a number, or one for each of the G (G,).

    Where there are many weights they are made a piece at a time, so that a piece stays in the processor's cache, and
    made again for the backward pass: storing them takes longer, and the memory besides. The matrix library is three
    times as fast with many steps last as with few features last, and reads each piece where it lies; the exponential to
    base 2 is four times as fast as the natural one; and what is divided by the sum of the weights is their product with
    the values, which is smaller than they are.
    """
    if _plain_cpu(q):
        return _Attention.apply(q, kv, _bias(mask, q, kv), rate)
    q, k, v = (x.movedim(-3, -1) for x in (q, *kv.unbind(1)))  # (G, H, N, T or S, e)
    mask = None if mask is None else mask.unsqueeze(1)
    if not isinstance(rate, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate).movedim(-1, -3)
    scores = q @ k.mT / math.sqrt(q.shape[-1])  # none of torch's own functions takes several rates
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), dim=-1)
    rate = rate.view(-1, 1, 1, 1, 1)
    kept = torch.rand(weights.shape, device=weights.device) >= rate
    return (weights * kept / (1 - rate) @ v).movedim(-1, -3)


def _bias(mask: Tensor | None, q: Tensor, kv: Tensor) -> Tensor | None:
    """What is added to the scores (G, N, 1 or T, S): 0 where attention may go, else -inf."""
    if mask is None:
        return None
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    return bias.expand(q.shape[0], q.shape[3], -1, -1)


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


def _draws(count: int, device: torch.device) -> Tensor:
    """Random numbers from -32768 to 32767, four from each 64 bits."""
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    return draws.random_(-(1 << 63), None).view(torch.int16)[:count]


def _noise(
    shape: Any, rate: float | Tensor, like: Tensor, draws: Tensor | None = None, scratch: Tensor | None = None
) -> Tensor:
    """Independent factors for dropout: 0 with probability `rate`, else 1 / (1 - rate); the same for the same draws."""
    dropped = _dropped(rate)
    draws = _draws(math.prod(shape), like.device) if draws is None else draws
    # Comparing floats is faster than comparing integers.
    levels = draws.view(shape).to(like.dtype) if scratch is None else scratch[: shape[0]].copy_(draws.view(shape))
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
        noise = _noise(y.shape, rate, y) if rate else None
        total = x + y if noise is None else torch.addcmul(x, y, noise)
        normed = total.sub_(total.mean(dim=-2, keepdim=True))
        scale = (normed * normed).mean(dim=-2, keepdim=True).add_(_NORM_FLOOR).rsqrt_()
        ctx.save_for_backward(normed.mul_(scale), scale, noise, gain)
        return (normed * gain.unsqueeze(-1)).add_(shift.unsqueeze(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, noise, gain = ctx.saved_tensors
        row = gain.unsqueeze(-2) / gain.shape[-1]
        product = grad * normed
        grad_x = torch.addcmul(row @ grad, normed, row @ product)  # means over D, with the gain
        grad_x = torch.addcmul(grad_x.neg_(), grad, gain.unsqueeze(-1)).mul_(scale)
        grad_y = grad_x if noise is None else grad_x * noise
        return grad_x, grad_y, None, product.sum(dim=-1), grad.sum(dim=-1)


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
    """`attention` with `bias` (G, N, 1 or T, S) added to the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, bias: Tensor | None, rate: float | Tensor) -> Tensor:
        ctx.scale, ctx.samples = 1 / math.sqrt(q.shape[2]), _samples(q, kv)
        scaled = q * (ctx.scale * math.log2(math.e))
        ctx.large = _may_be_large(scaled, kv)
        ctx.rates = _rates(rate, q, ctx.samples)
        outs, totals, kept, scratch = [], [], [], _scratch(q, kv, ctx.samples, 2)
        for query, key, value, extra, rate in zip(
            *(_pieces(x, ctx.samples) for x in (scaled, *kv.unbind(1))), _biases(bias, q, ctx.samples), ctx.rates,
            strict=True,
        ):
            weights = _weights(query, key, extra, ctx.large, scratch[0])
            totals.append(weights.sum(dim=2))
            used, draws = weights, None
            if rate is not None:
                draws = _draws(weights.numel(), q.device)
                used = _noise(weights.shape, rate, q, draws, scratch[1]).mul_(weights)
            outs.append(torch.bmm(value, used.mT))
            kept += [draws] if ctx.samples else [weights, used]  # a single piece is small enough to be kept
        total = _joined([one.unsqueeze(1) for one in totals], q[:, :, :1], ctx.samples)
        out = _joined(outs, q, ctx.samples).div_(total)
        ctx.save_for_backward(q, kv, bias, total, out, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, bias, total, out, *kept = ctx.saved_tensors
        samples, scratch = ctx.samples, _scratch(q, kv, ctx.samples, 3)
        grad = grad / total
        to_scores = grad * ctx.scale
        # The softmax's own gradient needs sum_s weight * gradient: with or without dropout that is <grad, out>.
        mean = (to_scores * out).sum(dim=2, keepdim=True)
        scaled = q * (ctx.scale * math.log2(math.e))
        to_q, to_k, to_v = [], [], []
        pieces = (_pieces(x, samples) for x in (q, *kv.unbind(1), grad, to_scores, mean, scaled))
        pieces = zip(*pieces, _biases(bias, q, samples), ctx.rates, strict=True)
        for number, (query, key, value, grad, to_scores, mean, scaled, extra, rate) in enumerate(pieces):
            if samples is None:
                weights, used = kept
            else:
                used = weights = _weights(scaled, key, extra, ctx.large, scratch[0])
                if rate is not None:
                    used = _noise(weights.shape, rate, query, kept[number], scratch[1]).mul_(weights)
            to_v.append(torch.bmm(grad, used))
            slopes = _product(to_scores.mT, value, scratch[2])
            if rate is None:
                slopes.sub_(mean.mT).mul_(weights)
            else:
                slopes.mul_(used).addcmul_(weights, mean.mT, value=-1)
            to_q.append(torch.bmm(key, slopes.mT))
            to_k.append(torch.bmm(query, slopes))
        grad_kv = torch.empty_like(kv)
        _joined(to_k, grad_kv[:, 0], samples, grad_kv[:, 0]), _joined(to_v, grad_kv[:, 1], samples, grad_kv[:, 1])
        return _joined(to_q, q, samples), grad_kv, None, None


def _samples(q: Tensor, kv: Tensor) -> int | None:
    """How many samples of a head make a piece; None: all samples of all heads are one."""
    g, heads, _, n, steps = q.shape
    weights = n * steps * kv.shape[-1]  # of a head
    return None if g * heads * weights <= _PIECE else -(-n // -(-weights // _PIECE))


def _pieces(x: Tensor, samples: int | None) -> list[Tensor]:
    """x (G, H, e, N, .) as batches of matrices (n, e, .): where they lie, or, if it is one, in a copy."""
    if samples is None:
        return [x.transpose(2, 3).flatten(0, 2)]
    heads = [head for one in x.transpose(2, 3).unbind(0) for head in one.unbind(0)]
    return heads if samples == x.shape[3] else [piece for head in heads for piece in head.split(samples)]


def _joined(pieces: Sequence[Tensor], like: Tensor, samples: int | None, out: Tensor | None = None) -> Tensor:
    """What `_pieces` took apart, in the shape (G, H, e, N, .) of `like`."""
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device) if out is None else out
    if samples is None:
        there = out.transpose(2, 3)
        there.copy_(pieces[0].view(there.shape))
    else:
        for there, piece in zip(_pieces(out, samples), pieces, strict=True):
            there.copy_(piece)
    return out


def _biases(bias: Tensor | None, q: Tensor, samples: int | None) -> list[Tensor | None]:
    """Of each piece."""
    g, heads, _, n, _ = q.shape
    if bias is None:
        return [None] * (1 if samples is None else g * heads * -(-n // samples))
    if samples is None:
        return [bias.unsqueeze(1).expand(-1, heads, -1, -1, -1).flatten(0, 2)]
    return [part for one in bias.unbind(0) for _ in range(heads) for part in one.split(samples)]


def _rates(rate: float | Tensor, q: Tensor, samples: int | None) -> list[float | Tensor | None]:
    """Of each piece; None: no dropout."""
    g, heads, _, n, _ = q.shape
    if isinstance(rate, Tensor):
        if samples is None:
            return [rate.repeat_interleave(heads * n).view(-1, 1, 1)]
        return [one for one in rate.tolist() for _ in range(heads * -(-n // samples))]
    return [rate or None] * (1 if samples is None else g * heads * -(-n // samples))


def _scratch(q: Tensor, kv: Tensor, samples: int | None, count: int) -> list[Tensor | None]:
    """Memory for the weights of a piece, `count` times, so that all pieces use the same; for a single one none."""
    if samples is None:
        return [None] * count
    return list(q.new_empty(count, samples, q.shape[-1], kv.shape[-1]).unbind(0))


def _product(a: Tensor, b: Tensor, scratch: Tensor | None) -> Tensor:
    return torch.bmm(a, b) if scratch is None else torch.bmm(a, b, out=scratch[: len(a)])


def _weights(scaled: Tensor, key: Tensor, bias: Tensor | None, large: bool, scratch: Tensor | None) -> Tensor:
    """Numerators of the softmax (n, T, S)."""
    weights = _product(scaled.mT, key, scratch)
    if bias is not None:
        weights.add_(bias)
    if large:
        weights.sub_(weights.amax(dim=2, keepdim=True))
    return weights.exp2_()


def _may_be_large(scaled: Tensor, kv: Tensor) -> bool:
    """Whether an exponential could overflow, by |q^T k| <= |q| |k|: taking off the largest score is slow."""
    k = kv[:, 0]
    return not float((scaled * scaled).sum(dim=2).amax() * (k * k).sum(dim=2).amax()) < _MODERATE**2
