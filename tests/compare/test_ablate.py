"""Ablation: one row for each part that is in use, each with the one setting that switches it off, in one table."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmsa_decalign.cli import main
from mmsa_decalign.compare.ablate import ALIGNMENT, FULL, PARTS, ablation, make_plan
from mmsa_decalign.compare.plan import unique
from mmsa_decalign.compare.store import Store
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.catalogue import catalogue
from mmsa_decalign.settings import Settings

SMALL = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("ablate") / "tiny.pkl", samples=(33, 12, 17))


def test_where_everything_is_on_every_part_has_a_row() -> None:
    found = ablation("synthetic")
    assert list(found.rows) == [FULL, *(part.label for part in PARTS), ALIGNMENT]
    assert found.rows[FULL] == {}
    assert found.rows[ALIGNMENT] == {"dec_loss_weight": 0.0, "alpha": 0.0, "beta": 0.0}
    assert found.left_out == {}
    for part in PARTS:
        (name, value), = found.rows[part.label].items()
        assert getattr(Settings(), name)
        assert not value


@pytest.mark.parametrize(("overrides", "left_out", "alignment"), [
    ({"dec_loss_weight": 0.0}, {"no decoupling": "dec_loss_weight is 0"}, {"alpha", "beta"}),
    ({"alpha": 0.0}, dict.fromkeys(("no heterogeneity", "no transport", "no prototypes"), "alpha is 0"),
     {"dec_loss_weight", "beta"}),
    ({"ct_weight": 0}, {"no contrastive": "ct_weight is 0"}, {"dec_loss_weight", "alpha", "beta"}),
    ({"use_cross_modal_attention": False}, {"no cross-modal attention": "is false"},
     {"dec_loss_weight", "alpha", "beta"}),
    ({"transport_weight": 0.0}, {"no transport": "transport_weight is 0", "no prototypes": "the same as"},
     {"dec_loss_weight", "alpha", "beta"}),
    ({"mmd_weight": 0.0}, {"no MMD": "mmd_weight is 0", "no moments": "the same as 'no homogeneity'"},
     {"dec_loss_weight", "alpha", "beta"}),
    ({"alpha": 0.0, "beta": 0.0}, {**dict.fromkeys(
        ("no heterogeneity", "no transport", "no prototypes"), "alpha is 0"), **dict.fromkeys(
        ("no homogeneity", "no moments", "no MMD"), "beta is 0"), ALIGNMENT: "only dec_loss_weight is on"}, None),
    ({"modalities": ["text"]}, {**dict.fromkeys(
        ("no heterogeneity", "no transport", "no prototypes", "no homogeneity", "no moments", "no MMD",
         "no cross-modal attention"), "there is one modality, text"), ALIGNMENT: "only dec_loss_weight"}, None),
])
def test_what_is_off_already_is_left_out_and_named(overrides, left_out, alignment) -> None:
    found = ablation("synthetic", overrides=overrides)
    assert found.left_out.keys() == left_out.keys()
    for label, reason in left_out.items():
        assert reason in found.left_out[label], label
    assert found.rows.keys() == {FULL, ALIGNMENT, *(part.label for part in PARTS)} - left_out.keys()
    assert (set(found.rows[ALIGNMENT]) if ALIGNMENT in found.rows else None) == alignment


@pytest.mark.parametrize("dataset", ["mosi", "mosei", "sims", "iemocap", "iemocap4", "synthetic"])
def test_no_row_of_a_data_set_is_the_full_model_or_another_row(dataset: str) -> None:
    """By the settings as the model sees them; what it leaves out is off in the data set's own settings."""
    assert dataset in catalogue().datasets
    found = ablation(dataset)
    assert len({json.dumps(row, sort_keys=True) for row in found.rows.values()}) == len(found.rows)
    assert ("no homogeneity" in found.left_out) == (dataset == "mosei")
    assert ("no contrastive" in found.left_out) == (dataset in ("iemocap", "iemocap4"))


def test_nothing_to_switch_off() -> None:
    nothing = {"dec_loss_weight": 0.0, "alpha": 0.0, "beta": 0.0, "ct_weight": 0.0, "use_cross_modal_attention": False}
    with pytest.raises(InputError, match="leave nothing to switch off"):
        ablation("synthetic", overrides=nothing)


def test_the_plan_is_a_comparison_with_the_full_model(tiny: Path) -> None:
    plan = make_plan("synthetic", overrides={**SMALL, "ct_weight": 0.0}, feature_files=[str(tiny)], seeds=[1, 2],
                     device="cpu")
    assert plan.reference == FULL
    assert len(unique(plan.cells)) == len(plan.cells) == 2 * 10
    for row in plan.rows:
        settings = plan.of(row.label, "synthetic")[0].spec["settings"]
        for name, value in SMALL.items():
            assert settings[name] == value
        differing = {name for name, value in plan.of(FULL, "synthetic")[0].spec["settings"].items()
                     if settings[name] != value}
        part = next((part for part in PARTS if part.label == row.label), None)
        assert differing == (set(part.off) if part else set() if row.label == FULL else
                             {"dec_loss_weight", "alpha", "beta"})
        if part:
            assert part.about in row.notes["synthetic"][0]
    assert plan.notes == ["left out, no contrastive: ct_weight is 0 in the settings"]


@pytest.mark.slow
def test_the_command_runs_the_rows_and_says_what_it_left_out(
        tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    call = ["ablate", "-d", "synthetic", "--feature-file", str(tiny), "--device", "cpu", "-s", "1", "--store",
            str(tmp_path / "store.sqlite"), "--set", "alpha=0", "--set", "ct_weight=0", "--set", "beta=0", "-j", "2",
            *(part for pair in SMALL.items() for part in ("--set", f"{pair[0]}={pair[1]}"))]
    assert main([*call, "--dry-run"]) == 0
    assert "left out, no contrastive: ct_weight is 0 in the settings" in capsys.readouterr().out
    writes_events = find_spec("tensorboard") is not None
    assert main([*call, "--json", *(["--tensorboard", str(tmp_path / "events")] if writes_events else [])]) == 0
    document = json.loads(capsys.readouterr().out)
    (part,) = document["data"]
    assert [row["label"] for row in part["rows"]] == ["full", "no decoupling", "no cross-modal attention"]
    assert document["reference"] == "full"
    assert any("no transport: alpha is 0" in note for note in part["notes"])
    assert set(part["rows"][1]["against"]) == set(part["metrics"])
    if writes_events:
        rows = {"full", "no_decoupling", "no_cross-modal_attention"}
        assert {path.parts[-3] for path in (tmp_path / "events").glob("*/*/events.*")} == rows
    assert "no transport: alpha is 0" in (tmp_path / "store-ablate" / "compare.md").read_text()
    store = Store(tmp_path / "store.sqlite")
    terms = {}
    for row in part["rows"]:
        record = store.find(row["runs"][0])
        assert record is not None
        terms[row["label"]] = record["settings"]["dec_loss_weight"], record["settings"]["use_cross_modal_attention"]
    store.close()
    assert terms == {"full": (1.0, True), "no decoupling": (0.0, True), "no cross-modal attention": (1.0, False)}


@pytest.mark.parametrize(("argv", "words"), [
    (["ablate", "-d", "mosy"], "did you mean 'mosi'"),
    (["ablate", "--set", "alpha"], "key=value"),
    (["ablate", "--set", "alfa=0"], "did you mean 'alpha'"),
    (["ablate", "-m", "lmf"], "-m"),
])
def test_mistakes_are_answered_in_a_line(argv: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(argv) == 2
    assert words in capsys.readouterr().err
