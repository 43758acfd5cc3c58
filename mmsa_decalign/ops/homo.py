"""The homogeneity loss: moments and kernel means of the modalities' common features (paper, section 3.3).

Twin: reference/homo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from .mmd import mmd as mmd_between
from .moments import batch_moments, moment_distance


class HomoLoss(NamedTuple):
    """The loss and what it is made of."""

    value: Tensor  # semantic + mmd
    semantic: Tensor  # scalar, >= 0
    mmd: Tensor  # scalar, >= 0


def homo_loss(features: Sequence[Tensor], *, bandwidth: float | str | Sequence[float] = 1.0) -> HomoLoss:
    """Mean over unordered pairs of modalities of `moment_distance` plus the mean over pairs of `mmd`.

    Args:
        features: M >= 2 tensors (N, p), the common features after each modality's own perceptron.
        bandwidth: as in `mmd`.

    Raises:
        ValueError: when fewer than two modalities are given.

    Source: DecAlign (arXiv 2503.11892), section 3.3.
    """
    if len(features) < 2:
        raise ValueError(f"{len(features)} feature tensors, expected at least 2: one alone has nothing to agree with")
    moments = [batch_moments(z) for z in features]
    pairs = list(combinations(range(len(features)), 2))
    semantic = torch.stack([moment_distance(moments[i], moments[j]) for i, j in pairs]).mean()
    discrepancy = torch.stack([mmd_between(features[i], features[j], bandwidth=bandwidth) for i, j in pairs]).mean()
    return HomoLoss(semantic + discrepancy, semantic, discrepancy)
