"""Loaders: sample for sample MMSA's own, but in an order that the seed alone decides and without a batch of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from torch.utils.data import DataLoader

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.datasets import (
    BatchSampler,
    data_root,
    locate,
    make_loaders,
    make_splits,
)


def args_for(path: Path, **more: Any) -> EasyDict:
    return EasyDict({
        "model_name": "tfn", "dataset_name": "mosi", "batch_size": 16, "need_data_aligned": False,
        "custom_feature": path, "feature_dims": [1, 1, 1], "seq_lens": [1, 1, 1], "feature_T": "",
        "feature_A": "", "feature_V": "", **more})


@pytest.mark.parametrize("more", [{}, {"need_normalized": True}, {"use_bert": True}])
@pytest.mark.parametrize("which", ["tiny", "real"])
def test_samples_and_args_equal_mmsas(which: str, more: dict[str, bool], tiny: Path, real_fold: Any) -> None:
    from MMSA.data_loader import MMDataset

    path = tiny if which == "tiny" else real_fold(0)
    ours, theirs = args_for(path, **more), args_for(path, **more)
    splits = make_splits(ours, read_features(path))
    make_loaders(ours, splits, seed=1)
    for name, split in splits.items():
        reference = MMDataset(theirs, name)
        assert len(split) == len(reference)
        for index in (0, len(reference) - 1):
            expected, sample = reference[index], split[index]
            for key in ("text", "audio", "vision"):
                torch.testing.assert_close(sample[key], expected[key], rtol=0, atol=1e-6)
            assert torch.equal(sample["labels"]["M"], expected["labels"]["M"])
            assert (sample["id"], sample["raw_text"], sample["index"]) == (
                expected["id"], expected["raw_text"], expected["index"])
            if not more:
                assert int(sample["audio_lengths"]) == expected["audio_lengths"]
    assert list(ours["feature_dims"]) == list(theirs["feature_dims"])
    theirs["seq_lens"] = MMDataset(theirs, "train").get_seq_len()
    assert tuple(ours["seq_lens"]) == tuple(theirs["seq_lens"])
    assert ours["train_samples"] == len(splits["train"])


def test_a_batch_is_what_torch_would_collate(tiny: Path) -> None:
    args = args_for(tiny)
    loaders = make_loaders(args, make_splits(args, read_features(tiny)), seed=1)
    batch = next(iter(loaders["valid"]))
    collated = next(iter(DataLoader(loaders["valid"].dataset, batch_size=16)))
    assert set(batch) == set(collated)
    assert batch["id"] == collated["id"]
    assert torch.equal(batch["index"], torch.arange(12))
    for key in ("text", "audio", "vision", "text_lengths", "audio_lengths", "vision_lengths", "index"):
        assert torch.equal(batch[key], collated[key]), key
        assert batch[key].dtype == collated[key].dtype, key
    assert batch["labels"]["M"].shape == (12, 1)


def test_lengths_describe_the_tensors_they_come_with(tiny: Path) -> None:
    features = read_features(tiny)
    averaged = make_splits(args_for(tiny, need_normalized=True), features)["train"]
    assert averaged.tensors["audio"].shape[1] == 1
    assert set(averaged.lengths["audio"].tolist()) == {1}
    tokens = make_splits(args_for(tiny, use_bert=True), features)["train"]
    assert torch.equal(tokens.lengths["text"], tokens.tensors["text"][:, 1].sum(dim=1).long())
    assert len(set(tokens.lengths["text"].tolist())) > 1


def test_unimodal_labels_come_along(tmp_path: Path) -> None:
    from mmsa_decalign.data.synthetic import write_synthetic

    path = write_synthetic(tmp_path / "sims.pkl", layout="sims", samples=(5, 3, 3))
    args = args_for(path)
    batch = next(iter(make_loaders(args, make_splits(args, read_features(path)), seed=1)["test"]))
    assert {name: label.shape for name, label in batch["labels"].items()} == dict.fromkeys("MTAV", (3, 1))


@pytest.mark.parametrize(
    ("samples", "size", "expected"),
    [(33, 16, [16, 17]), (32, 16, [16, 16]), (34, 16, [16, 16, 2]), (1, 16, [1]), (17, 16, [17]), (5, 1, [1] * 5),
     (3, 2, [3]), (16, 16, [16])],
)
def test_no_last_batch_of_one(samples: int, size: int, expected: list[int]) -> None:
    for seed in (None, 3):
        sampler = BatchSampler(samples, size, seed=seed)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == expected
        assert len(sampler) == len(expected)
        assert sorted(sum(batches, [])) == list(range(samples))


def test_the_seed_alone_decides_the_order_and_the_models_random_numbers_are_untouched(tiny: Path) -> None:
    def order(seed: int, torch_seed: int, workers: int = 0) -> tuple[list[int], list[int], float]:
        torch.manual_seed(torch_seed)
        args = args_for(tiny)
        loaders = make_loaders(args, make_splits(args, read_features(tiny)), seed=seed, num_workers=workers)
        passes = [torch.cat([batch["index"] for batch in loaders["train"]]).tolist() for _ in range(2)]
        valid = torch.cat([batch["index"] for batch in loaders["valid"]]).tolist()
        assert valid == list(range(12))
        return passes[0], passes[1], float(torch.rand(()))

    first, second, number = order(1, 5)
    assert first != second
    assert order(1, 6)[:2] == (first, second)
    assert order(1, 5, workers=1) == (first, second, number)
    assert order(2, 5)[0] != first
    torch.manual_seed(5)
    assert number == float(torch.rand(()))


def test_what_a_model_asks_for_and_a_file_lacks(tmp_path: Path, tiny: Path) -> None:
    import pickle

    data = pickle.loads(tiny.read_bytes())
    for split in ("train", "valid", "test"):
        del data[split]["text_bert"]
    path = tmp_path / "no_tokens.pkl"
    path.write_bytes(pickle.dumps(data))
    with pytest.raises(InputError, match="needs token ids, key 'text_bert'"):
        make_splits(args_for(path, use_bert=True), read_features(path))
    with pytest.raises(InputError, match="hides token ids, so that it needs use_bert=true"):
        make_splits(args_for(tiny, data_missing=True), read_features(tiny))


def test_where_a_feature_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = "MOSI/Processed/aligned_50.pkl"
    monkeypatch.setenv("MMSA_DATA_ROOT", str(tmp_path / "environment"))
    assert data_root() == tmp_path / "environment"
    assert data_root(tmp_path) == tmp_path
    with pytest.raises(InputError) as error:
        locate("mosi", relative, config_root=str(tmp_path / "configured"))
    for place in ("configured", "environment"):
        assert str(tmp_path / place / relative) in str(error.value)
    assert "mmsa data synth mosi.pkl --layout mosi" in str(error.value)
    assert "get it with mmsa data fetch mosi, " in str(error.value)
    file = tmp_path / "environment" / relative
    file.parent.mkdir(parents=True)
    file.touch()
    assert locate("mosi", relative) == file
    with pytest.raises(InputError, match="elsewhere.pkl does not exist; give one"):
        locate("mosi", relative, feature_file=tmp_path / "elsewhere.pkl")
    monkeypatch.delenv("MMSA_DATA_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root() == tmp_path / "MMSA" / "data"


def test_synthetic_data_is_made_where_it_is_looked_for(tmp_path: Path) -> None:
    path = locate("synthetic", "unused", root=tmp_path)
    assert path.is_relative_to(tmp_path)
    before = path.stat().st_mtime_ns
    assert locate("synthetic", "unused", root=tmp_path).stat().st_mtime_ns == before


def test_float_labels_and_tensors(tiny: Path) -> None:
    split = make_splits(args_for(tiny), read_features(tiny))["train"]
    assert {split.tensors[name].dtype for name in split.tensors} == {torch.float32}
    assert np.array_equal(split.labels["M"].numpy()[:, 0], read_features(tiny).splits["train"].labels)
