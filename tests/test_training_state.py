"""Each part of a training's state comes back: what is drawn, stepped and counted next is the same."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader

from mmsa_decalign.training_state import Training, generators_of, random_state, set_random_state


def draws(generator: torch.Generator) -> dict[str, Any]:
    """One draw from everywhere."""
    return {"python": random.random(), "gauss": random.gauss(0, 1), "numpy": np.random.rand(), "torch": torch.rand(1),
            "normal": np.random.randn(), "generators": torch.rand(1, generator=generator)}


def stored(state: Any) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@pytest.mark.parametrize("kind", ["python", "numpy", "torch", "generators"])
def test_every_random_state_comes_back_and_matters(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    random.gauss(0, 1), np.random.randn()  # each leaves half of a pair behind, which is state, too
    state = stored(random_state([generator]))
    first = draws(generator)
    set_random_state(state, [generator])
    assert draws(generator) == first
    random.seed(1), np.random.seed(1), torch.manual_seed(1), generator.manual_seed(1)
    other = random_state([generator])
    set_random_state({**state, kind: other[kind]}, [generator])
    changed = {name for name, value in draws(generator).items() if value != first[name]}
    assert changed == {"python": {"python", "gauss"}, "numpy": {"numpy", "normal"}}.get(kind, {kind})


def test_generators_of_a_loader_are_found() -> None:
    own = torch.Generator()
    shuffled = DataLoader(list(range(3)), shuffle=True, generator=own)
    assert generators_of(shuffled) == [own, own]
    assert generators_of(DataLoader(list(range(3)))) == []
    assert generators_of([1, 2]) == []


class Small:
    """A linear model with dropout on ten numbers in a shuffled order, trained step by step; what it sees is kept."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))
        optimizer = optim.Adam(model.parameters(), lr=0.1)
        self.loader = DataLoader(torch.arange(10.0), batch_size=2, shuffle=True,
                                 generator=torch.Generator().manual_seed(5))
        scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        self.training = Training(model, optimizer, scheduler, generators_of(self.loader))
        self.seen: list[tuple[list[float], float]] = []

    def train(self, epochs: int, batches: int | None = None) -> Any:
        """Until so many epochs are complete; ``batches`` ends it in the middle of the next."""
        t = self.training
        while t.account.epoch < epochs or batches is not None:
            for batch in t.batches(self.loader):
                if t.account.epoch == epochs and t.account.batches == batches:
                    return stored(t.state())
                loss = t.model(batch.view(-1, 1)).pow(2).mean()
                t.optimizer.zero_grad()
                loss.backward()
                t.optimizer.step()
                t.account.add({"loss": loss.item()}, len(batch))
                self.seen.append((batch.tolist(), loss.item()))
            t.scheduler.step(1.0)  # never better: the rate falls
            t.complete({"epoch": t.account.epoch + 1, "train": t.account.means()})
        return stored(t.state())


@pytest.mark.parametrize(("epochs", "batches"), [(0, 0), (0, 1), (0, 4), (1, None), (1, 0), (2, 3), (3, None)])
def test_a_training_goes_on_with_the_same_batches_and_losses(epochs: int, batches: int | None) -> None:
    calm = Small()
    calm.train(4)
    first = Small()
    state = first.train(epochs, batches)
    assert (state["epoch"], state["batch"]) == (epochs, batches or 0)
    second = Small()
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    second.training.restore(state)
    second.train(4)
    assert first.seen + second.seen == calm.seen
    assert second.training.account.history == calm.training.account.history
    for ours, theirs in zip(second.training.model.parameters(), calm.training.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_training_that_is_ended_again_while_it_skips_goes_on_too() -> None:
    calm = Small()
    calm.train(2)
    first = Small()
    state = first.train(1, 3)
    second = Small()
    second.training.restore(state)

    def ended() -> Iterator[Any]:
        yield from itertools.islice(second.loader, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(second.training.batches(ended()))
    state = stored(second.training.state())
    third = Small()
    third.training.restore(state)
    third.train(2)
    assert first.seen + third.seen == calm.seen


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "account", "random"])
def test_without_one_part_of_the_state_the_rest_is_another(part: str) -> None:
    calm = Small()
    calm.train(4)
    first, fresh, second = Small(), Small(), Small()
    state = first.train(2, 3)
    untouched = fresh.train(0, 0)
    if part == "account":  # its epochs apart, which would only make it longer
        untouched["account"] = {**state["account"], "batches": 0, "sums": {}, "samples": {}}
    second.training.restore({**state, part: untouched[part]})
    second.train(4)
    assert first.seen + second.seen != calm.seen
