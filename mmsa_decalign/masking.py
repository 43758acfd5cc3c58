"""Which time steps are valid, and averages over them.

Convention of the feature files: a sequence is padded with all-zero steps at its end. At least one step is always valid,
so that no average and no softmax is ever taken over nothing. Only `present_steps` can leave a sample without any.
"""

from __future__ import annotations

import torch
from torch import Tensor


def trailing_lengths(x: Tensor) -> Tensor:
    """Steps up to the last one that is not all zero, at least 1: x (N, T, D) to (N,)."""
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x != 0).any(dim=2) * steps).amax(dim=1).clamp_min(1)


def steps_mask(lengths: Tensor, n_steps: int) -> Tensor:
    """(N,) lengths, taken into 1..n_steps, to a mask (N, n_steps): True for valid steps."""
    return torch.arange(n_steps, device=lengths.device) < lengths.clamp(1, n_steps).unsqueeze(1)


def shorten(mask: Tensor, kernel: int) -> Tensor:
    """The mask after a convolution without padding: a step stays valid when its whole window was.

    mask (N, T) of valid steps first, padding last, to (N, max(T - kernel + 1, 1)); a sequence shorter than the kernel
    keeps its first step.
    """
    if kernel == 1:
        return mask
    return steps_mask(mask.sum(dim=1) - kernel + 1, max(mask.shape[1] - kernel + 1, 1))


def present_steps(x: Tensor, mask: Tensor | None, present: Tensor) -> Tensor:
    """Steps to attend to: of a sample that lacks the modality none, otherwise its valid ones.

    x (N, T, d), valid steps (N, T) or None for all, present (N,) bool, to (N, T).
    """
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    return mask & present.unsqueeze(1)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over valid steps: x (N, T, d), mask (N, T) or None for all steps, to (N, d)."""
    if mask is None:
        return x.mean(dim=1)
    weight = mask.unsqueeze(2).to(x.dtype)
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
