"""Incomplete data: MMSA's own arrays for the same seeds, without its grip on NumPy's global state."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from harness_matrix import write_encoder, write_features
from torch.utils.data import default_collate

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.datasets import make_loaders, make_splits
from mmsa_decalign.harness.encoders import UNKNOWN_TOKEN
from mmsa_decalign.harness.missing import hide_tokens, seen_steps, valid_steps

KEYS = ["text", "text_m", "text_missing_mask"]
ENDS = ("", "_m", "_mask", "_missing_mask", "_lengths")
KEYS += [f"{modality}{end}" for modality in ("audio", "vision") for end in ENDS]


def args_for(path: Path, **more: Any) -> EasyDict:
    return EasyDict({
        "model_name": "tfr_net", "dataset_name": "mosi", "batch_size": 16, "need_data_aligned": False, "use_bert": True,
        "data_missing": True, "missing_rate": [0.2, 0.5, 0.3], "missing_seed": [1111, 7, 9], "custom_feature": path,
        "feature_dims": [1, 1, 1], "seq_lens": [1, 1, 1], "feature_T": "", "feature_A": "", "feature_V": "", **more})


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path, real_fold: Any) -> tuple[Path, bool]:
    """(path, whether the file is aligned)."""
    if request.param == "real":
        return real_fold(0), False
    aligned = request.param == "aligned"
    return write_features(tmp_path, "mosi", aligned=aligned), aligned


@pytest.mark.parametrize(
    "file", ["unaligned", "aligned", pytest.param("real", marks=pytest.mark.real_data)], indirect=True)
def test_samples_equal_mmsas(file: tuple[Path, bool]) -> None:
    from MMSA.data_loader import MMDataset

    path, aligned = file
    args = args_for(path, need_data_aligned=aligned)
    splits = make_splits(args, read_features(path))
    for name, split in splits.items():
        theirs = MMDataset(args_for(path, need_data_aligned=aligned), name)
        expected = default_collate([theirs[index] for index in range(len(theirs))])
        batch = split[list(range(len(split)))]
        for key in KEYS:
            assert torch.equal(batch[key], expected[key]), f"{name} {key}"
        for key in set(KEYS) - {"audio_lengths", "vision_lengths"}:
            assert batch[key].dtype == expected[key].dtype, key
        hidden = batch["text"][:, 1].sum() - batch["text_missing_mask"].sum()
        assert hidden > 0  # or there is nothing to compare
    make_loaders(args, splits, seed=1)
    single, whole = splits["train"][3], splits["train"][[3]]
    assert all(torch.equal(single[key], whole[key][0]) for key in KEYS)


def test_the_global_state_of_numpy_is_untouched_and_mmsas_is_not(tmp_path: Path) -> None:
    from MMSA.data_loader import MMDataset

    path = write_features(tmp_path, "mosi")
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()
    make_splits(args_for(path), read_features(path))
    assert np.random.get_state()[1].tolist() == before
    MMDataset(args_for(path), "train")
    assert np.random.get_state()[1].tolist() != before


def test_a_share_of_the_valid_steps_is_hidden() -> None:
    valid = valid_steps([0, 1, 3, 5], 5)
    assert valid.tolist() == [[0] * 5, [1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1] * 5]
    assert np.array_equal(seen_steps(valid, 0.0, 1), valid)
    assert not seen_steps(valid, 1.0, 1).any()
    many = valid_steps(np.full(400, 50), 100)
    assert seen_steps(many, 0.3, 1).sum() / many.sum() == pytest.approx(0.7, abs=0.01)


def test_the_first_and_the_last_token_stay() -> None:
    tokens = np.array([[[101, 7, 8, 102, 0], [1, 1, 1, 1, 0], [0] * 5], [[101, 7, 8, 9, 102], [1] * 5, [0] * 5]])
    hidden, seen = hide_tokens(tokens, 1.0, 3)
    assert seen.tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert hidden[:, 0].tolist() == [[101, UNKNOWN_TOKEN, UNKNOWN_TOKEN, 102, 0], [101, *[UNKNOWN_TOKEN] * 3, 102]]
    assert np.array_equal(hidden[:, 1:], tokens[:, 1:])
    assert UNKNOWN_TOKEN == 100


def test_a_sample_without_tokens_has_one_step(tmp_path: Path) -> None:
    path = write_features(tmp_path, "mosi", aligned=True)
    data = pickle.loads(path.read_bytes())
    data["train"]["text_bert"][2] = 0
    path.write_bytes(pickle.dumps(data))
    for more in ({}, {"data_missing": False}):
        sample = make_splits(args_for(path, need_data_aligned=True, **more), read_features(path))["train"][2]
        assert sample["text"][1].tolist() == [1] + [0] * 24
        assert int(sample["text_lengths"]) == 1
    sample = make_splits(args_for(path, need_data_aligned=True), read_features(path))["train"][2]
    assert int(sample["audio_lengths"]) == 1
    assert sample["audio_mask"].tolist() == [1] + [0] * 24
    assert not sample["text_m"][0].any()


def test_an_encoder_that_lacks_the_word_for_hidden_ones_is_refused(tmp_path: Path) -> None:
    path = write_features(tmp_path, "mosi")
    data = pickle.loads(path.read_bytes())
    for name in ("train", "valid", "test"):
        data[name]["text_bert"][:, 0] %= 90
    path.write_bytes(pickle.dumps(data))
    encoder = write_encoder(tmp_path / "bert", vocabulary_size=95)
    with pytest.raises(InputError, match="has a vocabulary of 95, and incomplete data holds 100"):
        make_splits(args_for(path, pretrained=str(encoder)), read_features(path))
    make_splits(args_for(path, pretrained=str(encoder), data_missing=False), read_features(path))
