"""What models need, as the list shows it, and combinations that cannot work: refused before any file is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness_matrix import write_encoder

from mmsa_decalign.cli import main
from mmsa_decalign.data.synthetic import make_synthetic
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.catalogue import catalogue
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.needs import check_combination, least_steps, needs
from mmsa_decalign.harness.runner import prepare, run

ALIGNED, TOKENS, ENCODER = "aligned features (others are averaged down)", "token ids (text_bert)", "a text encoder"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tfn", []),
        ("lf_dnn", []),
        ("mfn", [ALIGNED]),
        ("bert_mag", [ALIGNED, TOKENS, ENCODER]),
        ("self_mm", [TOKENS, ENCODER]),
        ("mult", ["with use_bert=true: token ids and a text encoder", "at least 5 time steps"]),
        ("mtfn", ["unimodal labels"]),
        ("mctn", ["aligned features", "with use_bert=true: token ids and a text encoder"]),
        ("tfr_net", [TOKENS, ENCODER, "lengths (hides steps itself, see missing_rate)"]),
        ("decalign", ["reads the aligned file where there is one"]),
        ("toy", ["patience"]),
    ],
)
def test_needs_come_from_the_settings(model: str, expected: list[str], toy: str) -> None:
    assert needs(catalogue().models[model]) == expected


def test_a_plugin_that_cannot_be_loaded_needs_nothing(install: Any) -> None:
    install(gone="no_such_module:plugin")
    assert needs(catalogue().models["gone"]) == []


def test_least_steps_are_what_mult_can_convolve() -> None:
    import torch

    entry = catalogue().models["mult"]
    kernel = least_steps(entry)
    shipped = entry.section["datasetParams"].values()
    assert kernel == max(settings[f"conv1d_kernel_size_{letter}"] for settings in shipped for letter in "lav")
    convolution = torch.nn.Conv1d(3, 2, kernel_size=kernel, padding=0)
    assert convolution(torch.zeros(1, 3, kernel)).shape[2] == 1
    with pytest.raises(RuntimeError, match="Kernel size"):
        convolution(torch.zeros(1, 3, kernel - 1))


UNREADABLE = ["--feature-file", __file__, "--device", "cpu"]  # no feature file: whoever reads it says so


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "mtfn", "-d", "mosi"],
         "; it learns a label of each modality too, which only SIMS has"),
        (["-m", "mlmf", "-d", "synthetic"], "it learns a label of each modality too"),
        (["-m", "mctn", "-d", "sims"], "model 'mctn' has no settings for data set 'sims'; it has: mosi"),
        (["-m", "misa", "-d", "mosi", "--set", "use_bert=false"],
         "model 'misa' reads token ids and has a text encoder in any case: leave out use_bert=false"),
        (["-m", "tfn", "-d", "mosi", "--set", "need_normalized=false"],
         "model 'tfn' takes the averages of audio and vision over time: need_normalized must stay true"),
        (["-m", "decalign", "-d", "mosi", "--mended"], "no fault in model 'decalign' that it repairs"),
        (["-m", "self_mm", "-d", "mosi", "--pretrained", "./nowhere"], "./nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_data_are_read(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*arguments, *UNREADABLE]) == 2
    err = capsys.readouterr().err
    assert message in " ".join(err.split())
    assert len(err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_read_where_nothing_speaks_against_it(tmp_path: Path, folders: dict[str, Path]) -> None:
    job = prepare("mfn", "mosi", feature_file=__file__, device="cpu", **folders)
    with pytest.raises(InputError, match="test_needs.py"):
        run(job)


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A synthetic file, the same without token ids, and with a single step of audio and vision."""
    data = make_synthetic(layout="mosi", samples=(6, 3, 3))
    folder = tmp_path_factory.mktemp("files")

    def write(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        path = folder / f"{name}.pkl"
        changed = {key: dict(part) for key, part in data.items()}
        for split in ("train", "valid", "test"):
            change(changed[split])
        path.write_bytes(pickle.dumps(changed))
        return path

    return {
        "no tokens": write("no_tokens", lambda split: split.pop("text_bert")),
        "one step": write("one_step", lambda split: split.update(audio=split["audio"][:, :1],
                                                                  vision=split["vision"][:, :1])),
    }


@pytest.mark.parametrize(
    ("model", "file", "message"),
    [
        ("misa", "no tokens", "key 'text_bert'"),
        ("mult", "one step", "convolves 5 steps of audio, and the file has 1"),
        ("mctn", "one step", "use an aligned file"),
    ],
)
def test_what_only_the_file_tells_is_refused_before_anything_is_trained_or_written(
    model: str, file: str, message: str, files: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    encoder = tmp_path / "encoder"
    arguments = ["--pretrained", str(write_encoder(encoder))] if model == "misa" else []
    assert main(["-m", model, "-d", "mosi", "--feature-file", str(files[file]), "--device", "cpu", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path for path in tmp_path.iterdir() if path != encoder] == []


def test_settings_of_a_users_file_do_not_get_around_it(tmp_path: Path) -> None:
    section = catalogue().models["mtfn"].section
    config = {"mtfn": {**section, "datasetParams": {"mosi": section["datasetParams"]["sims"]}}}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="'mtfn' learns a label of each modality, and MMSA trains it on SIMS alone"):
        prepare("mtfn", "mosi", config=path, feature_file=__file__, device="cpu")


def test_a_search_takes_the_encoder_that_its_space_does_not_name(tmp_path: Path) -> None:
    # MMSA's space names none; its settings for training do.
    assert resolve("tfr_net", "mosi", tuning=True).settings["pretrained"] == "bert-base-uncased"
    encoder = str(write_encoder(tmp_path / "encoder"))
    job = prepare("tfr_net", "mosi", tuning=True, pretrained=encoder, feature_file=__file__, device="cpu")
    assert job.resolved.settings["pretrained"] == encoder


def test_an_encoder_that_nobody_named_is_refused() -> None:
    known = catalogue()
    with pytest.raises(InputError, match="needs a text encoder: give one with --pretrained"):
        check_combination(known.models["mult"], "mosi", {"use_bert": True, "pretrained": None})
    check_combination(known.models["mult"], "mosi", {"use_bert": False, "pretrained": None})


def test_a_plugin_judges_for_itself(toy: str) -> None:
    check_combination(catalogue().models["toy"], "mosi", {"M": 1, "T": 1, "A": 1, "V": 1, "use_bert": True})


@pytest.mark.parametrize("name", [model.name for model in catalogue().models.values() if model.plugin is None])
def test_every_model_is_allowed_on_its_own_data_sets(name: str) -> None:
    from mmsa_decalign.harness.config import resolve

    known = catalogue()
    for dataset in known.models[name].datasets(known.datasets):
        check_combination(known.models[name], dataset, resolve(name, dataset).settings)
