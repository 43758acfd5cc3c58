"""MMSA with plugins: its documented functions know them, its own models are untouched, and all can be taken back."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mmsa_decalign.harness.registry import active, discover, register, unregister

pytestmark = pytest.mark.usefixtures("mmsa_run_cleanly")

SEAMS = {
    "MMSA": ("get_config_regression", "get_config_tune", "get_config_all"),
    "MMSA.config": ("get_config_regression", "get_config_tune", "get_config_all"),
    "MMSA.run": ("AMIO", "ATIO", "MMDataLoader", "get_config_regression", "get_config_tune", "torch", "np", "pd"),
}


@pytest.fixture
def registered(toy: str) -> Iterator[Any]:
    import MMSA

    register()
    yield MMSA
    unregister()


def seams() -> dict[str, Any]:
    import importlib

    import MMSA
    from MMSA.utils import MetricsTop

    found: dict[str, Any] = {f"{module}.{name}": getattr(importlib.import_module(module), name)
                             for module, names in SEAMS.items() for name in names}
    found["getMetics"] = MetricsTop.getMetics
    found["models"], found["datasets"] = list(MMSA.SUPPORTED_MODELS), list(MMSA.SUPPORTED_DATASETS)
    return found


def run_options(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    return dict(seeds=[3], custom_feature=str(tiny), gpu_ids=[], num_workers=0, verbose_level=0,
                model_save_dir=tmp_path / "models", res_save_dir=tmp_path / "results", log_dir=tmp_path / "logs")


def test_register_twice_and_unregister_restore_every_seam(toy: str) -> None:
    before = seams()
    register()
    once = seams()
    register()
    assert seams() == once
    changed = {name for name in before if before[name] != once[name]}
    assert {"MMSA.get_config_regression", "MMSA.run.get_config_tune", "MMSA.run.AMIO", "MMSA.run.ATIO",
            "MMSA.run.MMDataLoader", "getMetics", "models", "datasets"} <= changed
    assert isinstance(once["models"], list)
    assert {"decalign", "toy"} <= set(once["models"])
    assert "SYNTHETIC" in once["datasets"]
    unregister()
    assert seams() == before
    unregister()
    assert seams() == before


def test_active_leaves_an_earlier_registration_alone(toy: str) -> None:
    before = seams()
    with active():
        assert seams() != before
    assert seams() == before
    register()
    with active():
        pass
    assert seams() != before
    unregister()


def test_mmsa_run_and_test_take_a_strangers_model(registered: Any, tiny: Path, tmp_path: Path) -> None:
    registered.MMSA_run("toy", "mosi", config={"epochs": 2}, **run_options(tiny, tmp_path))
    table = pd.read_csv(tmp_path / "results" / "normal" / "mosi.csv")
    assert list(table["Model"]) == ["toy"]
    assert table["MAE"][0].startswith("(")
    assert "np.float64" not in table["MAE"][0]

    test = pickle.loads(tiny.read_bytes())["test"]
    one = tmp_path / "one.pkl"
    one.write_bytes(pickle.dumps({key: test[key][0] for key in ("text", "audio", "vision")}))
    weights = tmp_path / "models" / "toy-mosi.pth"
    config = dict(registered.get_config_regression("toy", "mosi"))
    prediction = registered.MMSA_test(config=config, weights_path=weights, feature_path=one, gpu_id=-1)
    state = torch.load(weights)
    pooled = np.concatenate([test[key][0].mean(axis=0) for key in ("text", "audio", "vision")])
    expected = pooled @ state["head.weight"].numpy()[0] + state["head.bias"].numpy()[0]
    assert float(prediction) == pytest.approx(float(expected), abs=1e-5)


def test_mmsa_run_takes_decalign_and_its_tuning_space(registered: Any, tiny: Path, tmp_path: Path) -> None:
    small = {"num_epochs": 1, "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2}
    registered.MMSA_run("decalign", "mosi", config=small, **run_options(tiny, tmp_path))
    assert (tmp_path / "models" / "decalign-mosi.pth").stat().st_size > 0
    options = run_options(tiny, tmp_path)
    registered.MMSA_run("toy", "mosi", config={"epochs": 1}, is_tune=True, tune_times=1, **options)
    table = pd.read_csv(tmp_path / "results" / "tune" / "mosi-toy.csv")
    assert table["learning_rate"][0] in (0.001, 0.01)


def test_built_in_models_run_on_synthetic_data(
    registered: Any, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMSA_DATA_ROOT", str(tmp_path))
    options = run_options(tiny, tmp_path)
    del options["custom_feature"]
    registered.MMSA_run("lmf", "synthetic", config={"early_stop": 1}, **options)
    assert list(pd.read_csv(tmp_path / "results" / "normal" / "synthetic.csv")["Model"]) == ["lmf"]


def test_a_built_in_model_on_mmsas_data_sets_is_left_to_mmsa(
    registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = registered.get_config_regression("tfn", "mosi")
    unregister()
    assert config == registered.get_config_regression("tfn", "mosi")
    import MMSA.run

    calls = []
    monkeypatch.setattr(MMSA.run, "MMDataLoader", lambda args, num_workers: calls.append(args["model_name"]))
    register()
    MMSA.run.MMDataLoader({"model_name": "tfn", "dataset_name": "mosi"}, 0)
    assert calls == ["tfn"]
    unregister()


def test_look_ups_accept_a_users_file_and_mmsas_default_path(registered: Any, tmp_path: Path) -> None:
    from mmsa_decalign.harness.catalogue import mmsa_config

    default = registered.get_config_regression("toy", "sims")
    assert default == registered.get_config_regression("toy", "sims", mmsa_config("regression"))
    assert (default["width"], default["seq_lens"]) == (2, [39, 400, 55])
    with pytest.raises(KeyError):  # as MMSA answers for a file without the model
        registered.get_config_regression("toy", "mosi", _empty(tmp_path))
    assert registered.get_config_tune("toy", "mosi", random_choice=False)["learning_rate"] == [0.001, 0.01]
    assert registered.get_config_tune("toy", "mosi")["shape"]["b"] in (2, 3)
    everything = registered.get_config_all("regression")
    assert everything["toy"]["datasetParams"]["mosi"]["width"] == 1
    assert "synthetic" in everything["datasetCommonParams"]


def _empty(folder: Path) -> Path:
    file = folder / "mine.json"
    file.write_text('{"datasetCommonParams": {}}')
    return file


def test_synthetic_metrics_are_those_of_mosi(registered: Any) -> None:
    from MMSA.utils import MetricsTop

    prediction, label = torch.tensor([[0.4], [-1.0], [2.2]]), torch.tensor([[1.0], [-0.6], [2.0]])
    metrics = MetricsTop("regression")
    assert metrics.getMetics("synthetic")(prediction, label) == metrics.getMetics("MOSI")(prediction, label)


def test_a_broken_entry_point_is_listed_with_its_error_and_harms_nobody(install: Any) -> None:
    install(toy="harness_toy:plugin", gone="no_such_module:plugin", number="harness_toy:not_a_plugin",
            misnamed="harness_toy:misnamed", other="harness_toy:without_section")
    found = discover()
    assert found["toy"].plugin is not None
    assert found["decalign"].plugin is not None
    errors = {name: entry.error for name, entry in found.items() if entry.error}
    assert set(errors) == {"gone", "number", "misnamed", "other"}
    assert "No module named 'no_such_module'" in errors["gone"]
    assert "expected ModelPlugin" in errors["number"]
    assert "one lower-case name" in errors["misnamed"]
    assert "no section 'other'" in errors["other"]


def test_a_plugin_cannot_take_the_name_of_a_built_in_model(install: Any) -> None:
    from mmsa_decalign.harness.catalogue import catalogue

    install(tfn="harness_toy:plugin")
    assert catalogue().models["tfn"].plugin is None
    assert catalogue().models["tfn"].error is None


def test_importing_the_harness_does_nothing_to_mmsa() -> None:
    import subprocess
    import sys

    code = ("import sys, mmsa_decalign, mmsa_decalign.cli, mmsa_decalign.tune.search, mmsa_decalign.harness.report;"
            "assert 'MMSA' not in sys.modules")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
