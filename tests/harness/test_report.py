"""Tables: what stands in them and what they say about the protocol."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmsa_decalign.harness.catalogue import Catalogue, Model, catalogue
from mmsa_decalign.harness.metrics import metric_rules
from mmsa_decalign.harness.report import catalogue_document, print_catalogue, print_outcome, run_document
from mmsa_decalign.harness.runner import prepare, run


def shown(outcome: Any) -> str:
    stream = io.StringIO()
    print_outcome(outcome, Console(file=stream, width=120))
    return stream.getvalue()


def test_a_table_names_metrics_spread_rules_selection_and_records(
    tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    outcome = run(prepare("toy", "synthetic", feature_file=tiny, seeds=[7, 8], device="cpu", verbose=0,
                          overrides={"epochs": 2}, **folders))
    text = shown(outcome)
    for name, item in outcome.summary.items():
        (line,) = [line for line in text.splitlines() if line.startswith("│ " + name + " ")]
        assert f"{item['mean']:.4f}" in line
        assert f"{item['std']:.4f}" in line
    assert "Has0_acc_2: accuracy of negative against non-negative" in text
    assert "Non0_acc_2: accuracy of negative against positive; samples with label 0 are left out" in text
    assert "lowest validation Loss" in text
    assert "2 seeds; std: population standard deviation" in text
    assert str(folders["res_save_dir"] / "runs") in text
    document = json.loads(json.dumps(run_document(outcome), allow_nan=False))
    assert document["summary"]["MAE"]["mean"] == outcome.summary["MAE"]["mean"]
    assert [run["seed"] for run in document["runs"]] == [7, 8]


def test_sims_has_its_own_metrics(folders: dict[str, Path], toy: str, tmp_path: Path) -> None:
    from mmsa_decalign.data.synthetic import write_synthetic

    path = write_synthetic(tmp_path / "sims.pkl", layout="sims", samples=(20, 8, 8))
    outcome = run(prepare("toy", "sims", feature_file=path, seeds=[7], device="cpu", verbose=0,
                          overrides={"epochs": 1}, **folders))
    assert set(outcome.summary) == set(metric_rules("sims"))
    assert "Mult_acc_2: accuracy of <= 0 against > 0" in shown(outcome)


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "sims", "synthetic"])
def test_every_metric_of_mmsa_has_its_rule(dataset: str) -> None:
    import torch
    from MMSA.utils import MetricsTop

    from mmsa_decalign.harness.registry import active

    with active():
        metrics = MetricsTop("regression").getMetics(dataset)
    names = set(metrics(torch.tensor([[0.1], [-0.4], [0.7]]), torch.tensor([[0.3], [-0.5], [0.2]])))
    assert names | {"Loss"} == set(metric_rules(dataset))


def test_the_two_rules_of_acc_2_are_as_described() -> None:
    import torch
    from MMSA.utils import MetricsTop

    prediction, label = torch.tensor([[1.0], [-1.0], [0.0], [-2.0]]), torch.tensor([[1.0], [0.0], [-1.0], [-1.0]])
    results = MetricsTop("regression").getMetics("mosi")(prediction, label)
    assert results["Has0_acc_2"] == 0.5  # 1 and -2 right; -1 for a 0 and 0 for a -1 wrong
    assert results["Non0_acc_2"] == round(3 / 3, 4)  # the 0 label is left out, the prediction 0 counts as negative


@pytest.mark.parametrize(("model", "mended", "expected"), [
    ("lmf", False, ["as MMSA ships lmf: the weights and the bias that sum up the low-rank factors are not trained: "
                    "they stay random (--mended repairs it)",
                    "as MMSA ships lmf: the dropout after fusion, fourth of dropouts or post_dropouts, is ignored"]),
    ("lmf", True, ["repaired for this result (--mended): in MMSA's lmf the weights and the bias that sum up",
                   "as MMSA ships lmf: the dropout after fusion"]),
    ("toy", False, []),
])  # fmt: skip
def test_the_faults_of_a_model_stand_under_its_table(
    model: str, mended: bool, expected: list[str], tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    outcome = run(prepare(model, "synthetic", feature_file=tiny, seeds=[7], device="cpu", verbose=0, mended=mended,
                          overrides={"epochs": 1} if model == "toy" else {"max_epochs": 1}, **folders))
    text = " ".join(shown(outcome).split())
    assert [line for line in expected if line not in text] == []
    assert ("MMSA ships" in text or "repaired" in text) == bool(expected)
    assert text.startswith(f"{model} (mended) on synthetic" if mended else f"{model} on synthetic")
    document = run_document(outcome)
    assert document["mended"] is mended
    assert document["flags"] == outcome.records[0]["flags"]


def test_the_list_marks_faults_and_says_what_the_marks_mean(toy: str) -> None:
    known = catalogue()
    stream = io.StringIO()
    print_catalogue(known, Console(file=stream, width=250))
    lines = stream.getvalue().splitlines()
    legend = dict(re.fullmatch(r"  ([a-z])  (.*)", line).groups() for line in lines if re.match(r"  [a-z]  ", line))
    for model in catalogue_document(known)["models"]:
        (row,) = [line for line in lines if line.startswith(f"│ {model['name']} ")]
        marks = row.split("│")[-2].split()
        described = [fault["fault"] + ("" if fault["mendable"] else " (not repaired)") for fault in model["faults"]]
        assert sorted(legend[mark] for mark in marks) == sorted(described)
    assert len(set(legend.values())) == len(legend) > 10


def test_the_list_shows_broken_plugins_too(install: Any) -> None:
    install(toy="harness_toy:plugin", gone="no_such_module:plugin")
    stream = io.StringIO()
    print_catalogue(catalogue(), Console(file=stream, width=200))
    (line,) = [line for line in stream.getvalue().splitlines() if line.startswith("│ gone ")]
    assert "cannot be loaded: ModuleNotFoundError" in line
    models = {model["name"]: model for model in catalogue_document(catalogue())["models"]}
    assert models["gone"]["error"].startswith("ModuleNotFoundError")
    assert models["toy"]["datasets"] == ["mosi", "sims", "synthetic"]


def test_brackets_in_what_plugins_say_are_no_styles() -> None:
    stream = io.StringIO()
    part = {"featurePath": "[b]/c.pkl", "train_mode": "classification", "label_names": ["[hap]", "[/sad]"]}
    known = Catalogue({"gone": Model("gone", "[a] 1", error="KeyError: '[/x]'")}, {"mine": {"unaligned": part}},
                      {"mine": "[a] 1"})
    print_catalogue(known, Console(file=stream, width=200))
    for text in ("[a] 1", "KeyError: '[/x]'", "[b]/c.pkl", "[hap], [/sad]"):
        assert text in stream.getvalue()


@pytest.mark.parametrize(("width", "columns"), [(90, 5), (60, 0)])
def test_names_and_digits_are_whole_on_a_narrow_terminal(
    width: int, columns: int, tiny: Path, folders: dict[str, Path], toy: str
) -> None:
    job = prepare("toy", "synthetic", seeds=[1111, 1112, 1113, 1114, 1115], feature_file=tiny, device="cpu", verbose=0,
                  overrides={"epochs": 1}, **folders)  # fmt: skip
    outcome = run(job)
    stream = io.StringIO()
    print_outcome(outcome, Console(file=stream, width=width))
    (row,) = [line for line in stream.getvalue().splitlines() if line.startswith("│ Non0_F1_score ")]
    mean = f"{outcome.summary['Non0_F1_score']['mean']:.4f}"
    assert mean in row
    assert row.count("0.") == 2 + columns
