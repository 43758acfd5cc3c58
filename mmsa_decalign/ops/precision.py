"""Which arithmetic the operators use: float64 inside, the type of the input outside.

Lives here: the two casts. Why float64: on GPUs float32 matrix products may run in TF32 (10 bits) or, under autocast, in
16 bits, and the switches for that belong to the program, not to a library; float64 is touched by neither. Five EM steps
and the costs between prototypes then keep every digit that the input has, also for features of 1e4 with a spread of
1e-2. The tensors are those of one batch, so that the price is small beside the network's.
May change: the arithmetic, with the tolerances in tests/oracle.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class NotFinite(ValueError):
    """An operator was given NaN or infinite entries."""


def widen(value: Any) -> Any:
    """Every tensor of a tensor, a sequence or a record in float64; gradients come back in the type it had.

    Raises NotFinite for NaN and infinite entries: what is computed from them would be a number that means nothing.
    """
    wide = cast(value, torch.float64)
    # Zero times a finite number is zero, times any other NaN: one number to look at, where `isfinite` takes five steps
    # per tensor and a wait for each.
    if float(sum((tensor.detach() * 0.0).sum() for tensor in _tensors(wide))) != 0.0:
        raise NotFinite("the input has NaN or infinite entries, expected finite numbers: clean it first")
    return wide


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Every tensor of a tensor, a sequence or a record in `dtype`; sequences become tuples, all else stays."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise ValueError(f"a tensor of {value.dtype}, expected floating-point numbers: call .float() on it")
        return value.to(dtype)
    if isinstance(value, list | tuple):
        parts = [cast(part, dtype) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []
