"""``mmsa predict`` on the command line: formats, where output goes, and one line for each mistake."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.cli import main
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
        (["--sample", "x"], "--sample x: not among the samples of train, valid, test"),
        (["--out", "x.xls"], "expected a name that ends in .csv or .json"),
        (["--out", "absent/x.csv"], "in a folder that exists"),
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


def test_files_that_are_none(checkpoint: Path, features: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = features.read_bytes()
    for arguments, message in (
        ([str(features), str(features)], f"checkpoint {features}: is damaged, or holds more than tensors"),
        ([str(checkpoint), str(checkpoint)], "is a zip archive (or a torch checkpoint)"),
        ([str(checkpoint.parent / "absent.pth"), str(features)], "no such file"),
        ([str(checkpoint)], "required: FEATURES"),
        ([str(checkpoint), str(features), "--format", "csv", "--out", str(features)], "are made from; name another"),
    ):
        assert main(["predict", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert features.read_bytes() == before
