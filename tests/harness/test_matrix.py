"""Every model of MMSA on every data set that MMSA has settings for: one epoch of training, a test, a record.

The list is read from MMSA's own file, so that none is forgotten, and the models are MMSA's own. Data, layers and text
encoder are small; what is asserted holds for every one of them.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_matrix import small_settings, write_encoder, write_features

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import runner, training
from mmsa_decalign.harness.catalogue import mmsa_config
from mmsa_decalign.harness.config import read_config, resolve

MMSA_SETTINGS = json.loads(mmsa_config("regression").read_text(encoding="utf-8"))
MODELS = {name: section for name, section in MMSA_SETTINGS.items() if name != "datasetCommonParams"}
CONFIGURATIONS = [(model, dataset) for model, section in MODELS.items() for dataset in section["datasetParams"]]
ONE_STEP = read_config("one_step")
# Weights that MMSA makes and that no epoch, or not the first one, changes; everything else must move.
POOLER = r"(text_model|bertmodel)\.model\.pooler\."  # the encoder's, whose output is not used
UNMOVED = {
    "tfn": [r"output_(range|shift)$"],  # constants
    "mtfn": [r"output_(range|shift)$", r"post_audio_layer_"],  # MMSA gives the audio task of SIMS the weight 0
    "lmf": [r"fusion_(weights|bias)$"],  # missing in the optimiser
    "mlmf": [r"fusion_(weights|bias)$"],
    "mfm": [r"mfn_encoder\.out_fc"],  # a head that is not used
    "misa": [POOLER, r"sp_discriminator", r"tlayer_norm"],  # their outputs are not in the loss
    "self_mm": [POOLER],
    "mmim": [POOLER, r"entropy_prj\.0\.bias$"],  # of which only a covariance is taken
    "mctn": [r"decoder.\.rnn\.weight_hh_"],  # the decoders start anew with zeros at every step
    "tfr_net": [POOLER, r"generator_.\.", r"trans_._final\."],  # they learn from the second epoch on
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``features(model, dataset)``: a file of the layout, aligned where the model wants that and the data set can."""
    folder, made = tmp_path_factory.mktemp("layouts"), {}

    def file(model: str, dataset: str) -> Path:
        aligned = settings_of(model, dataset).get("need_data_aligned", False)
        aligned = aligned and "aligned" in MMSA_SETTINGS["datasetCommonParams"][dataset]
        if (dataset, aligned) not in made:
            made[dataset, aligned] = write_features(folder, dataset, aligned=aligned)
        return made[dataset, aligned]

    return file


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The state of the model as it was before training."""
    state: dict[str, torch.Tensor] = {}
    original = training._build

    def build(*arguments: Any) -> tuple[Any, Any]:
        model, trainer = original(*arguments)
        state.update({name: value.clone() for name, value in model.named_parameters()})
        return model, trainer

    monkeypatch.setattr(training, "_build", build)
    return state


def settings_of(model: str, dataset: str) -> dict[str, Any]:
    return {**MODELS[model]["commonParams"], **MODELS[model]["datasetParams"][dataset]}


def test_mmsa_has_43_configurations_of_17_models() -> None:
    assert len(MODELS) >= 17
    assert len(CONFIGURATIONS) >= 43
    assert {"mosi", "mosei", "sims"} <= {dataset for _, dataset in CONFIGURATIONS}


@pytest.mark.parametrize(("model", "dataset"), CONFIGURATIONS)
def test_it_trains_and_tests(
    model: str, dataset: str, features: Callable[[str, str], Path], encoder: Path, folders: dict[str, Path],
    built: dict[str, torch.Tensor],
) -> None:
    reads_tokens = settings_of(model, dataset).get("use_bert", False)
    job = runner.prepare(model, dataset, feature_file=features(model, dataset), overrides=small_settings(model),
                         pretrained=str(encoder) if reads_tokens else None, seeds=[1], device="cpu", verbose=0,
                         **folders)
    outcome = runner.run(job)
    (record,) = outcome.records
    assert json.loads(outcome.record_paths[0].read_text())["id"] == record["id"]
    assert [epoch["epoch"] for epoch in record["epochs"]] == [1]
    assert all(math.isfinite(value) for value in record["epochs"][0]["valid"].values())
    assert {"MAE", "Corr", "Loss"} <= set(record["test"])
    assert all(math.isfinite(value) for value in record["test"].values()), record["test"]
    assert record["settings"]["feature_dims"][0] == (32 if reads_tokens else 768)
    assert len(record["settings"]["seq_lens"]) == 3  # what the model can be built from again
    trained = torch.load(record["checkpoint"])
    assert set(built) <= set(trained)
    still = {name for name, before in built.items() if torch.equal(trained[name], before)}
    # tfr_net keeps a buffer of uninitialised memory, so only what is trained is looked at
    assert all(bool(torch.isfinite(trained[name]).all()) for name in built)
    known = {name for name in built if any(re.search(pattern, name) for pattern in UNMOVED.get(model, []))}
    assert still == known


def train_on_one_step(model: str, path: Path, encoder: Path, folders: dict[str, Path], **more: Any) -> dict[str, Any]:
    """With ``-c one_step``, which has the few settings that this takes; returns the test figures."""
    dataset = "mosi" if model == "decalign" or "mosi" in MODELS[model]["datasetParams"] else "sims"
    reads_tokens = model in MODELS and settings_of(model, dataset).get("use_bert", False)
    overrides = {**small_settings(model), **more}
    if model == "decalign":
        overrides = {"batch_size": overrides["batch_size"], "num_epochs": 1}
    job = runner.prepare(model, dataset, config="one_step", feature_file=path, overrides=overrides, seeds=[1],
                         pretrained=str(encoder) if reads_tokens else None, device="cpu", verbose=0, **folders)
    return runner.run(job).records[0]["test"]


def test_every_model_has_settings_for_one_time_step() -> None:
    assert len(ONE_STEP) == 18
    assert set(ONE_STEP) <= {*MODELS, "decalign"}


def test_settings_by_model_are_for_the_models_they_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"lmf": {"rank": 2}, "mult": {}}))
    assert resolve("lmf", "mosi", config=file).settings["rank"] == 2
    assert resolve("mult", "mosi", config=file).settings == resolve("mult", "mosi").settings
    with pytest.raises(InputError, match="has no settings for model 'tfn'; it has: lmf, mult"):
        resolve("tfn", "mosi", config=file)
    file.write_text(json.dumps({"lmf": {"rank": 2, "ranks": 2}}))
    with pytest.raises(InputError, match="unknown setting 'ranks' for model 'lmf'; did you mean 'rank'"):
        resolve("lmf", "mosi", config=file)


@pytest.mark.parametrize("model", ONE_STEP)
def test_one_time_step(model: str, tmp_path: Path, encoder: Path, folders: dict[str, Path]) -> None:
    dataset = "mosi" if model == "decalign" or "mosi" in MODELS[model]["datasetParams"] else "sims"
    figures = train_on_one_step(model, write_features(tmp_path, dataset, one_step=True), encoder, folders)
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.real_data
@pytest.mark.parametrize("model", [model for model, dataset in CONFIGURATIONS if dataset == "mosi"])
def test_a_real_fold_of_one_time_step(
    model: str, real_fold: Callable[[int], Path], tmp_path: Path, folders: dict[str, Path]
) -> None:
    path = real_fold(0)
    encoder = write_encoder(tmp_path / "bert", vocabulary_size=30522)  # the fold's token ids are of bert-base-uncased
    figures = train_on_one_step(model, path, encoder, folders, batch_size=64)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["MAE"] < 2  # predicting 0 gives about 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("model", "dataset"), [("tfr_net", "mosi"), ("bert_mag", "mosei"), ("mtfn", "sims")])
def test_through_the_command_line(
    model: str, dataset: str, features: Callable[[str, str], Path], encoder: Path, folders: dict[str, Path]
) -> None:
    options = [f"--set={key}={json.dumps(value)}" for key, value in small_settings(model).items()]
    options += [f"--{name.removesuffix('_dir').replace('_', '-')}-dir={path}" for name, path in folders.items()]
    if settings_of(model, dataset).get("use_bert"):
        options += ["--pretrained", str(encoder)]
    command = [sys.executable, "-m", "mmsa_decalign", "-m", model, "-d", dataset, "-s", "1", "--device", "cpu",
               "--json", "--feature-file", str(features(model, dataset)), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)["runs"]
    assert math.isfinite(record["test"]["MAE"])
    assert Path(record["checkpoint"]).is_file()
