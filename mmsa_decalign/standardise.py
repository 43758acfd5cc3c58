"""Standardisation of the raw inputs with the training split's statistics, kept in the model's state dict.

Lives here: one module a modality. Because the statistics are buffers, a checkpoint carries them and prediction uses
the same numbers as training did, without the training file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_BLOCK = 1 << 14  # rows
_COLUMNS = 8
_QUANTILE_LIMIT = 1 << 24  # values; torch.quantile of earlier versions refuses more


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
    def fit(self, rows: Tensor | Sequence[Tensor], percentiles: tuple[float, float]) -> None:
        """Take the statistics of `rows` (R, D), the valid time steps of the training split, clipping first.

        The rows may come in pieces (R1, D), (R2, D), ..., which are looked at one by one: in float64, or sorted for the
        percentiles, a large data set does not fit beside itself. A constant column gets std 1: it becomes 0 rather than
        0 / 0.
        """
        pieces = [block for piece in ([rows] if isinstance(rows, Tensor) else rows) for block in piece.split(_BLOCK)]
        if tuple(percentiles) != (0.0, 100.0):
            together = max(1, min(_COLUMNS, _QUANTILE_LIMIT // max(1, sum(map(len, pieces)))))
            for columns in torch.arange(len(self.low)).split(together):
                part = torch.cat([piece[:, columns] for piece in pieces])
                for bound, q in zip((self.low, self.high), percentiles, strict=True):
                    bound[columns] = torch.quantile(part, q / 100, dim=0).to(bound)

        def mean(function: Callable[[Tensor], Tensor]) -> Tensor:
            clipped = (torch.clamp(piece, self.low.to(piece), self.high.to(piece)) for piece in pieces)
            return sum(function(piece.double()).sum(dim=0) for piece in clipped) / sum(map(len, pieces))

        average = mean(lambda x: x)
        std = mean(lambda x: (x - average).square()).sqrt()
        self.mean.copy_(average)
        self.std.copy_(torch.where(std > 1e-12, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to the same shape."""
        return torch.clamp(x, self.low, self.high).sub_(self.mean).div_(self.std)  # in the memory of the first
