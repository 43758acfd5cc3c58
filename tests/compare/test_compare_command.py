"""``mmsa compare`` and ``mmsa rerun`` from the command line to the files, with real models on a tiny file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_decalign.cli import main
from mmsa_decalign.compare import grid, rerun
from mmsa_decalign.compare.store import Store
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import Interrupted

SMALL = ["--set", "decalign:d_model=8", "--set", "decalign:num_heads=2", "--set", "decalign:nlevels=1", "--set",
         "decalign:num_prototypes=2", "--set", "decalign:num_epochs=2", "--set", "lmf:max_epochs=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compare")
    write_synthetic(made / "tiny.pkl", samples=(33, 12, 17))
    return made


def call(folder: Path, *more: str, models: tuple[str, ...] = ("decalign", "lmf")) -> int:
    named = [part for model in models for part in ("-m", model)]
    return main(["compare", *named, "-d", f"synthetic={folder / 'tiny.pkl'}", "-s", "1", "--store",
                 str(folder / "store.sqlite"), "--device", "cpu", "-j", "2", *SMALL, *more])


@pytest.mark.slow
def test_a_comparison_its_second_call_and_a_rerun(
        folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert call(folder, "--no-sanity", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["runs"], plan["to_run"], plan["runs_of_unknown_time"]) == (2, 2, 2)
    assert not (folder / "store.sqlite").exists()

    assert call(folder, "--no-sanity", "--json") == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert "decalign on synthetic, seed 1: started" in shown.err
    assert "decalign on synthetic, seed 1: done" in shown.err
    (part,) = document["data"]
    assert [row["label"] for row in part["rows"]] == ["decalign", "lmf"]
    assert part["notes"] == []
    for row in part["rows"]:
        for name in part["metrics"]:  # an interval is there only where MMSA's figure came out of the predictions
            assert row["metrics"][name]["low"] is not None, (row["label"], name)
    assert set(part["rows"][1]["against"]) == set(part["metrics"])
    assert (folder / "store" / "compare.md").is_file()

    store = Store(folder / "store.sqlite")
    for key, seconds in store.database.execute("SELECT cell, seconds FROM runs").fetchall():
        record, samples = store.record(key), store.samples(key, "valid")
        assert record is not None
        assert samples is not None
        chosen = next(epoch for epoch in record["epochs"] if epoch["epoch"] == record["selection"]["epoch"])
        error = abs(samples.predictions[:, 0] - samples.labels).mean()
        assert chosen["valid"]["MAE"] == pytest.approx(error, abs=1e-4), "what the chosen checkpoint predicts"
        assert store.checkpoint(key) is not None
        assert seconds > 0
    attempts = store.database.execute("SELECT sum(attempts) FROM cells").fetchone()

    assert call(folder, "--no-sanity") == 0
    assert "started" not in capsys.readouterr().err
    assert store.database.execute("SELECT sum(attempts) FROM cells").fetchone() == attempts, "nothing is done twice"
    assert call(folder, "--no-sanity", "--dry-run", "--again", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["to_run"], plan["runs_of_unknown_time"]) == (2, 0)
    assert plan["seconds_known"] > 0

    run = part["rows"][1]["runs"][0]
    options = ["--store", str(folder / "store.sqlite"), "--device", "cpu"]
    assert main(["rerun", run, *options, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["came_back"] is True
    assert result["largest_difference"] == 0
    path = Path(document["data"][0]["feature_files"][0])
    moved = shutil.move(path, folder / "moved.pkl")
    assert main(["rerun", run, *options]) == 2
    assert "--feature-file" in capsys.readouterr().err
    write_synthetic(path, samples=(33, 12, 17), seed=3)
    assert main(["rerun", run, *options]) == 2
    assert "is not the file that it read" in capsys.readouterr().err
    shutil.move(moved, path)
    store.close()


@pytest.mark.slow
def test_a_rerun_of_a_training_from_its_record(
        folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    results = tmp_path / "results"
    assert main(["-m", "lmf", "-d", "synthetic", "--feature-file", str(folder / "tiny.pkl"), "-s", "1", "--set",
                 "max_epochs=2", "--device", "cpu", "-v", "0", "--res-save-dir", str(results)]) == 0
    (path,) = (results / "runs").iterdir()
    record, threads = json.loads(path.read_text()), torch.get_num_threads()
    capsys.readouterr()
    torch.set_num_threads(threads + 1)
    try:
        for wanted in (str(path), record["id"], record["id"][:6]):
            assert main(["rerun", wanted, "--res-save-dir", str(results), "--device", "cpu", "--json"]) == 0
            result = json.loads(capsys.readouterr().out)
            assert result["came_back"] is True
            assert "threads" not in result["changed"], "as many as the run had"
            assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    for lacking in ("model_source", "mended", "git_commit"):
        path.write_text(json.dumps({key: value for key, value in record.items() if key != lacking}))
        assert main(["rerun", str(path)]) == 2
        assert f"has no '{lacking}'" in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "words"), [
    (["compare", "-d", "synthetic"], "nothing to compare"),
    (["compare", "-m", "lmff"], "did you mean 'lmf'"),
    (["compare", "-m", "x=lmff"], "did you mean 'lmf'"),
    (["compare", "-m", "lmf", "-d", "mosy"], "did you mean 'mosi'"),
    (["compare", "-m", "lmf", "--set", "lmf:batch_size"], "key=value"),
    (["compare", "-m", "lmf", "-j", "0"], "whole number from 1"),
    (["compare", "-m", "lmf", "--refrence", "lmf"], "--reference"),
    (["rerun", "nothere"], "no run has this id"),
])
def test_mistakes_are_answered_in_a_line(argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(argv) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "MMSA" / "results").exists()


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(number=15), 143)])
def test_an_end_by_a_signal_says_what_is_finished(
        stop: BaseException, code: int, folder: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*cells: Any, **options: Any) -> None:
        raise stop

    monkeypatch.setattr(grid, "run", stopped)
    assert call(folder, "--no-sanity", "-s", "8") == code
    assert "of 4 runs are finished, in" in capsys.readouterr().err


def test_a_rerun_says_what_came_back() -> None:
    def record(mae: float | None, **more: Any) -> dict[str, Any]:
        return {"id": "x", "model": "m", "dataset": "d", "seed": 1, "test": {"MAE": mae}, "git_commit": "a",
                "device": {"type": "cpu", "name": "c", "threads": 1}, "versions": {"torch": "2"},
                "selection": {"epoch": 3}, **more}

    same = rerun.comparison(record(0.5), record(0.5))
    assert "exactly" in rerun.verdict(same)
    apart = rerun.comparison(record(0.5), record(0.5003, git_commit="b"))
    assert (apart["came_back"], apart["changed"]) == (False, {"code": ["a", "b"]})
    assert "within 0.0003" in rerun.verdict(apart)
    assert "did not come back" in rerun.verdict(rerun.comparison(record(0.5), record(None)))


def test_a_path_that_is_no_record_is_told_so(
        folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    features = str(folder / "tiny.pkl")
    for wanted, words in ((features, "is no record of a run"), (str(folder), "is a folder"), (".", "is a folder"),
                          ("nope.json", "no such file"), (str(folder / "nope"), "no such file")):
        assert main(["rerun", wanted]) == 2
        said = capsys.readouterr().err
        assert f"{wanted}: {words}; expected a run's id" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("option", "hint"), [
    ("--model-save-dir", None), ("--res-sav-dir", "--res-save-dir"), ("--feature-fiel", "--feature-file"),
    ("--featurefile", "--feature-file")])
def test_a_hint_is_a_slip_of_the_option_and_no_other_one(
        option: str, hint: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "x", option, "y"]) == 2
    said = capsys.readouterr().err
    assert (f"did you mean {hint!r}?" if hint else "--help lists all") in said
    assert hint is not None or "did you mean" not in said
