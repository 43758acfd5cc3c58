"""Validation and test of MMSA's own trainers, taken over by the harness: whole splits, and the direction of a metric.

Two faults are mended here. The trainers take the mean of the batches' mean losses, so that a sample in a small last
batch counts more than another and the epoch chosen depends on the batch size. And they look for the largest value of
every metric but ``Loss``, which for MAE is the worst epoch, starting from 0, below which a correlation is never seen.
Plugins validate by themselves and are left alone. Both are undone at the end of the ``with`` block.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import RunError
from .compat import overlaid
from .metrics import LOWER_IS_BETTER

LOGGER = logging.getLogger("MMSA")


@contextmanager
def whole_splits(trainer: Any) -> Iterator[None]:
    """``trainer.do_test`` weights the loss by samples: sum_b n_b L_b / sum_b n_b over batches b of n_b samples.

    The trainer's own ``do_test`` computes each batch's loss; the metrics are then taken once, over all predictions.
    The loss is rounded to four digits, as by MMSA, since early stopping counts on it. Where a prediction is not a
    finite number no metric is one, and RunError is raised on the test split.
    """
    original, metrics = trainer.do_test, trainer.metrics

    def do_test(model: Any, dataloader: Any, mode: str = "VAL") -> dict[str, Any]:
        import torch

        batches = [_one_batch(trainer, original, model, batch, mode) for batch in dataloader]
        labels = torch.cat([batch[2].reshape(-1) for batch in batches])
        # one number a sample, or a row of scores where there are classes
        predictions = torch.cat([batch[1].reshape(batch[2].numel(), -1) for batch in batches]).squeeze(-1)
        results = dict(metrics(predictions, labels))
        finite = torch.isfinite(predictions.reshape(len(labels), -1)).all(dim=1)
        if lost := int((~finite).sum()):  # MMSA counts them as negative: an accuracy of nothing
            text = f"{lost} of {len(predictions)} predictions are not finite numbers"
            if mode == "TEST":
                raise RunError(f"{text} on the test split; try a lower learning_rate")
            LOGGER.warning("%s, so this epoch has no metrics", text)
            results = dict.fromkeys(results, math.nan)
        results["Loss"] = round(sum(loss * len(own) for loss, own, _ in batches) / len(predictions), 4)
        figures = " ".join(f"{name}: {value:.4f}" for name, value in results.items())
        LOGGER.info("%s-(%s) >> %s", mode, trainer.args.model_name, figures)
        return results

    # mctn prints each result, whatever the log level
    silent = overlaid(sys.modules[type(trainer).__module__], "print", lambda *args: None)
    with overlaid(trainer, "do_test", do_test), silent:
        yield


def _one_batch(trainer: Any, original: Callable[..., Any], model: Any, batch: Any, mode: str) -> tuple[float, Any, Any]:
    """Loss, predictions and labels of one batch; a multi-task trainer's first metrics are those of the sentiment."""
    calls: list[tuple[Any, Any]] = []

    def collect(predictions: Any, labels: Any) -> dict[str, Any]:
        calls.append((predictions, labels))
        return {}

    module = sys.modules[type(trainer).__module__]
    with ExitStack() as stack:
        stack.enter_context(overlaid(trainer, "metrics", collect))
        # The trainer rounds what it returns; the mean over batches must be taken before that.
        stack.enter_context(overlaid(module, "round", lambda value, digits=None: value))
        stack.enter_context(overlaid(module, "logger", _SILENT))
        loss = original(model, [batch], mode=mode)["Loss"]
    predictions, labels = calls[0]
    return float(loss), predictions.detach(), labels.detach()


@contextmanager
def directed(trainer: Any, metric: str) -> Iterator[None]:
    """The trainer is shown ``metric`` as a positive number that grows as the epochs get better.

    MAE as 1 / (1 + MAE), every other metric as 1 + metric: both keep the order of the epochs, and a value that is not
    a number stays one, so that such an epoch is never chosen. ``Loss`` is left as it is: there the trainer is right.
    """
    original = trainer.do_test

    def do_test(model: Any, dataloader: Any, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        results = original(model, dataloader, *args, **kwargs)
        if metric == "Loss":
            return results
        value = results[metric]
        return {**results, metric: 1 / (1 + value) if metric in LOWER_IS_BETTER else 1 + value}

    with overlaid(trainer, "do_test", do_test):
        yield


_SILENT = logging.getLogger("MMSA.silent")
_SILENT.disabled = True
