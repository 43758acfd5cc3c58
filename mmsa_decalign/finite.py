"""Numbers that are none: which batch and which samples an error names, and the gradient of each term by itself.

Lives here: words and measurements for the trainer, functions of one batch. May change: what an error says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .errors import on_one_line
from .objective import Objective

SHOWN = 3  # sample ids that an error names before "and N more"


def place(epoch: int, number: int, of: int) -> str:
    """Where a training is, from 1: "epoch 2, batch 5 of 14"."""
    return f"epoch {epoch}, batch {number} of {of}"


def in_words(ids: Sequence[str]) -> str:
    """ "sample a", or "samples a, b, c and 29 more"."""
    shown = ", ".join(on_one_line(str(one)) for one in ids[:SHOWN])
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"sample{'s' if len(ids) > 1 else ''} {shown}{more}"


def suspects(ids: Sequence[str], predictions: Tensor) -> list[str]:
    """The samples to look at: those whose prediction is no finite number where that is some of them, else the batch."""
    bad = (~torch.isfinite(predictions.detach()).flatten(1).all(dim=1)).tolist()
    return [one for one, is_bad in zip(ids, bad, strict=True) if is_bad] if any(bad) and not all(bad) else list(ids)


def bad_losses(numbers: Mapping[str, float]) -> str | None:
    """ "the hetero loss is not a number" for terms of which one is NaN or infinite ("loss" is their sum), else None."""
    bad = {name: value for name, value in numbers.items() if not math.isfinite(value)}
    named = {name: value for name, value in bad.items() if name != "loss"}
    if bad and not named:
        named = {"total": bad["loss"]}
    return ", ".join(f"the {name} loss is {kind(value)}" for name, value in named.items()) or None


def kind(value: float) -> str:
    """What is wrong with a number."""
    return "not a number" if math.isnan(value) else "infinite"


def gradient_norms(parts: Objective, weights: Mapping[str, float], parameters: Sequence[Tensor]) -> dict[str, float]:
    """Euclidean norm over all parameters of the gradient of each weighted term of a batch.

    The graph stays as it is, no gradient is stored and no random number drawn: a training goes on as without it. Terms
    that do not exist or have weight 0 are left out.
    """
    norms = {}
    for name, weight in weights.items():
        term = getattr(parts, name)
        if term is None or weight == 0 or not term.requires_grad:
            continue
        gradients = torch.autograd.grad(weight * term, parameters, retain_graph=True, allow_unused=True)
        each = [torch.linalg.vector_norm(one) for one in gradients if one is not None]
        norms[name] = float(torch.linalg.vector_norm(torch.stack(each))) if each else 0.0
    return norms


def random_state(device: str | torch.device) -> list[Tensor]:
    """State of the generators that a batch on this device draws from."""
    on_gpu = torch.device(device).type == "cuda"
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if on_gpu else [])]


def set_random_state(state: Sequence[Tensor], device: str | torch.device) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state[0])
    for own in state[1:]:
        torch.cuda.set_rng_state(own, device)
