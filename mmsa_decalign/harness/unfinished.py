"""Trainings whose numbers go bad: MMSA's own are stopped from outside, and the best epoch until then is kept.

Of MMSA's trainers only the surroundings are in reach: the batches they are given, what the model predicts for them, and
the losses in their log. So a prediction that is no finite number stops a run at its batch, and a loss that is none and
has spoiled weights at the end of its epoch; which term of a loss it was is not known, and by then the weights have
taken the step. DecAlign's trainer looks at each of its terms before it steps (trainer.py).
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..finite import in_words, kind, place, suspects
from .checkpoints import attach

_UNFINISHED = "-unfinished-epoch"  # behind the name of a run's checkpoint
REMEDY = "try a lower learning_rate, or look at these samples"


class Batches:
    """Stands between a train loader and its trainer, and knows the batch that the trainer is at."""

    def __init__(self, show: Callable[[Any], Any], epochs: Callable[[], int]) -> None:
        self._show, self._epochs = show, epochs
        self._now: tuple[int, int, Any] | None = None

    def __call__(self, loader: Any) -> Iterator[Any]:
        for number, batch in enumerate(self._show(loader), start=1):
            self._now = number, len(loader), batch
            yield batch
        self._now = None

    @contextmanager
    def checking(self, model: Any) -> Iterator[None]:
        """Inside the block a prediction of the model that is not finite, made in training, raises RunError."""
        hook = model.register_forward_hook(self._look)
        try:
            yield
        finally:
            hook.remove()

    def _look(self, model: Any, inputs: Any, outputs: Any) -> None:
        import torch

        found = _prediction(outputs)
        if self._now is None or not model.training or found is None or bool(torch.isfinite(found).all()):
            return
        number, of, batch = self._now
        ids = [str(one) for one in batch["id"]]
        named = suspects(ids, found) if found.dim() and len(found) == len(ids) else ids
        worst = kind(float(found.detach()[~torch.isfinite(found)].flatten()[0]))
        where = place(self._epochs() + 1, number, of)
        raise RunError(f"{where}: a prediction is {worst} ({in_words(named)}); {REMEDY}")


def _prediction(outputs: Any) -> Any:
    """The sentiment in what one of MMSA's models returns, which some put first in a tuple; None if it is not there."""
    import torch

    if isinstance(outputs, (tuple, list)) and outputs:
        outputs = outputs[0]
    if isinstance(outputs, Mapping):
        outputs = outputs.get("M")
    return outputs if isinstance(outputs, torch.Tensor) and outputs.is_floating_point() else None


def check_losses(model: Any, entry: Mapping[str, Any]) -> None:
    """Raise RunError where a training loss of an epoch, as MMSA's trainer logs it, is no number, and weights too.

    The loss alone is no reason: mmim's has a term that is often none and moves nothing. advice.py tells of it.
    """
    import torch

    bad = {name: value for name, value in entry["train"].items() if not math.isfinite(value)}
    if bad and not all(bool(torch.isfinite(one).all()) for one in model.parameters()):
        name, value = next(iter(bad.items()))
        what = f"the training {name.replace('_', ' ')} is {kind(value)}, and so are weights of the model"
        raise RunError(f"epoch {entry['epoch']}: {what}; try a lower learning_rate")


@contextmanager
def best_kept(
    checkpoint: Path, final: Path, best: Callable[[], int | None], description: Callable[[], Mapping[str, Any]]
) -> Iterator[None]:
    """A RunError in the block leaves the best epoch's checkpoint beside ``final``, and says where; if there is one.

    It carries its settings, so that ``mmsa predict`` takes it.
    """
    try:
        yield
    except RunError as error:
        epoch = best()
        if epoch is None or not checkpoint.exists():
            raise
        kept = final.with_name(f"{final.stem}{_UNFINISHED}{epoch}.pth")
        try:
            attach(checkpoint, description())
            os.utime(checkpoint)  # its time stamp was in use, see EpochWatch
            os.replace(checkpoint, kept)
        except (OSError, RuntimeError):  # torch's for a disk that is full: that is what ended the run, then
            raise error from None
        raise RunError(f"{error}\nThe best epoch before that, {epoch}, is kept: {kept}") from error


def clear(final: Path) -> None:
    """A run that failed before has been finished: what ``best_kept`` had kept of it is no longer needed."""
    for path in final.parent.glob(f"{glob.escape(final.stem + _UNFINISHED)}*.pth"):
        path.unlink(missing_ok=True)
