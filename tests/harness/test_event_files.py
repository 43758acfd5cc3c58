"""TensorBoard's event files: what they hold is what the record holds, epoch by epoch, while the training goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.cli import main
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.event_files import EventFiles
from mmsa_decalign.harness.runner import prepare, run

SMALL = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 3}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Everything in a folder of event files, read with TensorBoard's own reader."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                 reason="the package tensorboard is absent")
    accumulator = reader.EventAccumulator(str(folder))
    accumulator.Reload()
    return {name: {event.step: event.value for event in accumulator.Scalars(name)}
            for name in accumulator.Tags()["scalars"]}


@pytest.fixture
def tensorboard() -> None:
    pytest.importorskip("tensorboard", reason="the package tensorboard is absent")


@pytest.mark.parametrize(("model", "settings"), [("decalign", SMALL), ("lmf", {"max_epochs": 3})])
def test_the_files_hold_every_figure_of_the_record(
    model: str, settings: dict[str, Any], tiny: Path, folders: dict[str, Path], tmp_path: Path, tensorboard: None
) -> None:
    outcome = run(prepare(model, "synthetic", feature_file=tiny, seeds=[7, 8], device="cpu", verbose=0,
                          overrides=settings, tensorboard=tmp_path / "events", **folders))
    runs = sorted((tmp_path / "events").iterdir())
    assert [path.name for path in runs] == [Path(record["checkpoint"]).stem for record in outcome.records]
    for path, record in zip(runs, outcome.records, strict=True):
        expected: dict[str, dict[int, float]] = {}
        for entry in record["epochs"]:
            for group in ("train", "valid"):
                for name, value in entry[group].items():
                    if value is not None:
                        expected.setdefault(f"{group}/{name}", {})[entry["epoch"]] = value
            for name in ("learning_rate", "seconds"):
                if name in entry:
                    expected.setdefault(name, {})[entry["epoch"]] = entry[name]
        found = scalars(path)
        assert found.keys() == expected.keys()
        assert len(found["valid/Loss"]) == len(record["epochs"]) == 3
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-6), name
    assert "train/loss" in found
    if model == "decalign":
        assert {"train/task", "train/decoupling", "train/hetero", "train/homo"} <= set(found)


def test_epochs_are_there_while_the_training_goes_on(
    tiny: Path, folders: dict[str, Path], tmp_path: Path, tensorboard: None, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness_toy

    seen: list[int] = []
    original = harness_toy.Toy.forward

    def forward(self: Any, *args: Any) -> Any:
        files = list((tmp_path / "events").glob("*"))
        seen.append(len(scalars(files[0]).get("valid/Loss", {})) if files else 0)
        return original(self, *args)

    monkeypatch.setattr(harness_toy.Toy, "forward", forward)
    run(prepare("toy", "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0,
                overrides={"epochs": 3}, tensorboard=tmp_path / "events", **folders))
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert seen == sorted(seen)


def test_each_epoch_is_written_once_and_what_is_no_number_is_left_out(tmp_path: Path, tensorboard: None) -> None:
    events = EventFiles(tmp_path)
    epochs: list[dict[str, Any]] = [{"epoch": 1, "train": {"loss": 1.0}, "valid": {"Corr": None}, "selected": True}]
    events.catch_up(epochs)
    events.catch_up(epochs)
    events.catch_up([*epochs, {"epoch": 2, "train": {}, "valid": {"Corr": 0.5}, "learning_rate": 0.1}])
    events.close()
    assert scalars(tmp_path) == {"train/loss": {1: 1.0}, "valid/Corr": {2: 0.5},
                                 "learning_rate": {2: pytest.approx(0.1)}}


def test_a_failed_training_leaves_its_epochs(tiny: Path, folders: dict[str, Path], tmp_path: Path, toy: str,
                                             tensorboard: None) -> None:
    from mmsa_decalign.errors import RunError

    with pytest.raises(RunError):
        run(prepare("toy", "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0,
                    overrides={"epochs": 2, "behaviour": "nan"}, tensorboard=tmp_path / "events", **folders))
    (path,) = (tmp_path / "events").iterdir()
    assert set(scalars(path)) >= {"valid/Loss"}


def test_without_the_package_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith(("torch.utils.tensorboard", "tensorboard."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for argv in (["-m", "lmf", "-d", "synthetic"], ["compare", "-m", "lmf", "-d", "synthetic"]):
        assert main([*argv, "--tensorboard", str(tmp_path / "events")]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        assert "pip install mmsa-decalign[tensorboard]" in said
    assert not (tmp_path / "events").exists()
    with pytest.raises(InputError):
        prepare("lmf", "synthetic", tensorboard=tmp_path)
