"""Faults of plain MMSA that give a wrong number without a word: each is shown on MMSA, and absent through `mmsa`.

"Plain" is MMSA with nothing but the patch that lets it start on a CPU.
"""

from __future__ import annotations

import csv
import json
import logging
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from harness_matrix import write_encoder

from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import InputError, Interrupted, RunError
from mmsa_decalign.harness import training
from mmsa_decalign.harness.compat import PATCHES, View, replace
from mmsa_decalign.harness.registry import active
from mmsa_decalign.harness.runner import prepare, run

BY_NAME = {patch.name: patch for patch in PATCHES}


@pytest.fixture(scope="module")
def mosi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("mosi") / "mosi.pkl", samples=(32, 21, 12))


@pytest.fixture
def plain(mmsa_run_cleanly: None) -> Iterator[Callable[..., Path]]:
    """``MMSA_run`` of lf_dnn; returns the table it wrote."""
    import MMSA

    def do(features: Path, folder: Path, *, seeds: tuple[int, ...] = (7,), **options: Any) -> Path:
        config = {"batch_size": 16, "early_stop": 1, **options.pop("config", {})}
        MMSA.MMSA_run("lf_dnn", "mosi", config=config, seeds=list(seeds), custom_feature=str(features), gpu_ids=[],
                      num_workers=0, verbose_level=0, model_save_dir=folder / "models", res_save_dir=folder / "results",
                      log_dir=_made(folder / "logs"), **options)
        return folder / "results" / "normal" / "mosi.csv"

    undo = BY_NAME["set_device_on_cpu"].apply()
    yield do
    undo()


def ours(features: Path, folders: dict[str, Path], model: str = "lf_dnn", **options: Any) -> Any:
    overrides = {"batch_size": 16, "early_stop": 1, **options.pop("overrides", {})}
    return run(prepare(model, "mosi", feature_file=features, device="cpu", verbose=0, overrides=overrides,
                       **{"seeds": [7], **folders, **options}))


def trainer_of(features: Path, checkpoint: Path, model: str = "lf_dnn", **settings: Any) -> tuple[Any, Any, Any]:
    """MMSA's own model, trainer and loaders, as ``MMSA_run`` makes them."""
    import MMSA.run

    args = MMSA.run.get_config_regression(model, "mosi")
    args.update(EasyDict(device=torch.device("cpu"), train_mode="regression", custom_feature=str(features),
                         feature_T="", feature_A="", feature_V="", cur_seed=1, model_save_path=checkpoint,
                         batch_size=16, **settings))
    MMSA.run.setup_seed(7)
    loaders = MMSA.run.MMDataLoader(args, 0)
    return MMSA.run.AMIO(args), MMSA.run.ATIO().getTrain(args), loaders


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def metric(table: Path, name: str) -> list[str]:
    with table.open(newline="") as stream:
        return [row[name] for row in csv.DictReader(stream)]


def test_an_older_checkpoint_is_tested_when_the_loss_is_not_a_number(
    plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    good = metric(plain(mosi, tmp_path, seeds=(7,)), "MAE")
    (tmp_path / "results" / "normal" / "mosi.csv").unlink()
    diverged = {"learning_rate": 1e30}
    assert metric(plain(mosi, tmp_path, seeds=(8,), config=diverged), "MAE") == good
    ours(mosi, folders)
    with pytest.raises(RunError, match="a prediction is not a number"):
        ours(mosi, folders, seeds=[8], overrides=diverged)
    assert len(list((folders["res_save_dir"] / "runs").iterdir())) == 1


def test_a_model_that_predicts_no_numbers_has_an_accuracy(
    plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    diverged = {"learning_rate": 1e30, "KeyEval": "Has0_acc_2"}
    table = plain(mosi, tmp_path, config=diverged)
    assert "nan" in metric(table, "MAE")[0]
    assert "nan" not in metric(table, "Has0_acc_2")[0]
    with pytest.raises(RunError, match="a prediction is not a number"):
        ours(mosi, folders, overrides=diverged)


@pytest.mark.parametrize("model", ["mult", "misa", "self_mm"])
def test_an_optimiser_never_steps_with_fewer_batches_than_update_epochs(
    model: str, mosi: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    settings = {"update_epochs": 5, "early_stop": 1, **({"nlevels": 1} if model == "mult" else {})}  # two batches
    if model != "mult":
        settings["pretrained"] = str(write_encoder(tmp_path / "encoder"))
    with active():
        built, trainer, loaders = trainer_of(mosi, tmp_path / "x.pth", model, **settings)
        before = {name: value.clone() for name, value in built.named_parameters()}
        trainer.do_train(built, loaders)
    for name, value in built.named_parameters():
        assert torch.equal(value, before[name]), name
    trained = ours(mosi, folders, model, overrides={**settings, "max_epochs": 2}).records[0]
    state = torch.load(trained["checkpoint"], weights_only=True)
    moved = [name for name, value in before.items() if not torch.equal(value, state[name])]
    assert len(moved) > len(before) / 2


def test_valid_and_test_are_shuffled(mosi: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    from mmsa_decalign.data.reading import read_features
    from mmsa_decalign.harness.datasets import make_loaders, make_splits

    _, _, loaders = trainer_of(mosi, tmp_path / "x.pth")
    features = read_features(mosi)
    args = {"model_name": "lf_dnn", "batch_size": 16}
    mended = make_loaders(args, make_splits(args, features), seed=7)
    for split in ("valid", "test"):
        in_the_file = features.splits[split].ids
        assert [one for batch in loaders[split] for one in batch["id"]] != in_the_file
        assert [one for batch in mended[split] for one in batch["id"]] == in_the_file


def test_the_loss_is_a_mean_of_batch_means(mosi: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    model, trainer, loaders = trainer_of(mosi, tmp_path / "x.pth")
    torch.manual_seed(0)
    results = trainer.do_test(model, loaders["valid"])  # 16 samples and 5
    assert abs(results["Loss"] - results["MAE"]) > 1e-3  # this model's loss is the mean absolute error
    for epoch in ours(mosi, folders, overrides={"max_epochs": 3}).records[0]["epochs"]:
        assert epoch["valid"]["Loss"] == pytest.approx(epoch["valid"]["MAE"], abs=1e-4)


def test_the_largest_error_is_kept(mosi: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    model, trainer, loaders = trainer_of(mosi, tmp_path / "x.pth", KeyEval="MAE", early_stop=4, learning_rate=0.05)
    errors = []
    original = trainer.do_test

    def do_test(*args: Any, **kwargs: Any) -> Any:
        results = original(*args, **kwargs)
        errors.append(results["MAE"])
        return results

    trainer.do_test = do_test
    trainer.do_train(model, loaders)
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True))
    assert original(model, loaders["valid"])["MAE"] == max(errors) > min(errors)

    record = ours(mosi, folders, overrides={"KeyEval": "MAE", "early_stop": 4, "learning_rate": 0.05}).records[0]
    errors = [epoch["valid"]["MAE"] for epoch in record["epochs"]]
    assert record["selection"] == {"metric": "MAE", "mode": "min", "split": "valid", "value": min(errors),
                                   "epoch": 1 + errors.index(min(errors))}
    assert len(errors) > 4


def test_a_search_is_scored_on_the_test_split(
    plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from MMSA.trains.singleTask.LF_DNN import LF_DNN

    from mmsa_decalign.tune.search import tune_job

    read, original = [], LF_DNN.do_test

    def do_test(self: Any, model: Any, loader: Any, mode: str = "VAL", **more: Any) -> Any:
        read.append(mode)
        return original(self, model, loader, mode, **more)

    monkeypatch.setattr(LF_DNN, "do_test", do_test)
    plain(mosi, tmp_path, is_tune=True, tune_times=1)
    assert read[-1] == "TEST"
    read.clear()
    tune_job(prepare("lf_dnn", "mosi", feature_file=mosi, device="cpu", verbose=0, seeds=[7], tuning=True,
                 overrides={"max_epochs": 1}, **folders), 1)
    assert set(read) == {"VAL", "VALID"}


def test_seeds_share_one_checkpoint(plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    plain(mosi, tmp_path, seeds=(7, 8))
    assert len(list((tmp_path / "models").iterdir())) == 1
    records = ours(mosi, folders, seeds=[7, 8]).records
    assert len({record["checkpoint"] for record in records}) == 2
    assert len(list(folders["model_save_dir"].iterdir())) == 2


def test_ctrl_c_loses_the_finished_seeds(
    plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from MMSA.trains.singleTask.LF_DNN import LF_DNN

    original = LF_DNN.do_train

    def do_train(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.args.cur_seed == 2:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LF_DNN, "do_train", do_train)
    with pytest.raises(KeyboardInterrupt):
        plain(mosi, tmp_path, seeds=(7, 8))
    assert list((tmp_path / "results" / "normal").iterdir()) == []
    with pytest.raises(Interrupted, match="1 of 2 seeds finished"):
        ours(mosi, folders, seeds=[7, 8])
    (record,) = (folders["res_save_dir"] / "runs").iterdir()
    assert json.loads(record.read_text())["seed"] == 7


def test_the_table_loses_a_row_that_another_run_wrote_meanwhile(
    plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import MMSA.run
    import pandas

    from mmsa_decalign.harness import records

    def append(table: Path) -> None:
        lines = table.read_text().splitlines()
        table.write_text("\n".join([*lines, lines[-1].replace("lf_dnn", "other")]) + "\n")

    def read_csv(path: Path) -> Any:
        frame = pandas.read_csv(path).astype(object)
        append(Path(path))
        return frame

    plain(mosi, tmp_path)
    undo = replace(MMSA.run, "pd", View(pandas, read_csv=read_csv))
    try:
        assert metric(plain(mosi, tmp_path), "Model") == ["lf_dnn", "lf_dnn"]
    finally:
        undo()

    table = ours(mosi, folders).csv
    original = records.append_row

    def append_row(path: Path, *args: Any) -> None:
        append(path)
        original(path, *args)

    monkeypatch.setattr(records, "append_row", append_row)
    ours(mosi, folders)
    assert metric(table, "Model") == ["lf_dnn", "other", "lf_dnn"]


def test_log_handlers_pile_up(plain: Any, mosi: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    logger = logging.getLogger("MMSA")
    before = len(logger.handlers)
    for expected in (2, 4):
        plain(mosi, tmp_path / str(expected))
        assert len(logger.handlers) - before == expected
    with active():  # a user's own script after register()
        for number in range(2):
            plain(mosi, tmp_path / f"registered{number}")
        assert len(logger.handlers) - before == 4 + 2
    assert len(logger.handlers) - before == 4
    ours(mosi, folders)
    assert len(logger.handlers) - before == 4


def test_epochs_have_no_limit(
    mosi: Path, tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, trainer, loaders = trainer_of(mosi, tmp_path / "x.pth", early_stop=10**6)
    epochs, original = [], trainer.do_test

    def do_test(*args: Any, **kwargs: Any) -> Any:
        epochs.append(1)
        if len(epochs) == 200:
            raise StopIteration("still training")
        return original(*args, **kwargs)

    trainer.do_test = do_test
    with pytest.raises(StopIteration, match="still training"):
        trainer.do_train(model, loaders)
    monkeypatch.setattr(training, "MAX_EPOCHS", 3)
    record = ours(mosi, folders, overrides={"early_stop": 10**6}).records[0]
    assert len(record["epochs"]) == 3
    assert record["test"]["MAE"] > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_pass_into_training(
    bad: float, mosi: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    data = pickle.loads(mosi.read_bytes())
    data["train"]["vision"][3, 1, 2] = bad
    file = tmp_path / "bad.pkl"
    file.write_bytes(pickle.dumps(data))
    _, _, loaders = trainer_of(file, tmp_path / "x.pth", need_normalized=False)
    assert not np.isfinite(torch.cat([batch["vision"] for batch in loaders["train"]]).numpy()).all()
    with pytest.raises(InputError, match="vision"):
        ours(file, folders)


@pytest.mark.parametrize("change", ["order", "rows"])
def test_a_modality_of_other_samples_is_taken(
    change: str, mosi: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    data = pickle.loads(mosi.read_bytes())
    for split in ("train", "valid", "test"):
        rows = np.arange(len(data[split]["id"]))
        rows = rows[::-1] if change == "order" else np.append(rows, 0)
        for key, value in data[split].items():
            if hasattr(value, "__len__"):
                data[split][key] = [value[row] for row in rows] if isinstance(value, list) else value[rows]
    file = tmp_path / "other.pkl"
    file.write_bytes(pickle.dumps(data))

    import MMSA.data_loader
    import MMSA.run

    args = MMSA.run.get_config_regression("lf_dnn", "mosi")
    args.update(custom_feature=str(mosi), feature_T="", feature_A=str(file), feature_V="", train_mode="regression")
    taken = MMSA.data_loader.MMDataset(args, "train")
    right = pickle.loads(mosi.read_bytes())["train"]
    assert taken.ids == list(right["id"])
    assert len(taken.audio) != 32 or not np.allclose(taken.audio[0], right["audio"].mean(axis=1)[0])
    if change == "order":  # here rows are paired by id: the same sounds in another order change nothing
        paired, plain = ours(mosi, folders, files={"audio": str(file)}), ours(mosi, folders)
        assert paired.records[0]["test"] == plain.records[0]["test"]
        return
    with pytest.raises(InputError, match="other.pkl"):
        ours(mosi, folders, files={"audio": str(file)})
