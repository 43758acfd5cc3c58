"""The cross-modal transformer (paper: multimodal fusion) for one sample without padding; `p`: arrays by parameter name.

Lives here: linear maps, layer norm, attention and the stack of layers, with nothing to mask but the future.
"""

from collections.abc import Mapping

import numpy as np
from scipy.special import softmax


def part(p: Mapping, name: str) -> dict[str, np.ndarray]:
    """The parameters below `name`, by the rest of their names."""
    return {key.removeprefix(f"{name}."): value for key, value in p.items() if key.startswith(f"{name}.")}


def linear(x: np.ndarray, p: Mapping) -> np.ndarray:
    """W x_t + b for the rows x_t of x (T, d_in), (T, d_out); b is 0 where the parameters have none."""
    return x @ p["weight"].T + p.get("bias", 0.0)


def perceptron(x: np.ndarray, first: Mapping, second: Mapping) -> np.ndarray:
    """W2 relu(W1 x_t + b1) + b2 for the rows x_t of x."""
    return linear(np.maximum(linear(x, first), 0), second)


def layer_norm(x: np.ndarray, p: Mapping) -> np.ndarray:
    """LN(x): (x - mean) / sqrt(variance + 1e-5) over the features of each step, times weight plus bias, (T, d)."""
    centred = x - x.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def attention(x: np.ndarray, context: np.ndarray, p: Mapping, n_heads: int, causal: bool) -> np.ndarray:
    """softmax(Q K' / sqrt(d / heads)) V for each block of d / heads columns, then a linear map, (T, d).

    Q = x W_q' + b_q, K = context W_k' + b_k, V = context W_v' + b_v; W (3 d, d) and b (3 d,) hold these three in order.
    x: (T, d). context: (S, d). causal: step t sees only the steps s <= t of the context.
    """
    (w_q, w_k, w_v), (b_q, b_k, b_v) = np.split(p["in_proj_weight"], 3), np.split(p["in_proj_bias"], 3)
    q, k, v = x @ w_q.T + b_q, context @ w_k.T + b_k, context @ w_v.T + b_v
    future = np.triu(np.ones((len(x), len(context)), dtype=bool), k=1)  # (T, S)
    heads = []
    for columns in np.split(np.arange(x.shape[1]), n_heads):
        scores = q[:, columns] @ k[:, columns].T / np.sqrt(len(columns))
        heads.append(softmax(np.where(future & causal, -np.inf, scores), axis=1) @ v[:, columns])
    return linear(np.concatenate(heads, axis=1), part(p, "out_proj"))


def transformer(x: np.ndarray, context: np.ndarray | None, p: Mapping, settings: Mapping) -> np.ndarray:
    """From sqrt(d) x: x = LN(x + attention(x, context)), x = LN(x + W2 relu(W1 x)), `nlevels` times, (T, d).

    x: (T, d). context: (S, d), scaled by sqrt(d) too and the same in every layer. None: each layer's own x, then with
    the future hidden if `attn_mask`. There is no positional embedding.
    """
    scale, causal = np.sqrt(x.shape[1]), settings["attn_mask"] and context is None
    x = scale * x
    for layer in (part(p, f"layers.{number}") for number in range(settings["nlevels"])):
        seen = x if context is None else scale * context
        attended = attention(x, seen, part(layer, "attention"), settings["num_heads"], causal)
        x = layer_norm(x + attended, part(layer, "attention_norm"))
        x = layer_norm(x + perceptron(x, part(layer, "up"), part(layer, "down")), part(layer, "final_norm"))
    return x
