"""The search: scored on validation alone, pruned, resumed, shared by processes, and its best settings as a file."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from mmsa_decalign.cli import main
from mmsa_decalign.errors import InputError, Interrupted, RunError
from mmsa_decalign.harness import watch
from mmsa_decalign.harness.catalogue import catalogue, mmsa_config
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.datasets import load_features
from mmsa_decalign.harness.runner import prepare, run
from mmsa_decalign.tune import result, search, space, study
from mmsa_decalign.tune.result import Found
from mmsa_decalign.tune.search import tune, tune_job

LMF = {"max_epochs": 1}
LONG = {"max_epochs": 100, "early_stop": 100}  # seconds: two workers are at work at a time, however slowly one begins
ENDLESS = {"max_epochs": 100_000, "early_stop": 100_000}


def job(model: str, tiny: Path, folders: dict[str, Path], *, seeds: tuple[int, ...] = (7,), config: Any = None,
        mended: bool = False, **overrides: Any) -> Any:
    return prepare(model, "synthetic", feature_file=tiny, seeds=seeds, device="cpu", verbose=0, tuning=True,
                   config=config, mended=mended, overrides=overrides, **folders)


def found(model: str, tiny: Path, folders: dict[str, Path], trials: int, *, prune: bool = True, **more: Any) -> Found:
    return tune_job(job(model, tiny, folders, **more), trials, prune=prune)


def by_number(one: Found) -> list[dict[str, Any]]:
    return sorted(one.trials, key=lambda trial: trial["number"])


def options(model: str, tiny: Path, folders: dict[str, Path], **overrides: Any) -> dict[str, Any]:
    return {"model": model, "dataset": "synthetic", "feature_file": str(tiny), "seeds": [7], "device": "cpu",
            "verbose": 0, "overrides": overrides, **{name: str(path) for name, path in folders.items()}}


# The space


def test_every_space_of_mmsa_goes_to_optuna_and_back() -> None:
    sections = json.loads(mmsa_config("tune").read_text())
    seen = []
    for name, section in sections.items():
        debug = section.get("debugParams")
        if not debug:
            continue
        own = {key: debug[key] for key in debug["d_paras"]}
        choices = space.parameters(own)
        generator = random.Random(3)
        for _ in range(20):
            params = {key: generator.choice(list(values)) for key, values in choices.items()}
            for key, values in choices.items():  # Optuna refuses, or warns of, what it cannot store
                optuna.distributions.CategoricalDistribution(list(values)).to_internal_repr(params[key])
            settings = space.settings_of(params, own)
            assert list(settings) == debug["d_paras"]
            for key, value in settings.items():
                if isinstance(own[key], dict):
                    assert {part: value[part] in own[key][part] for part in own[key]} == dict.fromkeys(own[key], True)
                else:
                    assert value in own[key] if isinstance(own[key], list) else value == own[key]
        seen.append(name)
    assert {"lmf", "mfn", "mult", "tfr_net", "self_mm"} <= set(seen)


def test_what_is_untried_is_found_until_nothing_is_left() -> None:
    choices = space.parameters({"a": [1, 2, 3], "b": {"c": [[1], [2]]}})
    assert space.size(choices) == 6
    tried: set[str] = set()
    for _ in range(6):
        params = space.untried(choices, tried, random.Random(len(tried)))
        assert params is not None
        assert space.signature(params) not in tried
        tried.add(space.signature(params))
    assert space.untried(choices, tried, random.Random(0)) is None


# Scoring


def test_a_search_ranks_by_validation_and_never_opens_the_test_split(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.SealedLoader, "open", lambda self: pytest.fail("the test split was opened"))
    one = found("toy", tiny, folders, 9, epochs=2)
    losses = [trial["valid"]["Loss"] for trial in one.trials]
    assert losses == sorted(losses) == [trial["value"] for trial in one.trials]
    assert len(one.trials) == 4  # the whole space: two learning rates times two shapes
    assert {trial["settings"]["learning_rate"] for trial in one.trials} == {0.001, 0.01}
    assert [trial["settings"]["shape"] for trial in one.trials if trial["settings"]["shape"]["b"] == 2]
    with one.csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:3] == ["learning_rate", "shape", "Has0_acc_2"]
    assert {row["Split"] for row in rows} == {"valid"}
    assert [float(row["Loss"]) for row in rows] == pytest.approx(losses)
    assert list(folders["model_save_dir"].iterdir()) == []
    assert result.document(one)["scored_by"] == {"metric": "Loss", "mode": "min", "split": "valid"}


def test_other_labels_and_features_in_the_test_split_change_nothing(
    tiny: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Through MMSA's own trainer and DecAlign's: every value of every epoch, and what is tried next."""
    with tiny.open("rb") as stream:
        content = pickle.load(stream)
    before = content["test"]["text"].copy()
    rng = np.random.default_rng(0)
    for name in ("text", "audio", "vision"):
        content["test"][name] = rng.normal(size=content["test"][name].shape).astype(np.float32)
    content["test"]["regression_labels"] = -content["test"]["regression_labels"]
    assert not np.allclose(before, content["test"]["text"])
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps(content))
    small = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_epochs": 2, "num_prototypes": 2}
    for model, settings in (("lmf", LMF), ("decalign", small)):
        pair = [by_number(found(model, file, folders, 3, **settings)) for file in (tiny, other)]
        same = [[{key: trial[key] for key in ("settings", "value", "valid", "by_epoch", "state")} for trial in trials]
                for trials in pair]
        assert same[0] == same[1]
        assert len(same[0]) == 3


def test_the_score_is_the_mean_over_the_seeds_of_what_a_single_run_validates(
    tiny: Path, folders: dict[str, Path]
) -> None:
    one = found("lmf", tiny, folders, 1, seeds=(7, 8), **LMF)
    (trial,) = one.trials
    records = run(prepare("lmf", "synthetic", config=one.best, feature_file=tiny, seeds=(7, 8), device="cpu", verbose=0,
                          **folders)).records
    values = [record["selection"]["value"] for record in records]
    assert trial["value"] == pytest.approx(sum(values) / 2, abs=1e-9)
    assert values[0] != values[1]
    assert trial["epochs"] == [1, 1]
    for record in records:
        assert {key: record["settings"][key] for key in trial["settings"]} == trial["settings"]


def test_a_metric_where_more_is_better_is_maximised(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    one = found("toy", tiny, folders, 4, epochs=2, KeyEval="Corr")
    values = [trial["value"] for trial in one.trials]
    assert values == sorted(values, reverse=True)
    assert one.trials[0]["valid"]["Corr"] == values[0] > values[-1]


# Pruning


def space_of(tmp_path: Path, rates: list[float]) -> Path:
    """The toy with learning rates of one's own, in the schema of a plugin's settings."""
    import harness_toy

    content = json.loads(harness_toy.CONFIG)
    content["toy"]["debugParams"] = {"d_paras": ["learning_rate"], "learning_rate": rates}
    path = tmp_path / "space.json"
    path.write_text(json.dumps(content))
    return path


def test_hopeless_trials_are_given_up_after_the_warm_up_and_only_they(
    tiny: Path, folders: dict[str, Path], toy: str, tmp_path: Path
) -> None:
    config = space_of(tmp_path, [round(0.01 + 0.001 * step, 3) for step in range(6)] + [1e-9 * 2**k for k in range(8)])
    full = found("toy", tiny, folders, 14, config=config, epochs=6, prune=False)
    assert {trial["state"] for trial in full.trials} == {"complete"}
    other = {**folders, "res_save_dir": tmp_path / "pruned"}
    pruned = found("toy", tiny, other, 14, config=config, epochs=6)
    lost = [trial for trial in pruned.trials if trial["state"] == "pruned"]
    assert lost
    whole = {trial["settings"]["learning_rate"]: trial for trial in full.trials}
    kept: list[dict[str, Any]] = []
    for trial in by_number(pruned):
        epochs = [value for _, value in sorted((int(epoch), value) for epoch, value in trial["by_epoch"].items())]
        alone = whole[trial["settings"]["learning_rate"]]
        assert epochs == list(alone["by_epoch"].values())[:len(epochs)]  # until then it is the same training
        # By hand: after the warm-up, the best so far against the median of the complete trials at that epoch.
        stops = [epoch for epoch in range(1, 7) if len(kept) >= study.STARTUP and epoch >= study.WARMUP
                 and min(list(alone["by_epoch"].values())[:epoch]) > np.median([one[epoch - 1] for one in kept])]
        if stops:
            assert (trial["state"], len(epochs)) == ("pruned", stops[0])
            assert trial["value"] is None
        else:
            assert (trial["state"], len(epochs)) == ("complete", 6)
            kept.append(epochs)
    assert pruned.trials[0]["value"] == full.trials[0]["value"]


# Going on


def test_a_second_call_goes_on_as_if_the_first_had_not_stopped(
    tiny: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Fifteen trials in three calls and in one: past the ten that TPE draws at random."""
    parts = [found("lmf", tiny, folders, number, **LMF) for number in (4, 12, 15)]
    assert [len(one.trials) for one in parts] == [4, 12, 15]
    assert [one.earlier for one in parts] == [0, 4, 12]
    whole = found("lmf", tiny, {**folders, "res_save_dir": tmp_path / "whole"}, 15, **LMF)

    def view(one: Found) -> list[Any]:
        return [(trial["settings"], trial["value"], trial["state"]) for trial in by_number(one)]

    assert view(parts[2]) == view(whole)
    assert len({json.dumps(settings) for settings, _, _ in view(whole)}) == 15
    assert [trial["number"] for trial in by_number(whole)][:10] == list(range(10)), "no random draw was a repetition"
    assert found("lmf", tiny, folders, 15, **LMF).trials == parts[2].trials, "nothing was left to do"


def test_another_question_is_another_study(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    names = {found("toy", tiny, folders, 1, **more).search.name
             for more in ({"epochs": 1}, {"epochs": 2}, {"epochs": 1, "seeds": (8,)}, {"epochs": 1, "width": 3},
                          {"epochs": 1, "learning_rate": 0.01})}
    assert len(names) == 5


def test_what_the_user_fixed_stays_fixed(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    one = found("toy", tiny, folders, 9, epochs=1, learning_rate=0.5)
    assert {trial["settings"]["learning_rate"] for trial in one.trials} == {0.5}
    assert len(one.trials) == 2
    stream = io.StringIO()
    result.print_found(one, Console(file=stream, width=120))
    assert "9 were asked for, but the tuning space has no more settings" in stream.getvalue()


def test_a_failed_trial_does_not_end_the_search(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    one = found("toy", tiny, folders, 4, epochs=1, behaviour="nan")
    assert [trial["state"] for trial in one.trials] == ["failed"] * 4
    assert all("no checkpoint was written" in trial["error"] for trial in one.trials)
    assert one.best is None
    again = found("toy", tiny, folders, 4, epochs=1, behaviour="nan")
    assert [trial["number"] for trial in by_number(again)] == [trial["number"] for trial in by_number(one)]


def test_ctrl_c_leaves_the_study_usable_and_the_trial_in_the_queue(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness_toy

    trained: list[dict[str, Any]] = []
    original = harness_toy.ToyTrainer.do_train

    def do_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(dict(self.args))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(harness_toy.ToyTrainer, "do_train", do_train)
    with pytest.raises(Interrupted, match="2 of 4 trials finished, in .*the same call goes on from there"):
        found("toy", tiny, folders, 4, epochs=1)
    one = found("toy", tiny, folders, 4, epochs=1)
    assert (len(one.trials), one.earlier) == (4, 2)
    interrupted, next_one = trained[2], trained[3]
    for key in ("learning_rate", "shape"):
        assert interrupted[key] == next_one[key]
    assert len(trained) == 5
    attributes = [trial.user_attrs for trial in study.open_study(one.search).trials]
    assert [each["losses"] for each in attributes if "losses" in each] == [0], "an interrupt is no crash"


# What comes out


@pytest.mark.parametrize(("model", "settings"), [
    ("lmf", LMF), ("mfn", LMF), ("decalign", {"d_model": 8, "num_heads": 2, "num_epochs": 1})])
def test_the_file_of_the_best_gives_the_very_settings_of_the_trial(
    model: str, settings: dict[str, Any], tiny: Path, folders: dict[str, Path]
) -> None:
    one = found(model, tiny, folders, 2, **settings)
    best = next(trial for trial in one.trials if trial["state"] == "complete")
    wanted = {**one.search.job.resolved.settings, **best["settings"]}
    got = resolve(model, "synthetic", config=one.best).settings
    assert json.loads(json.dumps(got)) == json.loads(json.dumps(wanted))
    for key, value in {**best["settings"], **settings}.items():
        assert got[key] == value


def test_the_file_of_the_best_for_every_model_with_a_space(tmp_path: Path) -> None:
    known = catalogue()
    written, kinds = [], set()
    for name, model in known.models.items():
        if not model.tuning.get("debugParams"):
            continue
        for dataset in ("mosi", "sims"):
            try:
                resolved = resolve(name, dataset, tuning=True)
            except InputError:
                continue
            choices = space.parameters(resolved.space)
            chosen = space.settings_of({key: list(values)[-1] for key, values in choices.items()}, resolved.space)
            fake = dataclasses.make_dataclass("Job", ["resolved", "model", "dataset"])(resolved, name, dataset)
            result.write_best(fake, chosen, tmp_path / "best.json")
            got = resolve(name, dataset, config=tmp_path / "best.json").settings
            assert got == {**resolved.settings, **chosen}, name
            kinds.add(name in json.loads((tmp_path / "best.json").read_text()))
            written.append(name)
    assert len(set(written)) >= 15
    assert kinds == {False, True}, "flat where that is enough, a section where it is not"


@pytest.mark.parametrize("mended", [False, True])
def test_the_faults_of_a_model_stand_under_its_search(mended: bool, tiny: Path, folders: dict[str, Path]) -> None:
    one = found("lmf", tiny, folders, 1, mended=mended, **LMF)
    stream = io.StringIO()
    result.print_found(one, Console(file=stream, width=120))
    said = "repaired for this result (--mended): in MMSA's lmf" if mended else "as MMSA ships lmf:"
    assert f"{said} the weights and the bias that sum up the low-rank factors" in stream.getvalue()
    document = result.document(one)
    assert document["mended"] is mended
    assert {flag["name"]: flag["repaired"] for flag in document["flags"]}["untrained_rank_weights"] is mended


def test_nothing_to_tune(tiny: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no tuning space"):
        found("mctn", tiny, folders, 1)


def test_a_storage_that_is_none(tiny: Path, folders: dict[str, Path], toy: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of a database, but long enough to be looked at" * 40)
    with pytest.raises(InputError, match="--storage .*notes.txt cannot be used"):
        tune_job(job("toy", tiny, folders, epochs=1), 1, storage=tmp_path / "notes.txt")


# Several processes


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
def test_two_workers_share_a_study_and_one_that_is_killed_is_replaced(
    tiny: Path, folders: dict[str, Path], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    original = search._Workers._start
    look = search._Lines.look
    killed: list[int] = []

    def start(self: Any, slot: int) -> None:
        original(self, slot)
        started.append(self.running[slot])

    def kill_one(self: Any) -> int:
        running = self.study.get_trials(states=[TrialState.RUNNING])
        tokens = [trial.user_attrs.get("token", "") for trial in running]
        if not killed and len({token for token in tokens if token}) == 2:
            os.kill(started[0].pid, signal.SIGKILL)
            killed.append(started[0].pid)
        return look(self)

    monkeypatch.setattr(search._Workers, "_start", start)
    monkeypatch.setattr(search._Lines, "look", kill_one)
    one = tune(options("lmf", tiny, folders, **LONG), 6, jobs=2, prune=False)
    assert killed
    assert [trial["state"] for trial in one.trials] == ["complete"] * 6
    assert len(started) == 3
    signatures = {json.dumps(trial["settings"]) for trial in one.trials}
    assert len(signatures) == 6
    opened = study.open_study(one.search)
    retried = [trial for trial in opened.trials if trial.user_attrs.get("losses") == 1]
    assert len(retried) == 1
    assert retried[0].state == TrialState.COMPLETE, "the trial of the killed one was done by another"
    assert not opened.get_trials(states=[TrialState.RUNNING, TrialState.WAITING])
    # A trial's score does not depend on who did it.
    alone = tune_job(job("lmf", tiny, {**folders, "res_save_dir": folders["log_dir"]}, **LONG,
                         **one.trials[0]["settings"]), 1)
    assert alone.trials[0]["value"] == one.trials[0]["value"]


@pytest.mark.slow
def test_the_workers_of_a_killed_search_end_and_the_next_call_does_their_trials(
    tiny: Path, folders: dict[str, Path], one_thread: None
) -> None:
    given = options("lmf", tiny, folders, **ENDLESS)
    source = ("import json, sys; from mmsa_decalign.tune.search import tune;"
              "tune(json.loads(sys.argv[1]), 3, jobs=2, prune=False)")
    parent = subprocess.Popen([sys.executable, "-c", source, json.dumps(given)], start_new_session=True)
    planned = study.Search(job("lmf", tiny, folders, **ENDLESS), "",
                           folders["res_save_dir"] / "tune" / "tune.sqlite", 3)
    planned = dataclasses.replace(planned, name=study.name_of(
        planned.job, load_features(tiny, planned.job.files)))

    def running() -> list[Any]:
        if not planned.storage.exists():
            return []
        return study.open_study(planned).get_trials(states=[TrialState.RUNNING])

    try:
        wait(lambda: len([one for one in running() if "token" in one.user_attrs]) == 2)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(trial.user_attrs["token"].partition("-")[0]) for trial in running()]
    assert len(pids) == 2
    wait(lambda: not any(alive(pid) for pid in pids))
    lost = [trial.params for trial in running()]
    opened = study.open_study(planned)
    first = study.next_trial(planned, opened, "nobody")
    assert first is not None
    assert first.params in lost
    assert first.user_attrs["losses"] == 1


@pytest.mark.slow
def test_workers_that_cannot_begin_end_the_search_with_what_they_said(
    tiny: Path, folders: dict[str, Path], one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WORKER", "mmsa_decalign.no_such_worker")
    with pytest.raises(RunError, match="3 workers in a row .*No module named mmsa_decalign.no_such_worker"):
        tune(options("lmf", tiny, folders, **LMF), 2, jobs=2)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers(tiny: Path, folders: dict[str, Path], one_thread: None,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    original = search._Workers._start

    def start(self: Any, slot: int) -> None:
        original(self, slot)
        started.append(self.running[slot])

    def look(self: Any) -> int:
        running = self.study.get_trials(states=[TrialState.RUNNING])
        if len([trial for trial in running if "token" in trial.user_attrs]) == 2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(search._Workers, "_start", start)
    monkeypatch.setattr(search._Lines, "look", look)
    with pytest.raises(Interrupted, match="0 of 3 trials finished"):
        tune(options("lmf", tiny, folders, **ENDLESS), 3, jobs=2)
    assert all(process.poll() is not None for process in started)
    planned = job("lmf", tiny, folders, **ENDLESS)
    name = study.name_of(planned, load_features(tiny, planned.files))
    left = study.open_study(study.Search(planned, name, folders["res_save_dir"] / "tune" / "tune.sqlite", 3))
    states = [trial.state for trial in left.trials]
    assert states.count(TrialState.WAITING) == 2
    assert TrialState.RUNNING not in states


def test_a_trial_that_ends_its_process_again_and_again_is_dropped(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job("toy", tiny, folders, epochs=1)
    one = study.Search(made, study.name_of(made, load_features(tiny, made.files)),
                       folders["res_save_dir"] / "tune.sqlite", 4)
    opened = study.open_study(one)
    first = study.next_trial(one, opened, "gone")
    assert first is not None
    seen = [first.params]
    for _ in range(15):  # the space has four settings, each is begun four times
        trial = study.next_trial(one, opened, "gone")  # nobody holds that token
        assert trial is not None
        seen.append(trial.params)
    assert [seen[4 * place:4 * place + 4] for place in range(4)] == [[seen[4 * place]] * 4 for place in range(4)]
    assert len({space.signature(params) for params in seen}) == 4
    assert study.next_trial(one, opened, "gone") is None
    dropped = [study.error_of(trial) for trial in study.finished(opened)]
    assert dropped == ["its process ended before it did, 4 times"] * 4


# The command


@pytest.mark.slow
def test_the_command_tunes_and_reruns(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    call = ["tune", "-m", "lmf", "-d", "synthetic", "--feature-file", str(tiny), "--set", "max_epochs=1", "--device",
            "cpu", "-s", "7"]
    assert main([*call, "--trials", "2"]) == 0
    shown = capsys.readouterr()
    assert "best validation Loss" in shown.err
    assert "[2/2] trial 1:" in shown.err
    assert "the test split was not read" in shown.out
    assert main([*call, "--trials", "3", "-v", "0", "--json", "--rerun-seeds", "1,2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["trials"]), document["earlier"], document["asked"]) == (3, 2, 3)
    assert document["storage"] == str(tmp_path / "MMSA" / "results" / "tune" / "tune.sqlite")
    assert document["rerun"]["seeds"] == [1, 2]
    best = document["trials"][0]["settings"]
    for record in document["rerun"]["runs"]:
        assert {key: record["settings"][key] for key in best} == best
        assert record["test"]["MAE"] > 0
    # MMSA's flags go on with the same study, since they ask the same question.
    assert main(["-m", "lmf", "-d", "synthetic", "--feature-file", str(tiny), "--set", "max_epochs=1", "--device",
                 "cpu", "-s", "7", "-t", "-tt", "4", "-v", "0", "--json"]) == 0
    assert (again := json.loads(capsys.readouterr().out))["earlier"] == 3
    assert again["study"] == document["study"]


@pytest.mark.parametrize(("argv", "words"), [
    (["tune", "-m", "lmff"], "did you mean 'lmf'"),
    (["tune", "-d", "mosy"], "did you mean 'mosi'"),
    (["tune", "--trials", "0"], "whole number from 1"),
    (["tune", "--set", "learning_rate"], "key=value"),
    (["tune", "--no-prunning"], "--no-pruning"),
])
def test_mistakes_are_answered_in_a_line(argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def wait(until: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
