"""Runs whose numbers go bad: where they stop, what the error names, and what is kept of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_decalign import RunError
from mmsa_decalign.harness import training
from mmsa_decalign.harness.advice import losses
from mmsa_decalign.harness.predict import predict
from mmsa_decalign.harness.runner import prepare, run
from mmsa_decalign.harness.unfinished import _prediction, check_losses

SMALL = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 3, "num_epochs": 5}


def failed(model: str, tiny: Path, folders: dict[str, Path], **overrides: Any) -> list[str]:
    """The lines of the error."""
    with pytest.raises(RunError) as error:
        run(prepare(model, "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0, overrides=overrides,
                    **folders))
    return str(error.value).splitlines()


def spoil_weights(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The first parameter of the model is no number in the epochs after so many."""
    real = training.EpochWatch

    class Spoiling(real):  # type: ignore[misc, valid-type]
        def before_pass(self) -> None:
            super().before_pass()
            if len(self.epochs) == after:
                with torch.no_grad():
                    next(self.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(training, "EpochWatch", Spoiling)
    build = training._build

    def remember(*args: Any) -> tuple[Any, Any]:
        model, trainer = build(*args)
        Spoiling.model = model
        return model, trainer

    monkeypatch.setattr(training, "_build", remember)


def test_the_best_epoch_is_kept_and_predicts(
    tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_weights(monkeypatch, after=2)
    first, second = failed("decalign", tiny, folders, **SMALL)
    where = "decalign on synthetic, seed 7: epoch 3, batch 1 of 1: "
    assert first.startswith(f"{where}the features under the hetero and homo losses are not finite")
    assert "(samples " in first
    kept = list(folders["model_save_dir"].glob("*.pth"))
    assert second == f"The best epoch before that, 2, is kept: {kept[0]}"
    assert [path.name.endswith("-unfinished-epoch2.pth") for path in kept] == [True]
    predicted = predict(kept[0], tiny)
    assert (predicted.origin.model, predicted.origin.seed, predicted.origin.test) == ("decalign", 7, None)
    assert all(bool(torch.isfinite(torch.as_tensor(one.outputs)).all()) for one in predicted.splits)


def test_without_a_best_epoch_nothing_is_kept(
    tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = training._build

    def spoiled(*args: Any) -> tuple[Any, Any]:
        model, trainer = build(*args)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model, trainer

    monkeypatch.setattr(training, "_build", spoiled)
    (line,) = failed("decalign", tiny, folders, **SMALL)
    assert "epoch 1, batch 1 of 1" in line
    assert list(folders["model_save_dir"].iterdir()) == []


@pytest.mark.parametrize("model", ["lf_dnn", "lmf", "mult"])
def test_a_baseline_stops_at_the_batch_of_its_first_bad_prediction(
    model: str, tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_weights(monkeypatch, after=1)
    lines = failed(model, tiny, folders, **({"nlevels": 1} if model == "mult" else {}))
    assert ": epoch 2, batch 1 of " in lines[0]
    assert "a prediction is not a number (samples " in lines[0]
    assert "try a lower learning_rate, or look at these samples" in lines[0]
    (kept,) = folders["model_save_dir"].iterdir()
    assert lines[1] == f"The best epoch before that, 1, is kept: {kept}"


def test_a_loss_of_a_baseline_that_spoils_the_weights(
    tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsa_decalign.harness.patching import mmsa_module

    class Infinite(torch.nn.L1Loss):
        def forward(self, predictions: Any, labels: Any) -> Any:  # of finite predictions
            return super().forward(predictions, labels) * (1e38 if predictions.requires_grad else 1.0) * 10

    monkeypatch.setattr(mmsa_module("trains.singleTask.LF_DNN").nn, "L1Loss", Infinite)
    (line,) = failed("lf_dnn", tiny, folders, batch_size=64, weight_decay=0.0)  # one batch an epoch: no later one tells
    assert "epoch 1: the training loss is infinite, and so are weights of the model" in line


def test_a_loss_alone_is_advised_of_and_stops_nothing() -> None:
    entry = {"epoch": 3, "train": {"loss": 1.0, "main_loss": float("nan")}}
    model = torch.nn.Linear(2, 1)
    check_losses(model, entry)
    assert losses([{"train": {"loss": 1.0}}, entry]) == {
        "what": "the training main loss was not a finite number in 1 of 2 epochs, while the weights stayed finite",
        "try": "a larger batch_size, or another learning_rate; and do not read that loss"}
    assert losses([{"train": {"loss": 1.0}}, {}]) is None
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="epoch 3: the training main loss is not a number, and so are weights"):
        check_losses(model, entry)
    check_losses(model, {"epoch": 3, "train": {"loss": 1.0}})


def test_where_a_prediction_is_found() -> None:
    one = torch.ones(2, 1)
    assert _prediction(one) is one
    assert _prediction({"M": one, "T": None}) is one
    assert _prediction(({"M": one}, None)) is one
    assert _prediction({"T": one}) is None
    assert _prediction(None) is None
