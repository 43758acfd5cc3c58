"""The plan: what makes two runs the same, who reads which file, how rows and folds are named, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.compare import sanity
from mmsa_decalign.compare.notes import marked
from mmsa_decalign.compare.plan import Plan, key_of, make_plan, unique
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.errors import InputError

SMALL = {"d_model": 8, "num_heads": 2, "num_epochs": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("features") / "tiny.pkl", samples=(20, 8, 8))


@pytest.fixture
def plan(tiny: Path) -> Callable[..., Plan]:
    def make(models: list[str], datasets: list[str] | None = None, **options: Any) -> Plan:
        options = {"seeds": [1, 2], "device": "cpu", "with_sanity": False, **options}
        return make_plan(models, datasets or [f"synthetic={tiny}"], **options)

    return make


def keys(made: Plan) -> set[str]:
    return {cell.key for cell in made.cells}


def test_a_run_is_the_same_wherever_its_file_lies_and_however_its_settings_are_given(
        plan: Callable[..., Plan], tiny: Path, tmp_path: Path) -> None:
    first = plan(["decalign"])
    assert len(keys(first)) == len(first.cells) == 2
    elsewhere = shutil.copy(tiny, tmp_path / "moved.pkl")
    assert keys(plan(["decalign"], [f"synthetic={elsewhere}"])) == keys(first)
    spelt_out = plan(["mine=decalign"], overrides={"mine": {"gmm_covariance": "diag", "ot_tol": 1e-6}})
    assert keys(spelt_out) == keys(first)
    (tmp_path / "flat.json").write_text(json.dumps(SMALL))
    by_file = plan(["decalign"], configs=[str(tmp_path / "flat.json")])
    assert keys(by_file) == keys(plan(["decalign"], overrides={None: SMALL}))
    assert keys(by_file).isdisjoint(keys(first))


@pytest.mark.parametrize("change", ["seed", "settings", "sha256", "model", "mended", "protocol", "source"])
def test_everything_that_a_result_depends_on_is_in_the_key(plan: Callable[..., Plan], change: str) -> None:
    spec = plan(["decalign"]).cells[0].spec
    assert key_of({**spec, change: "other"}) != key_of(spec)
    assert key_of({**spec, "feature_file": "other"}) == key_of(spec)


def test_rows_of_one_model_have_their_own_settings(plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "a=b.json").write_text(json.dumps({"nlevels": 2}))
    made = plan(["decalign", "small=decalign"], configs=[f"small={tmp_path / 'a=b.json'}"],
                overrides={None: {"num_epochs": 3}, "small": {"d_model": 8}})
    own = {cell.row: cell.spec["settings"] for cell in made.cells}
    assert [own[row]["nlevels"] for row in ("decalign", "small")] == [own["decalign"]["nlevels"], 2]
    assert [own[row]["num_epochs"] for row in own] == [3, 3]
    assert own["small"]["d_model"] == 8 != own["decalign"]["d_model"]
    assert made.reference == "decalign"
    assert plan(["lmf", "decalign"]).reference == "decalign"
    assert plan(["lmf", "lf_dnn"]).reference == "lmf"
    assert plan(["lmf", "decalign"], reference="lmf").reference == "lmf"
    twice = plan(["lmf", "same=lmf"])
    assert (len(twice.cells), len(unique(twice.cells))) == (4, 2)


def test_a_file_of_settings_by_model_reaches_the_models_that_it_names(
        plan: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "by_model.json").write_text(json.dumps({"decalign": {"nlevels": 2}}))
    made = plan(["decalign", "lmf"], configs=[str(tmp_path / "by_model.json")])
    assert {cell.spec["settings"].get("nlevels") for cell in made.cells} == {2, None}
    with pytest.raises(InputError, match="none of the rows' models; it has: decalign"):
        plan(["lmf"], configs=[str(tmp_path / "by_model.json")])


def test_folds_are_data_sets_with_the_name_of_their_file(plan: Callable[..., Plan], tiny: Path, tmp_path: Path) -> None:
    fold = write_synthetic(tmp_path / "fold1.pkl", samples=(20, 8, 8), seed=5)
    made = plan(["lmf"], [f"synthetic={tiny}", f"synthetic={fold}"])
    assert [data.label for data in made.data] == ["synthetic tiny", "synthetic fold1"]
    assert len(keys(made)) == 4
    same = plan(["lmf"], ["synthetic"], feature_files=[str(tiny), str(fold)])
    assert keys(same) == keys(made)
    with_sanity = plan(["lmf"], ["synthetic"], feature_files=[str(tiny), str(fold)], with_sanity=True)
    assert len(keys(with_sanity)) == 4 + 2 * 3
    assert len(with_sanity.rows) == 4


def test_sanity_rows_stand_under_the_models(plan: Callable[..., Plan]) -> None:
    made = plan(["decalign", "lmf"], with_sanity=True)
    assert [row.label for row in made.rows] == [
        "decalign", "lmf", "decalign: text only", "decalign: audio only", "decalign: vision only",
        sanity.MEDIAN, sanity.MAJORITY, sanity.RIDGE]
    assert [row.sanity for row in made.rows] == [False] * 2 + [True] * 6
    assert len(made.cells) == 2 * 5 + 3
    only = [cell.spec["settings"]["modalities"] for cell in made.cells if cell.row == "decalign: audio only"]
    assert only == [["audio"]] * 2
    assert [row.label for row in plan(["lmf"], with_sanity=True).rows] == ["lmf", sanity.MEDIAN, sanity.MAJORITY,
                                                                           sanity.RIDGE]


def test_one_file_for_all_models_unless_each_is_to_have_its_own(plan: Callable[..., Plan], tmp_path: Path) -> None:
    processed = tmp_path / "MOSI" / "Processed"
    processed.mkdir(parents=True)
    for number, name in enumerate(("aligned_50.pkl", "unaligned_50.pkl")):
        write_synthetic(processed / name, samples=(20, 8, 8), seed=number)
    options = {"datasets": ["mosi"], "data_root": str(tmp_path)}
    made = plan(["decalign", "lmf"], **options)
    assert {Path(cell.spec["feature_file"]).name for cell in made.cells} == {"aligned_50.pkl"}
    own = plan(["decalign", "lmf"], own_files=True, **options)
    assert {cell.row: Path(cell.spec["feature_file"]).name for cell in own.cells} == {
        "decalign": "aligned_50.pkl", "lmf": "unaligned_50.pkl"}
    (note,) = [note for note in own.rows[1].notes["mosi"] if "file" in note]
    assert note == "feature file: unaligned_50.pkl (decalign: aligned_50.pkl)"


def test_what_differs_from_the_reference_is_noted(plan: Callable[..., Plan]) -> None:
    made = plan(["decalign", "lmf", "other=decalign"], overrides={"other": {"KeyEval": "Corr"}})
    notes = {row.label: " / ".join(row.notes["synthetic"]) for row in made.rows}
    assert notes["decalign"] == ""
    assert "audio and vision averaged over time" in notes["lmf"]
    assert notes["other"] == "checkpoint chosen by Corr (decalign: Loss)"


@pytest.mark.parametrize(("options", "words"), [
    ({"models": []}, "-m"),
    ({"models": ["lmf", "lmf"]}, "LABEL=MODEL"),
    ({"models": ["a:b=lmf"]}, "colon"),
    ({"models": ["lmf"], "reference": "lfm"}, "did you mean 'lmf'"),
    ({"models": ["lmf"], "overrides": {"lfm": {"x": 1}}}, "did you mean 'lmf'"),
    ({"models": ["lmf"], "overrides": {"lmf": {"nonsense": 1}}}, "unknown setting 'nonsense' for model 'lmf'"),
    ({"models": ["a=lmf"], "overrides": {"a": {"batch_size": -1}}}, "row 'a'|batch_size"),
    ({"models": ["lmf"], "datasets": ["synthetic", "mosi"], "feature_files": ["x.pkl"]}, "--feature-file"),
    ({"models": ["lmf"], "datasets": ["synthetic=no.pkl"]}, "no.pkl does not exist"),
    ({"models": ["lmf"], "datasets": ["mosi=x.pkl", "mosi=x.pkl"]}, "named twice"),
])
def test_what_cannot_be_planned_is_refused_in_a_line(plan: Callable[..., Plan], options: dict[str, Any], words: str
                                                     ) -> None:
    with pytest.raises(InputError, match=words):
        plan(**options)


def test_rows_that_are_selected_on_test_say_so_in_their_label(plan: Callable[..., Plan], tmp_path: Path) -> None:
    six = write_synthetic(tmp_path / "six.pkl", layout="iemocap", samples=(60, 24, 24))
    four = write_synthetic(tmp_path / "four.pkl", layout="iemocap4", samples=(60, 24, 24))
    on_test = {"paper": {"protocol": "paper_count"}}
    files = [f"iemocap={six}", f"iemocap4={four}"]
    made = plan(["decalign", "paper=decalign"], files, overrides=on_test, with_sanity=True, reference="paper")
    assert made.reference == "paper (selected on test)"
    names = [row.label for row in made.rows]
    assert names[:2] == ["decalign", "paper (selected on test)"]
    for cell in made.cells:
        assert (cell.spec["settings"].get("protocol") == "paper_count") == ("(selected on test)" in cell.row
                or cell.spec["kind"] == "sanity")
    assert {cell.row for cell in made.cells} == set(names)
    assert marked("x", {"a": {"protocol": "paper_count"}, "b": {}}) == "x (selected on test of a)"
