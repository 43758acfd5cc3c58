"""The rows that every model should beat, against what they are by hand and by scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mmsa_decalign.compare import sanity
from mmsa_decalign.data.schema import Split
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.harness.datasets import load_features


def split(name: str, labels: list[float], rng: np.random.Generator) -> Split:
    n = len(labels)
    parts = {m: rng.normal(size=(n, steps, 2)).astype(np.float32)
             for m, steps in (("text", 4), ("audio", 3), ("vision", 1))}
    lengths = {m: rng.integers(1, x.shape[1] + 1, n) for m, x in parts.items()}
    for m, x in parts.items():
        x[np.arange(x.shape[1]) >= lengths[m][:, None]] = 99.0  # padding must not count
    ids = [f"{name}{number}" for number in range(n)]
    return Split(name, parts["text"], None, parts["audio"], parts["vision"], lengths, np.array(labels), {}, ids, ids)


@pytest.fixture
def splits() -> dict[str, Split]:
    rng = np.random.default_rng(0)
    return {"train": split("train", [-1.0, -3.0, -2.0, 0.0, 0.0, 0.0, 2.0, 1.0], rng),
            "valid": split("valid", [1.0, 2.0], rng), "test": split("test", [0.5, -0.5, 1.0], rng)}


def test_constants(splits: dict[str, Split]) -> None:
    predicted, chosen, parameters = sanity.predict(sanity.MEDIAN, splits)
    assert (chosen, parameters) == (0.0, 1)
    np.testing.assert_array_equal(predicted["test"], np.zeros(3))
    predicted, chosen, _ = sanity.predict(sanity.MAJORITY, splits)
    assert chosen == -2.0, "three negative labels, two positive ones: the median of the former"
    np.testing.assert_array_equal(predicted["valid"], [-2.0, -2.0])
    for name in ("train", "valid", "test"):
        splits[name].labels[:] = [2, 0, 2, 1, 2, 1, 0, 2][:len(splits[name])]
    whole = {name: Split(**{**one.__dict__, "labels": one.labels.astype(np.int64)}) for name, one in splits.items()}
    predicted, chosen, _ = sanity.predict(sanity.MAJORITY, whole, classes=4)
    assert chosen == 2
    np.testing.assert_array_equal(predicted["test"], [[0, 0, 1, 0]] * 3)


def test_averages_leave_padding_out(splits: dict[str, Split]) -> None:
    found = sanity.averages(splits["train"])
    assert found.shape == (8, 6)
    one = splits["train"]
    for row in range(8):
        expected = np.concatenate([getattr(one, m)[row, :one.lengths[m][row]].mean(axis=0)
                                   for m in ("text", "audio", "vision")])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_ridge_is_fitted_and_tuned_on_train_alone(tmp_path: Path) -> None:
    features = load_features(write_synthetic(tmp_path / "f.pkl", samples=(60, 20, 30)), {})
    train, test = features.splits["train"], features.splits["test"]
    predicted, penalty, parameters = sanity.predict(sanity.RIDGE, features.splits)
    x, z = sanity.averages(train), sanity.averages(test)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    x, z, y = (x - mean) / spread, (z - mean) / spread, train.labels.astype(float)
    left_out = []
    for alpha in sanity.PENALTIES:
        errors = []
        for row in range(60):
            kept = np.arange(60) != row
            errors.append((Ridge(alpha).fit(x[kept], y[kept]).predict(x[row:row + 1])[0] - y[row]) ** 2)
        left_out.append(np.mean(errors))
    # Leave-one-out by formula does not move the intercept, so that the two may differ by a step of the grid.
    assert abs(int(np.argmin(left_out)) - int(np.argmin(np.abs(sanity.PENALTIES - penalty)))) <= 1
    np.testing.assert_allclose(predicted["test"], Ridge(penalty).fit(x, y).predict(z), atol=1e-4)
    assert parameters == x.shape[1] + 1
    errors = np.abs(predicted["test"] - test.labels).mean(), np.abs(np.median(train.labels) - test.labels).mean()
    assert errors[0] < errors[1]


def test_logistic_regression_finds_separable_classes() -> None:
    rng = np.random.default_rng(1)

    def classes(name: str, n: int) -> Split:
        labels = np.arange(n) % 3
        one = split(name, labels.tolist(), rng)
        x = one.text + 5 * np.eye(3, 2, dtype=np.float32)[labels][:, None] * np.array([1, -1], dtype=np.float32)
        return Split(**{**one.__dict__, "text": np.where(one.text == 99, 99, x), "labels": labels})

    splits = {"train": classes("train", 60), "valid": classes("valid", 6), "test": classes("test", 30)}
    predicted, _, _ = sanity.predict(sanity.LOGISTIC, splits, classes=3)
    assert predicted["test"].shape == (30, 3)
    assert (predicted["test"].argmax(axis=1) == splits["test"].labels).mean() > 0.8
    np.testing.assert_allclose(np.exp(predicted["test"]).sum(axis=1), 1, rtol=1e-5)


def test_a_row_leaves_the_record_of_a_run(tmp_path: Path) -> None:
    path = write_synthetic(tmp_path / "f.pkl", samples=(30, 10, 12))
    spec: dict[str, Any] = {"model": sanity.RIDGE, "source": "x", "dataset": "synthetic", "seed": 0, "mended": False,
                            "settings": {"dataset_name": "synthetic", "train_mode": "regression"},
                            "feature_file": str(path)}
    record, samples = sanity.run(spec)
    assert set(record["test"]) == {name for name in record["metric_rules"] if name != "Loss"}
    assert record["selection"]["split"] == "train"
    assert {name: len(one.ids) for name, one in samples.items()} == {"valid": 10, "test": 12}
    error = np.abs(samples["test"].predictions[:, 0] - samples["test"].labels).mean()
    assert record["test"]["MAE"] == pytest.approx(error, abs=1e-4)
