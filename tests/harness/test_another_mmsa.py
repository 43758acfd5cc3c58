"""An MMSA that calls itself 2.2.1 and is not the release: more models and data sets, other faults. A stand-in."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import catalogue as catalogue_module
from mmsa_decalign.harness import faults
from mmsa_decalign.harness.catalogue import catalogue, find_model, mmsa_config, mmsa_datasets
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.datasets import metrics_family
from mmsa_decalign.harness.faults import faults_of
from mmsa_decalign.harness.metrics import metric_rules
from mmsa_decalign.harness.needs import check_combination, needs

MAP = "class Map:\n    MAP = {{\n        {}\n    }}\n"


@pytest.fixture
def another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of MMSA with the data set simsv2, the models newer and cenet, and lost, which has only settings."""
    settings, tuning = (json.loads(mmsa_config(kind).read_text("utf-8")) for kind in ("regression", "tune"))
    settings["datasetCommonParams"]["simsv2"] = copy.deepcopy(settings["datasetCommonParams"]["sims"])
    settings["datasetCommonParams"]["simsv2"]["unaligned"]["featurePath"] = "SIMSv2/features.pkl"
    settings["mtfn"]["datasetParams"]["simsv2"] = copy.deepcopy(settings["mtfn"]["datasetParams"]["sims"])
    for name in ("newer", "lost", "cenet"):
        settings[name] = {"commonParams": {"need_data_aligned": False, "use_bert": name == "cenet"},
                          "datasetParams": {"mosi": {"batch_size": 4, "pretrained": "bert-base-uncased"}}}
    known = [name for name in settings if name not in ("datasetCommonParams", "lost")]
    for folder, names, quote in (("models/AMIO.py", known, "'"), ("trains/ATIO.py", known, '"')):
        (tmp_path / folder).parent.mkdir()
        entries = ",\n        ".join(f"{quote}{name}{quote} : {name.upper()}" for name in names)
        (tmp_path / folder).write_text(MAP.format(entries))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config_regression.json").write_text(json.dumps(settings))
    (tmp_path / "config" / "config_tune.json").write_text(json.dumps(tuning))
    for module in (catalogue_module, faults):
        monkeypatch.setattr(module, "mmsa_folder", lambda: tmp_path)
    return tmp_path


def test_what_is_installed_decides_on_models_and_data_sets(another: Path) -> None:
    known = catalogue()
    assert {"newer", "cenet", "tfn", "decalign"} <= set(known.models)
    assert known.models["mtfn"].datasets(known.datasets) == ["sims", "simsv2"]
    assert known.datasets["simsv2"]["unaligned"]["featurePath"] == "SIMSv2/features.pkl"
    assert resolve("newer", "mosi").settings["batch_size"] == 4


def test_it_is_not_taken_for_the_release(another: Path) -> None:
    known = catalogue()
    assert known.models["tfn"].source.startswith("MMSA ")
    assert known.models["tfn"].source.endswith(" (GitHub)")
    assert known.dataset_sources["simsv2"].endswith(" (GitHub)")


def test_the_release_is_known_as_such(another: Path) -> None:
    path = another / "config" / "config_regression.json"
    settings = json.loads(path.read_text())
    for name in ("newer", "lost", "cenet"):
        del settings[name]
    path.write_text(json.dumps(settings))
    assert not catalogue().models["tfn"].source.endswith(" (GitHub)")


def test_settings_without_a_model_are_listed_with_the_reason(another: Path) -> None:
    known = catalogue()
    assert known.models["lost"].error == "MMSA has settings for it, but models/AMIO.py does not know it"
    with pytest.raises(InputError, match="model 'lost' .* cannot be loaded: MMSA has settings for it"):
        find_model(known, "lost")
    trains = another / "trains" / "ATIO.py"
    trains.write_text(trains.read_text().replace('"newer"', '"never"'))
    assert catalogue().models["newer"].error == "MMSA has settings for it, but trains/ATIO.py does not know it"


def test_its_data_sets_have_their_own_metrics(another: Path) -> None:
    assert set(mmsa_datasets()) == {"mosi", "mosei", "sims", "simsv2"}
    assert metrics_family("simsv2") == "simsv2"
    assert metric_rules("simsv2") == metric_rules("sims")
    assert metrics_family("unheard-of") == "mosi"


def test_models_of_unimodal_labels_take_it(another: Path) -> None:
    entry = catalogue().models["mtfn"]
    check_combination(entry, "simsv2", resolve("mtfn", "simsv2").settings)


def test_faults_that_it_does_not_have_are_not_flagged(another: Path) -> None:
    assert [faults_of(model) for model in catalogue().models.values()] == [[]] * len(catalogue().models)


def test_an_encoder_of_the_old_format_is_asked_for(another: Path, tmp_path_factory: Any) -> None:
    entry, folder = catalogue().models["cenet"], tmp_path_factory.mktemp("encoder")
    assert "a text encoder with pytorch_model.bin" in needs(entry)
    settings = {"use_bert": True, "pretrained": str(folder)}
    with pytest.raises(InputError, match="reads pytorch_model.bin and no other file of weights"):
        check_combination(entry, "mosi", settings)
    (folder / "pytorch_model.bin").touch()
    check_combination(entry, "mosi", settings)
    check_combination(entry, "mosi", {"use_bert": True, "pretrained": "bert-base-uncased"})
