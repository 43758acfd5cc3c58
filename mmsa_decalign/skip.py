"""The start of the path from pooled inputs to the output: ridge regression, from which training goes on.

Lives here: how `skip_start="ridge"` sets the model's `skip` before the first step. May change: how its penalty is
found.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

PENALTIES = np.logspace(0, 5, 21)


def start_as_ridge(
    layer: nn.Linear, head: nn.Module, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]
) -> float:
    """Set `layer` to argmin_w sum_n (y_n - w . x_n - b)^2 + penalty |w|^2 over `train`; returns the penalty.

    The penalty is that of `PENALTIES` with the smallest mean absolute error on `valid`. The last layer of `head`, whose
    output is added, becomes zero: what the model says is ridge regression's word until the first step.

    Args:
        train, valid: inputs (N, width) and labels (N,) of the two splits.
    """
    (x, y), (x_valid, y_valid) = (tuple(one.double().cpu().numpy() for one in split) for split in (train, valid))
    fits = [Ridge(penalty).fit(x, y) for penalty in PENALTIES]
    best = min(fits, key=lambda fit: np.abs(fit.predict(x_valid) - y_valid).mean())
    last = head if isinstance(head, nn.Linear) else head[-1]
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(best.coef_)[None])
        layer.bias.fill_(float(best.intercept_))
        last.weight.zero_(), last.bias.zero_()
    return float(best.alpha)
