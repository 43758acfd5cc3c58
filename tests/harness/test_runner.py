"""The protocol of a run: seed, selection, checkpoint, test split, record. Against the real MMSA."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsa_decalign import Settings
from mmsa_decalign.errors import InputError, Interrupted, RunError
from mmsa_decalign.harness import job, watch
from mmsa_decalign.harness.records import plain, summarise
from mmsa_decalign.harness.runner import Outcome, prepare, run

# Enough to pass through every line of a model, small enough for a test.
SMALL: dict[str, dict[str, Any]] = {
    "tfn": {"hidden_dims": [4, 4, 4], "text_out": 4, "post_fusion_dim": 4},
    "lmf": {},
    "lf_dnn": {},
    "mfn": {"hidden_dims": [8, 4, 8], "memsize": 8},
    "ef_lstm": {"hidden_dims": 8},
    "graph_mfn": {"hidden_dims": [8, 4, 8], "memsize": 8, "inner_node_dim": 8},
    "mfm": {"hidden_dims": [8, 4, 8], "memsize": 8},
}


def do(model: str, tiny: Path, folders: dict[str, Path], *, dataset: str = "synthetic", **options: Any) -> Outcome:
    overrides = options.pop("overrides", {})
    if model == "toy":
        overrides = {"epochs": 2, **overrides}
    return run(prepare(model, dataset, feature_file=tiny, device="cpu", verbose=0, overrides=overrides,
                       **{"seeds": [7], **folders, **options}))


@pytest.mark.parametrize("model", SMALL)
def test_the_seven_baselines_train_and_test_on_a_cpu(model: str, tiny: Path, folders: dict[str, Path]) -> None:
    outcome = do(model, tiny, folders, overrides={**SMALL[model], "batch_size": 16, "max_epochs": 2})
    (record,) = outcome.records
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1, 2]
    for epoch in record["epochs"]:
        assert np.isfinite(epoch["train"]["loss"])
        assert np.isfinite(epoch["valid"]["Loss"])
    losses = [epoch["valid"]["Loss"] for epoch in record["epochs"]]
    assert record["selection"] == {"epoch": 1 + losses.index(min(losses)), "metric": "Loss", "mode": "min",
                                   "split": "valid", "value": min(losses)}
    assert 0 < record["test"]["MAE"] < 5
    assert Path(record["checkpoint"]).name == f"{model}-synthetic-7-{record['id']}.pth"
    assert record["parameters"] > 0


def test_decalign_runs_with_every_term_in_its_record(tiny: Path, folders: dict[str, Path]) -> None:
    small = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 2, "batch_size": 16}
    (record,) = do("decalign", tiny, folders, overrides=small).records
    assert len(record["epochs"]) == 2
    assert {"loss", "task", "decoupling"} <= set(record["epochs"][0]["train"])
    assert record["selection"]["split"] == "valid"
    assert record["epochs"][record["selection"]["epoch"] - 1]["selected"] is True
    assert record["settings"]["d_model"] == 8


@pytest.mark.parametrize("model", ["lmf", "decalign"])
def test_same_seed_same_numbers(model: str, tiny: Path, folders: dict[str, Path]) -> None:
    small = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 2}
    overrides = small if model == "decalign" else {"max_epochs": 2}
    first, second, other = (
        do(model, tiny, folders, overrides=overrides, seeds=[seed]).records[0] for seed in (7, 7, 8)
    )

    def numbers(record: dict[str, Any]) -> Any:
        return record["test"], [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["epochs"]]

    assert numbers(first) == numbers(second)
    assert numbers(first) != numbers(other)


def test_a_seed_gives_the_same_alone_and_after_others(tiny: Path, folders: dict[str, Path]) -> None:
    alone = do("lmf", tiny, folders, overrides={"max_epochs": 2}, seeds=[8]).records[0]
    later = do("lmf", tiny, folders, overrides={"max_epochs": 2}, seeds=[7, 8]).records[1]
    assert alone["test"] == later["test"]


def test_the_test_split_is_read_once_and_last(
    tiny: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, toy: str
) -> None:
    reads: list[str] = []
    real = {cls: cls.__iter__ for cls in (watch.TrainLoader, watch.SealedLoader)}
    for cls, name in ((watch.TrainLoader, "train"), (watch.SealedLoader, "test")):
        monkeypatch.setattr(cls, "__iter__", lambda self, cls=cls, name=name: (reads.append(name), real[cls](self))[1])
    do("lf_dnn", tiny, folders, overrides={"max_epochs": 3})
    assert reads == ["train"] * 4 + ["test"]  # the fourth pass is the one that max_epochs refuses
    with pytest.raises(RunError, match="seed 7: the trainer read the test split before training was over"):
        do("toy", tiny, folders, overrides={"behaviour": "reads test"})


def test_test_metrics_are_those_of_the_selected_checkpoint(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    (record,) = do("toy", tiny, folders, overrides={"epochs": 6, "learning_rate": 0.3}).records
    assert record["selection"]["epoch"] != 6  # otherwise the last state would do as well
    from mmsa_decalign.data.reading import read_features

    state = torch.load(record["checkpoint"])
    split = read_features(tiny).splits["test"]
    pooled = np.concatenate([getattr(split, m).mean(axis=1) for m in ("text", "audio", "vision")], axis=1)
    prediction = pooled @ state["head.weight"].numpy()[0] + state["head.bias"].numpy()[0]
    assert record["test"]["MAE"] == pytest.approx(float(np.abs(prediction - split.labels).mean()), abs=1e-4)


@pytest.mark.parametrize("behaviour", ["no checkpoint", "nan"])
def test_a_stale_checkpoint_is_never_tested(
    behaviour: str, tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    good = do("toy", tiny, folders)
    checkpoint = Path(good.records[0]["checkpoint"])
    before = checkpoint.read_bytes()
    with pytest.raises(RunError, match="toy on synthetic, seed 7: no checkpoint was written"):
        do("toy", tiny, folders, overrides={"behaviour": behaviour})
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert len(list((folders["res_save_dir"] / "runs").iterdir())) == 1


def test_a_loss_that_is_not_a_number_fails_the_run_of_a_baseline(tiny: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="seed 7"):
        do("lf_dnn", tiny, folders, overrides={"learning_rate": 1e30, "early_stop": 1})


def test_a_crash_names_the_seed_and_keeps_finished_ones(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    with pytest.raises(RunError) as error:
        do("toy", tiny, folders, seeds=[7, 8, 9], overrides={"behaviour": "crash", "bad_seed_number": 2})
    assert "seed 8: RuntimeError: shapes do not match" in str(error.value)
    assert "1 of 3 seeds finished" in str(error.value)
    assert len(list((folders["res_save_dir"] / "runs").iterdir())) == 1


def test_ctrl_c_leaves_the_finished_seeds(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    with pytest.raises(Interrupted) as stop:
        do("toy", tiny, folders, seeds=[7, 8, 9], overrides={"behaviour": "interrupt", "bad_seed_number": 3})
    runs = folders["res_save_dir"] / "runs"
    assert str(stop.value) == (f"interrupted; 2 of 3 seeds finished, their results are in {runs}\n"
                               "The same command with --resume does the rest; seed 9 starts at its beginning")
    seeds = sorted(json.loads(path.read_text())["seed"] for path in runs.iterdir())
    assert seeds == [7, 8]
    assert not (folders["res_save_dir"] / "normal").exists()
    written = {json.loads(path.read_text())["checkpoint"] for path in runs.iterdir()}
    assert {str(path) for path in folders["model_save_dir"].iterdir()} == written
    assert len(written) == 2


def test_what_a_record_holds(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    outcome = do("toy", tiny, folders, seeds=[7, 8], command="mmsa -m toy")
    (path, _), (record, _) = outcome.record_paths, outcome.records

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == record
    assert path.parent == folders["res_save_dir"] / "runs"
    assert path.name.startswith("toy-synthetic-7-")
    assert path.name.endswith(f"-{record['id']}.json")
    assert record["schema_version"] == 2
    assert record["command"] == "mmsa -m toy"
    assert record["features"]["sha256"] == hashlib.sha256(tiny.read_bytes()).hexdigest()
    assert record["features"]["samples"] == {"train": 33, "valid": 12, "test": 17}
    assert record["settings"]["epochs"] == 2
    assert record["overrides"] == {"epochs": 2}
    assert record["settings"]["feature_dims"] == record["features"]["feature_dims"]
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["versions"]) == {"python", "torch", "numpy", "scipy", "pandas", "scikit_learn", "MMSA",
                                       "transformers", "mmsa_decalign"}
    assert record["device"]["type"] == "cpu"
    assert "zeros" not in record["metric_rules"]["MAE"]
    assert "left out" in record["metric_rules"]["Non0_acc_2"]
    assert record["wall_seconds"] > 0
    assert record["epochs"][-1]["valid"]["Loss"] == pytest.approx(record["epochs"][-1]["valid"]["MAE"], abs=1e-4)


def test_mmsas_table_gets_its_row(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    first = do("toy", tiny, folders, seeds=[7, 8])
    do("toy", tiny, folders, seeds=[7, 8])
    assert first.csv == folders["res_save_dir"] / "normal" / "synthetic.csv"
    with first.csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["Model", "Has0_acc_2", "Has0_F1_score", "Non0_acc_2", "Non0_F1_score", "Mult_acc_5",
                             "Mult_acc_7", "MAE", "Corr", "Loss"]
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert rows[0]["Model"] == "toy"
    maes = [record["test"]["MAE"] for record in first.records]
    assert ast.literal_eval(rows[0]["MAE"]) == (round(np.mean(maes) * 100, 2), round(np.std(maes) * 100, 2))


def test_the_spread_is_the_population_standard_deviation_and_gaps_stay_gaps() -> None:
    records = [{"test": {"MAE": 1.0, "Corr": 0.5}}, {"test": {"MAE": 2.0, "Corr": None}}]
    assert summarise(records) == {"MAE": {"mean": 1.5, "std": 0.5}, "Corr": {"mean": None, "std": None}}


def test_records_hold_plain_numbers() -> None:
    values = {"a": np.float32(0.5), "b": (np.int64(3), float("nan"), float("inf")), "c": Path("x"), "d": True,
              "e": None}
    assert plain(values) == {"a": 0.5, "b": [3, None, None], "c": "x", "d": True, "e": None}
    assert type(plain(np.int64(3))) is int
    assert type(plain(1.0)) is float


def test_constant_predictions_give_a_record_without_correlation(
    tiny: Path, folders: dict[str, Path], toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness_toy

    def constant(self: Any, text: Any, audio: Any, vision: Any) -> dict[str, Any]:
        return {"M": 0 * self.head.weight.sum() + torch.ones(len(text), 1)}

    monkeypatch.setattr(harness_toy.Toy, "forward", constant)
    outcome = do("toy", tiny, folders)
    assert outcome.records[0]["test"]["Corr"] is None
    assert outcome.summary["Corr"] == {"mean": None, "std": None}
    assert "nan" in outcome.csv.read_text()


def test_log_lines_appear_once_however_many_runs(
    tiny: Path, folders: dict[str, Path], toy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for expected in (1, 2):
        run(prepare("toy", "synthetic", feature_file=tiny, seeds=[7], device="cpu", overrides={"epochs": 1}, **folders))
        printed = capsys.readouterr()
        assert printed.err.count("seed 7 (1 of 1)") == 1
        assert printed.out == ""
        assert (folders["log_dir"] / "toy-synthetic.log").read_text().count("seed 7 (1 of 1)") == expected
        assert logging.getLogger("MMSA").handlers == []


def test_mistakes_are_found_before_anything_is_written(tiny: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    bad = tmp_path.parent / "not_a_pickle.pkl"
    bad.write_text("hello")
    for model, file, overrides in (("lmf", bad, {}), ("lmf", tiny, {"KeyEval": "MAEE"}), ("tfr_net", tiny, {})):
        with pytest.raises(InputError):
            do(model, file, folders, overrides=overrides)
    assert sorted(tmp_path.iterdir()) == before


def test_files_that_replace_a_modality_are_read_and_recorded(
    tiny: Path, folders: dict[str, Path], toy: str, tmp_path: Path
) -> None:
    from mmsa_decalign.data.synthetic import write_synthetic

    other = write_synthetic(tmp_path / "other.pkl", layout="mosi", samples=(33, 12, 17))
    (record,) = do("toy", tiny, folders, files={"audio": str(other)}).records
    assert record["settings"]["feature_dims"][1] == 5  # the width of MOSI's audio
    assert record["features"]["replaced"] == {"audio": hashlib.sha256(other.read_bytes()).hexdigest()}


def test_seeds_default_and_repeat() -> None:
    assert prepare("lmf", "mosi", feature_file=__file__).seeds == job.DEFAULT_SEEDS
    assert prepare("lmf", "mosi", feature_file=__file__, seeds=[3, 4, 3]).seeds == (3, 4)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize("model", ["lf_dnn", "lmf"])
def test_baselines_reach_their_known_level_on_real_features(
    model: str, real_fold: Any, folders: dict[str, Path]
) -> None:
    outcome = do(model, real_fold(0), folders, dataset="mosi", seeds=[1111])
    assert outcome.summary["Non0_acc_2"]["mean"] > 0.65
    assert outcome.summary["MAE"]["mean"] < 1.2


def test_a_record_of_decalign_holds_every_setting(tiny: Path, folders: dict[str, Path]) -> None:
    record = do("decalign", tiny, folders, seeds=[7], overrides={"num_epochs": 1}).records[0]
    assert set(Settings.names()) <= set(record["settings"]) | {"train_mode"}


def test_a_second_run_keeps_the_first_ones_checkpoint(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    first, second = (do("toy", tiny, folders, seeds=[7]).records[0]["checkpoint"] for _ in range(2))
    assert first != second
    assert Path(first).is_file()
    assert Path(second).is_file()


@pytest.mark.parametrize("option", ["model_save_dir", "res_save_dir", "log_dir"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    option: str, tiny: Path, folders: dict[str, Path], tmp_path: Path, toy: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} .* is no folder that can be written"):
        do("toy", tiny, {**folders, option: tmp_path / "file" / "deeper"}, seeds=[7])
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("model", ["toy", "lf_dnn"])
def test_neutral_labels_alone_leave_a_gap_and_say_so(
    model: str, tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    data = pickle.loads(tiny.read_bytes())
    for split in ("valid", "test"):
        data[split]["regression_labels"] = data[split]["regression_labels"] * 0
    neutral = folders["log_dir"].with_name("neutral.pkl")
    neutral.write_bytes(pickle.dumps(data))
    (record,) = do(model, neutral, folders, seeds=[7], overrides={"max_epochs": 1}).records
    gaps = {name for name, value in record["test"].items() if value is None}
    assert gaps == {"Non0_acc_2", "Non0_F1_score", "Corr"}
    assert record["test"]["MAE"] > 0
    log = (folders["log_dir"] / f"{model}-synthetic.log").read_text()
    assert "split 'test' has only neutral labels (0)" in log
    assert "Non0_acc_2 on the test split is not a number: no label but 0" in log


@pytest.mark.parametrize("model", ["toy", "lf_dnn"])
@pytest.mark.parametrize(("label", "metric", "reason"), [
    (0.0, "Corr", "only neutral labels"), (0.0, "Non0_acc_2", "only neutral labels"),
    (1.5, "Corr", "no two labels that differ"),
])
def test_a_metric_that_no_epoch_could_have_is_refused_before_training(
    model: str, label: float, metric: str, reason: str, tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    data = pickle.loads(tiny.read_bytes())
    data["valid"]["regression_labels"][:] = label
    constant = folders["log_dir"].with_name("constant.pkl")
    constant.write_bytes(pickle.dumps(data))
    with pytest.raises(InputError, match=f"split 'valid' has {reason}.* KeyEval={metric} has no value"):
        do(model, constant, folders, seeds=[7], overrides={"KeyEval": metric})
    assert not folders["model_save_dir"].exists()


def test_labels_beyond_the_scale_of_the_metrics_are_named(
    tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    do("toy", tiny, folders, dataset="sims", seeds=[7])
    log = (folders["log_dir"] / "toy-sims.log").read_text()
    assert "the metrics of sims clip labels and predictions to [-1, 1]" in log
    do("toy", tiny, folders, seeds=[7])
    assert "clip" not in (folders["log_dir"] / "toy-synthetic.log").read_text()


def test_a_table_with_other_columns_loses_nothing(tiny: Path, folders: dict[str, Path], toy: str) -> None:
    table = folders["res_save_dir"] / "normal" / "synthetic.csv"
    table.parent.mkdir(parents=True)
    table.write_text("Model,Other\nx,1\n")
    outcome = do("toy", tiny, folders, seeds=[7])
    assert outcome.csv is None
    assert outcome.record_paths[0].is_file()
    assert table.read_text() == "Model,Other\nx,1\n"
