"""Warnings at the end of a run: each rule on a case made for it, silent where nothing is wrong, said once, recorded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mmsa_decalign.harness import advice
from mmsa_decalign.harness.runner import prepare, run
from mmsa_decalign.harness.samples import Samples

LABELS = np.array([-2.0, -1.0, 0.0, 1.0, 1.5, 2.0])


def samples(predictions: Any, labels: np.ndarray = LABELS) -> Samples:
    values = np.asarray(predictions, dtype=float)
    return Samples([f"s{n}" for n in range(len(labels))], labels, values.reshape(len(labels), -1))


def said(predictions: Any, labels: np.ndarray = LABELS, **settings: Any) -> str | None:
    found = advice.predictions(samples(predictions, labels), settings, "test")
    assert found is None or found["try"]
    return found and found["what"]


def test_good_predictions_say_nothing() -> None:
    assert said([-1.0, -0.5, 0.1, 0.5, 1.0, -0.2]) is None  # 4 of 5, always positive: 3 of 5


def test_constant_predictions() -> None:
    what = "predictions on the test split are as good as constant: all between 0.5 and 0.51, labels between -2 and 2"
    assert said([0.5, 0.51, 0.5, 0.5, 0.5, 0.5]) == what


def test_predictions_on_one_side() -> None:
    assert said([0.1, 0.2, 0.3, 1.0, 1.5, 2.0]) == (
        "all predictions on the test split are positive, so that Acc-2 is the share of such labels (positive labels: "
        "60.0%)")
    assert "are negative" in (said([-0.1, -0.2, -0.3, -1.0, -1.5, -2.0]) or "")


def test_no_better_than_the_commoner_side() -> None:
    assert said([1.0, -1.0, 0.1, 1.0, 1.0, -1.0]) == (
        "Acc-2 of labels that are not zero is 60.0% on the test split, and always saying positive gives 60.0%")


def test_labels_on_one_side_say_nothing() -> None:
    assert said([0.1, 0.9, 0.2], np.array([1.0, 2.0, 3.0])) is None
    assert said([0.1, -0.9, 0.2], np.array([0.0, 0.0, 0.0])) is None


def test_predictions_that_are_not_known_or_no_numbers_say_nothing() -> None:
    assert advice.predictions(None, {}, "test") is None
    assert said([np.nan] * 6) is None


def test_classes() -> None:
    labels, names = np.array([0, 0, 1, 2]), {"label_names": ["angry", "happy", "sad"]}
    scores = np.eye(3)
    assert said(scores[[1, 1, 1, 1]], labels, **names) == (
        "every sample of the test split is predicted to be 'happy'")
    assert said(scores[[0, 0, 0, 2]], labels, **names) is None
    assert said(scores[[0, 0, 0, 1]], labels, **names) == (
        "accuracy on the test split is 50.0%, and always saying 'angry' gives 50.0%")


def epoch_said(chosen: int | None, last: int, **settings: Any) -> dict[str, str] | None:
    return advice.epoch([{}] * last, {"epoch": chosen, "metric": "Loss"}, settings)


def test_the_first_epoch_was_best() -> None:
    found = epoch_said(1, 7)
    assert found is not None
    assert found["what"] == "validation Loss was best after the first of 7 epochs and never again"


def test_the_last_epoch_was_best() -> None:
    found = epoch_said(7, 7, num_epochs=7)
    assert found == {"what": "validation Loss was best in the last epoch, 7: it was still getting better",
                     "try": "more epochs (num_epochs)"}
    assert epoch_said(7, 7, num_epochs=30)["try"] == "more epochs (max_epochs)"


@pytest.mark.parametrize(("chosen", "last"), [(3, 7), (1, 1), (None, 4)])
def test_other_epochs_say_nothing(chosen: int | None, last: int) -> None:
    assert epoch_said(chosen, last) is None


def test_what_a_trainer_said_itself_is_recorded_and_not_said_again(caplog: pytest.LogCaptureFixture) -> None:
    own = {"what": "its own", "try": "something"}
    with caplog.at_level(logging.WARNING, "MMSA"):
        found = advice.advise(SimpleNamespace(advice=[own]), [{}] * 3, {"epoch": 1, "metric": "MAE"}, {}, None, "test")
    assert [one["what"] for one in found] == [
        "its own", "validation MAE was best after the first of 3 epochs and never again"]
    assert [record.getMessage() for record in caplog.records] == [f"{found[1]['what']}; try {found[1]['try']}"]


def test_a_run_says_it_once_and_records_it(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import harness_toy

    def constant(self: Any, text: Any, audio: Any, vision: Any) -> dict[str, Any]:
        return {"M": 0 * self.head.weight.sum() + torch.ones(len(text), 1)}

    monkeypatch.setattr(harness_toy.Toy, "forward", constant)
    outcome = run(prepare("toy", "synthetic", feature_file=tiny, seeds=[7], device="cpu", overrides={"epochs": 3},
                          **folders))
    found = json.loads(outcome.record_paths[0].read_text())["warnings"]
    assert all(set(one) == {"what", "try"} for one in found)
    assert any("as good as constant: all between 1 and 1" in one["what"] for one in found)
    printed = capsys.readouterr().err
    log = (folders["log_dir"] / "toy-synthetic.log").read_text()
    for one in found:
        assert printed.count(one["what"]) == log.count(one["what"]) == 1


def test_decalign_s_own_advice_is_in_the_record(tiny: Path, folders: dict[str, Path]) -> None:
    outcome = run(prepare("decalign", "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0, overrides={
        "num_epochs": 1, "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 30}, **folders))
    (record,) = outcome.records
    assert "for num_prototypes=30: fewer than 2 samples a prototype" in record["warnings"][0]["what"]
    assert set(record["epochs"][0]["gradient_norms"]) >= {"task", "decoupling", "hetero", "homo"}
