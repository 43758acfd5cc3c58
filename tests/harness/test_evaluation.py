"""Whole splits and the direction of a metric, on a trainer written for the purpose and on MMSA's own."""

from __future__ import annotations

import logging
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmsa_decalign.errors import RunError
from mmsa_decalign.harness.accumulation import last_window
from mmsa_decalign.harness.evaluation import directed, whole_splits

logger = logging.getLogger("MMSA")  # the names that a trainer's module has, as MMSA's trainers use them
optim = torch.optim


class Trainer:
    """Validates as MMSA's trainers do: the mean of rounded batch losses; the metric is the largest prediction."""

    def __init__(self) -> None:
        self.args = SimpleNamespace(model_name="x")
        self.seen: list[int] = []

    def metrics(self, predictions: Any, labels: Any) -> dict[str, float]:
        self.seen.append(len(predictions))
        return {"MAE": float((predictions - labels).abs().mean()), "Max": float(predictions.max())}

    def do_test(self, model: Any, dataloader: Any, mode: str = "VAL") -> dict[str, float]:
        predictions = [batch["x"] for batch in dataloader]
        labels = [batch["y"] for batch in dataloader]
        losses = [float((p - t).abs().mean()) for p, t in zip(predictions, labels, strict=True)]
        print("a line that must not reach standard output")
        results = self.metrics(torch.cat(predictions), torch.cat(labels))
        self.metrics(torch.cat(predictions) * 0, torch.cat(labels))  # a further task
        results["Loss"] = round(sum(losses) / len(dataloader), 4)
        return results


BATCHES = [{"x": torch.tensor([1.0, 2.0, 3.0]), "y": torch.zeros(3)},
           {"x": torch.tensor([[10.0]]), "y": torch.zeros(1, 1)}]


def test_samples_count_alike_and_metrics_see_the_whole_split(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer()
    with pytest.raises(RuntimeError):
        trainer.do_test(None, BATCHES)  # one-dimensional and two-dimensional predictions do not concatenate
    capsys.readouterr()
    trainer.seen.clear()
    with whole_splits(trainer):
        assert trainer.do_test(None, BATCHES) == {"MAE": 4.0, "Max": 10.0, "Loss": 4.0}  # batch means: 2 and 10
        assert trainer.seen == [4]
        assert capsys.readouterr().out == ""
    assert "do_test" not in vars(trainer)
    assert "metrics" not in vars(trainer)
    assert not {"round", "print"} & set(vars(sys.modules[__name__]))
    assert logger is logging.getLogger("MMSA")


def test_losses_are_averaged_before_they_are_rounded() -> None:
    thirds = [{"x": torch.full((1,), value), "y": torch.zeros(1)} for value in (0.00004, 0.00004, 0.00004, 0.00052)]
    trainer = Trainer()
    with whole_splits(trainer):
        assert trainer.do_test(None, thirds)["Loss"] == 0.0002  # rounded first: 0.0001


def test_no_metric_has_a_value_where_a_prediction_is_not_a_number() -> None:
    batches = [{"x": torch.tensor([float("nan"), 2.0]), "y": torch.zeros(2)}]
    trainer = Trainer()
    with whole_splits(trainer):
        results = trainer.do_test(None, batches)
        assert set(results) == {"MAE", "Max", "Loss"}
        assert all(math.isnan(value) for value in results.values())
        with pytest.raises(RunError, match="1 of 2 predictions are not finite numbers on the test split"):
            trainer.do_test(None, batches, mode="TEST")


@pytest.mark.parametrize(
    ("metric", "worse_to_better"),
    [("MAE", [3.0, 1.5, 0.2]), ("Corr", [-0.9, -0.1, 0.4]), ("F1_score", [0.0, 0.1, 1.0])],
)
def test_a_trainer_that_maximises_from_zero_keeps_the_best_epoch(metric: str, worse_to_better: list[float]) -> None:
    values = iter([*worse_to_better, float("nan")])
    trainer = SimpleNamespace(do_test=lambda model, loader: {metric: next(values), "Loss": 2.0})
    with directed(trainer, metric):
        shown = [trainer.do_test(None, None) for _ in range(4)]
    figures = [results[metric] for results in shown]
    assert 0 < figures[0] < figures[1] < figures[2]
    assert math.isnan(figures[3])
    assert {results["Loss"] for results in shown} == {2.0}


def test_the_loss_is_shown_as_it_is() -> None:
    trainer = SimpleNamespace(do_test=lambda model, loader: {"Loss": 2.0, "MAE": 1.0})
    with directed(trainer, "Loss"):
        assert trainer.do_test(None, None) == {"Loss": 2.0, "MAE": 1.0}


@pytest.mark.parametrize(("batches", "window", "steps"), [(3, 5, 1), (5, 2, 3), (4, 2, 2), (3, 1, 3)])
def test_gradients_left_over_at_the_end_of_a_pass_are_used(batches: int, window: int, steps: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    taken: list[float] = []
    module_before = optim
    trainer = Trainer()
    with last_window(trainer) as end_of_pass:
        optimizer = optim.Adam([weight], lr=1.0)
        optimizer.register_step_pre_hook(lambda *args: taken.append(float(weight.grad)))
        for _ in range(2):  # two passes
            left = window
            for _ in range(batches):
                if left == window:
                    optimizer.zero_grad()
                left -= 1
                weight.sum().backward()
                if not left:
                    optimizer.step()
                    left = window
            end_of_pass()
    assert optim is module_before
    assert len(taken) == 2 * steps
    assert sum(taken) == 2 * batches  # every batch's gradient of 1 was part of exactly one step


def test_nothing_is_done_before_an_optimiser_is_there() -> None:
    with last_window(Trainer()) as end_of_pass:
        assert end_of_pass() is None
