"""What a run sees of its trainer: the loaders it hands out, and the epochs that MMSA's trainers do not keep.

MMSA's trainers report an epoch only in the log, stop by themselves or never, and read whatever split they like. Here
the train loader counts passes and can end the training, the test loader stays shut until training is over, and
``EpochWatch`` listens to validation, so that every trainer leaves the same account of itself.
"""

from __future__ import annotations

import logging
import numbers
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RunError
from .compat import overlaid

_LOSS = re.compile(r"((?:\w+ )?loss): *([^\s(]+)")  # tfr_net goes on with a bracket


class EnoughEpochs(Exception):
    """Raised at the start of a pass beyond the last epoch wanted; MMSA's trainers have no such limit."""


class GivenUp(Exception):
    """Raised by whoever hears of the epochs, when the rest of the training is not worth its time."""


class LoaderView:
    """A DataLoader seen through a change of how it is iterated; everything else is the loader's own."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class TrainLoader(LoaderView):
    """Calls ``before_pass`` and ``after_pass`` around each pass and hands it to ``show``, which may draw a bar."""

    def __init__(
        self,
        loader: Any,
        before_pass: Callable[[], None],
        show: Callable[[Any], Any],
        after_pass: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(loader)
        self._before_pass, self._show, self._after_pass = before_pass, show, after_pass

    def __iter__(self) -> Iterator[Any]:
        self._before_pass()
        return self._one_pass()

    def _one_pass(self) -> Iterator[Any]:
        yield from self._show(self._loader)
        self._after_pass()


class SealedLoader(LoaderView):
    """The test split: shut until ``open()``, and then good for one pass."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._passes_left = 0

    def open(self) -> None:
        self._passes_left = 1

    def __iter__(self) -> Iterator[Any]:
        if not self._passes_left:
            raise RunError("the trainer read the test split before training was over, or twice")
        self._passes_left -= 1
        return iter(self._loader)


class EpochWatch:
    """Keeps one entry per validation pass: {"epoch", "train", "valid", "seconds", "selected"}; tells ``after_epoch``.

    Whether an epoch was selected shows in the checkpoint file: after each look its time stamp is set to zero, so any
    other value means that it was written since, whatever the clock says.
    """

    def __init__(self, checkpoint: Path, valid_loader: Any, max_epochs: int | None = None) -> None:
        self.checkpoint, self.valid_loader, self.max_epochs = checkpoint, valid_loader, max_epochs
        self.after_epoch: Callable[[dict[str, Any]], None] | None = None
        self.epochs: list[dict[str, Any]] = []
        self._train_loss: dict[str, float] = {}
        self._since = time.perf_counter()

    def before_pass(self) -> None:
        """For ``TrainLoader``: ends the training once there are enough epochs."""
        if self.max_epochs is not None and len(self.epochs) >= self.max_epochs:
            raise EnoughEpochs

    @contextmanager
    def watching(self, trainer: Any) -> Iterator[None]:
        """Listen to ``trainer.do_test`` on the validation split and to the training loss in MMSA's log."""
        original, logger, ears = trainer.do_test, logging.getLogger("MMSA"), _Ears(self._train_loss)

        def do_test(model: Any, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
            self.look()
            results = original(model, dataloader, *args, **kwargs)
            if dataloader is self.valid_loader:
                self._add(results)
            return results

        logger.addHandler(ears)
        self._since = time.perf_counter()
        try:
            with overlaid(trainer, "do_test", do_test):
                yield
        finally:
            self.look()
            logger.removeHandler(ears)

    def best_epoch(self) -> int | None:
        """Number of the last epoch whose state was saved."""
        return max((entry["epoch"] for entry in self.epochs if entry["selected"]), default=None)

    def content(self) -> Any:
        """The checkpoint's bytes as a tensor (B,) of uint8, for the state of a run; None before there is one."""
        import torch

        self.look()
        if not self.checkpoint.exists():
            return None
        return torch.frombuffer(bytearray(self.checkpoint.read_bytes()), dtype=torch.uint8)

    def go_on(self, epochs: list[dict[str, Any]], content: Any) -> None:
        """Be where another watch was: its epochs, and its checkpoint as ``content`` gave it."""
        self.epochs = list(epochs)
        if content is not None:
            self.checkpoint.write_bytes(content.numpy().tobytes())
            os.utime(self.checkpoint, ns=(0, 0))

    def _add(self, results: dict[str, Any]) -> None:
        now = time.perf_counter()
        numbers = {name: getattr(value, "item", lambda value=value: value)() for name, value in results.items()
                   if is_number(value)}  # Python's own, which the state of a run can hold
        self.epochs.append({
            "epoch": len(self.epochs) + 1,
            "train": dict(self._train_loss),
            "valid": numbers,
            "seconds": round(now - self._since, 3),
            "selected": False,
        })
        self._train_loss.clear()
        self._since = now
        if self.after_epoch is not None:
            self.after_epoch(self.epochs[-1])

    def look(self) -> None:
        """Note whether the checkpoint was written since the last look."""
        if self.epochs and self.checkpoint.exists() and self.checkpoint.stat().st_mtime_ns:
            self.epochs[-1]["selected"] = True
            os.utime(self.checkpoint, ns=(0, 0))


class _Ears(logging.Handler):
    """Picks "loss: 1.234" out of MMSA's training lines; validation lines say VAL and are left alone."""

    def __init__(self, losses: dict[str, float]) -> None:
        super().__init__(logging.INFO)
        self.losses = losses

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("VAL", "TEST")):
            return
        for name, number in _LOSS.findall(message):
            try:
                self.losses[name.replace(" ", "_")] = float(number)
            except ValueError:
                continue


def is_number(value: Any) -> bool:
    """Whether a result is a single real number, NumPy's included."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
