"""The embedded data: its structure holds as documented, its figures are the documented ones, its files appear whole."""

from __future__ import annotations

import errno
import importlib.util
import os
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest

from mmsa_decalign.data import synthetic
from mmsa_decalign.data.reading import read_features, read_file
from mmsa_decalign.data.schema import MODALITIES, SPLITS, Features, Split, features_from_dict
from mmsa_decalign.data.synthetic import (
    LAYOUTS,
    VOCABULARY,
    VOCABULARY_SIZE,
    ensure_synthetic,
    ideal_metrics,
    make_synthetic,
    write_synthetic,
)
from mmsa_decalign.errors import InputError


@pytest.fixture(scope="module")
def data() -> dict:
    return make_synthetic()


@pytest.fixture(scope="module")
def features() -> Features:
    return features_from_dict(make_synthetic(), Path("synthetic.pkl"), "")


def averages(split: Split, modalities: tuple[str, ...], padding: bool = False) -> np.ndarray:
    """Averages over the valid steps (or over all of them), side by side."""
    parts = []
    for m in modalities:
        x = getattr(split, m).astype(np.float64)
        parts.append(x.mean(axis=1) if padding else x.sum(axis=1) / split.lengths[m][:, None])
    return np.hstack(parts)


def linear(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of ridge regression on standardised inputs."""
    center, scale = train.mean(axis=0), train.std(axis=0)
    a, b = (train - center) / scale, (test - center) / scale
    weights = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ (labels - labels.mean()))
    return b @ weights + labels.mean()


def scores(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    rated = truth != 0
    return (
        np.abs(prediction - truth).mean(),
        np.corrcoef(prediction, truth)[0, 1],
        ((prediction > 0) == (truth > 0))[rated].mean(),
        ((prediction >= 0) == (truth >= 0)).mean(),
    )


# Layout


def test_sizes_and_keys(data, features):
    assert {name: len(split) for name, split in features.splits.items()} == {"train": 600, "valid": 200, "test": 300}
    assert features.seq_lens == (12, 20, 16)
    assert features.feature_dims == (24, 12, 16)
    for split in features.splits.values():
        assert sorted(split.unimodal_labels) == ["A", "T", "V"]
        assert split.text_bert.shape == (len(split), 3, 12)
    assert data["generator"] == {
        "name": f"mmsa-decalign synthetic features, version {synthetic.VERSION}",
        "version": synthetic.VERSION, "seed": synthetic.SEED, "layout": "synthetic", "samples": (600, 200, 300),
    }


def test_lengths_differ_and_padding_is_zero(features):
    for split in features.splits.values():
        for m in MODALITIES:
            x, lengths = getattr(split, m), split.lengths[m]
            valid = np.arange(x.shape[1]) < lengths[:, None]
            np.testing.assert_array_equal((x != 0).any(axis=2), valid)
            assert lengths.min() >= 3
            assert len(set(lengths.tolist())) > x.shape[1] // 2
        assert (split.lengths["audio"] != split.lengths["vision"]).any()


def test_tokens_spell_the_sentence(features):
    words = {number: word for word, number in VOCABULARY.items()}
    assert max(words) < VOCABULARY_SIZE
    for split in features.splits.values():
        steps = np.arange(12) < split.lengths["text"][:, None]
        np.testing.assert_array_equal(split.text_bert[:, 1], steps)
        np.testing.assert_array_equal(split.text_bert[:, 2], 0)
        for ids, sentence, length in zip(split.text_bert[:, 0], split.raw_text, split.lengths["text"], strict=True):
            assert [ids[0], ids[length - 1]] == [101, 102]
            assert " ".join(words[i] for i in ids[1:length - 1]) == sentence
            np.testing.assert_array_equal(ids[length:], 0)


def test_words_lean_with_what_the_text_says(features):
    split = features.splits["train"]
    ids = split.text_bert[:, 0]
    tally = (ids >= 103 + 16).sum(axis=1) - ((ids >= 103) & (ids < 103 + 8)).sum(axis=1)
    assert np.corrcoef(tally, split.unimodal_labels["T"])[0, 1] > 0.5


def test_no_video_is_in_two_splits(features):
    videos = {name: {i.split("$_$")[0] for i in split.ids} for name, split in features.splits.items()}
    assert sum(map(len, videos.values())) == len(set().union(*videos.values())) == 60 + 20 + 30
    assert len({i for split in features.splits.values() for i in split.ids}) == 1100


@pytest.mark.parametrize(
    ("layout", "steps", "widths"),
    [
        ("mosi", (50, 50, 50), (768, 5, 20)),
        ("mosi_unaligned", (50, 375, 500), (768, 5, 20)),
        ("mosei", (50, 50, 50), (768, 74, 35)),
        ("mosei_unaligned", (50, 500, 375), (768, 74, 35)),
        ("sims", (39, 400, 55), (768, 33, 709)),
    ],
)
def test_layouts_of_published_data(layout, steps, widths):
    data = make_synthetic(layout=layout, samples=(6, 3, 4))
    aligned = layout in ("mosi", "mosei")
    assert ("audio_lengths" in data["train"]) is not aligned
    limit = 1 if layout == "sims" else 3
    assert ("regression_labels_T" in data["train"]) is (layout == "sims")
    assert np.abs(data["train"]["regression_labels"]).max() <= limit
    features = features_from_dict(data, Path("x"), "")
    assert [len(features.splits[name]) for name in SPLITS] == [6, 3, 4]
    assert (features.seq_lens, features.feature_dims) == (steps, widths)
    lengths = features.splits["train"].lengths
    assert (lengths["audio"].tolist() == lengths["text"].tolist()) is aligned


def test_mmsa_reads_it(tmp_path):
    root = importlib.util.find_spec("MMSA").submodule_search_locations[0]  # its loader alone: no import of the package
    spec = importlib.util.spec_from_file_location("mmsa_loader_alone", Path(root, "data_loader.py"))
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    path = write_synthetic(tmp_path / "synthetic.pkl", samples=(4, 2, 3))
    args = {"dataset_name": "sims", "custom_feature": str(path), "feature_T": "", "feature_A": "", "feature_V": "",
            "feature_dims": [0, 0, 0], "need_data_aligned": False}
    for mode, rows in zip(SPLITS, (4, 2, 3), strict=True):
        dataset = loader.MMDataset(args, mode)
        ours = read_features(path).splits[mode]
        assert len(dataset) == rows
        assert args["feature_dims"] == [24, 12, 16]
        for i in range(rows):
            sample = dataset[i]
            for m in MODALITIES:
                np.testing.assert_array_equal(sample[m].numpy(), getattr(ours, m)[i])
            assert sample["id"] == ours.ids[i]
            assert sample["audio_lengths"] == ours.lengths["audio"][i]
            assert sorted(sample["labels"]) == ["A", "M", "T", "V"]
            assert sample["labels"]["M"].item() == ours.labels[i]
            assert sample["labels"]["V"].item() == ours.unimodal_labels["V"][i]


# Structure


def test_labels_follow_the_documented_equation(data):
    noise = []
    for name in SPLITS:
        rows = data[name]
        c, u = rows["latent_common"], {m: rows[f"latent_unique_{m}"] for m in MODALITIES}
        shared = 0.6 * c[:, 0] + 0.4 * c[:, 1]
        own = {"text": shared + 0.65 * u["text"][:, 0], "audio": shared + 0.5 * u["audio"][:, 0],
               "vision": shared + 0.5 * u["vision"][:, 0]}
        exact = sum(own.values()) - 2 * shared + 0.4 * c[:, 1] * (u["audio"][:, 1] + u["vision"][:, 1])
        np.testing.assert_allclose(rows["latent_label"], np.clip(exact, -3, 3), atol=1e-5)
        for m in MODALITIES:
            gap = np.abs(rows[f"regression_labels_{m[0].upper()}"] - np.clip(own[m], -3, 3))
            assert gap.max() <= 0.1 + 1e-5  # rounded to 0.2
        inside = np.abs(exact) < 2
        noise.append((rows["regression_labels"] - exact)[inside])
        np.testing.assert_allclose(rows["regression_labels"] * 5, np.rint(rows["regression_labels"] * 5), atol=1e-5)
        assert np.abs(rows["regression_labels"]).max() <= 3 + 1e-6
        assert (rows["classification_labels"] == np.sign(rows["regression_labels"]) + 1).all()
    noise = np.concatenate(noise)
    expected = np.sqrt(synthetic.NOISE**2 + 0.2**2 / 12)  # the noise and the rounding
    assert abs(noise.std() - expected) < 4 * expected / np.sqrt(2 * len(noise))
    assert abs(noise.mean()) < 4 * expected / np.sqrt(len(noise))


def test_factors_are_independent_and_standard(data):
    z = np.hstack([data["train"]["latent_common"], *(data["train"][f"latent_unique_{m}"] for m in MODALITIES)])
    assert z.shape == (600, 8)
    assert np.abs(z).max() <= np.sqrt(3) + 1e-6
    np.testing.assert_allclose(np.cov(z.T), np.eye(8), atol=0.2)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.17)


def test_averages_over_valid_steps_are_the_factors(monkeypatch):
    monkeypatch.setattr(synthetic, "STEP_NOISE", 0.0)
    rng = np.random.default_rng(0)
    z, lengths = rng.normal(size=(30, 4)), rng.integers(3, 11, 30)
    weights, offset = rng.normal(size=(4, 6)), rng.normal(size=6)
    x = synthetic._sequences(rng, z, lengths, 10, weights, offset)
    np.testing.assert_allclose(x.sum(axis=1) / lengths[:, None], z @ weights + offset, atol=1e-5)
    steps = np.abs(x[:, 0] - x[:, 1]).max(axis=1)
    assert steps.min() > 0.1  # the mixing varies in time


def test_documented_figures(data, features):
    """The table of the module docstring, row by row."""
    train, test = features.splits["train"], features.splits["test"]
    everything = linear(averages(train, MODALITIES), train.labels, averages(test, MODALITIES))
    padded = linear(averages(train, MODALITIES, True), train.labels, averages(test, MODALITIES, True))
    measured = {
        "ideal (latent_label)": tuple(ideal_metrics(data).values()),
        "linear, all three": scores(everything, test.labels),
        "linear, padding averaged in": scores(padded, test.labels),
    }
    for m in MODALITIES:
        alone = linear(averages(train, (m,)), train.labels, averages(test, (m,)))
        measured[f"linear, {m}"] = scores(alone, test.labels)
    for name, values in measured.items():
        row = re.search(re.escape(name) + r" +(\S+) +(\S+) +(\S+) +(\S+)", synthetic.__doc__)
        documented = [float(value) for value in row.groups()]
        np.testing.assert_allclose(values, documented, atol=0.004, err_msg=name)  # one sample is 0.0033
    accuracy = {name: values[2] for name, values in measured.items()}
    assert accuracy["ideal (latent_label)"] - accuracy["linear, all three"] > 0.05
    assert accuracy["linear, all three"] > accuracy["linear, padding averaged in"]
    assert accuracy["linear, all three"] - max(accuracy[f"linear, {m}"] for m in MODALITIES) > 0.05


def test_what_the_linear_model_misses_is_the_product(data, features):
    """With the true factors and their product, least squares reaches the ideal; without the product it does not."""
    train, test = data["train"], data["test"]

    def inputs(rows, product):
        factors = [rows["latent_common"], *(rows[f"latent_unique_{m}"] for m in MODALITIES)]
        gate = rows["latent_common"][:, 1] * (rows["latent_unique_audio"] + rows["latent_unique_vision"])[:, 1]
        return np.hstack([*factors, gate[:, None]] if product else factors).astype(np.float64)

    ideal = ideal_metrics(data)["MAE"]
    with_product, without = (
        scores(linear(inputs(train, p), train["regression_labels"], inputs(test, p)), test["regression_labels"])[0]
        for p in (True, False)
    )
    assert with_product < ideal + 0.04
    assert without > ideal + 0.15


def test_ideal_metrics_by_hand():
    rows = {"latent_label": np.array([0.5, -1.0, 0.1, -0.05]), "regression_labels": np.array([1.0, -1.0, -0.2, 0.0])}
    ideal = ideal_metrics({"test": rows})
    assert ideal["MAE"] == pytest.approx((0.5 + 0 + 0.3 + 0.05) / 4)
    assert ideal["Non0_acc_2"] == pytest.approx(2 / 3)  # the third is wrong, the fourth is not counted
    assert ideal["Has0_acc_2"] == pytest.approx(2 / 4)  # a label of 0 counts as positive
    assert ideal["Corr"] == pytest.approx(np.corrcoef(*rows.values())[0, 1])
    with pytest.raises(InputError, match="no 'latent_label'"):
        ideal_metrics({"test": {"text": 1}})


# Files


def test_same_seed_same_bytes(tmp_path):
    files = [write_synthetic(tmp_path / name, seed=seed, samples=(9, 3, 4)) for name, seed in
             (("a.pkl", 5), ("b.pkl", 5), ("c.pkl", 6))]
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert read_file(files[0])["generator"]["seed"] == 5


def test_splits_do_not_depend_on_each_others_size():
    few, many = make_synthetic(samples=(5, 3, 4)), make_synthetic(samples=(50, 3, 4))
    np.testing.assert_array_equal(few["test"]["audio"], many["test"]["audio"])
    assert not np.array_equal(few["valid"]["audio"], few["test"]["audio"][:3])


def test_made_in_under_two_seconds(tmp_path):
    start = time.process_time()
    write_synthetic(tmp_path / "synthetic.pkl")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "mosy"}, "did you mean 'mosi'"),
        ({"samples": (3, 0, 2)}, "at least 1"),
        ({"samples": (3, 2)}, "three counts"),
        ({"seed": -1}, "expected 0 or more"),
    ],
)
def test_wrong_options_write_nothing(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        write_synthetic(tmp_path / "new" / "x.pkl", **options)
    assert list(tmp_path.iterdir()) == []
    assert "mosi" in LAYOUTS


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_write_that_fails_leaves_nothing_half_done(tmp_path, monkeypatch, failure, existing):
    path = tmp_path / "x.pkl"
    if existing:
        write_synthetic(path, samples=(3, 2, 2))
        before = path.read_bytes()

    def half(thing, file, protocol):
        file.write(pickle.dumps(thing, protocol)[:1000])
        raise failure

    monkeypatch.setattr(synthetic.pickle, "dump", half)
    with pytest.raises(InputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_synthetic(path, samples=(4, 2, 2))
    if isinstance(failure, OSError):
        assert f"{path}: cannot be written (No space left on device)" in str(caught.value)
    assert os.listdir(tmp_path) == (["x.pkl"] if existing else [])
    if existing:
        assert path.read_bytes() == before


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be"):
        write_synthetic(tmp_path / "file" / "x.pkl", samples=(2, 2, 2))
    with pytest.raises(InputError, match="cannot be used"):
        write_synthetic(tmp_path, samples=(2, 2, 2))
    assert os.listdir(tmp_path) == ["file"]


def test_ensure_makes_it_once(tmp_path):
    path = ensure_synthetic(tmp_path)
    assert path == tmp_path / "SYNTHETIC" / "Processed" / "synthetic.pkl"
    assert os.listdir(path.parent) == ["synthetic.pkl"]
    assert read_features(path).feature_dims == (24, 12, 16)
    made = path.stat()
    assert ensure_synthetic(tmp_path) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (made.st_mtime_ns, made.st_ino)


def test_ensure_keeps_another_seed_and_replaces_another_version(tmp_path, monkeypatch):
    path = tmp_path / "SYNTHETIC" / "Processed" / "synthetic.pkl"
    mine = write_synthetic(path, seed=7, samples=(3, 2, 2)).read_bytes()
    assert ensure_synthetic(tmp_path).read_bytes() == mine
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    assert ensure_synthetic(tmp_path).read_bytes() != mine
    generator = read_file(path)["generator"]
    assert (generator["version"], generator["seed"]) == (synthetic.VERSION, synthetic.SEED)


@pytest.mark.parametrize("content", [b"", b"my notes", pickle.dumps({"train": 1})])
def test_a_file_of_somebody_else_is_never_overwritten(tmp_path, content):
    path = tmp_path / "SYNTHETIC" / "Processed" / "synthetic.pkl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for attempt in (lambda: ensure_synthetic(tmp_path), lambda: write_synthetic(path)):
        with pytest.raises(InputError, match="not made by this program"):
            attempt()
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["synthetic.pkl"]
