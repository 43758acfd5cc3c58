"""Inspecting: every number against one counted by hand or by another library, and the alarm for leaked labels."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.linear_model import LinearRegression

from mmsa_decalign.cli import main
from mmsa_decalign.data.leaks import GAP, ITSELF, probe, shared, video_of
from mmsa_decalign.data.overview import QUANTILES, inspect_file
from mmsa_decalign.data.plot import plot_overview
from mmsa_decalign.data.synthetic import make_synthetic, write_synthetic
from mmsa_decalign.errors import InputError

Layout = dict[str, dict[str, Any]]


def measured(tmp_path: Path, data: Any, **options: Any) -> dict[str, Any]:
    path = tmp_path / "features.pkl"
    path.write_bytes(pickle.dumps(data))
    document = inspect_file(path, **options)
    json.dumps(document, allow_nan=False)
    return document


def found(document: dict[str, Any], *words: str) -> bool:
    return any(all(word in finding for word in words) for finding in document["findings"])


# Measurements


def test_a_good_file_counted_by_hand(tmp_path: Path, layout: Layout) -> None:
    document = measured(tmp_path, layout)
    assert document["refusal"] is None
    assert document["published"] is None
    assert list(document["splits"]) == ["train", "valid", "test"]
    for name, rows in (("train", 5), ("valid", 3), ("test", 4)):
        raw, split = layout[name], document["splits"][name]
        assert (split["samples"], split["videos"], split["layout"]) == (rows, 1, "aligned")
        finite = {"dtype": "float32", "nan": 0, "inf": 0}
        assert split["keys"]["text"] == {"type": "ndarray", "shape": [rows, 4, 6], **finite}
        assert split["keys"]["id"] == {"type": "list of str", "shape": [rows]}
        for modality, source in (("text", "attention mask"), ("audio", "audio_lengths"), ("vision", "vision_lengths")):
            lengths, about = np.array(raw["audio_lengths"]), split["modalities"][modality]  # one for all in this file
            assert about["lengths_from"] == source
            assert about["lengths"] == [np.percentile(lengths, q) for q in QUANTILES]
            assert about["padding"] == pytest.approx(1 - lengths.sum() / (4 * rows), abs=1e-12)
            valid = raw[modality][raw[modality] != 0]
            assert (about["min"], about["max"]) == (valid.min(), valid.max())
            assert (about["constant_columns"], about["empty_samples"], about["leading_zeros"]) == ([], 0, 0)
        labels = raw["regression_labels"]
        assert split["labels"]["mean"] == pytest.approx(labels.mean(), rel=1e-6)
        assert split["labels"]["negative"] + split["labels"]["zero"] + split["labels"]["positive"] == rows
        assert sum(document["histogram"]["counts"][name]) == rows
    assert document["findings"] == []


def test_lengths_that_are_not_given_are_found(tmp_path: Path, layout: Layout) -> None:
    lengths = layout["train"].pop("audio_lengths")
    about = measured(tmp_path, layout)["splits"]["train"]["modalities"]["audio"]
    assert about["lengths_from"] == "last step that is not zero"
    assert about["lengths"] == [np.percentile(lengths, q) for q in QUANTILES]


def test_layouts_are_told_apart(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["audio"] = np.repeat(layout["train"]["audio"], 2, axis=1)
    for key in ("text", "audio", "vision"):
        layout["test"][key] = layout["test"][key][:, :1]
    splits = measured(tmp_path, layout)["splits"]
    assert [split["layout"] for split in splits.values()] == ["unaligned", "aligned", "utterance"]


def test_bad_values_are_counted_and_the_rest_is_measured(tmp_path: Path, layout: Layout) -> None:
    clean = layout["train"]["audio"].copy()
    layout["train"]["audio"][0, 0] = [np.nan, np.inf, -np.inf]
    layout["train"]["audio"][1, 0, 0] = np.nan
    document = measured(tmp_path, layout)
    about = document["splits"]["train"]["keys"]["audio"]
    assert (about["nan"], about["inf"]) == (2, 2)
    assert found(document, "train: audio holds 2 NaN and 2 Inf")
    assert "'train', key 'audio' holds NaN or Inf" in document["refusal"]
    assert found(document, "a training refuses this file")
    rest = clean[(clean != 0) & np.isfinite(layout["train"]["audio"])]
    about = document["splits"]["train"]["modalities"]["audio"]
    assert (about["min"], about["max"]) == (rest.min(), rest.max())


def test_minus_infinity_in_audio_is_counted_though_a_training_reads_it(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["audio"][0, 0, 0] = -np.inf
    document = measured(tmp_path, layout)
    assert document["refusal"] is None
    assert document["splits"]["train"]["keys"]["audio"]["inf"] == 1


def test_constant_columns_whatever_the_padding(tmp_path: Path, layout: Layout) -> None:
    audio = layout["train"]["audio"]
    audio[:, :, 1] = np.where(audio.any(axis=2), 7.5, 0)  # constant where there is data, zero in the padding
    audio[:, :, 2] = 0
    document = measured(tmp_path, layout)
    assert document["splits"]["train"]["modalities"]["audio"]["constant_columns"] == [1, 2]
    assert found(document, "train: audio has 2 of 3 columns constant")
    assert document["splits"]["valid"]["modalities"]["audio"]["constant_columns"] == []


def test_padding_in_front_is_noticed(tmp_path: Path, layout: Layout) -> None:
    for key in ("text_bert", "audio_lengths"):
        layout["train"].pop(key)
    layout["train"]["audio"] = layout["train"]["audio"][:, ::-1].copy()
    document = measured(tmp_path, layout)
    about = document["splits"]["train"]["modalities"]["audio"]
    front = (layout["train"]["audio"] == 0).all(axis=2).sum() / 20
    assert front > 0
    assert about["leading_zeros"] == pytest.approx(front)
    assert found(document, "train: audio is padded in front")


def test_empty_samples(tmp_path: Path, layout: Layout) -> None:
    layout["test"]["vision"][[1, 3]] = 0
    document = measured(tmp_path, layout)
    assert document["splits"]["test"]["modalities"]["vision"]["empty_samples"] == 2
    assert found(document, "test: vision is all zeros in 2 of 4 samples")


def test_what_splits_share(tmp_path: Path, layout: Layout) -> None:
    train, valid, test = (layout[name] for name in ("train", "valid", "test"))
    valid["id"][:] = ["v$_$0", "v$_$1", "train$_$9"]  # another clip of a training video
    test["id"][0] = "v$_$1"
    for key in ("text", "audio", "vision"):
        test[key][2] = train[key][4]
    for split in layout.values():
        split["raw_text"] = [f"{split['id'][i]} says {i}" for i in range(len(split["id"]))]
    document = measured(tmp_path, layout)
    assert document["shared"]["ids"] == {"valid/test": 1}
    assert document["shared"]["videos"] == {"train/valid": 1, "valid/test": 1}
    assert document["shared"]["features"] == {"train/test": 1}
    assert found(document, "train/valid share 1 video")
    assert found(document, "train/test share 1 sample", "same features")


def test_what_is_repeated_within_a_split(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["id"][3] = layout["train"]["id"][1]
    for key in ("text", "audio", "vision"):
        layout["train"][key][2] = layout["train"][key][0]
    document = measured(tmp_path, layout)
    assert document["splits"]["train"]["repeated"] == {"ids": 1, "raw_text": 0, "features": 1}
    assert found(document, "train: 1 samples repeat the ids")


@pytest.mark.parametrize(("sample", "video"), [
    ("abc$_$12", "abc"), ("a_b$_$-3", "a_b"), ("03bSnISJMiM[4]", "03bSnISJMiM"),
    ("Ses01F_impro01_F003", "Ses01F_impro01"), ("Ses05M_script03_2_M041", "Ses05M_script03_2"),
    ("17", None), ("", None),
])  # fmt: skip
def test_the_video_of_an_id(sample: str, video: str | None) -> None:
    assert video_of(sample) == video


def test_unknown_videos_are_said_to_be_unknown(tmp_path: Path, layout: Layout) -> None:
    layout["valid"]["id"] = ["1", "2", "3"]
    document = measured(tmp_path, layout)
    assert document["splits"]["valid"]["videos"] is None
    assert found(document, "valid: the ids do not tell the videos")
    assert shared({"a": ["x", None], "b": [None, "y"]}) == {}


def test_histograms(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["regression_labels"] = np.array([-1, -1, 0, 2, np.nan])
    layout["valid"]["regression_labels"] = np.array([0, 2, 2.0])
    layout["test"]["regression_labels"] = np.array([-1, 0, 0, 0.0])
    histogram = measured(tmp_path, layout)["histogram"]
    assert histogram["classes"] == [-1, 0, 2]
    assert histogram["counts"] == {"train": [2, 1, 1], "valid": [0, 1, 2], "test": [1, 3, 0]}
    layout["train"]["regression_labels"] = np.linspace(-3, 3, 6)
    layout["valid"]["regression_labels"] = np.linspace(-1, 1, 301)[[0, 150, 300]] * 0.99
    layout["test"]["regression_labels"] = np.array([0.1, 0.2, 0.3, 2.9])
    histogram = measured(tmp_path, layout)["histogram"]
    assert histogram["edges"] == pytest.approx(np.linspace(-3, 3, 13))  # 12 values or more: bins
    for name, split in layout.items():
        expected = [((a <= split["regression_labels"]) & (split["regression_labels"] < b)).sum()
                    for a, b in zip(histogram["edges"], [*histogram["edges"][1:-1], 4], strict=False)]
        assert histogram["counts"][name] == expected


def test_classes_in_words(tmp_path: Path, layout: Layout) -> None:
    words = {"train": "joy joy rage joy rage", "valid": "joy rage rage", "test": "calm joy joy joy"}
    for name, split in layout.items():
        del split["regression_labels"]
        split["labels"] = words[name].split()
    document = measured(tmp_path, layout)
    assert document["histogram"]["classes"] == ["calm", "joy", "rage"]
    assert document["histogram"]["counts"]["train"] == [0, 3, 2]
    assert "no key 'regression_labels'" in document["refusal"]


# Files that are not as they should be


@pytest.mark.parametrize("data", [
    [1, 2], "text", None, {}, {"train": [1, 2]}, {"train": {}}, {"train": {"audio": 3, "id": 5}}, {3: {"id": ["a"]}},
    {"train": {"text": [[1, 2], [3]], "audio": np.zeros((0, 4, 2)), "vision": np.zeros((3, 0, 2)), "id": []}},
    {"train": {"text": np.zeros((2, 3)), "audio": np.array(["a", "b"]), "vision": {"a": 1}, "regression_labels": []}},
    {"train": {"text": np.zeros(5), "audio": [None, None], "regression_labels": np.array([np.nan, np.inf])}},
    {"train": {"text": np.zeros((2, 3, 4)), "text_bert": np.zeros((5, 3, 3)), "id": ["a$_$1"], "audio_lengths": "x"},
     "valid": {"text": np.zeros((2, 3, 4), dtype=complex), "id": np.array([1, 2]), "raw_text": (1, 2)}},
])  # fmt: skip
def test_odd_files_are_measured_as_far_as_they_go(
    tmp_path: Path, data: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    document = measured(tmp_path, data)
    assert document["refusal"] is not None
    assert document["findings"][0].startswith("a training refuses this file")
    assert main(["data", "inspect", str(tmp_path / "features.pkl"), "--plot", str(tmp_path / "odd.png")]) == 0
    assert "a training refuses this file" in capsys.readouterr().out


def test_a_split_of_another_name_and_notes_beside(tmp_path: Path, layout: Layout) -> None:
    layout["dev"] = layout.pop("valid")
    document = measured(tmp_path, {**layout, "notes": {"author": "me"}, "version": 3})
    assert list(document["splits"]) == ["train", "test", "dev"]
    assert "no split 'valid'" in document["refusal"]


def test_a_file_that_runs_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps({"train": Bomb()}))
    assert main(["data", "inspect", str(path)]) == 2
    assert "the pickle asks for" in capsys.readouterr().err
    assert not (tmp_path / "exploded").exists()


def test_nothing_is_changed_in_the_file(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["audio"][0, 0, 0] = -np.inf
    before = pickle.dumps(layout)
    measured(tmp_path, layout)
    assert (tmp_path / "features.pkl").read_bytes() == before


# The alarm for leaked labels


def drawn(n: int, width: int, seed: int, signal: float = 0.5) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Honest features: column 0 follows the label with correlation `signal`."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    x = rng.normal(size=(n, width))
    x[:, 0] = signal * y + np.sqrt(1 - signal**2) * x[:, 0]
    return x, y, [f"{seed}-{i // 10}" for i in range(n)]


def test_scores_are_those_of_a_linear_model() -> None:
    x, y, videos = drawn(4000, 3, 1)
    xv, yv, valid_videos = drawn(2000, 3, 2)
    result = probe(x, y, videos, xv, yv, valid_videos)
    expected = pearsonr(LinearRegression().fit(x, y).predict(xv), yv).statistic
    assert result["valid"] == pytest.approx(expected, abs=2e-3)
    assert result["by_sample"] == pytest.approx(0.5, abs=0.05)
    assert result["by_video"] == pytest.approx(result["by_sample"], abs=0.01)
    assert result["gap"] == pytest.approx(min(result["by_sample"], result["by_video"]) - result["valid"])
    # a correlation r of n independent pairs has the standard error (1 - r^2) / sqrt(n)
    assert result["spread"] == pytest.approx(0.75 * np.sqrt(1 / 4000 + 1 / 2000), rel=0.3)
    assert result["alarm"] is None


def test_features_trained_with_the_training_labels_raise_the_alarm() -> None:
    x, y, videos = drawn(400, 20, 3)
    xv, yv, valid_videos = drawn(120, 20, 4)
    assert probe(x, y, videos, xv, yv, valid_videos)["alarm"] is None
    direction = np.random.default_rng(5).normal(size=20)
    result = probe(x + y[:, None] * direction, y, videos, xv, yv, valid_videos)
    assert result["alarm"] == "train"
    assert result["gap"] > GAP
    assert probe(x + y[:, None] * direction, y, None, xv, yv, None)["alarm"] == "train"


def test_speakers_that_are_recognised_are_no_leak() -> None:
    """The feature is the speaker's, and so is the mood: by sample superb, by video and on validation nothing."""
    rng = np.random.default_rng(6)
    videos = [f"v{i // 20}" for i in range(400)]
    code, mood = rng.normal(size=(20, 30)), rng.normal(size=20)
    x = code.repeat(20, axis=0) + 0.1 * rng.normal(size=(400, 30))
    y = mood.repeat(20) + 0.3 * rng.normal(size=400)
    xv, yv, valid_videos = rng.normal(size=(100, 30)), rng.normal(size=100), [f"w{i // 20}" for i in range(100)]
    result = probe(x, y, videos, xv, yv, valid_videos)
    assert result["by_sample"] > 0.8
    assert result["by_video"] < 0.4
    assert result["alarm"] is None


def test_the_label_among_the_features_raises_the_alarm() -> None:
    x, y, videos = drawn(300, 5, 7)
    xv, yv, valid_videos = drawn(100, 5, 8)
    x[:, 3], xv[:, 3] = y, yv
    result = probe(x, y, videos, xv, yv, valid_videos)
    assert result["alarm"] == "label"
    assert result["valid"] > ITSELF


def test_too_little_to_tell() -> None:
    x, y, videos = drawn(9, 2, 9)
    assert set(probe(x, y, videos, x, y, videos).values()) == {None}
    videos = [f"v{i // 10}" for i in range(50)]
    constant = probe(np.ones((50, 2)), np.arange(50.0), videos, np.ones((20, 2)), np.arange(20.0), None)
    assert [constant[key] for key in ("by_sample", "by_video", "valid")] == pytest.approx([0, 0, 0], abs=1e-9)
    assert constant["alarm"] is None


def test_a_planted_leak_is_found_in_a_file(tmp_path: Path) -> None:
    data = make_synthetic(seed=2, samples=(200, 80, 20))
    assert [one["alarm"] for one in measured(tmp_path, data)["probe"].values()] == [None] * 3
    labels = data["train"]["regression_labels"]
    vision = data["train"]["vision"]
    direction = np.random.default_rng(0).normal(size=vision.shape[2])
    vision += ((vision != 0) * 3 * labels[:, None, None] * direction).astype(np.float32)
    document = measured(tmp_path, data)
    assert {m: one["alarm"] for m, one in document["probe"].items()} == {"text": None, "audio": None, "vision": "train"}
    assert found(document, "label leak? vision")
    assert measured(tmp_path, data, probing=False)["probe"] == {}


def test_the_probe_looks_at_no_padding(tmp_path: Path) -> None:
    data = make_synthetic(seed=4, samples=(60, 30, 10))
    clean = measured(tmp_path, data)["probe"]["audio"]
    for name in ("train", "valid"):
        split = data[name]
        padding = np.arange(split["audio"].shape[1]) >= np.asarray(split["audio_lengths"])[:, None]
        assert padding.any()
        split["audio"][padding] = 7
    padded = measured(tmp_path, data)["probe"]["audio"]
    for key in ("by_sample", "by_video", "valid", "spread"):
        assert padded[key] == pytest.approx(clean[key], rel=1e-6)


def test_a_leak_of_one_class_is_found(tmp_path: Path) -> None:
    data = make_synthetic(seed=3, samples=(200, 80, 20))
    for split in data.values():
        if "regression_labels" in split:
            labels = split.pop("regression_labels")
            split["classification_labels"] = np.digitize(labels, [-1, 0, 1])
    data["train"]["audio"][data["train"]["classification_labels"] == 2, :, 5] += 30
    result = measured(tmp_path, data)["probe"]
    assert (result["audio"]["alarm"], result["audio"]["class"]) == ("train", 2)
    assert result["vision"]["alarm"] is None


@pytest.mark.real_data
@pytest.mark.parametrize("fold", [0, 1])
def test_the_real_folds_raise_no_alarm(real_fold: Any, fold: int) -> None:
    document = inspect_file(real_fold(fold))
    assert document["refusal"] is None
    assert {m: one["alarm"] for m, one in document["probe"].items()} == {"text": None, "audio": None, "vision": None}
    assert document["probe"]["text"]["by_video"] > 0.5
    assert document["shared"] == {"ids": {}, "videos": {}, "raw_text": {}, "features": {}}
    assert [split["videos"] for split in document["splits"].values()] == [[20, 4, 7], [21, 4, 6]][fold]


@pytest.mark.real_data
def test_a_leak_planted_in_a_real_fold_raises_the_alarm(real_fold: Any, tmp_path: Path) -> None:
    data = pickle.loads(real_fold(0).read_bytes())
    text, labels = data["train"]["text"], data["train"]["regression_labels"]
    direction = np.random.default_rng(0).normal(size=text.shape[2])
    text += (text.std() * labels[:, None, None] * direction).astype(np.float32)
    result = measured(tmp_path, data)["probe"]
    assert {m: one["alarm"] for m, one in result.items()} == {"text": "train", "audio": None, "vision": None}


# Command and picture


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("inspect") / "tiny.pkl", samples=(60, 20, 30))


def test_the_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(file)]) == 0
    out = capsys.readouterr().out
    for words in ("train  unaligned", "60x12x24", "regression_labels", "linear probe", "nothing wrong was found"):
        assert words in out
    assert main(["data", "inspect", str(file), "--json", "--no-probe"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["probe"] == {}
    assert document["splits"]["valid"]["samples"] == 20
    assert main(["data", "inspect", str(file) + "x"]) == 2


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_picture(file: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "folder" / f"picture{suffix}"
    assert plot_overview(inspect_file(file), out) == out
    assert out.stat().st_size > 5000
    assert out.read_bytes().startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])


def test_names_in_a_file_are_shown_as_they_are(
    tmp_path: Path, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    """rich takes what stands in brackets for a style: an opening one vanishes, a closing one ends the command."""
    for name, split in layout.items():
        del split["regression_labels"]
        split["labels"] = (["[hap]", "[/sad]"] * 3)[:len(split["id"])]
        split["id"] = [f"{name}$_${number}" for number in range(len(split["id"]))]
    layout["[bold]more[/red]"] = dict(layout["test"])
    (tmp_path / "features.pkl").write_bytes(pickle.dumps(layout))
    assert main(["data", "inspect", str(tmp_path / "features.pkl"), "--no-probe"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["labels", "train", "valid", "test", "[bold]more[/red]"] in shown
    assert ["[hap]", "3", "2", "2", "2"] in shown
    assert ["[/sad]", "2", "1", "2", "2"] in shown
    assert ["[bold]more[/red]", "aligned", "4"] in [line[:3] for line in shown]


def test_a_picture_that_cannot_be_written_is_an_input_error(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for out in (tmp_path / "taken" / "picture.png", tmp_path):
        out = out if out.suffix else out / "folder.png"
        (tmp_path / "folder.png").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="cannot be written") as caught:
            plot_overview(inspect_file(file, probing=False), out)
        assert f"--plot {out}" in str(caught.value)


def test_the_picture_shows_text_with_dollars_as_it_is(tmp_path: Path, layout: Layout) -> None:
    layout["train"]["audio"][0, 0, 0] = np.nan  # the finding names the id, which has two dollar signs
    layout["te$x_t$"] = layout["test"]
    document = measured(tmp_path, layout)
    assert found(document, "$_$")
    assert plot_overview(document, tmp_path / "picture.png").exists()


def test_a_picture_needs_a_known_suffix_and_matplotlib(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", str(file), "--plot", str(tmp_path / "picture.docx")]) == 2
    assert "expected a name that ends with .png" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install mmsa-decalign\[plot\]"):
        plot_overview({}, tmp_path / "picture.png")
    assert main(["data", "inspect", str(file), "--no-probe"]) == 0, "the table needs no matplotlib"
