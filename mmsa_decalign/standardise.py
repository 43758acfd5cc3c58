"""Standardisation of the raw inputs with the training split's statistics, kept in the model's state dict.

Lives here: one module a modality. Because the statistics are buffers, a checkpoint carries them and prediction uses
the same numbers as training did, without the training file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """(clip(x, low, high) - mean) / std per feature; the identity until `fit` is called.

    Args:
        width: D, number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((width,), -torch.inf))
        self.register_buffer("high", torch.full((width,), torch.inf))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    @torch.no_grad()
    def fit(self, rows: Tensor, percentiles: tuple[float, float]) -> None:
        """Take the statistics of `rows` (R, D), the valid time steps of the training split, clipping first.

        A constant column gets std 1: it becomes 0 rather than 0 / 0.
        """
        if tuple(percentiles) != (0.0, 100.0):
            low, high = (torch.quantile(rows, q / 100, dim=0) for q in percentiles)
            self.low.copy_(low)
            self.high.copy_(high)
        rows = torch.clamp(rows, self.low.to(rows.dtype), self.high.to(rows.dtype)).double()
        std = rows.std(dim=0, correction=0)
        self.mean.copy_(rows.mean(dim=0))
        self.std.copy_(torch.where(std > 1e-12, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        return (torch.clamp(x, self.low, self.high) - self.mean) / self.std
