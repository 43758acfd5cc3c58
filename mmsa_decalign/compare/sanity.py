"""Rows that every model should beat: a constant, and a linear model on averaged features. Fitted on train alone.

They go through the same worker, store and statistics as the models. What may change here: further rows, each a function
of the splits that says what it predicts; the plan takes them from ``rows_for``.
"""

from __future__ import annotations

import datetime
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.schema import MODALITIES

MEDIAN, MAJORITY = "constant: median", "constant: majority"
RIDGE, LOGISTIC = "ridge on averages", "logistic regression on averages"
SUMMARIES = {
    MEDIAN: "the median of the training labels for every sample",
    MAJORITY: "the more frequent sign of the training labels, at the median of its labels; of classes the most "
              "frequent one",
    RIDGE: "ridge regression on the valid steps' means of text, audio and vision, standardised by the training split; "
           "penalty by leave-one-out inside it",
    LOGISTIC: "logistic regression on the valid steps' means of text, audio and vision, standardised by the training "
              "split; penalty by cross-validation inside it",
}
PENALTIES = np.logspace(-1, 5, 25)  # of ridge, for standardised features


def rows_for(task: str) -> tuple[str, ...]:
    """Names of the rows that suit a data set; the task is MMSA's train_mode."""
    return (MAJORITY, LOGISTIC) if task == "classification" else (MEDIAN, MAJORITY, RIDGE)


def run(spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record, with the fields of a trained model's, and the predictions on valid and test."""
    from ..harness import machine
    from ..harness.classification import with_labels
    from ..harness.datasets import load_features
    from ..harness.metrics import metric_rules
    from ..harness.records import SCHEMA_VERSION, plain
    from ..harness.samples import Samples, score

    started, clock = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    features = with_labels(spec["settings"], load_features(Path(spec["feature_file"]), {}))
    names = spec["settings"].get("label_names", ())
    predicted, chosen, parameters = predict(spec["model"], features.splits, classes=len(names))
    samples = {}
    for name, values in predicted.items():
        split = features.splits[name]
        samples[name] = Samples(list(split.ids), split.labels, values.reshape(len(split.ids), -1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the correlation of a constant
        test = score(spec["settings"], predicted["test"], samples["test"].labels)
    device = _cpu()
    return plain({
        "schema_version": SCHEMA_VERSION, "id": uuid.uuid4().hex[:8], "started": started.isoformat(timespec="seconds"),
        "command": None, "model": spec["model"], "model_source": spec["source"], "dataset": spec["dataset"],
        "seed": spec["seed"], "settings": spec["settings"], "overrides": {}, "mended": False, "flags": [],
        "warnings": [],
        "features": {
            "path": str(features.path.absolute()), "sha256": features.sha256, "replaced": dict(features.overrides),
            "samples": {name: len(split.ids) for name, split in features.splits.items()},
            "feature_dims": features.feature_dims, "seq_lens": features.seq_lens,
        },
        "versions": machine.versions(), "device": machine.describe_device(device),
        "git_commit": machine.git_commit(Path(__file__).parent),
        "working_directory_commit": machine.git_commit(Path.cwd()),
        "parameters": parameters, "epochs": [],
        "selection": {"epoch": None, "metric": None, "mode": None, "split": "train", "value": chosen,
                      "rule": SUMMARIES[spec["model"]]},
        "test": test, "metric_rules": {name: rule for name, rule in metric_rules(spec["dataset"]).items()
                                       if name in test},
        "checkpoint": None, "peak_memory_mib": machine.peak_memory(device),
        "wall_seconds": round(time.perf_counter() - clock, 3),
    }), samples


def predict(name: str, splits: Mapping[str, Any], *, classes: int = 0
            ) -> tuple[dict[str, np.ndarray], float | None, int]:
    """Predictions on valid and test by one of the rows, what was chosen inside train, and the numbers fitted.

    Regression, where ``classes`` is 0: (N,); else (N, classes), scores whose largest one is the prediction.
    """
    train = splits["train"]
    others = {split: splits[split] for split in ("valid", "test")}
    if name in (MEDIAN, MAJORITY) and not classes:
        constant = float(np.median(train.labels) if name == MEDIAN else _of_the_majority(train.labels))
        return {split: np.full(len(one.ids), constant, dtype=np.float32) for split, one in others.items()}, constant, 1
    if name == MAJORITY:
        most = int(np.bincount(train.labels).argmax())
        scores = (np.arange(classes) == most).astype(np.float32)
        return {split: np.tile(scores, (len(one.ids), 1)) for split, one in others.items()}, float(most), 1
    x = averages(train)
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread == 0] = 1.0

    def standardised(split: Any) -> np.ndarray:
        return (averages(split) - mean) / spread

    if name == RIDGE:
        from sklearn.linear_model import RidgeCV

        fit = RidgeCV(alphas=PENALTIES).fit(standardised(train), train.labels.astype(np.float64))
        return ({split: fit.predict(standardised(one)).astype(np.float32) for split, one in others.items()},
                float(fit.alpha_), x.shape[1] + 1)
    from sklearn.linear_model import LogisticRegressionCV

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of options that change between versions of scikit-learn
        fit = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000).fit(standardised(train), train.labels)
    predicted = {split: fit.predict_log_proba(standardised(one)).astype(np.float32) for split, one in others.items()}
    return predicted, float(np.mean(fit.C_)), int(fit.coef_.size + fit.intercept_.size)


def averages(split: Any, modalities: Sequence[str] = MODALITIES) -> np.ndarray:
    """(N, sum of the widths) float64: the mean of each modality over its valid steps, side by side."""
    found = []
    for modality in modalities:
        x = getattr(split, modality)
        valid = np.arange(x.shape[1]) < np.asarray(split.lengths[modality])[:, None]
        found.append((x * valid[:, :, None]).sum(axis=1, dtype=np.float64) / valid.sum(axis=1)[:, None])
    return np.concatenate(found, axis=1)


def _of_the_majority(labels: np.ndarray) -> float:
    negative, positive = labels[labels < 0], labels[labels > 0]
    larger = negative if len(negative) > len(positive) else positive
    return np.median(larger) if len(larger) else 0.0


def _cpu() -> Any:
    from ..harness.machine import pick_device

    return pick_device("cpu")
