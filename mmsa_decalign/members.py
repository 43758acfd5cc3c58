"""Several DecAligns side by side whose predictions are averaged: `members` in the settings.

A few hundred training samples leave much to the luck of the start; an average of independent models has less of it.
Lives here: building what the settings ask for, the average, and finding the members again. What each is trained on is
the trainer's business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .model import DecAlign
from .settings import Settings


class Members(nn.Module):
    """`settings.members` independent DecAligns, which differ in their start and in what dropout hides from them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.members = nn.ModuleList(DecAlign(replace(settings, members=1)) for _ in range(settings.members))

    def forward(self, *inputs: Any, **more: Any) -> dict[str, Any]:
        """Inputs as of `DecAlign.forward`, and its output: `M` (N, outputs) is the mean of the members' predictions (of
        their scores in classification), each feature theirs side by side. In training mode `members` has the output of
        each, `terms` among it, instead of `terms`."""
        each = [member(*inputs, **more) for member in self.members]
        out: dict[str, Any] = {"M": torch.stack([one["M"] for one in each]).mean(dim=0)}
        out |= {name: torch.cat([one[name] for one in each], dim=1) for name in each[0] if name.startswith("Feature_")}
        return out | {"members": each} if self.training else out


def build(settings: Settings) -> DecAlign | Members:
    """The model of the settings: one DecAlign, or several."""
    return DecAlign(settings) if settings.members == 1 else Members(settings)


def members_of(model: nn.Module) -> list[DecAlign]:
    """The DecAligns in a model, also when MMSA's wrapper holds it."""
    return [module for module in model.modules() if isinstance(module, DecAlign)]


def outputs_of(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The output of each member, from that of the model in training mode."""
    return outputs.get("members", [outputs])
