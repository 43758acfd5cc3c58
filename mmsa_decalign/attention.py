"""Attention with dropout of its weights, made a piece at a time on a CPU.

Lives here: what the cross-modal transformer does between its linear layers, and its derivative; first derivatives only.
Elsewhere than on a CPU, under autocast or a compiler, it is torch's own function. May change: how it is fast; what it
computes may not. `benchmarks/profile_step.py` measures it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .kernels import draws, noise, plain_cpu

_PIECE = 1 << 18  # attention weights that are worked on at a time: a megabyte, what a core's own cache holds
_FEW = 1 << 17  # products of a query's and a key's features, below which calling costs more than computing
_MODERATE = 60.0  # 2^60 times any number of steps is far from overflow, 2^-60 from underflow


def attention(q: Tensor, kv: Tensor, mask: Tensor | None, rate: float | Tensor) -> Tensor:
    """drop(softmax(q^T k / sqrt(e))) v^T, features first: q (G, H, e, N, T), k and v in kv (G, 2, H, e, N, S).

    Returns (G, H, e, N, T). mask: None, or broadcastable to (G, N, T, S), True where attention may go, somewhere in
    each row. rate: of `drop`, a number, or one for each of the G (G,).

    Where there are many weights, a piece of them is made, used and overwritten by the next, so that all this happens in
    the processor's cache; for the backward pass they are made again, which takes less time than storing them, and the
    memory besides. The matrix library is three times as fast with many steps last as with few features last, and reads
    a piece where it lies; the exponential to base 2 is four times as fast as the natural one; and what is divided by
    the sum of the weights is their product with the values, which is smaller than they are.
    """
    if plain_cpu(q):
        few = q.numel() * kv.shape[-1] <= _FEW
        return (_Few if few else _Pieces).apply(q, kv, mask, rate)
    groups, _, _, n, _ = q.shape
    q, k, v = (x.permute(0, 3, 1, 4, 2).flatten(0, 1) for x in (q, *kv.unbind(1)))  # (G N, H, T or S, e)
    if mask is not None:
        mask = mask.expand(groups, n, -1, -1).flatten(0, 1).unsqueeze(1)
    if isinstance(rate, Tensor):  # none of torch's own functions takes several rates
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask, -torch.inf), dim=-1)
        rate = rate.repeat_interleave(n).view(-1, 1, 1, 1)
        kept = torch.rand(weights.shape, device=weights.device) >= rate
        out = weights * kept / (1 - rate) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
    return out.unflatten(0, (groups, n)).permute(0, 2, 4, 1, 3)


class _Few(torch.autograd.Function):
    """With few weights, as for single time steps: products element by element (G, H, e, N, T, S), and all are kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, mask: Tensor | None, rate: float | Tensor) -> Tensor:
        q, k, v = q.unsqueeze(-1), *kv.unsqueeze(-2).unbind(1)
        ctx.scale = 1 / math.sqrt(q.shape[2])
        weights = (q * k).sum(dim=2).mul_(ctx.scale * math.log2(math.e))
        if mask is not None:
            weights.masked_fill_(~mask.unsqueeze(1), -torch.inf)
        weights = weights.sub_(weights.amax(dim=-1, keepdim=True)).exp2_()
        weights, used = weights.div_(weights.sum(dim=-1, keepdim=True)), weights
        ctx.dropped = isinstance(rate, Tensor) or rate > 0
        if ctx.dropped:
            rate = rate.view(-1, 1, 1, 1, 1) if isinstance(rate, Tensor) else rate
            used = noise(weights.shape, rate, q).mul_(weights)
        ctx.save_for_backward(q, k, v, weights, used)
        return (used.unsqueeze(2) * v).sum(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, used = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        slopes = (grad * v).sum(dim=2).mul_(used)
        slopes.addcmul_(weights, slopes.sum(dim=-1, keepdim=True), value=-1)
        slopes = slopes.mul_(ctx.scale).unsqueeze(2)
        grad_kv = torch.stack([(slopes * q).sum(dim=4), (grad * used.unsqueeze(2)).sum(dim=4)], dim=1)
        return (slopes * k).sum(dim=-1), grad_kv, None, None


class _Pieces(torch.autograd.Function):
    """With many weights: those of some samples of one head at a time, made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, mask: Tensor | None, rate: float | Tensor) -> Tensor:
        ctx.samples, ctx.large = _samples(q, kv), _may_be_large(q, kv)
        out, total = torch.empty_like(q), torch.empty_like(q[:, :, :1])
        ctx.biases, ctx.rates = _biases(mask, q, ctx.samples), _rates(rate, q, ctx.samples)
        drawn, (first, second) = [], _scratch(2, q, kv, ctx.samples)
        pieces = (_pieces(x, ctx.samples) for x in (q, *kv.unbind(1), out, total))
        for query, key, value, to_out, to_total, bias, rate in zip(*pieces, ctx.biases, ctx.rates, strict=True):
            used = weights = _weights(query, key, bias, ctx.large, first)
            to_total.copy_(weights.sum(dim=2).unsqueeze(1))
            if rate:
                drawn.append(draws(weights.numel(), q.device))
                used = noise(weights.shape, rate, q, drawn[-1], second).mul_(weights)
            to_out.copy_(torch.bmm(value, used.mT))
        ctx.save_for_backward(q, kv, total, out.div_(total), *drawn)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, total, out, *drawn = ctx.saved_tensors
        grad, drawn = grad / total, iter(drawn)
        to_scores = grad / math.sqrt(q.shape[2])
        # The softmax's own gradient needs sum_s weight * gradient: with or without dropout that is <grad, out>.
        mean = (to_scores * out).sum(dim=2, keepdim=True)
        grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
        first, second, third = _scratch(3, q, kv, ctx.samples)
        inputs = (_pieces(x, ctx.samples) for x in (q, *kv.unbind(1), grad, to_scores, mean))
        outputs = (_pieces(x, ctx.samples) for x in (grad_q, *grad_kv.unbind(1)))
        extras = zip(zip(*outputs, strict=True), ctx.biases, ctx.rates, strict=True)
        for (query, key, value, grad, to_scores, mean), ((to_q, to_k, to_v), bias, rate) in zip(
            zip(*inputs, strict=True), extras, strict=True
        ):
            used = weights = _weights(query, key, bias, ctx.large, first)
            if rate:
                used = noise(weights.shape, rate, q, next(drawn), second).mul_(weights)
            to_v.copy_(torch.bmm(grad, used))
            slopes = torch.bmm(to_scores.mT, value, out=third[: len(value)])
            if rate:
                slopes.mul_(used).addcmul_(weights, mean.mT, value=-1)
            else:
                slopes.sub_(mean.mT).mul_(weights)
            to_q.copy_(torch.bmm(key, slopes.mT))
            to_k.copy_(torch.bmm(query, slopes))
        return grad_q, grad_kv, None, None


def _samples(q: Tensor, kv: Tensor) -> int:
    """How many samples of a head make a piece."""
    n, steps = q.shape[-2:]
    return math.ceil(n / math.ceil(n * steps * kv.shape[-1] / _PIECE))


def _pieces(x: Tensor, samples: int) -> list[Tensor]:
    """x (G, H, e, N, .) as batches of matrices (samples or fewer, e, .), where they lie."""
    heads = [head for group in x.transpose(2, 3).unbind(0) for head in group.unbind(0)]
    return heads if samples == x.shape[3] else [piece for head in heads for piece in head.split(samples)]


def _biases(mask: Tensor | None, q: Tensor, samples: int) -> list[Tensor | None]:
    """What is added to the scores of each piece: 0 where attention may go, else -inf."""
    groups, heads, _, n, _ = q.shape
    if mask is None:
        return [None] * (groups * heads * math.ceil(n / samples))
    bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf).expand(groups, n, -1, -1)
    return [piece for group in bias for _ in range(heads) for piece in group.split(samples)]


def _rates(rate: float | Tensor, q: Tensor, samples: int) -> list[float]:
    """Of dropout in each piece."""
    groups, heads, _, n, _ = q.shape
    each = rate.tolist() if isinstance(rate, Tensor) else [rate] * groups
    return [one for one in each for _ in range(heads * math.ceil(n / samples))]


def _scratch(count: int, q: Tensor, kv: Tensor, samples: int) -> tuple[Tensor, ...]:
    """Memory for the weights of a piece, `count` times; all pieces use the same."""
    return q.new_empty(count, samples, q.shape[-1], kv.shape[-1]).unbind(0)


def _weights(query: Tensor, key: Tensor, bias: Tensor | None, large: bool, scratch: Tensor) -> Tensor:
    """Numerators of the softmax (n, T, S) in `scratch`."""
    query = query * (math.log2(math.e) / math.sqrt(query.shape[1]))
    weights = torch.bmm(query.mT, key, out=scratch[: len(query)])
    if bias is not None:
        weights.add_(bias)
    if large:
        weights.sub_(weights.amax(dim=2, keepdim=True))
    return weights.exp2_()


def _may_be_large(q: Tensor, kv: Tensor) -> bool:
    """Whether an exponential could overflow, by |q^T k| <= |q| |k|: taking off each row's largest score is slow."""
    bound = (_MODERATE / math.log2(math.e)) ** 2 * q.shape[2]
    k = kv[:, 0]
    return not float((q * q).sum(dim=2).amax() * (k * k).sum(dim=2).amax()) < bound
