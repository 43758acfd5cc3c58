"""The account of a training that no trainer keeps: epochs, losses out of the log, the selected epoch, the seal."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.errors import RunError
from mmsa_decalign.harness.watch import EnoughEpochs, EpochWatch, SealedLoader, TrainLoader, is_number


class Trainer:
    """Validates once per entry of ``saves`` and writes its checkpoint where that entry is true."""

    def __init__(self, checkpoint: Path, saves: list[bool], line: str) -> None:
        self.checkpoint, self.saves, self.line = checkpoint, saves, line

    def do_train(self, loaders: dict[str, Any]) -> None:
        for number, save in enumerate(self.saves):
            list(loaders["train"])
            logging.getLogger("MMSA").warning(self.line.format(number))
            self.do_test(None, loaders["valid"])
            if save:
                self.checkpoint.write_text(str(number))

    def do_test(self, model: Any, dataloader: Any) -> dict[str, Any]:
        logging.getLogger("MMSA").warning("VAL-(x) >> loss: 99.0")
        return {"Loss": 0.5, "Ids": ["a"], "Corr": float("nan")}


def watched(
    tmp_path: Path, saves: list[bool], line: str = "TRAIN >> loss: {}.5", max_epochs: int | None = None
) -> EpochWatch:
    valid: list[int] = []
    observer = EpochWatch(tmp_path / "x.pth", valid, max_epochs)
    trainer = Trainer(tmp_path / "x.pth", saves, line)
    with observer.watching(trainer), suppress(EnoughEpochs):
        trainer.do_train({"train": TrainLoader([1, 2], observer.before_pass, iter), "valid": valid})
    assert "do_test" not in vars(trainer)
    return observer


@pytest.mark.parametrize(
    ("saves", "best"),
    [([True], 1), ([True, True, True], 3), ([True, False, True, False], 3), ([False, False], None),
     ([False, True, False], 2)],
)
def test_the_selected_epoch_is_the_last_that_wrote_a_checkpoint(
    tmp_path: Path, saves: list[bool], best: int | None
) -> None:
    observer = watched(tmp_path, saves)
    assert [epoch["selected"] for epoch in observer.epochs] == saves
    assert observer.best_epoch() == best


def test_training_losses_come_out_of_the_log_and_only_numbers_out_of_the_results(tmp_path: Path) -> None:
    observer = watched(tmp_path, [True, True])
    assert [epoch["train"] for epoch in observer.epochs] == [{"loss": 0.5}, {"loss": 1.5}]
    assert set(observer.epochs[0]["valid"]) == {"Loss", "Corr"}
    two = watched(tmp_path, [True], "TRAIN-(mmim) [1/1/1] >> mmilb loss: 0.25 main loss: {}.75  MAE: 1.0 ")
    assert two.epochs[0]["train"] == {"mmilb_loss": 0.25, "main_loss": 0.75}
    parts = watched(tmp_path, [True], "TRAIN-(tfr_net) (1/1/1)>> loss: {}.25(pred: 0.25; gen: 4.0)  MAE: 1.0 ")
    assert parts.epochs[0]["train"] == {"loss": 0.25}


def test_training_ends_after_enough_epochs(tmp_path: Path) -> None:
    assert len(watched(tmp_path, [True] * 5, max_epochs=2).epochs) == 2


def test_the_seal_holds_until_it_is_opened_and_breaks_once() -> None:
    loader = SealedLoader([1, 2, 3])
    assert len(loader) == 3
    with pytest.raises(RunError, match="read the test split"):
        iter(loader)
    loader.open()
    assert list(loader) == [1, 2, 3]
    with pytest.raises(RunError, match="read the test split"):
        iter(loader)


def test_numbers() -> None:
    import numpy as np

    assert [is_number(v) for v in (1, 0.5, np.float32(1), np.int64(2), float("nan"))] == [True] * 5
    assert [is_number(v) for v in ("1", None, [1], True, np.ones(2))] == [False] * 5
