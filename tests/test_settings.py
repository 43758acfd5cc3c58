"""Settings: what is refused, and that MMSA's dictionaries go through."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources

import pytest

from mmsa_decalign import InputError, Settings
from mmsa_decalign.settings import MMSA_KEYS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_modl": 3}, "did you mean 'd_model'"),
        ({"num_heads": 7}, "num_heads=7 does not divide d_model=64: choose from 1, 2, 4, 8"),
        ({"d_model": "wide"}, "d_model=\"wide\" has the wrong type: expected a whole number"),
        ({"attn_dropout": 0.1}, "expected a list of 3 numbers"),
        ({"clip": -1}, "null or a number above 0"),
        ({"bert_learning_rate": 0}, "null or a number above 0"),
        ({"ot_max_iter": 0}, "null or a number above 0"),
        ({"factor": 2}, "between 0 and 1"),
        ({"mmd_bandwidth": -1}, "positive number"),
        ({"mmd_bandwidth": []}, "positive number"),
        ({"learning_rate": float("inf")}, "expected a finite number"),
        ({"class_weights": [1.0, -1.0, 1.0], "train_mode": "classification"}, "no negative weight"),
        ({"d_model": True}, "wrong type"),
        ({"attn_dropout": [0.1, 0.1]}, "wrong type"),
        ({"relu_dropout": 1.0}, "rate in"),
        ({"ot_solver": "fast"}, "one of log, release"),
        ({"ot_reg": 0}, "above 0"),
        ({"alpha": -1.0}, "0 or more"),
        ({"transport_weight": -1.0}, "0 or more"),
        ({"mmd_weight": True}, "a finite number"),
        ({"modalities": ["text", "video"]}, "'video'"),
        ({"modalities": []}, "some of text"),
        ({"modalities": ["vision", "text"]}, "in order"),
        ({"feature_clip_percentiles": [99, 1]}, "low < high"),
        ({"mmd_bandwidth": "mean"}, "'median'"),
        ({"class_weights": "even"}, "'balanced'"),
        ({"class_weights": [1.0], "train_mode": "classification", "num_classes": 2}, "1 numbers for num_classes=2"),
        ({"conv_kernel_sizes": [0, 1, 1]}, "above 0"),
    ],
)
def test_refused(change, message):
    with pytest.raises(InputError) as caught:
        Settings.from_args(change)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_mmsa_bookkeeping_is_left_aside_and_lists_become_tuples():
    s = Settings.from_args(dict.fromkeys(MMSA_KEYS, "x") | {"feature_dims": [1, 2, 3], "num_classes": 3})
    assert s.feature_dims == (1, 2, 3)
    assert s.outputs == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        s.d_model = 3


def test_classification_keeps_its_classes():
    s = Settings.from_args({"train_mode": "classification", "num_classes": 6})
    assert s.outputs == 6


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "sims", "synthetic"])
def test_the_shipped_configuration_is_accepted(dataset):
    everything = json.loads((resources.files("mmsa_decalign.configs") / "decalign.json").read_text())
    section = everything["decalign"]
    settings = Settings.from_args(section["commonParams"] | section["datasetParams"][dataset])
    assert settings.d_model % settings.num_heads == 0
    space = section["debugParams"]
    assert set(space["d_paras"]) == set(space) - {"d_paras"} <= set(Settings.names())


@pytest.mark.parametrize(
    ("dataset", "published"),
    [
        ("mosi", {"d_model": 64, "num_heads": 8, "nlevels": 5, "conv_kernel_sizes": (1, 1, 1), "num_prototypes": 7,
                  "gmm_em_iters": 5, "ot_reg": 0.1, "alpha": 0.05, "beta": 0.07, "ct_weight": 0.003,
                  "ct_temperature": 0.1, "batch_size": 32, "learning_rate": 6e-5, "weight_decay": 0.005, "clip": 0.6,
                  "num_epochs": 18, "early_stop": 6, "scheduler_patience": 5, "factor": 0.1, "KeyEval": "Loss"}),
        ("mosei", {"d_model": 64, "num_heads": 8, "nlevels": 4, "conv_kernel_sizes": (5, 5, 5), "alpha": 0.005,
                   "beta": 0.0, "ct_weight": 0.001, "batch_size": 128, "learning_rate": 5e-5,
                   "bert_learning_rate": 1e-5, "num_epochs": 16, "early_stop": 5, "KeyEval": "Non0_acc_2"}),
        ("sims", {"d_model": 32, "num_heads": 8, "nlevels": 4, "conv_kernel_sizes": (5, 5, 5), "alpha": 0.0175,
                  "beta": 0.0525, "ct_weight": 0.01, "ct_temperature": 0.07, "binary_task_weight": 0.01,
                  "batch_size": 24, "learning_rate": 3.5e-5, "bert_learning_rate": 7.5e-6, "clip": 0.5,
                  "num_epochs": 55, "early_stop": 11, "KeyEval": "F1_score"}),
    ],
)  # fmt: skip
def test_the_authors_published_settings(dataset, published):
    """What the authors publish, value by value; the package's own for MOSI are others."""
    section = json.loads((resources.files("mmsa_decalign.configs") / "release.json").read_text())["decalign"]
    settings = Settings.from_args(section["commonParams"] | section["datasetParams"][dataset])
    assert {key: getattr(settings, key) for key in published} == published
