"""The conformance checks: sound models pass all of them, a plugin that breaks one rule fails that check alone."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness_broken
import numpy as np
import pytest

from mmsa_decalign.cli import main
from mmsa_decalign.data.reading import read_features
from mmsa_decalign.data.synthetic import VOCABULARY
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import conformance
from mmsa_decalign.harness.checks import CHECKS, failed, passed
from mmsa_decalign.harness.conformance import Report, check_model
from mmsa_decalign.harness.encoders import load_tokenizer
from mmsa_decalign.harness.tiny import ENCODER_WIDTH, write_tiny_encoder, write_tiny_file

NEW_PROCESS = "checkpoint in a new process"
HERE = tuple(name for name in CHECKS if name != NEW_PROCESS)  # a new process takes seconds to import everything
MOSI = {"seq_lens": [50, 50, 50], "feature_dims": [30, 5, 20]}


def statuses(report: Report) -> dict[str, str]:
    return {result.name: result.status for result in report.results if result.status != "passed"}


def detail(report: Report, name: str) -> str:
    (found,) = (result.detail for result in report.results if result.name == name)
    return found


@pytest.fixture
def broken(install: Callable[..., None]) -> Callable[[str], str]:
    """Makes one of the plugins of harness_broken known in this process."""

    def add(name: str) -> str:
        install(**{name: f"harness_broken:{name}"})
        return name

    return add


@pytest.fixture
def everywhere(broken: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """The same, in new processes too."""

    def add(name: str) -> str:
        folder = tmp_path / "installed" / "broken-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[mmsa.models]\n{name} = harness_broken:{name}\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parent), str(Path(__file__).parent)]))
        return broken(name)

    return add


# What is trained on


@pytest.mark.parametrize("aligned", [True, False])
def test_the_tiny_file_is_a_feature_file_of_that_layout(tmp_path: Path, aligned: bool) -> None:
    settings = MOSI if aligned else {**MOSI, "seq_lens": [50, 375, 500]}
    path = write_tiny_file(tmp_path / "tiny.pkl", settings, (9, 5, 4), limit=3.0, unimodal=not aligned)
    features = read_features(path)
    assert features.feature_dims == (30, 5, 20)
    assert features.seq_lens == ((12, 12, 12) if aligned else (12, 20, 16))
    assert [len(split) for split in features.splits.values()] == [9, 5, 4]
    train = features.splits["train"]
    assert set(train.unimodal_labels) == (set() if aligned else set("TAV"))
    same = all(np.array_equal(train.lengths["text"], train.lengths[name]) for name in ("audio", "vision"))
    assert same is aligned
    assert 0 < np.abs(train.labels).min() <= np.abs(train.labels).max() <= 3
    assert set(np.sign(train.labels)) == {-1, 1}


def test_every_modality_of_the_tiny_file_tells_the_label(tmp_path: Path) -> None:
    features = read_features(write_tiny_file(tmp_path / "tiny.pkl", MOSI, (40, 10, 10), limit=3.0, unimodal=False))
    train, test = features.splits["train"], features.splits["test"]
    for name in ("text", "audio", "vision"):
        sums = [getattr(split, name).sum(axis=1) / split.lengths[name][:, None] for split in (train, test)]
        weights = np.linalg.lstsq(sums[0], train.labels, rcond=None)[0]
        assert np.corrcoef(sums[1] @ weights, test.labels)[0, 1] > 0.95, name
    score = [sum((VOCABULARY[word] - VOCABULARY["awful"]) // 8 - 1 for word in text.split()) for text in train.raw_text]
    assert np.corrcoef(score, train.labels)[0, 1] > 0.8


def test_the_tiny_encoder_has_a_tokenizer_that_gives_the_ids_of_the_tiny_file(tmp_path: Path) -> None:
    from transformers import BertModel

    folder = write_tiny_encoder(tmp_path / "encoder")
    assert BertModel.from_pretrained(folder).config.hidden_size == ENCODER_WIDTH
    tokenizer = load_tokenizer(folder)
    path = write_tiny_file(tmp_path / "tiny.pkl", MOSI, (6, 2, 2), limit=1, unimodal=False)
    split = read_features(path).splits["train"]
    for text, tokens in zip(split.raw_text, split.text_bert, strict=True):
        assert tokenizer(text)["input_ids"] == tokens[0, :tokens[1].sum()].tolist()


# Sound models


def test_a_sound_plugin_passes_every_check(everywhere: Callable[[str], str]) -> None:
    report = check_model(everywhere("sound"))
    assert statuses(report) == {}
    assert [result.name for result in report.results] == list(CHECKS)
    assert (report.conforms, report.dataset) == (True, "mosi")


def test_the_toy_of_the_other_tests_passes(toy: str) -> None:
    assert statuses(check_model(toy, "sims", names=HERE)) == {}


def test_a_model_with_a_tiny_learning_rate_gets_more_and_larger_steps(broken: Callable[[str], str]) -> None:
    report = check_model(broken("slow"), names=["loss falls"])
    assert statuses(report) == {}
    assert "40 epochs, learning_rate >= 0.001" in detail(report, "loss falls")


def test_a_model_that_reads_token_ids_gets_an_encoder_and_refuses_a_file_without_them(broken: Any) -> None:
    report = check_model(broken("reads_tokens"), names=HERE)
    assert statuses(report) == {}
    assert "refused" in detail(report, "token ids")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["mosi", "sims"])
def test_decalign_passes(dataset: str) -> None:
    assert statuses(check_model("decalign", dataset, names=CHECKS if dataset == "mosi" else HERE)) == {}


@pytest.mark.slow
def test_decalign_passes_with_a_text_encoder(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = write_tiny_encoder(tmp_path / "encoder")
    report = check_model("decalign", pretrained=str(encoder), names=["trains", "token ids", "batch composition"])
    assert statuses(report) == {}
    assert "refused" in detail(report, "token ids")


UNTRAINED = {"every parameter trained": "flagged"}  # lmf: a fault of its own; the others: BERT's pooler, unused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "expected"),
    [("lf_dnn", {}), ("ef_lstm", {}), ("mlf_dnn", {}), ("lmf", UNTRAINED), ("self_mm", UNTRAINED), ("mmim", UNTRAINED)],
)
def test_mmsas_models_pass(model: str, expected: dict[str, str]) -> None:
    assert statuses(check_model(model, names=CHECKS if model == "lf_dnn" else HERE)) == expected


@pytest.mark.slow
def test_a_known_fault_is_flagged_and_would_fail_if_it_were_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["trains", "batch composition"]
    report = check_model("mctn", names=names)
    assert statuses(report) == {"batch composition": "flagged"}
    assert "known of it: the samples of a batch are read as the steps" in detail(report, "batch composition")
    monkeypatch.setattr(conformance, "faults_of", lambda model: [])
    assert statuses(check_model("mctn", names=names)) == {"batch composition": "failed"}


@pytest.mark.slow
def test_the_networks_that_graph_mfn_does_not_save_are_noticed() -> None:
    report = check_model("graph_mfn", names=["trains", NEW_PROCESS])
    assert statuses(report) == {NEW_PROCESS: "flagged"}
    assert "neither trained nor saved" in detail(report, NEW_PROCESS)


# Broken ones


@pytest.mark.parametrize(
    ("plugin", "check", "message"),
    [
        ("static", "loss falls", "expected at most"),
        ("unsaving", "saves the best epoch", "no state dict"),
        ("saves_first", "saves the best epoch", "saved epoch 1 with Loss"),
        ("other_history", "saves the best epoch", "trainer.history: expected a list of"),
        ("peeking", "test split stays shut", "read the test split"),
        ("unseeded", "same seed, same numbers", "differ in hidden.weight"),
        ("fixed_seed", "other seed, other weights", "before training"),
        ("flat", "shape of predictions", "shape (12,); expected (12, 1)"),
        ("counting", "evaluation changes nothing", "changes calls"),
        ("batch_statistics", "batch composition", "differ from those in one batch"),
        ("squeezing", "single sample", "RuntimeError: zero-dimensional tensor"),
        ("at_most_a_batch", "odd last batch", "no room for 9 samples"),
        ("reads_tokens_itself", "token ids", "KeyError: 'text_bert'"),
    ],
)
def test_a_broken_plugin_fails_the_check_of_its_rule_alone(
    plugin: str, check: str, message: str, broken: Callable[[str], str]
) -> None:
    report = check_model(broken(plugin), names=HERE)
    found = statuses(report)
    if plugin == "static":
        assert found.pop("every parameter trained") == "flagged"
    assert found == {check: "failed"}
    assert message in detail(report, check)
    assert not report.conforms


def test_predictions_that_are_no_numbers_fail(broken: Callable[[str], str]) -> None:
    report = check_model(broken("not_finite"), names=["trains", "saves the best epoch", "shape of predictions"])
    assert statuses(report) == {"saves the best epoch": "failed", "shape of predictions": "failed"}
    assert detail(report, "shape of predictions") == "predictions are not finite"


def test_what_is_not_in_the_checkpoint_shows_in_a_new_process(everywhere: Callable[[str], str]) -> None:
    report = check_model(everywhere("unregistered"))
    assert statuses(report) == {NEW_PROCESS: "failed"}
    assert "is all of the model registered?" in detail(report, NEW_PROCESS)


def test_a_new_process_that_fails_is_told_in_one_line(broken: Any, tmp_path: Path, monkeypatch: Any) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'KeyError: 1' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    report = check_model(broken("sound"), names=[NEW_PROCESS])
    assert statuses(report) == {NEW_PROCESS: "failed"}
    assert detail(report, NEW_PROCESS) == "the new process failed: KeyError: 1"


def test_a_parameter_that_is_never_trained_is_no_failure(broken: Callable[[str], str]) -> None:
    report = check_model(broken("idle"), names=HERE)
    assert statuses(report) == {"every parameter trained": "flagged"}
    assert detail(report, "every parameter trained") == "2 of 6 never trained: spare.weight, spare.bias"
    assert report.conforms


@pytest.mark.parametrize(("plugin", "message"), [("crashing", "RuntimeError: shapes do not match"),
                                                 ("leaving", "SystemExit: 0")])
def test_a_model_that_does_not_train_fails_once_and_the_rest_is_skipped(
    plugin: str, message: str, broken: Callable[[str], str]
) -> None:
    report = check_model(broken(plugin))
    assert detail(report, "trains") == message
    assert [result.status for result in report.results] == ["failed"] + ["skipped"] * (len(CHECKS) - 1)


def test_a_file_without_token_ids_that_is_accepted_fails(broken: Callable[[str], str], monkeypatch: Any) -> None:
    def with_tokens(*args: Any, tokens: bool = True, **options: Any) -> Path:
        return write_tiny_file(*args, **options)

    monkeypatch.setattr(conformance, "write_tiny_file", with_tokens)
    assert statuses(check_model(broken("reads_tokens"), names=["token ids"])) == {"token ids": "failed"}


def test_another_seed_that_makes_no_difference_fails_after_training_too(
    broken: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that goes through the samples in an order of its own, on a network that starts at zero."""

    class Zero(harness_broken.Net):
        def __init__(self, args: Any) -> None:
            super().__init__(args)
            for parameter in self.parameters():
                parameter.data.fill_(0.01)

    class InOrder(harness_broken.Trainer):
        def do_train(self, model: Any, dataloader: Any, return_epoch_results: bool = False) -> None:
            super().do_train(model, {**dataloader, "train": dataloader["valid"]})

    name = broken("sound")
    zero = replace(harness_broken.sound, model=Zero)
    monkeypatch.setattr(harness_broken, "sound", zero)
    assert statuses(check_model(name, names=["other seed, other weights"])) == {}, "batches come in another order"
    monkeypatch.setattr(harness_broken, "sound", replace(zero, trainer=InOrder))
    report = check_model(name, names=["other seed, other weights"])
    assert "after training" in detail(report, "other seed, other weights")


def test_nothing_is_left_behind(broken: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check_model(broken("sound"), names=["trains", "odd last batch", "token ids"])
    assert list(tmp_path.iterdir()) == []


# The command


@pytest.fixture
def two_checks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Checks that need no training; the second may be replaced."""
    checks = {"one": lambda bench: passed("as [it] should"), "two": lambda bench: passed("so too")}
    monkeypatch.setattr(conformance, "CHECKS", checks)
    return checks


def test_the_command_prints_a_table_and_says_on_standard_error_which_check_runs(
    two_checks: dict[str, Any], broken: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--check", broken("sound")]) == 0
    out, err = capsys.readouterr()
    assert "as [it] should" in out
    assert "2 passed in" in out
    assert err.splitlines() == ["check 1 of 2: one", "check 2 of 2: two"]


def test_a_failed_check_is_exit_code_1(
    two_checks: dict[str, Any], broken: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    two_checks["two"] = lambda bench: failed("not so")
    assert main(["list", "--check", broken("sound"), "-d", "sims", "--json"]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["model"], document["dataset"], document["conforms"]) == ("sound", "sims", False)
    assert [(check["name"], check["status"], check["detail"]) for check in document["checks"]] == [
        ("one", "passed", "as [it] should"), ("two", "failed", "not so")]
    assert err.splitlines()[-1] == "mmsa: sound does not conform: two"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--check", "decaling"], "unknown model 'decaling'; did you mean 'decalign'"),
        (["--check", "tfn", "-d", "mosy"], "unknown data set 'mosy'; did you mean 'mosi'"),
        (["--check", "mtfn", "-d", "mosi"], "'mtfn'"),
        (["--check", "tfn", "--pretrained", "./nowhere"], "'tfn' has no text encoder"),
        (["-d", "mosi"], "-d mosi: needs --check MODEL"),
        (["--pretrained", "x"], "--pretrained x: needs --check MODEL"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, len(err.splitlines())) == ("", 1)


def test_a_plugin_that_cannot_be_loaded_is_refused(install: Callable[..., None]) -> None:
    install(absent="harness_broken:absent")
    with pytest.raises(InputError, match="cannot be loaded"):
        check_model("absent")


def test_the_tiny_file_without_tokens_has_none(tmp_path: Path) -> None:
    path = write_tiny_file(tmp_path / "tiny.pkl", MOSI, (4, 2, 2), limit=1.0, unimodal=False, tokens=False)
    assert "text_bert" not in pickle.loads(path.read_bytes())["train"]
    assert read_features(path).splits["train"].text_bert is None
