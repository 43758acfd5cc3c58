"""Data sets of classes: every model that can, its loss and metrics, both split protocols, and every refusal."""

from __future__ import annotations

import copy
import csv
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easydict import EasyDict
from harness_matrix import small_settings, write_encoder, write_features
from torch.nn import functional

from mmsa_decalign.cli import main
from mmsa_decalign.data.reading import read_features
from mmsa_decalign.data.synthetic import VOCABULARY, make_synthetic, write_synthetic
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import runner
from mmsa_decalign.harness.catalogue import catalogue
from mmsa_decalign.harness.classification import class_metrics
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.conformance import check_model
from mmsa_decalign.harness.datasets import make_loaders, make_splits
from mmsa_decalign.harness.metrics import direction, metric_rules
from mmsa_decalign.harness.needs import CLASSIFIES, why_no_classes
from mmsa_decalign.harness.probe import Trial, batches_of
from mmsa_decalign.harness.registry import active
from mmsa_decalign.tune.result import document
from mmsa_decalign.tune.search import tune_job

NAMES = ["happy", "sad", "neutral", "angry", "excited", "frustrated"]
SAMPLES = (65, 24, 31)  # 65 in batches of 32 leaves one sample over


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("classes") / "six.pkl", layout="iemocap", samples=SAMPLES)


@pytest.fixture(scope="session")
def with_tokens(six: Path) -> Path:
    """The same with token ids of eight steps, for models that read nothing else."""
    data = pickle.loads(six.read_bytes())
    for name in ("train", "valid", "test"):
        rows = len(data[name]["id"])
        tokens = np.zeros((rows, 3, 8), np.int64)
        tokens[:, 0], tokens[:, 1] = np.random.default_rng(0).choice(list(VOCABULARY.values()), (rows, 8)), 1
        data[name]["text_bert"] = tokens
    path = six.with_name("tokens.pkl")
    path.write_bytes(pickle.dumps(data))
    return path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def changed(path: Path, change: Callable[[dict[str, Any]], None], to: Path) -> Path:
    data = pickle.loads(path.read_bytes())
    change(data)
    to.write_bytes(pickle.dumps(data))
    return to


def do(model: str, path: Path, folders: dict[str, Path], dataset: str = "iemocap", **more: Any) -> runner.Outcome:
    settings = {"num_epochs": 1} if model == "decalign" else {**small_settings(model), "batch_size": 32}
    overrides = {**settings, **more.pop("overrides", {})}
    return runner.run(runner.prepare(model, dataset, feature_file=path, overrides=overrides, device="cpu",
                                     **{"seeds": [1], "verbose": 0, **folders, **more}))


def command(path: Path, folders: dict[str, Path], *more: str, model: str = "lf_dnn", dataset: str = "iemocap") -> int:
    places = [f"--{name.removesuffix('_dir').replace('_', '-')}-dir={folder}" for name, folder in folders.items()]
    epochs = "num_epochs=1" if model == "decalign" else "max_epochs=1"
    return main(["-m", model, "-d", dataset, "--feature-file", str(path), "-s", "1", "--device", "cpu",
                 "--set", epochs, *places, *more])


# Which models can


@pytest.fixture(scope="session")
def emitting(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> set[str]:
    """Those of MMSA's models that have something of seven outputs when they are built for seven classes."""
    import MMSA.run

    folder, found = tmp_path_factory.mktemp("built"), set()
    with active():
        for name, model in catalogue().models.items():
            if model.plugin is not None:
                continue
            dataset = "mosi" if "mosi" in model.section["datasetParams"] else "sims"
            settings = copy.deepcopy(resolve(name, dataset, overrides=small_settings(name)).settings)
            aligned = dataset == "mosi" and bool(settings.get("need_data_aligned"))
            args = EasyDict({**settings, "train_mode": "classification", "num_classes": 7, "device": "cpu",
                             "pretrained": str(encoder)})
            splits = make_splits(settings, read_features(write_features(folder, dataset, aligned=aligned)))
            make_loaders(args, splits, seed=1)
            built = MMSA.run.AMIO(args)
            if any(7 in parameter.shape for parameter in built.parameters()):
                found.add(name)
    return found


def test_which_of_mmsas_models_emit_classes(emitting: set[str]) -> None:
    learns_each_modality = {"mtfn", "mlmf", "mlf_dnn"}
    assert emitting == {*CLASSIFIES, *learns_each_modality, "mmim"}
    models = catalogue().models
    for name, model in models.items():
        assert (why_no_classes(model) is None) == (name in CLASSIFIES or model.plugin is not None)
    assert all("label of each modality" in str(why_no_classes(models[name])) for name in learns_each_modality)


def test_mmims_trainer_has_no_loss_for_classes(with_tokens: Path, encoder: Path, tmp_path: Path) -> None:
    """The one model that could, alone: its trainer hands labels (N, 1) to the cross entropy."""
    import MMSA.run

    settings = {**resolve("misa", "iemocap").settings, **resolve("mmim", "mosi").settings, "pretrained": str(encoder),
                "train_mode": "classification", "num_classes": 6, "label_names": NAMES, "dataset_name": "iemocap"}
    args = EasyDict({**settings, "device": torch.device("cpu"), "cur_seed": 1, "model_save_path": tmp_path / "x.pth"})
    loaders = make_loaders(args, make_splits(args, read_features(with_tokens)), seed=1)
    with active():
        model = MMSA.run.AMIO(args)
        with pytest.raises(RuntimeError, match="0D or 1D target|multi-target|target"):
            MMSA.run.ATIO().getTrain(args).do_train(model, loaders)


def test_the_list_says_which_data_sets_have_classes_and_who_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    known = catalogue()
    for name, model in known.models.items():
        listed = set(model.datasets(known.datasets)) & {"iemocap", "iemocap4"}
        assert listed == ({"iemocap", "iemocap4"} if name in CLASSIFIES or name == "decalign" else set()), name
    assert main(["list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["classes"] for one in document["datasets"] if one["classes"]} == {
        "iemocap": NAMES, "iemocap4": NAMES[:4]}
    reasons = {one["name"]: one["no_classes"] for one in document["models"]}
    assert reasons["bert_mag"] == "its head has one output whatever the number of classes"
    assert reasons["lf_dnn"] is reasons["decalign"] is None
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "not for data sets of classes (iemocap, iemocap4):" in shown
    assert "bert_mag: its head has one output" in shown


def test_a_plugin_without_settings_for_classes_is_not_lent_any(toy: str) -> None:
    known = catalogue()
    assert "mosi" in known.models["toy"].section["datasetParams"]
    assert not {"iemocap", "iemocap4"} & set(known.models["toy"].datasets(known.datasets))
    with pytest.raises(InputError, match="model 'toy' has no settings for data set 'iemocap'"):
        resolve("toy", "iemocap")


# Settings


def test_decaligns_published_settings() -> None:
    settings = resolve("decalign", "iemocap").settings
    published = {
        "d_model": 48, "num_heads": 4, "nlevels": 4, "conv_kernel_sizes": [1, 1, 1], "num_prototypes": 6,
        "gmm_em_iters": 5, "ot_reg": 0.1, "attn_dropout": [0.2] * 3, "relu_dropout": 0.2, "embed_dropout": 0.2,
        "res_dropout": 0.2, "output_dropout": 0.2, "text_dropout": 0.2, "dec_loss_weight": 1.0, "alpha": 0.05,
        "beta": 0.05, "ct_weight": 0.0, "batch_size": 32, "learning_rate": 1e-4, "weight_decay": 0.005, "clip": 0.6,
        "num_epochs": 50, "early_stop": 5, "scheduler_patience": 5, "factor": 0.1, "KeyEval": "Weighted_F1",
        "need_feature_standardized": False, "use_bert": False, "train_mode": "classification", "num_classes": 6,
        "label_names": NAMES, "protocol": "session_valid", "feature_dims": [1024, 512, 1024], "seq_lens": [1, 1, 1],
    }
    assert {key: settings[key] for key in published} == published
    four = resolve("decalign", "iemocap4")
    assert four.settings_of == "iemocap"
    differing = {key for key in settings if settings[key] != four.settings[key]}
    assert differing == {"dataset_name", "num_classes", "label_names"}
    assert four.settings["label_names"] == NAMES[:4]


@pytest.mark.parametrize("model", CLASSIFIES)
def test_baselines_take_their_settings_for_mosi(model: str) -> None:
    mosi, lent = resolve(model, "mosi").settings, resolve(model, "iemocap")
    assert lent.settings_of == "mosi"
    assert (lent.settings["KeyEval"], lent.settings["train_mode"]) == ("Weighted_F1", "classification")
    of_the_data = {"dataset_name", "seq_lens", "feature_dims", "num_classes", "KeyEval", "train_samples"}
    one_step = {f"conv1d_kernel_size_{letter}" for letter in "lav"}
    for key in set(mosi) - of_the_data - one_step:
        assert lent.settings[key] == mosi[key], key
    assert all(lent.settings[key] == 1 for key in one_step & set(lent.settings))


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "sims", "synthetic"])
def test_other_data_sets_have_nothing_of_this(dataset: str) -> None:
    for model in ("decalign", "lf_dnn"):
        settings = resolve(model, dataset).settings
        assert not {"train_mode", "label_names", "protocol"} & set(settings)
    assert "WA" not in metric_rules(dataset)


# Training


@pytest.mark.parametrize("model", ["decalign", *CLASSIFIES])
def test_it_trains_and_tests(
    model: str, six: Path, with_tokens: Path, encoder: Path, folders: dict[str, Path]
) -> None:
    reads_tokens = model == "misa"
    outcome = do(model, with_tokens if reads_tokens else six, folders,
                 pretrained=str(encoder) if reads_tokens else None)
    (record,) = outcome.records
    assert json.loads(outcome.record_paths[0].read_text())["id"] == record["id"]
    assert list(record["test"]) == ["WA", "UA", "Weighted_F1", *(f"F1_{name}" for name in NAMES), "Loss"]
    assert set(record["test"]) == set(record["metric_rules"]) == set(metric_rules("iemocap"))
    assert all(0 <= record["test"][name] <= 1 for name in ("WA", "UA", "Weighted_F1"))
    assert 0 < record["test"]["Loss"] < 10 * math.log(6)
    assert record["selection"]["metric"] == "Weighted_F1"
    assert (record["selection"]["mode"], record["selection"]["split"]) == ("max", "valid")
    assert record["settings_of"] == ("iemocap" if model == "decalign" else "mosi")
    assert record["settings"]["label_names"] == NAMES
    assert record["classification"]["labels"] == NAMES
    assert record["classification"]["protocol"] == "session_valid"
    assert record["classification"]["selected_on"] == "valid"
    state = torch.load(record["checkpoint"], weights_only=True)
    assert any(value.ndim and 6 in value.shape for value in state.values())


@pytest.mark.parametrize("model", ["decalign", "lf_dnn", "mfm"])
def test_the_loss_is_cross_entropy_and_the_metrics_are_those_of_the_predictions(
    model: str, six: Path, folders: dict[str, Path]
) -> None:
    small = {"num_epochs": 2} if model == "decalign" else {**small_settings(model), "max_epochs": 2}
    job = runner.prepare(model, "iemocap", feature_file=six, overrides={**small, "batch_size": 10}, seeds=[1],
                         device="cpu", verbose=0, **folders)
    with runner.session(job) as bars:
        trial = Trial(job, read_features(six), 1, job.resolved.settings).train(2, bars())
        split = trial.splits["test"]
        scores = trial.predict(batches_of(split, 10))
    labels = split.labels["M"].flatten()
    assert labels.dtype == torch.int64
    assert scores.shape == (31, 6)
    assert trial.record["test"]["Loss"] == pytest.approx(float(functional.cross_entropy(scores, labels)), abs=1e-4)
    expected = class_metrics(NAMES)(scores, labels)
    for name, value in expected.items():
        found = trial.record["test"][name]
        assert found is None if math.isnan(value) else found == pytest.approx(value), name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["decalign", "lf_dnn", "mfm", "mult"])
def test_it_learns_and_conforms(model: str) -> None:
    names = ["trains", "loss falls", "saves the best epoch", "shape of predictions", "checkpoint in a new process"]
    report = check_model(model, "iemocap", names=names)
    assert report.conforms, report.results


def test_class_weights_of_decalign(six: Path, folders: dict[str, Path]) -> None:
    plain = do("decalign", six, folders).records[0]["epochs"][0]["train"]["task"]
    balanced = do("decalign", six, folders, overrides={"class_weights": "balanced"}).records[0]
    assert balanced["epochs"][0]["train"]["task"] != plain


# Metrics


def test_metrics_by_hand() -> None:
    """Labels 0 0 0 1 1 2, told 0 0 1 1 0 2; class 3 is neither there nor told."""
    told = torch.tensor([0, 0, 1, 1, 0, 2])
    figures = class_metrics(["a", "b", "c", "d"])(functional.one_hot(told, 4).float(), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert figures["WA"] == pytest.approx(4 / 6)
    assert figures["UA"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    f1 = {"a": 2 * 2 / (3 + 3), "b": 2 * 1 / (2 + 2), "c": 1.0}
    assert {name: figures[f"F1_{name}"] for name in "abc"} == pytest.approx(f1)
    assert math.isnan(figures["F1_d"])
    assert figures["Weighted_F1"] == pytest.approx((3 * f1["a"] + 2 * f1["b"] + 1 * f1["c"]) / 6)


def test_a_class_that_is_told_and_not_there_has_f1_zero() -> None:
    figures = class_metrics(["a", "b"])(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))
    assert (figures["F1_b"], figures["UA"], figures["WA"]) == (0.0, 0.5, 0.5)


def test_weighted_accuracy_is_the_accuracy_that_the_release_calls_so() -> None:
    """Plain accuracy, and recalls weighted by frequency: one number; UA is another."""
    rng = np.random.default_rng(0)
    labels, scores = torch.from_numpy(rng.integers(0, 6, 90)), torch.from_numpy(rng.standard_normal((90, 6)))
    figures = class_metrics(NAMES)(scores, labels)
    right = scores.argmax(dim=1) == labels
    recalls = [float(right[labels == k].float().mean()) for k in range(6)]
    weights = [float((labels == k).float().mean()) for k in range(6)]
    assert figures["WA"] == pytest.approx(float(right.float().mean()))
    assert figures["WA"] == pytest.approx(sum(r * w for r, w in zip(recalls, weights, strict=True)))
    assert figures["UA"] == pytest.approx(sum(recalls) / 6)
    rules = metric_rules("iemocap")
    assert "WAcc" in rules["WA"]
    assert "share of all samples" in rules["WA"]
    assert "mean of the recalls" in rules["UA"]
    assert "WAF1" in rules["Weighted_F1"]
    assert {name: direction(name) for name in rules} == {**dict.fromkeys(rules, "max"), "Loss": "min"}


def test_the_majority_row(six: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    splits = read_features(six).splits
    most = int(np.bincount(splits["train"].classes).argmax())
    share = float((splits["test"].classes == most).mean())
    assert command(six, folders, "-v", "0") == 0
    shown = capsys.readouterr().out
    assert "always" in shown
    assert f"label set (6 classes): {', '.join(NAMES)}" in shown
    assert f"always {NAMES[most]}: what saying '{NAMES[most]}' of every sample gets" in " ".join(shown.split())
    row = next(line for line in shown.splitlines() if " WA " in line)
    assert row.split("│")[3].strip() == f"{share:.4f}"
    assert command(six, folders, "-v", "0", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    majority = document["classification"]["majority"]
    assert majority["class"] == NAMES[most]
    assert majority["test"]["WA"] == pytest.approx(share)
    assert majority["test"]["UA"] == pytest.approx(1 / len(set(splits["test"].classes.tolist())))
    f1 = 2 * share / (1 + share)
    assert majority["test"][f"F1_{NAMES[most]}"] == pytest.approx(f1)
    assert majority["test"]["Weighted_F1"] == pytest.approx(share * f1)
    counts = document["classification"]["samples"]
    assert list(counts["train"].values()) == np.bincount(splits["train"].classes, minlength=6).tolist()


def test_mmsas_table_has_the_metrics_of_classes(six: Path, folders: dict[str, Path]) -> None:
    outcome = do("lf_dnn", six, folders)
    with outcome.csv.open(newline="") as stream:
        header, row = csv.reader(stream)
    assert header == ["Model", *metric_rules("iemocap")]
    assert row[0] == "lf_dnn"


def test_a_search_is_scored_on_validation(six: Path, folders: dict[str, Path]) -> None:
    overrides = {**small_settings("lf_dnn"), "batch_size": 32, "post_fusion_dim": 16}
    job = runner.prepare("lf_dnn", "iemocap", feature_file=six, overrides=overrides, seeds=[1], device="cpu", verbose=0,
                         tuning=True, **folders)
    search = tune_job(job, 2)
    assert document(search)["scored_by"] == {"metric": "Weighted_F1", "mode": "max", "split": "valid"}
    assert len(search.trials) == 2
    assert all(0 <= trial["valid"]["Weighted_F1"] <= 1 for trial in search.trials)
    first, second = (trial["valid"]["Weighted_F1"] for trial in search.trials)
    assert first >= second


@pytest.mark.usefixtures("mmsa_run_cleanly")
def test_mmsas_own_function_trains_on_classes(six: Path, tmp_path: Path) -> None:
    import MMSA

    config = EasyDict({**small_settings("lf_dnn"), "early_stop": 1})
    with active():
        assert "IEMOCAP" in MMSA.SUPPORTED_DATASETS
        args = MMSA.get_config_regression("lf_dnn", "iemocap")
        args.update({**config, "custom_feature": str(six)})
        MMSA.MMSA_run("lf_dnn", "iemocap", config=EasyDict(args), seeds=[1], gpu_ids=[], num_workers=0,
                      model_save_dir=tmp_path, res_save_dir=tmp_path, log_dir=tmp_path)
    (table,) = tmp_path.rglob("iemocap.csv")
    assert "Weighted_F1" in table.read_text().splitlines()[0]


# Labels


def test_a_file_that_orders_its_classes_otherwise_is_brought_into_order(six: Path, tmp_path: Path) -> None:
    def turn(data: dict[str, Any]) -> None:
        for name in ("train", "valid", "test"):
            data[name]["classification_labels"] = 5 - data[name]["classification_labels"]
            data[name]["annotations"] = [one[:3] for one in data[name]["annotations"]]  # hap, sad, neu, ...

    turned = changed(six, turn, tmp_path / "turned.pkl")
    settings = resolve("lf_dnn", "iemocap").settings
    one, other = (make_splits(settings, read_features(path)) for path in (six, turned))
    for name in one:
        assert torch.equal(one[name].labels["M"], other[name].labels["M"])
        assert one[name].labels["M"].dtype == torch.int64


def test_a_file_without_names_is_taken_by_its_numbers_and_says_so(
    six: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    def unnamed(data: dict[str, Any]) -> None:
        for name in ("train", "valid", "test"):
            del data[name]["annotations"]

    bare = changed(six, unnamed, tmp_path / "bare.pkl")
    log = folders["log_dir"] / "lf_dnn-iemocap.log"
    one = do("lf_dnn", six, folders, verbose=1)
    assert "does not name its classes" not in log.read_text()
    other = do("lf_dnn", bare, folders, verbose=1)
    assert one.records[0]["test"] == other.records[0]["test"]
    assert "the file does not name its classes (key 'annotations'): taken for 0 happy, 1 sad" in log.read_text()


def test_a_class_that_the_test_split_lacks_has_no_figure(
    six: Path, tmp_path: Path, folders: dict[str, Path]
) -> None:
    def without_sad(data: dict[str, Any]) -> None:
        keep = [i for i, name in enumerate(data["test"]["annotations"]) if name != "sad"]
        data["test"] = {key: value[keep] if isinstance(value, np.ndarray) else [value[i] for i in keep]
                        for key, value in data["test"].items()}

    path = changed(six, without_sad, tmp_path / "x.pkl")
    record = do("decalign", path, folders, verbose=1).records[0]
    log = (folders["log_dir"] / "decalign-iemocap.log").read_text()
    assert "split 'test' has no sample of class 'sad'" in log
    assert "split 'valid' has no sample" not in log
    assert record["test"]["F1_sad"] in (None, 0.0)
    assert record["classification"]["majority"]["test"]["F1_sad"] is None


def spoiled(name: str, **keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key, value in keys.items():
            rows = len(data[name]["id"])
            data[name][key] = value(data[name]) if callable(value) else np.full(rows, value)

    return change


def relabelled(number: int, to: int) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for name in ("train", "valid", "test"):
            labels = data[name]["classification_labels"]
            labels[labels == number] = to
            data[name]["annotations"] = None

    return change


def unlabelled(data: dict[str, Any]) -> None:
    for name in ("train", "valid", "test"):
        del data[name]["classification_labels"]
        data[name]["regression_labels"] = np.zeros(len(data[name]["id"]))


def named_twice(data: dict[str, Any]) -> None:
    for name in ("train", "valid", "test"):
        data[name]["annotations"] = [one.replace("excited", "happiness") for one in data[name]["annotations"]]


def named_otherwise_in_valid(data: dict[str, Any]) -> None:
    turned = {"sad": "angry", "angry": "sad"}
    data["valid"]["annotations"] = [turned.get(one, one) for one in data["valid"]["annotations"]]


def strangely_named(data: dict[str, Any]) -> None:
    data["valid"]["annotations"] = [one.replace("sad", "bored") for one in data["valid"]["annotations"]]


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("iemocap4", relabelled(-1, -1), "has the class 4 in sample 'synthetic-train-"),
        ("iemocap4", lambda data: None, "calls the class 4 'excited'; data set 'iemocap4' has happy, sad"),
        ("iemocap", relabelled(5, 4), "split 'train' has no sample of class 'frustrated'"),
        ("iemocap", relabelled(5, 7), "has the class 7 in sample"),
        ("iemocap", relabelled(5, -1), "key 'classification_labels' holds -1"),
        ("iemocap", spoiled("train", classification_labels=lambda split: split["annotations"]), "has dtype <U"),
        ("iemocap", strangely_named, "split 'valid' calls the class 1 'bored'; data set"),
        ("iemocap", named_otherwise_in_valid, "split 'valid' calls the class 1 'angry', and another split 'sad'"),
        ("iemocap", named_twice, "two classes are called 'happy'"),
        ("iemocap", unlabelled, "has no key 'classification_labels'"),
        ("mosi", lambda data: None, "has classes and no key 'regression_labels', which data set 'mosi' is about"),
    ],
)
def test_files_that_do_not_fit(
    dataset: str, change: Callable[[dict[str, Any]], None], message: str, six: Path, tmp_path: Path,
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str],
) -> None:
    path = changed(six, change, tmp_path / "x.pkl")
    assert command(path, folders, dataset=dataset) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) <= 2
    assert message in " ".join(said)
    assert str(path) in said[0]


@pytest.mark.parametrize(
    ("model", "dataset", "more", "message"),
    [
        *((model, "iemocap", (), f"model '{model}' cannot be trained on the classes of data set 'iemocap': ")
          for model in ("bert_mag", "tfr_net", "mctn", "self_mm", "mmim", "mtfn", "mlmf", "mlf_dnn")),
        ("misa", "iemocap", ("--pretrained", "PLACE"), "needs token ids"),
        ("lf_dnn", "iemocap", ("--set", "num_classes=4"), "data set 'iemocap' has 6 classes"),
        ("decalign", "iemocap", ("--set", "num_classes=4"), "data set 'iemocap' has 6 classes"),
        ("lf_dnn", "iemocap", ("--set", "label_names=[1]"), "unknown setting 'label_names'"),
        ("lf_dnn", "mosi", ("--set", "train_mode=classification"), "classes are for -d iemocap"),
        ("lf_dnn", "iemocap", ("--set", "KeyEval=MAE"), "KeyEval='MAE': no metric of iemocap"),
        ("lf_dnn", "mosi", ("--set", "KeyEval=WA"), "KeyEval='WA': no metric of mosi"),
        ("lf_dnn", "iemocap", ("--protocol", "paper"), "protocol='paper': expected one of session_valid, paper_count"),
        ("lf_dnn", "mosi", ("--protocol", "paper_count"), "unknown setting 'protocol' for data set 'mosi'"),
        ("decalign", "mosi", ("--protocol", "session_valid"), "unknown setting 'protocol' for data set 'mosi'"),
        ("lf_dnn", "iemocap", ("--protocol", "paper_count", "-t"), "would score every trial on the test split"),
    ],
)
def test_what_is_refused_before_training(
    model: str, dataset: str, more: tuple[str, ...], message: str, six: Path, encoder: Path, folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(encoder) if one == "PLACE" else one for one in more]
    assert command(six, folders, *given, model=model, dataset=dataset) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert not list(folders["model_save_dir"].glob("*"))


def test_a_choice_by_a_class_that_validation_lacks(
    six: Path, tmp_path: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def without_happy(data: dict[str, Any]) -> None:
        data["valid"]["classification_labels"] = np.maximum(data["valid"]["classification_labels"], 1)
        data["valid"]["annotations"] = [NAMES[k] for k in data["valid"]["classification_labels"]]

    path = changed(six, without_happy, tmp_path / "x.pkl")
    assert command(path, folders, "--set", "KeyEval=F1_happy") == 2
    assert "split 'valid' has no sample of class 'happy'" in capsys.readouterr().err
    assert command(path, folders, "--set", "KeyEval=F1_sad", "-v", "0") == 0


def test_where_the_file_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "lf_dnn", "-d", "iemocap4", "--data-root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "IEMOCAP" / "iemocap4_data.pkl") in said
    assert "mmsa data synth iemocap4.pkl --layout iemocap4" in said


# Protocols


@pytest.mark.parametrize("model", ["decalign", "lf_dnn"])
def test_paper_count_is_marked_everywhere(
    model: str, six: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(six, folders, "--protocol", "paper_count", model=model) == 0
    taken = capsys.readouterr()
    assert "SELECTED ON TEST: protocol paper_count trains on train and valid together" in " ".join(taken.err.split())
    assert f"{model} (selected on test) on iemocap" in " ".join(taken.out.split())
    shown = " ".join(taken.out.split())
    assert "SELECTED ON TEST: the checkpoint has the highest Weighted_F1 of the test split" in shown
    assert "test split read once" not in taken.out
    assert f"train with valid/test {SAMPLES[0] + SAMPLES[1]}/{SAMPLES[2]}" in taken.out
    assert "train/valid/test" not in taken.out
    assert "What the lines of the training call valid or VAL is the test split" in " ".join(taken.err.split())
    assert command(six, folders, "--protocol", "paper_count", "--json", "-v", "0", model=model) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["classification"]["selected_on"] == "test"
    (record,) = document["runs"]
    assert record["selection"]["split"] == "test"
    assert record["classification"]["protocol"] == record["settings"]["protocol"] == "paper_count"
    assert record["overrides"]["protocol"] == "paper_count"
    chosen = record["epochs"][record["selection"]["epoch"] - 1]["valid"]
    assert chosen["WA"] == pytest.approx(record["test"]["WA"])  # what it was chosen by is what it reports
    with Path(document["csv"]).open(newline="") as stream:
        assert {row["Model"] for row in csv.DictReader(stream)} == {f"{model} (selected on test)"}


def test_the_protocol_of_the_file_is_the_default_and_unmarked(
    six: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(six, folders) == 0
    taken = capsys.readouterr()
    assert "selected on test" not in (taken.out + taken.err).lower()
    assert "test split read once" in taken.out


@pytest.mark.parametrize(("option", "words"), [
    ("--missing-train", " with the gaps of training (text=0.5)"), ("--missing", " without gaps")])
def test_paper_count_says_with_which_gaps_it_chose(
    option: str, words: str, six: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(six, folders, "--protocol", "paper_count", option, "text=0.5", "-v", "0") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the highest Weighted_F1 of the test split{words} (epoch 1)" in shown
    assert f"of {SAMPLES[2]} valid samples" not in shown
    absent = (f"absent of {SAMPLES[0] + SAMPLES[1]} train with valid samples, by seed: text",
              f"absent of {SAMPLES[2]} test samples while the checkpoint was chosen, by seed: text")
    assert [one in shown for one in absent] == [option == "--missing-train"] * 2


def test_paper_count_joins_train_and_valid(six: Path) -> None:
    features = read_features(six)
    own = make_splits(resolve("lf_dnn", "iemocap").settings, features)
    paper = make_splits(resolve("lf_dnn", "iemocap", overrides={"protocol": "paper_count"}).settings, features)
    assert paper["train"].ids == own["train"].ids + own["valid"].ids
    assert torch.equal(paper["train"].labels["M"], torch.cat([own["train"].labels["M"], own["valid"].labels["M"]]))
    for modality in ("text", "audio", "vision"):
        joined = torch.cat([own["train"].tensors[modality], own["valid"].tensors[modality]])
        assert torch.equal(paper["train"].tensors[modality], joined)
    assert paper["valid"].ids == paper["test"].ids == own["test"].ids
    assert torch.equal(paper["valid"].labels["M"], own["test"].labels["M"])


def test_splits_of_different_lengths_are_joined_with_padding_at_the_end(tmp_path: Path) -> None:
    data = make_synthetic(layout="iemocap4", samples=(40, 12, 12))
    for name, steps in (("train", 2), ("valid", 3), ("test", 3)):
        for modality in ("text", "audio", "vision"):
            data[name][modality] = np.repeat(data[name][modality], steps, axis=1)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(data))
    settings = resolve("ef_lstm", "iemocap4", overrides={"protocol": "paper_count"}).settings
    train = make_splits(settings, read_features(path))["train"]
    assert train.tensors["audio"].shape[:2] == (52, 3)
    assert not train.tensors["audio"][:40, 2].any()
    assert train.lengths["audio"].tolist() == [2] * 40 + [3] * 12
