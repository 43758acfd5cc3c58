"""The cross-modal transformer (paper, section 3.4): one modality's steps attend to the other modalities' steps.

Lives here: attention, layer, stack. May change: how attention is computed; the parameters' meaning may not, since
checkpoints of the authors' release are loaded into them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention with one packed projection: softmax(Q K^T / sqrt(d / heads)) V, then a linear layer.

    Args:
        d: width; heads: divides d; dropout: rate on the attention weights.
    """

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d, d))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d))
        self.out_proj = nn.Linear(d, d)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """query (N, T, d), context (N, S, d), mask broadcastable to (N, heads, T, S): True where attention may go."""
        d = query.shape[-1]
        q = F.linear(query, self.in_proj_weight[:d], self.in_proj_bias[:d])
        k, v = F.linear(context, self.in_proj_weight[d:], self.in_proj_bias[d:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, heads, ., d / heads)
        rate = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """x = LN(x + drop(attention(x, context))); x = LN(x + drop(W2 drop(relu(W1 x)))), W1: d -> 4d."""

    def __init__(self, d: int, heads: int, attn_dropout: float, relu_dropout: float, res_dropout: float) -> None:
        super().__init__()
        self.attention = Attention(d, heads, attn_dropout)
        self.attention_norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.final_norm = nn.LayerNorm(d)
        self.relu_dropout, self.res_dropout = nn.Dropout(relu_dropout), nn.Dropout(res_dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x (N, T, d), context (N, S, d), mask as in `Attention`."""
        x = self.attention_norm(x + self.res_dropout(self.attention(x, context, mask)))
        hidden = self.relu_dropout(F.relu(self.up(x)))
        return self.final_norm(x + self.res_dropout(self.down(hidden)))


class CrossModalTransformer(nn.Module):
    """`layers` post-norm layers over one modality's features; every layer sees the same scaled context.

    Inputs are scaled by sqrt(d), query and context alike; there is no positional embedding. Without a context the
    layers attend to their own input, under a causal mask when `causal`.

    Args:
        d, heads, layers: width, heads, depth.
        attn_dropout, relu_dropout, res_dropout, embed_dropout: rates in [0, 1).
        causal: see above; never applied to a context, whose steps are other modalities'.
    """

    def __init__(
        self, d: int, heads: int, layers: int, *, attn_dropout: float, relu_dropout: float, res_dropout: float,
        embed_dropout: float, causal: bool,
    ) -> None:
        super().__init__()
        self.scale, self.causal = math.sqrt(d), causal
        self.embed_dropout = nn.Dropout(embed_dropout)
        self.layers = nn.ModuleList(Layer(d, heads, attn_dropout, relu_dropout, res_dropout) for _ in range(layers))

    def forward(self, x: Tensor, context: Tensor | None, valid: Tensor | None) -> Tensor:
        """Fuse x (N, T, d) with context (N, S, d) or, when it is None, with itself.

        valid: (N, S) bool (or (N, T) without a context), True for steps that are no padding; None: all of them.
        """
        x = self.embed_dropout(self.scale * x)
        mask = None if valid is None else valid[:, None, None, :]
        if context is None and self.causal:
            steps = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = steps if mask is None else mask & steps
        if context is not None:
            context = self.embed_dropout(self.scale * context)
        for layer in self.layers:
            x = layer(x, x if context is None else context, mask)
        return x
