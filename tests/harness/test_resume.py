"""A run that was ended goes on to the very numbers of one that was not: by signals, kills, damage, and wrong clocks."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_decalign import trainer
from mmsa_decalign.errors import Interrupted, RunError
from mmsa_decalign.harness import resume
from mmsa_decalign.harness.datasets import load_features
from mmsa_decalign.harness.runner import Outcome, prepare, run
from mmsa_decalign.harness.states import StateFile

# Four epochs of four batches; the rate falls on the way.
SMALL = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 4, "batch_size": 8,
         "learning_rate": 0.02, "scheduler_patience": 0}
PLANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "absent": {"overrides": {"modality_dropout": [0.3, 0.4, 0.4]}, "missing_train": "vision=0.5,audio=0.3",
               "missing": "text=0.5"},
    "members": {"overrides": {"members": 2}},
}


class Runs:
    """Runs of DecAlign in a folder of their own."""

    def __init__(self, tiny: Path, folder: Path, plan: str = "plain") -> None:
        self.tiny, self.folder, self.plan = tiny, folder, plan

    def __call__(self, *, seeds: tuple[int, ...] = (7,), model: str = "decalign", **more: Any) -> Outcome:
        return run(self.job(seeds=seeds, model=model, **more))

    def job(self, *, seeds: tuple[int, ...] = (7,), model: str = "decalign", **more: Any) -> Any:
        options = {**PLANS[self.plan], **more}
        folders = {f"{name}_dir": self.folder / name for name in ("model_save", "res_save", "log")}
        own = SMALL if model == "decalign" else {}
        return prepare(model, "synthetic", feature_file=self.tiny, seeds=seeds, device="cpu",
                       **{"verbose": 0, **folders, **options, "overrides": {**own, **options.get("overrides", {})}})

    def models(self, pattern: str = "*") -> list[Path]:
        return sorted((self.folder / "model_save").glob(pattern))

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.folder / "res_save" / "runs").glob("*.json"))]


@pytest.fixture
def runs(tiny: Path, tmp_path: Path) -> Runs:
    return Runs(tiny, tmp_path)


def picture(record: dict[str, Any]) -> Any:
    """What must be the same: everything but times and names."""
    weights = torch.load(record["checkpoint"], weights_only=True)
    return (record["test"], record["selection"], record["fingerprint"], record["missing"],
            [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]],
            {name: value.numpy().tobytes() for name, value in weights.items()})


@pytest.fixture(scope="module")
def calm(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The undisturbed run of a plan."""
    known: dict[str, Any] = {}

    def of(plan: str = "plain") -> Any:
        if plan not in known:
            (record,) = Runs(tiny, tmp_path_factory.mktemp(plan), plan)().records
            known[plan] = picture(record)
            assert record["resumed"] == []
        return known[plan]

    return of


class Fault(RuntimeError):
    """Stands for what ends a process without a word."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``ended(n, how)``: the next run is ended at its n-th training batch, by a signal or, without one, by a fault."""
    real = trainer._outputs

    def at(number: int, how: int | None = None) -> None:
        seen = 0

        def outputs(model: Any, batch: Any, device: Any) -> Any:
            nonlocal seen
            seen += bool(model.training)
            if model.training and seen == number:
                if how is None:
                    raise Fault
                os.kill(os.getpid(), how)
            return real(model, batch, device)

        monkeypatch.setattr(trainer, "_outputs", outputs)

    yield at
    monkeypatch.setattr(trainer, "_outputs", real)


@pytest.mark.parametrize(("plan", "workers"), [("plain", 2), ("absent", 0), ("members", 0)])
def test_a_run_that_is_ended_again_and_again_has_the_numbers_of_a_calm_one(
        plan: str, workers: int, tiny: Path, tmp_path: Path, calm: Callable[[str], Any], ended: Callable[..., None]
) -> None:
    runs = Runs(tiny, tmp_path, plan)
    for start, (batch, how, code) in enumerate([
            (2, signal.SIGTERM, 143), (6, None, 0), (3, signal.SIGINT, 130), (1, signal.SIGTERM, 143), (6, None, 0)]):
        ended(batch, how)
        with pytest.raises(RunError if how is None else Interrupted) as stop:
            runs(resume=start > 0, num_workers=workers)
        if how is not None:
            assert stop.value.exit_code == code
            assert "0 of 1 seeds finished\nThe same command with --resume does the rest; seed 7 goes on in epoch" in (
                str(stop.value))
        assert [path for path in runs.models() if not path.name.startswith("decalign-synthetic-7-")] == []
        assert {path.suffix for path in runs.models() if "-unfinished-" not in path.name} <= {".state", ".before"}
    ended(0)
    (record,) = runs(resume=True, num_workers=workers).records
    # Signals: after the batch that they found, or the epoch where it was the last. Faults: the last complete epoch.
    assert [(one["epoch"], one["batch"]) for one in record["resumed"]] == [(0, 2), (1, 0), (1, 3), (2, 0), (3, 0)]
    assert picture(record) == calm(plan)
    assert [path.suffix for path in runs.models()] == [".pth"]
    assert len(runs.records()) == 1


def test_an_end_after_the_last_epoch_repeats_the_test_alone(
        runs: Runs, calm: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, ended: Callable[..., None]) -> None:
    from mmsa_decalign.harness import training

    def fail(*_: Any) -> None:
        raise RunError("killed")

    monkeypatch.setattr(training, "attach", fail)
    with pytest.raises(RunError, match="killed"):
        runs()
    monkeypatch.undo()
    expected = calm("plain")
    ended(1)  # no batch is trained any more
    (record,) = runs(resume=True).records
    assert picture(record) == expected
    assert [one["epoch"] for one in record["resumed"]] == [4]


def test_event_files_go_on_in_the_folder_of_the_run(
        runs: Runs, tmp_path: Path, calm: Callable[[str], Any], ended: Callable[..., None]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for batch in (7, 0):
        ended(batch, signal.SIGTERM)
        try:
            (record,) = runs(resume=batch == 0, tensorboard=tmp_path / "events").records
        except Interrupted:
            continue
    (folder,) = (tmp_path / "events").iterdir()
    assert picture(record) == calm("plain")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert {event.step for event in events.Scalars("valid/Loss")} == {1, 2, 3, 4}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(
        {epoch["epoch"]: epoch["train"]["loss"] for epoch in record["epochs"]})


def test_finished_seeds_are_not_done_again_but_count(
        runs: Runs, ended: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    short = {"overrides": {"num_epochs": 1}}
    ended(4 + 4 + 3, signal.SIGINT)  # in the third seed
    with pytest.raises(Interrupted, match=r"2 of 4 seeds finished, .*\n.* seed 9 goes on in epoch 1"):
        runs(seeds=(7, 8, 9, 10), **short)
    table = runs.folder / "res_save" / "normal" / "synthetic.csv"
    assert not table.exists()
    ended(0)
    before = {record["seed"]: record["id"] for record in runs.records()}
    outcome = runs(seeds=(7, 8, 9, 10), resume=True, **short)
    assert [record["seed"] for record in outcome.records] == [7, 8, 9, 10]
    assert {record["seed"]: record["id"] for record in outcome.records if record["seed"] < 9} == before
    assert [len(record["resumed"]) for record in outcome.records] == [0, 0, 1, 0]
    assert len(runs.records()) == 4
    assert outcome.summary["MAE"]["mean"] == pytest.approx(sum(r["test"]["MAE"] for r in outcome.records) / 4)
    # Once more there is nothing to do: the same table, and not a row or record more.
    ended(1)
    again = runs(seeds=(7, 8, 9, 10), resume=True, **short)
    assert again.summary == outcome.summary
    assert again.csv == outcome.csv == table
    assert len(table.read_text().splitlines()) == 2
    assert len(runs.records()) == 4
    ended(0)
    runs(seeds=(7,), **short)  # without --resume a run is a run
    assert len(runs.records()) == 5


def test_without_resume_an_old_state_is_ignored_and_replaced(
        runs: Runs, calm: Callable[[str], Any], ended: Callable[..., None]) -> None:
    ended(7, signal.SIGTERM)
    with pytest.raises(Interrupted):
        runs()
    ended(0)
    (record,) = runs().records
    assert record["resumed"] == []
    assert picture(record) == calm("plain")
    assert [path.suffix for path in runs.models()] == [".pth"]


@pytest.mark.parametrize(("damaged", "epochs"), [((".state",), [2]), ((".state", ".before"), [])])
def test_a_damaged_state_gives_way_to_the_one_before_and_both_to_a_new_beginning(
        damaged: tuple[str, ...], epochs: list[int], runs: Runs, calm: Callable[[str], Any],
        ended: Callable[..., None]) -> None:
    ended(14)  # three epochs are complete
    with pytest.raises(RunError):
        runs()
    for path in runs.models():
        if path.suffix in damaged:
            path.write_bytes(path.read_bytes()[:-100])
    ended(0)
    (record,) = runs(resume=True).records
    assert [one["epoch"] for one in record["resumed"]] == epochs
    assert picture(record) == calm("plain")
    log = (runs.folder / "log" / "decalign-synthetic.log").read_text()
    assert log.count("cannot be used") == len(damaged)


def test_a_clock_that_jumps_back_changes_nothing(
        runs: Runs, calm: Callable[[str], Any], ended: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [4e9]

    def earlier(*_: Any) -> float:
        now[0] -= 86400.0
        return now[0]

    monkeypatch.setattr(time, "time", earlier)
    monkeypatch.setattr(time, "time_ns", lambda: int(earlier() * 1e9))
    monkeypatch.setattr(resume, "_now", lambda: f"{2100 - len(runs.models()):04d}-01-01T00:00:00+00:00")
    for number, batch in enumerate((7, 6)):
        ended(batch, signal.SIGTERM)
        with pytest.raises(Interrupted):
            runs(resume=number > 0)
        for place, path in enumerate(runs.models()):  # the newer a file, the older it looks
            os.utime(path, (2e9 + 1e8 * place - 5e8 * number,) * 2)
    ended(0)
    (record,) = runs(resume=True).records
    assert [(one["epoch"], one["batch"]) for one in record["resumed"]] == [(1, 3), (3, 1)]
    assert picture(record) == calm("plain")
    assert runs(resume=True).records[0]["id"] == record["id"]


@pytest.mark.parametrize("model", ["lf_dnn", "toy"])
def test_a_trainer_without_a_state_starts_again_and_says_so(
        model: str, runs: Runs, toy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    overrides = {"max_epochs": 3, "batch_size": 16} if model == "lf_dnn" else {"epochs": 3}
    calm = runs(model=model, overrides=overrides).records[0]
    (runs.folder / "res_save" / "runs").rename(runs.folder / "calm")
    (first,) = runs.models()
    from mmsa_decalign.harness import runner

    real, seen = runner.epoch_bars, []

    def bars(*_: Any, **__: Any) -> Any:
        def show(loader: Any) -> Iterator[Any]:
            for batch in loader:
                yield batch
                seen.append(batch)
                if len(seen) == 5:
                    os.kill(os.getpid(), signal.SIGTERM)

        return show

    monkeypatch.setattr(runner, "epoch_bars", bars)
    with pytest.raises(Interrupted, match="terminated; 0 of 1 seeds finished\n.*seed 7 starts at its beginning"):
        runs(model=model, overrides=overrides)
    assert len(seen) == 5, "the batch was finished, and no other begun"
    assert runs.models() == [first]
    monkeypatch.setattr(runner, "epoch_bars", real)
    (record,) = runs(model=model, overrides=overrides, resume=True).records
    assert (record["test"], record["resumed"]) == (calm["test"], [])
    log = (runs.folder / "log" / f"{model}-synthetic.log").read_text()
    assert log.count("keeps no state between epochs: the run starts at its beginning") == 1


def test_a_fingerprint_depends_on_what_decides_the_numbers_and_on_nothing_else(
        runs: Runs, tiny: Path, tmp_path: Path) -> None:
    from mmsa_decalign.data.synthetic import write_synthetic

    features = load_features(tiny, {})

    def of(seed: int = 7, **more: Any) -> str:
        return resume.fingerprint(runs.job(**more), features, seed)

    other = load_features(write_synthetic(tmp_path / "other.pkl", samples=(33, 12, 16)), {})
    copy = tmp_path / "copy.pkl"
    copy.write_bytes(tiny.read_bytes())
    same = {of(), of(num_workers=2), of(res_save_dir=tmp_path), of(verbose=1), of(seeds=(7, 8)), of(resume=True),
            of(tensorboard=tmp_path), of(command="mmsa"), resume.fingerprint(runs.job(), load_features(copy, {}), 7)}
    assert len(same) == 1
    different = [of(), of(8), of(overrides={"alpha": 0.5}), of(missing="vision=1.0"), of(missing_train="vision=0.5"),
                 of(model="lmf"), of(model="graph_mfn"), of(model="graph_mfn", mended=True),
                 resume.fingerprint(runs.job(), other, 7),
                 resume.fingerprint(runs.job(), load_features(tiny, {"audio": copy}), 7)]
    assert len(set(different)) == len(different)


def test_another_version_of_a_library_is_another_run(
        runs: Runs, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = load_features(tiny, {})
    before = resume.fingerprint(runs.job(), features, 7)
    from mmsa_decalign.harness import machine

    monkeypatch.setattr(machine, "versions", lambda: {"torch": "99"})
    assert resume.fingerprint(runs.job(), features, 7) != before


def test_two_processes_do_not_keep_one_state(
        runs: Runs, tiny: Path, calm: Callable[[str], Any], ended: Callable[..., None]) -> None:
    mark = resume.fingerprint(runs.job(), load_features(tiny, {}), 7)
    held = StateFile(runs.folder / "model_save" / f"decalign-synthetic-7-{mark[:12]}.state")
    held.path.parent.mkdir()
    with held.owned() as own:
        assert own
        with pytest.raises(RunError, match="another process is at work on this very run"):
            runs(resume=True)
        assert picture(runs().records[0]) == calm("plain")
        assert not held.path.exists()
