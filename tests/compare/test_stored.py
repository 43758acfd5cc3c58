"""A comparison made from a store alone."""

from __future__ import annotations

from typing import Any

import pytest
from compare_stub import record_of

from mmsa_decalign.cli import main
from mmsa_decalign.compare import stored
from mmsa_decalign.compare.plan import Cell, key_of
from mmsa_decalign.compare.store import Store
from mmsa_decalign.compare.stored import stored_plan
from mmsa_decalign.errors import InputError


@pytest.fixture(autouse=True)
def _without_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of these cells are made up, and no job can be made of them."""
    monkeypatch.setattr(stored, "_note", lambda plan, store: None)


def fill(store: Store, model: str, seed: int = 1, *, finished: bool = True, error: str | None = None, file: str = "f",
         kind: str = "model", **settings: Any) -> Cell:
    spec = {"kind": kind, "model": model, "dataset": "mosi", "seed": seed, "settings": settings,
            "overrides": {}, "mended": False, "sha256": file * 64, "feature_file": f"/data/{file}.pkl"}
    made = Cell(key_of(spec), model, "mosi", seed, spec)
    store.add([made.entry()])
    if finished or error:
        assert store.claim(made.key, "t", 0)
    if finished:
        assert store.finish(made.key, "t", record_of(spec, {"MAE": 1.0}, id=made.key), {})
    elif error:
        assert store.fail(made.key, "t", error)
    return made


def cells_of(plan: Any) -> dict[tuple[str, str], list[int]]:
    return {(row.label, data.label): [cell.seed for cell in plan.of(row.label, data.label)]
            for row in plan.rows for data in plan.data if plan.of(row.label, data.label)}


def test_rows_are_models(store: Store) -> None:
    fill(store, "constant: median", 0, kind="sanity")
    for seed in (1, 2):
        fill(store, "lmf", seed)
        fill(store, "decalign", seed, modalities=["text", "audio", "vision"])
        fill(store, "decalign", seed, modalities=["text"])
    plan = stored_plan(store)
    assert cells_of(plan) == {("lmf", "mosi"): [1, 2], ("decalign", "mosi"): [1, 2],
                              ("constant: median", "mosi"): [0], ("decalign: text only", "mosi"): [1, 2]}
    assert [row.label for row in plan.rows if row.sanity] == ["constant: median", "decalign: text only"]
    assert [row.sanity for row in plan.rows] == sorted(row.sanity for row in plan.rows), "models first"
    assert plan.reference == "decalign"
    assert plan.seeds == (1, 2)
    assert stored_plan(store, "lmf").reference == "lmf"


def test_the_same_name_with_other_settings_is_another_row(store: Store) -> None:
    fill(store, "lmf", 1)
    fill(store, "lmf", 2)
    fill(store, "lmf", 1, hidden_in_a_file=3)
    fill(store, "lmf", 3, hidden_in_a_file=3)
    fill(store, "lmf", 1, hidden_in_a_file=4)
    plan = stored_plan(store)
    assert cells_of(plan) == {("lmf", "mosi"): [1, 2], ("lmf #2", "mosi"): [1, 3], ("lmf #3", "mosi"): [1]}
    assert [row.notes for row in plan.rows] == [
        {}, {"mosi": ["not the runs of lmf: hidden_in_a_file=3, there None"]},
        {"mosi": ["not the runs of lmf: hidden_in_a_file=4, there None"]}]


def test_files_of_one_data_set_are_told_apart(store: Store) -> None:
    fill(store, "lmf", file="a")
    fill(store, "lmf", file="b", other_for_this_file=1)
    assert cells_of(stored_plan(store)) == {("lmf", "mosi a"): [1], ("lmf", "mosi b"): [1]}


def test_what_failed_is_in_it_and_what_never_ran_is_not(store: Store) -> None:
    fill(store, "lmf", 1, finished=False, error="out of memory")
    fill(store, "lmf", 2, finished=False)
    assert cells_of(stored_plan(store)) == {("lmf", "mosi"): [1]}


def test_an_empty_store_and_an_unknown_reference_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match="holds no run yet"):
        stored_plan(store)
    fill(store, "lmf")
    with pytest.raises(InputError, match="--reference lnf: no row of that name; did you mean 'lmf'"):
        stored_plan(store, "lnf")


def test_the_command_makes_every_form(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, "lmf", 1)
    out = store.path.parent / "out"
    assert main(["report", str(store.path), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "compare.csv", "compare.json", "compare.md", "compare.tex", "report.html"]
    assert "lmf" in capsys.readouterr().out
    assert main(["report", str(out / "none.sqlite")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["report", str(store.path), "--out", str(out / "compare.csv")]) == 2
    assert "--out" in (said := capsys.readouterr().err)
    assert "is no folder that can be written" in said


def test_a_row_that_was_selected_on_test_is_marked(store: Store) -> None:
    fill(store, "decalign")
    fill(store, "decalign", protocol="paper_count")
    fill(store, "lmf", protocol="session_valid")
    assert [row.label for row in stored_plan(store).rows] == ["decalign", "decalign (selected on test)", "lmf"]
