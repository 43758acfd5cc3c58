"""Which modalities a sample has, and what stands in the head's input for one that it lacks.

Absence is a mask: `present` says per modality which samples have it. What lies in the tensors of an absent modality is
never looked at, be it NaN. Lives here: reading `present`, dropping modalities in training, the stand-in. Where the mask
goes is in `model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import InputError
from .settings import MODALITIES

MOMENTUM = 0.1  # of a running mean over batches: the usual one of batch normalisation


def by_modality(values: Mapping[str, Any] | Sequence[Any] | None, what: str) -> dict[str, Any]:
    """Values given by name, or three in the order text, audio, vision, by name. Raises InputError."""
    if values is None:
        return {}
    named = dict(values) if isinstance(values, Mapping) else dict(zip(MODALITIES, values, strict=False))
    if not set(named) <= set(MODALITIES) or (not isinstance(values, Mapping) and len(values) != len(MODALITIES)):
        raise InputError(f"{what} name {sorted(named)}: expected text, audio, vision by name, or three in that order")
    return named


def presence(
    present: Mapping[str, Tensor] | Sequence[Tensor | None] | None, modalities: Sequence[str], like: Tensor
) -> Tensor | None:
    """Masks (N,) bool by modality or in order, as one matrix (N, M) of `modalities`; None if no sample lacks any.

    like: a tensor (N, ...) on the right device. Raises InputError for masks of another shape or type.
    """
    masks = {m: mask for m, mask in by_modality(present, "masks of presence").items() if mask is not None}
    for m, mask in masks.items():
        if mask.dtype != torch.bool or mask.shape != (len(like),):
            raise InputError(f"presence of {m} has shape {tuple(mask.shape)} and type {mask.dtype}: "
                             f"expected {(len(like),)} and torch.bool")
    if not masks.keys() & set(modalities):
        return None
    everybody = torch.ones(len(like), dtype=torch.bool, device=like.device)
    here = torch.stack([masks.get(m, everybody).to(like.device) for m in modalities], dim=1)
    return None if bool(here.all()) else here


def drop_modalities(here: Tensor | None, rates: Sequence[float], like: Tensor) -> Tensor | None:
    """Modality dropout: hide modality m of a sample with probability rates[m], but never the last that it has.

    A sample that would lose all keeps the one whose number came closest to staying.

    Args:
        here: presence (N, M), or None where nothing is absent; rates: M numbers in [0, 1); like: as in `presence`.
    """
    if here is None:
        here = torch.ones(len(like), len(rates), dtype=torch.bool, device=like.device)
    luck = torch.rand(here.shape, device=here.device) - torch.tensor(rates, device=here.device)  # >= 0: stays
    kept = here & (luck >= 0)
    closest = F.one_hot(luck.masked_fill(~here, -torch.inf).argmax(dim=1), len(rates)).bool()
    kept |= here & closest & ~kept.any(dim=1, keepdim=True)
    return None if bool(kept.all()) else kept


def without_absent(x: Tensor, present: Tensor, tokens: bool = False) -> Tensor:
    """x (N, ...) with zeros for absent samples, whatever lies there; of token ids (N, 3, L) one step stays attended."""
    x = torch.where(present.view(-1, *[1] * (x.dim() - 1)), x, torch.zeros((), dtype=x.dtype, device=x.device))
    if tokens and x.dim() == 3 and x.shape[1] > 1:
        x[:, 1, 0] = torch.where(present, x[:, 1, 0], torch.ones_like(x[:, 1, 0]))  # softmax over nothing is NaN
    return x


class StandIn(nn.Module):
    """What the head sees of a modality that a sample lacks: the mean that training saw of those that have it.

    A running mean over the batches of training; zero before the first. With a linear head the prediction is then the
    one for an average of the absent modality. It is in the state dict once it was trained, so that older state dicts
    and those of the authors' release load as they are.

    Args:
        modalities: M; width: d of each of a modality's two features, fused and common.
    """

    def __init__(self, modalities: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2, modalities, width), persistent=False)
        self.register_buffer("batches", torch.zeros(modalities, dtype=torch.long), persistent=False)

    @torch.no_grad()
    def update(self, features: Tensor, here: Tensor | None) -> None:
        """Take in a batch (N, 2, M, d): the samples that have the modality, by `here` (N, M) or all."""
        if here is None:
            self.batches += 1
            mean, weight = features.mean(dim=0), (1.0 / self.batches.to(self.mean)).clamp_min(MOMENTUM)
        else:
            count = here.sum(dim=0)
            self.batches += count > 0
            chosen = features.masked_fill(~here[:, None, :, None], 0.0)
            mean = chosen.sum(dim=0) / count.clamp_min(1).unsqueeze(1)
            weight = (count > 0) * (1.0 / self.batches.clamp_min(1).to(self.mean)).clamp_min(MOMENTUM)
        self.mean += weight.unsqueeze(1) * (mean.to(self.mean) - self.mean)

    def forward(self, features: Tensor, here: Tensor) -> Tensor:
        """features (N, 2, M, d) with the mean where `here` (N, M) is False."""
        return torch.where(here[:, None, :, None], features, self.mean.to(features))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if bool(self.batches.any()):
            destination |= {prefix + name: getattr(self, name) for name in ("mean", "batches")}

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *more: Any) -> None:
        for name in ("mean", "batches"):
            if prefix + name in state:
                getattr(self, name).copy_(state[prefix + name])
            else:
                getattr(self, name).zero_()
