"""Files as MMSA-FET writes them, whole or in place of a modality: what MMSA's own loader makes of them, but by id."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.data.synthetic import make_synthetic
from mmsa_decalign.harness.datasets import load_features, make_splits
from mmsa_decalign.harness.predict import predict
from mmsa_decalign.harness.runner import prepare, run

SAMPLES = (9, 5, 7)
OF_THE_TOOL = {"text": ("text", "text_bert"), "audio": ("audio", "audio_lengths"),
               "vision": ("vision", "vision_lengths")}


def fet(folder: Path, *, modalities: tuple[str, ...] = tuple(OF_THE_TOOL), seed: int = 2, order: int | None = None,
        aligned: bool = False) -> Path:
    """A data set's file with the keys and types of MMSA-FET 0.4: float64, token ids too, everything in arrays.

    order: a seed of the order in which the tool's processes were done, the same for no two runs.
    """
    data: dict[str, Any] = {}
    labels = make_synthetic(samples=SAMPLES)
    features = make_synthetic(samples=SAMPLES, seed=seed, layout="mosi" if aligned else "synthetic")
    for name in ("train", "valid", "test"):
        split = {key: np.array(labels[name][key]) for key in ("id", "raw_text", "annotations", "regression_labels")}
        for key in (key for m in modalities for key in OF_THE_TOOL[m] if key in features[name]):
            value = np.asarray(features[name][key])
            split[key] = value.astype(np.float64) if value.ndim == 3 else value
        if order is not None:
            rows = np.random.default_rng(order).permutation(len(split["id"]))
            split = {key: value[rows] for key, value in split.items()}
        data[name] = split
    path = folder / f"{'-'.join(modalities)}{seed}{order or ''}.pkl"
    path.write_bytes(pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
    return path


def args_for(path: Path, files: dict[str, Path], **more: Any) -> EasyDict:
    return EasyDict({
        "model_name": "tfn", "dataset_name": "mosi", "batch_size": 16, "need_data_aligned": False,
        "custom_feature": str(path), "feature_dims": [1, 1, 1], "seq_lens": [1, 1, 1],
        **{f"feature_{m[0].upper()}": str(files.get(m, "")) for m in OF_THE_TOOL}, **more})


@pytest.mark.parametrize("more", [{}, {"need_normalized": True}, {"use_bert": True}, {"need_data_aligned": True}])
@pytest.mark.parametrize("replaced", [(), ("audio",), ("text",), ("vision", "text"), ("text", "audio", "vision")])
def test_samples_equal_mmsas(replaced: tuple[str, ...], more: dict[str, bool], tmp_path: Path) -> None:
    """Every sample of every split: features, lengths, labels, ids."""
    from MMSA.data_loader import MMDataset

    aligned = bool(more.get("need_data_aligned"))
    main = fet(tmp_path, seed=1, aligned=aligned)
    files = {m: fet(tmp_path, modalities=(m,), aligned=aligned) for m in replaced}
    args = args_for(main, files, **more)
    splits = make_splits(args, load_features(main, files))
    for name, split in splits.items():
        reference = MMDataset(args_for(main, files, **more), name)
        assert len(split) == len(reference)
        for row in range(len(split)):
            sample, expected = split[row], reference[row]
            for key in ("text", "audio", "vision"):
                torch.testing.assert_close(sample[key], expected[key], rtol=0, atol=1e-6)
            assert (sample["id"], sample["raw_text"]) == (str(expected["id"]), str(expected["raw_text"]))
            assert torch.equal(sample["labels"]["M"], expected["labels"]["M"])
            if not more:
                for m in ("audio", "vision"):
                    assert int(sample[f"{m}_lengths"]) == int(expected[f"{m}_lengths"])


def test_rows_in_the_order_in_which_they_were_extracted(tmp_path: Path) -> None:
    """MMSA pairs them by position: labels of one sample with the sound of another."""
    from MMSA.data_loader import MMDataset

    main, ordered = fet(tmp_path, seed=1), fet(tmp_path, modalities=("audio",))
    mixed = fet(tmp_path, modalities=("audio",), order=5)
    expected = read_features(main, audio=ordered).splits["train"]
    found = read_features(main, audio=mixed).splits["train"]
    np.testing.assert_array_equal(found.audio, expected.audio)
    assert found.lengths["audio"].tolist() == expected.lengths["audio"].tolist()
    mmsas = MMDataset(args_for(main, {"audio": mixed}), "train")
    assert np.abs(mmsas.audio - expected.audio).max() > 1


def test_training_and_prediction_with_them(tmp_path: Path) -> None:
    main, audio = fet(tmp_path, seed=1, order=3), fet(tmp_path, modalities=("audio",), order=5)
    folders = {f"{name}_dir": tmp_path / name for name in ("model_save", "res_save", "log")}
    job = prepare("lf_dnn", "mosi", feature_file=main, files={"audio": str(audio)}, seeds=[1], device="cpu", verbose=0,
                  overrides={"max_epochs": 1, "hidden_dims": [8, 4, 8], "text_out": 8, "batch_size": 4}, **folders)
    (record,) = run(job).records
    assert list(record["features"]["replaced"]) == ["audio"]
    found = predict(record["checkpoint"], main, files={"audio": audio}, splits=["test"], device="cpu").splits[0]
    assert found.metrics == {name: value for name, value in record["test"].items() if name != "Loss"}
    without = predict(record["checkpoint"], main, splits=["test"], device="cpu").splits[0]
    assert np.abs(found.outputs - without.outputs).max() > 1e-6
