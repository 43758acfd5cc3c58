"""What a trainer predicts for every sample of a split, heard where it asks for its metrics; and metrics of predictions.

The test split is read once: its predictions are those that the metrics in the record were computed from, and nothing is
run a second time for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .watch import is_number


@dataclass(frozen=True)
class Samples:
    """Labels (N,) and predictions (N, outputs) of a split, with the ids of its samples, in the file's order."""

    ids: list[str]
    labels: np.ndarray
    predictions: np.ndarray


class Listener:
    """Stands in for ``trainer.metrics``. A trainer that asks several times about a split asks for the sentiment first.

    Put in before whatever else takes over the trainer's tests, so that it hears what is said of whole splits.
    """

    def __init__(self, trainer: Any) -> None:
        self._metrics, self._heard = getattr(trainer, "metrics", None), None
        if callable(self._metrics):
            trainer.metrics = self

    def __call__(self, predictions: Any, labels: Any, *rest: Any, **options: Any) -> Any:
        if self._heard is None:
            self._heard = predictions.detach().cpu().numpy(), labels.detach().cpu().numpy()
        return self._metrics(predictions, labels, *rest, **options)

    def forget(self) -> None:
        """Listen anew."""
        self._heard = None

    def heard(self, ids: Sequence[str]) -> Samples | None:
        """What was said since ``forget`` of the split with these ids; None if the trainer has no such function."""
        if self._heard is None:
            return None
        labels, predictions = self._heard[1].reshape(-1), self._heard[0]
        if len(labels) != len(ids) or len(predictions) != len(ids):
            return None
        return Samples(list(ids), labels, predictions.reshape(len(ids), -1))


def score(settings: Mapping[str, Any], predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """MMSA's metrics of predictions (N,) or (N, outputs) by the rules of the data set in the settings."""
    import torch
    from MMSA.utils import MetricsTop

    from .registry import active

    with active():
        metrics = MetricsTop(settings.get("train_mode", "regression")).getMetics(settings["dataset_name"])
        results = metrics(torch.as_tensor(predictions, dtype=torch.float32), torch.as_tensor(labels))
    return {name: float(value) for name, value in results.items() if is_number(value)}
