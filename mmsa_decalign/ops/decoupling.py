"""How far unique and common features of a modality are from orthogonal (paper, section 3.1).

May change: the arithmetic, as long as the NumPy reference agrees. Twin: reference/decoupling.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .precision import widen


def decoupling_loss(unique: Sequence[Tensor], common: Sequence[Tensor], *, power: int = 2) -> Tensor:
    r"""Cosine between a sample's unique and common features, flattened over channels and time.

    power=2 (default, the authors' release): the mean over samples of cos^2, averaged over the modalities; in [0, 1].
    power=1 (the paper's formula): the mean over samples of cos, summed over the modalities; in [-M, M]. Its minimum
    is at cos = -1, which is not decoupling, hence the default.
    Lengths below 1e-8 count as 1e-8: a zero vector has cosine 0.

    Args:
        unique, common: M >= 1 tensors each, (N, d, T_m); padded steps should be zero in both.
        power: 1 or 2.

    Raises:
        ValueError: when the numbers of modalities or the shapes differ, or for another power.

    >>> s = torch.tensor([[[1.0], [0.0]]]); c = torch.tensor([[[1.0], [1.0]]])
    >>> round(decoupling_loss([s], [c]).item(), 6)
    0.5
    """
    if len(unique) != len(common) or not unique:
        raise ValueError(f"{len(unique)} unique and {len(common)} common tensors, expected one pair per modality")
    if power not in (1, 2):
        raise ValueError(f"power={power!r}, expected 2 (squared cosine) or 1 (the paper's signed cosine)")
    dtype, unique, common = unique[0].dtype, widen(unique), widen(common)
    per_modality = []
    for s, c in zip(unique, common, strict=True):
        if s.shape != c.shape:
            raise ValueError(f"unique features {tuple(s.shape)} and common features {tuple(c.shape)} differ in shape")
        if s.numel() == 0:
            raise ValueError(f"features of shape {tuple(s.shape)} hold nothing, expected (N, d, T), each at least 1")
        cosine = cosine_similarity(s.flatten(1), c.flatten(1), dim=1)
        per_modality.append(cosine.square().mean() if power == 2 else cosine.mean())
    stacked = torch.stack(per_modality)
    return (stacked.mean() if power == 2 else stacked.sum()).to(dtype)
