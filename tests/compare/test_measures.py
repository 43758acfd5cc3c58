"""The metrics as functions of sums are MMSA's own, and resampling by weights is resampling the samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.compare.measures import measures
from mmsa_decalign.harness.metrics import metric_rules
from mmsa_decalign.harness.samples import score

EMOTIONS = ["angry", "happy", "sad"]
MOSI = {"dataset_name": "mosi"}
SIMS = {"dataset_name": "sims"}


def regression(rng: np.random.Generator, limit: float, borders: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels with every border of the rules among them, exactly."""
    labels = rng.uniform(-limit, limit, 60).round(1).astype(np.float32)
    predictions = (labels + rng.normal(0, limit / 2, 60)).astype(np.float32)
    for number, border in enumerate(borders):
        labels[number] = predictions[len(borders) + number] = border
    return predictions, labels


@pytest.mark.parametrize(("settings", "limit", "borders"), [
    (MOSI, 3.2, (0.0, -0.0, 0.5, 1.5, -1.5, 2.5, 3.0, -3.0, 2.0)),
    (SIMS, 1.2, (0.0, 0.1, -0.1, 0.7, -0.7, 1.0, -1.0)),
])
def test_regression_metrics_are_those_of_mmsa(settings: dict[str, Any], limit: float, borders: tuple[float, ...]
                                              ) -> None:
    known = measures(settings, list(metric_rules(settings["dataset_name"])))
    for seed in range(20):
        predictions, labels = regression(np.random.default_rng(seed), limit, borders)
        expected = score({"train_mode": "regression", **settings}, predictions, labels)
        assert set(known) == set(expected), "each metric that MMSA reports is known"
        for name, value in expected.items():
            np.testing.assert_allclose(known[name].of(predictions, labels), value, atol=5.1e-5, err_msg=name)


def test_metrics_of_classes_are_those_of_the_harness() -> None:
    import torch

    from mmsa_decalign.harness.classification import class_metrics, class_rules

    names = list(class_rules(EMOTIONS))
    known = measures({"dataset_name": "iemocap", "label_names": EMOTIONS}, names)
    assert list(known) == names
    rng = np.random.default_rng(0)
    for classes in (3, 2):  # the third is sometimes neither there nor predicted
        labels = rng.integers(0, classes, 50)
        scores = rng.normal(size=(50, 3)).astype(np.float32) + 2 * np.eye(3, dtype=np.float32)[labels]
        scores[:, classes:] = -9
        expected = class_metrics(EMOTIONS)(torch.as_tensor(scores), torch.as_tensor(labels))
        for name, value in expected.items():
            np.testing.assert_allclose(known[name].of(scores, labels), value, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("settings", [MOSI, SIMS])
def test_weights_of_samples_stand_for_repeated_samples(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    predictions, labels = regression(rng, 1.5, ())
    drawn = rng.integers(0, 60, 60)
    weights = np.bincount(drawn, minlength=60)
    for name, measure in measures(settings, list(metric_rules(settings["dataset_name"]))).items():
        again = measure.of(predictions[drawn], labels[drawn])
        np.testing.assert_allclose(measure.value(weights @ measure.parts(predictions, labels)), again, atol=1e-9,
                                   err_msg=name)


def test_where_there_is_no_figure_there_is_none() -> None:
    known = measures(MOSI, ["Corr", "Non0_acc_2", "MAE"])
    labels = np.zeros(5, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(known["Corr"].of(np.full(5, 0.1, dtype=np.float32), np.arange(5.0)))
        assert np.isnan(known["Non0_acc_2"].of(np.ones(5), labels))
    assert known["MAE"].of(np.ones(5), labels) == 1
    assert [measure.lower_is_better for measure in known.values()] == [False, False, True]
    assert measures(MOSI, ["Unheard_of"]) == {}
