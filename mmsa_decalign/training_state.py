"""What a training is in the middle of, so that it can go on in another process with the very same numbers.

Model, optimiser, learning rate schedule, account of the epochs, and the random states: Python's, NumPy's and torch's
global ones, those of the GPUs where they are in use, and the generators that draw the order of the batches. It is all
one dictionary that ``torch.save`` writes and ``torch.load(weights_only=True)`` reads. How a step is done is in
trainer.py; where a state is kept is the harness's business.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass
class Account:
    """What a training has come to: the complete epochs, and how far the pass is that has begun after them."""

    epoch: int = 0
    best: float = math.inf  # score of the checkpoint, lower is better
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, list] = field(default_factory=lambda: {"train": [], "valid": [], "test": []})
    batches: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)  # a term may not exist where modalities are absent
    notes: dict[str, Any] = field(default_factory=dict)  # what else the epoch's entry will say

    def add(self, numbers: Mapping[str, float], count: int) -> None:
        """A batch of the pass is done."""
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * count
            self.samples[name] = self.samples.get(name, 0) + count
        self.batches += 1

    def means(self) -> dict[str, float]:
        """Of every term over the samples of the pass."""
        return {name: value / self.samples[name] for name, value in self.sums.items()}


class Training:
    """Everything that changes in a training.

    The order of a pass is drawn where it begins, and dropout as it goes: hence two random states, and a pass that goes
    on draws its order once more and skips what was done.
    """

    def __init__(self, model: nn.Module, optimizer: Any, scheduler: Any, generators: list[torch.Generator]) -> None:
        self.model, self.optimizer, self.scheduler, self.generators = model, optimizer, scheduler, generators
        self.account = Account()
        self._begun: Mapping[str, Any] | None = None  # random state at the beginning of the pass, if one has begun
        self._to_come: Mapping[str, Any] | None = None  # and after the batches that are being skipped

    def batches(self, loader: Iterable) -> Iterator[Any]:
        """Those of a pass that are left to do."""
        self._begun = random_state(self.generators)
        to_skip = self.account.batches
        for number, batch in enumerate(loader):
            if number < to_skip:
                continue
            self._arrive()
            yield batch
        self._arrive()

    def complete(self, entry: dict[str, Any]) -> None:
        """The epoch is done; ``entry`` says how it went."""
        account = self.account
        account.history.append(entry)
        account.epoch, account.batches = entry["epoch"], 0
        account.sums, account.samples, account.notes = {}, {}, {}
        self._begun = None

    def state(self) -> dict[str, Any]:
        """Where the training is, between two batches or two epochs; it shares its tensors with the training."""
        begun = self._begun or random_state(self.generators)
        now = self._to_come or (random_state(self.generators) if self.account.batches else begun)
        return {
            "epoch": self.account.epoch, "batch": self.account.batches,
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(), "account": asdict(self.account),
            "random": {"begun": begun, "now": now},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where ``state`` was."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.account = Account(**state["account"])
        set_random_state(state["random"]["begun"], self.generators)
        self._to_come = state["random"]["now"] if self.account.batches else None

    def _arrive(self) -> None:
        if self._to_come is not None:
            set_random_state(self._to_come, self.generators)
            self._to_come = None


def generators_of(loader: Any) -> list[torch.Generator]:
    """A loader's own generators: its sampler's and its own, of those that it has."""
    owners = (getattr(loader, "sampler", None), loader)
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def random_state(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """What is to be drawn next, everywhere."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "generators": [generator.get_state() for generator in generators],
    }


def set_random_state(state: Mapping[str, Any], generators: Sequence[torch.Generator] = ()) -> None:
    """Go on drawing from ``state``; of GPUs and generators as many as there are on both sides."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, one in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(one, device)
    for generator, one in zip(generators, state["generators"], strict=False):
        generator.set_state(one)
