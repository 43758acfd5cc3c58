"""The cross-modal transformer (paper, section 3.4): one modality's steps attend to the other modalities' steps.

Lives here: the parameters (modules), the arithmetic (functions of their tensors), and how the transformers of several
modalities run together. May change: how it is computed; the parameters' names and meaning may not, since checkpoints of
the authors' release are loaded into them.

The functions take one more leading dimension, G, with weights that have it, too: G equal transformers in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import attention
from .kernels import dropout, dropped_relu, linear_first, normed_sum

_SMALL = 1 << 13  # features of a batch, below which calling costs more than computing


class Weights(NamedTuple):
    """The parameters of one layer of width d."""

    query: Tensor  # (d, d)
    query_bias: Tensor
    key_value: Tensor  # (2 d, d)
    key_value_bias: Tensor
    attention_out: Tensor  # (d, d)
    attention_out_bias: Tensor
    attention_gain: Tensor  # (d,), of the first layer norm
    attention_shift: Tensor
    up: Tensor  # (4 d, d)
    up_bias: Tensor
    down: Tensor  # (d, 4 d)
    down_bias: Tensor
    final_gain: Tensor
    final_shift: Tensor


class Rates(NamedTuple):
    """Of dropout, in [0, 1)."""

    attention: float | Tensor = 0.0  # of the attention weights; a tensor (G,) for G transformers in one
    relu: float = 0.0  # inside the feed-forward layers
    residual: float = 0.0  # of what is added to the residual stream
    embed: float = 0.0  # of the input and the context


class Attention(nn.Module):
    """The parameters of multi-head attention, named like those of nn.MultiheadAttention."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)


class Layer(nn.Module):
    """The parameters of one layer."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.attention = Attention(d)
        self.attention_norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.final_norm = nn.LayerNorm(d)

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of `Weights`, but query, key and value in one."""
        a, out, first, last = self.attention, self.attention.out_proj, self.attention_norm, self.final_norm
        return (
            a.in_proj_weight, a.in_proj_bias, out.weight, out.bias, first.weight, first.bias,
            self.up.weight, self.up.bias, self.down.weight, self.down.bias, last.weight, last.bias,
        )  # fmt: skip


def unpack(packed: Tensor, packed_bias: Tensor, *others: Tensor) -> Weights:
    """The tensors of a layer, or those of G layers stacked, as weights."""
    d = packed.shape[-1]
    query, key_value = packed.split((d, 2 * d), dim=-2)
    query_bias, key_value_bias = packed_bias.split((d, 2 * d), dim=-1)
    return Weights(query, query_bias, key_value, key_value_bias, *others)


class CrossModalTransformer(nn.Module):
    """`layers` post-norm layers over one modality's features; every layer sees the same scaled context.

    Inputs are scaled by sqrt(d), query and context alike; there is no positional embedding. Without a context the
    layers attend to their own input, under a causal mask when `causal`.

    Args:
        d, heads, layers: width, heads (they divide d), depth.
        attn_dropout, relu_dropout, res_dropout, embed_dropout: rates in [0, 1).
        causal: see above; never applied to a context, whose steps are other modalities'.
    """

    def __init__(
        self, d: int, heads: int, layers: int, *, attn_dropout: float, relu_dropout: float, res_dropout: float,
        embed_dropout: float, causal: bool,
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.rates = Rates(attn_dropout, relu_dropout, res_dropout, embed_dropout)
        self.layers = nn.ModuleList(Layer(d) for _ in range(layers))

    def forward(self, x: Tensor, context: Tensor | None, valid: Tensor | None) -> Tensor:
        """Fuse x (N, T, d) with context (N, S, d) or, when it is None, with itself.

        valid: (N, S) bool (or (N, T) without a context), True for steps that are no padding; None: all of them.
        """
        weights = [unpack(*layer.tensors()) for layer in self.layers]
        return _transform(x, context, valid, weights, self.rates if self.training else Rates(), self.heads, self.causal)


def fuse(
    transformers: Sequence[CrossModalTransformer],
    x: Sequence[Tensor],
    context: Sequence[Tensor | None],
    valid: Sequence[Tensor | None],
) -> list[Tensor]:
    """Each transformer on its own modality: [t(x, context, valid) for the i-th of each].

    The transformers differ in nothing but attention dropout. Where their inputs have one shape and there is little to
    do, as with a single time step, they run as one with stacked weights: the same arithmetic in a third of the calls.
    """
    inputs = list(zip(x, context, valid, strict=True))
    shapes = {tuple(None if one is None else one.shape for one in own) for own in inputs}
    if len(transformers) == 1 or len(shapes) > 1 or x[0].numel() > _SMALL:
        return [t(*own) for t, own in zip(transformers, inputs, strict=True)]
    first, depth = transformers[0], len(transformers[0].layers)
    layers = [t.layers[level].tensors() for level in range(depth) for t in transformers]
    stacked = [torch.stack(kind).unflatten(0, (depth, -1)).unbind(0) for kind in zip(*layers, strict=True)]
    weights = [unpack(*level) for level in zip(*stacked, strict=True)]
    rates = first.rates if first.training else Rates()
    if first.training and len({t.rates.attention for t in transformers}) > 1:
        each = x[0].new_tensor([t.rates.attention for t in transformers])
        rates = rates._replace(attention=each)
    together = (None if own[0] is None else torch.stack(own) for own in (x, context, valid))
    return list(_transform(*together, weights, rates, first.heads, first.causal).unbind(0))


def _transform(
    x: Tensor, context: Tensor | None, valid: Tensor | None, weights: Sequence[Weights], rates: Rates, heads: int,
    causal: bool,
) -> Tensor:  # fmt: skip
    n, steps, d = x.shape[-3:]
    mask = None if valid is None else valid.view(-1, n, 1, valid.shape[-1])
    if context is not None:
        seen = keys_and_values(_features_first(math.sqrt(d) * context, rates.embed), weights, heads, n)
    elif causal:
        earlier = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        mask = earlier[None, None] if mask is None else mask & earlier
    x = _features_first(math.sqrt(d) * x, rates.embed)
    for level, w in enumerate(weights):
        x = _layer(x, keys_and_values(x, [w], heads, n)[0] if context is None else seen[level], mask, w, rates)
    return x.mT.unflatten(-2, (n, steps))


def _features_first(x: Tensor, rate: float) -> Tensor:
    """(..., N, T, d) to (..., d, N * T), with dropout."""
    return dropout(x.flatten(-3, -2).mT.contiguous(), rate)


def _layer(x: Tensor, kv: Tensor, mask: Tensor | None, w: Weights, rates: Rates) -> Tensor:
    """x = LN(x + drop(attend(x, context))); x = LN(x + drop(W2 drop(relu(W1 x)))), features first."""
    attended = attend(x, kv, mask, w, rates.attention)
    x = normed_sum(x, attended, rates.residual, w.attention_gain, w.attention_shift)
    hidden = dropped_relu(linear_first(w.up, x, w.up_bias), rates.relu)
    return normed_sum(x, linear_first(w.down, hidden, w.down_bias), rates.residual, w.final_gain, w.final_shift)


def attend(query: Tensor, kv: Tensor, mask: Tensor | None, w: Weights, rate: float | Tensor = 0.0) -> Tensor:
    """Multi-head attention, softmax(Q K^T / sqrt(d / heads)) V, then a linear layer, features first.

    query (d, N * T); kv as `keys_and_values` makes them; mask broadcastable to (G, N, T, S), True where attention may
    go; rate of dropout on the attention weights. Returns (d, N * T).
    """
    heads, n = kv.shape[-4], kv.shape[-2]
    q = linear_first(w.query, query, w.query_bias).unflatten(-1, (n, -1)).unflatten(-3, (heads, -1))
    one = q.dim() == 4
    out = attention(q.unsqueeze(0) if one else q, kv.unsqueeze(0) if one else kv, mask, rate)
    return linear_first(w.attention_out, out.reshape(query.shape), w.attention_out_bias)


def keys_and_values(context: Tensor, weights: Sequence[Weights], heads: int, n: int) -> list[Tensor]:
    """Keys and values (2, heads, d / heads, N, S) of each layer to a context (d, N * S), features first.

    Those of a small context in one matrix product; those of a large one would not stay in the processor's cache.
    """
    if len(weights) > 1 and context.numel() > _SMALL:
        return [keys_and_values(context, [w], heads, n)[0] for w in weights]
    weight = torch.cat([w.key_value for w in weights], dim=-2)
    bias = torch.cat([w.key_value_bias for w in weights], dim=-1)
    packed = linear_first(weight, context, bias).unflatten(-1, (n, -1))
    return list(packed.unflatten(-3, (len(weights), 2, heads, -1)).unbind(-6))
