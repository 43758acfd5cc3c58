"""``mmsa predict`` on the command line: formats, where output goes, and one line for each mistake."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.cli import main
from mmsa_decalign.data.convert import convert
from mmsa_decalign.data.reading import read_features
from mmsa_decalign.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("cli") / "tiny.pkl", samples=(33, 12, 17))


@pytest.fixture(scope="module")
def checkpoint(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    settings = [part for setting in ("d_model=8", "num_heads=2", "nlevels=1", "num_epochs=1", "num_prototypes=2")
                for part in ("--set", setting)]
    folders = [part for name in ("model-save", "res-save", "log") for part in (f"--{name}-dir", str(folder / name))]
    assert main(["-m", "decalign", "-d", "synthetic", "--feature-file", str(features), "--device", "cpu", "-s", "7",
                 "-v", "0", *settings, *folders]) == 0
    return next((folder / "model-save").iterdir())


@pytest.fixture
def predict(checkpoint: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        assert main(["predict", str(checkpoint), str(features), "--device", "cpu", *arguments]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_csv_on_standard_output(predict: Any, features: Path) -> None:
    out, err = predict("--split", "test")
    rows = list(csv.DictReader(io.StringIO(out)))
    split = read_features(features).splits["test"]
    assert [list(row) for row in rows] == [["split", "id", "prediction", "label"]] * 17
    assert [row["id"] for row in rows] == split.ids
    assert [np.float32(row["label"]) for row in rows] == list(split.labels)
    assert "decalign of synthetic, seed 7: 17 predictions" in err
    assert "test (17): " in err


def test_json_has_the_same_numbers_in_full(predict: Any, tmp_path: Path) -> None:
    out, err = predict("--split", "test", "--split", "valid", "--json")
    document = json.loads(out)
    assert err == ""
    assert document["samples"] == {"test": 17, "valid": 12}
    assert document["checkpoint"]["model"] == "decalign"
    assert set(document["metrics"]) == {"test", "valid"}
    assert predict("--split", "test", "--split", "valid", "--format", "json")[0] == out
    table = tmp_path / "table.csv"
    assert "29 predictions, written to" in predict("--split", "test", "--split", "valid", "--out", str(table))[1]
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [float(row["prediction"]) for row in rows] == [one["prediction"] for one in document["predictions"]]
    for one in document["predictions"]:
        assert float(np.float32(one["prediction"])) == one["prediction"], "every digit of a float32"


def test_a_file_is_written_by_its_ending(predict: Any, tmp_path: Path) -> None:
    out, _ = predict("--split", "test", "--out", str(tmp_path / "a.json"))
    assert out == ""
    assert len(json.loads((tmp_path / "a.json").read_text())["predictions"]) == 17
    out, err = predict("--split", "test", "--out", str(tmp_path / "a.txt"), "--format", "csv", "--json")
    assert (json.loads(out)["out"], err) == (str(tmp_path / "a.txt"), "")
    assert (tmp_path / "a.txt").read_text().startswith("split,id,prediction,label\n")


def test_one_sample(predict: Any, features: Path) -> None:
    sample = read_features(features).splits["valid"].ids[3]
    document = json.loads(predict("--sample", sample, "--json")[0])
    assert [(row["split"], row["id"]) for row in document["predictions"]] == [("valid", sample)]
    assert document["metrics"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "--split tset: the file has no such split; did you mean 'test'?"),
        (["--sample", "x"], "--sample x: not among the samples of train, valid, test; ids there look like"),
        (["--out", "x.xls"], "expected a name that ends in .csv or .json"),
        (["--out", "absent/x.csv"], "in a folder that exists"),
        (["--out", "/proc/x.csv"], "--out /proc/x.csv: "),
        (["--pretrained", "."], "--pretrained .: the checkpoint, of 'decalign', has no text encoder"),
        (["--format", "xml"], "--format: unknown 'xml'; valid: csv, json"),
        (["--json", "--format", "csv"], "leave one out"),
        (["--batch-size", "0"], "'0': expected a whole number from 1"),
        (["--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["--record", "absent.json"], "record absent.json: expected the JSON file"),
        (["--fromat", "csv"], "did you mean '--format'?"),
        (["-Fa", "absent.pkl"], "absent.pkl: no such feature file"),
    ],
)
def test_mistakes(arguments: list[str], message: str, predict: Any) -> None:
    out, err = predict(*arguments, code=2)
    assert out == ""
    assert message in err
    assert len(err.splitlines()) <= 2


def test_files_that_are_none(
    checkpoint: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = features.read_bytes()
    mapped, other, empty = (tmp_path / name for name in ("mapped.safetensors", "other.pkl", "empty.pth"))
    convert(features, mapped)
    other.write_bytes(pickle.dumps({"a": np.ones(3)}, protocol=4))
    empty.touch()
    for arguments, message in (
        ([str(features), str(features)], f"checkpoint {features}: is a feature file"),
        ([str(mapped), str(features)], f"checkpoint {mapped}: is a feature file"),
        ([str(other), str(features)], f"checkpoint {other}: is damaged, or holds more than tensors"),
        ([str(empty), str(features)], f"checkpoint {empty}: is empty"),
        ([str(tmp_path), str(features)], f"checkpoint {tmp_path}: is a folder"),
        ([str(checkpoint), str(tmp_path)], f"{tmp_path}: is a folder"),
        ([str(checkpoint), str(checkpoint)], "is a zip archive (or a torch checkpoint)"),
        ([str(checkpoint.parent / "absent.pth"), str(features)], "no such file"),
        ([str(checkpoint)], "required: FEATURES"),
        ([str(checkpoint), str(features), "--format", "csv", "--out", str(features)], "are made from; name another"),
    ):
        assert main(["predict", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) <= 2
    assert features.read_bytes() == before


def test_a_sample_of_another_split_and_a_slip_in_an_id(predict: Any, features: Path) -> None:
    sample = read_features(features).splits["test"].ids[3]
    assert f"--sample {sample}: is in split test, not in train, valid" in predict(
        "--sample", sample, "--split", "train", "--split", "valid", code=2)[1]
    slip = sample + "x"
    (line,) = predict("--sample", slip, code=2)[1].splitlines()
    assert f"--sample {slip}: not among the samples of train, valid, test; did you mean {sample!r}?" in line
    (line,) = predict("--sample", slip, "--split", "train", code=2)[1].splitlines()
    assert line.count("$_$") <= 2
    assert len(line) < 200


def test_a_checkpoint_that_test_chose_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    six = write_synthetic(tmp_path / "six.pkl", layout="iemocap", samples=(24, 12, 12))
    folders = [part for name in ("model-save", "res-save", "log") for part in (f"--{name}-dir", str(tmp_path / name))]
    for protocol, trained, by in (("paper_count", ["train", "valid"], "test"), ("session_valid", ["train"], "valid")):
        assert main(["-m", "lf_dnn", "-d", "iemocap", "--feature-file", str(six), "--device", "cpu", "-s", "7",
                     "-v", "0", "--protocol", protocol, "--set", "max_epochs=1", *folders]) == 0
        (checkpoint,) = (tmp_path / "model-save").iterdir()
        capsys.readouterr()
        for options in ([], ["--json"]):
            assert main(["predict", str(checkpoint), str(six), "--device", "cpu", *options]) == 0
            warning = f"checkpoint {checkpoint}: SELECTED ON TEST (protocol paper_count): it was trained on train and"
            assert (warning in caplog.text) == (by == "test")
            caplog.clear()
            shown = capsys.readouterr()
        about = json.loads(shown.out)["checkpoint"]
        assert (about["trained_on"], about["selected_on"]) == (trained, by)
        checkpoint.unlink()
