"""The table: figures of the records, statistics of the predictions, verdicts in words, and every form of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_maker import NAMES, Maker, N
from compare_stub import record_of
from rich.console import Console

from mmsa_decalign.compare import screen, statistics, table, writing
from mmsa_decalign.compare.plan import Data, Plan, Row
from mmsa_decalign.compare.report import page
from mmsa_decalign.compare.report.words import limits


def rows_of(document: dict[str, Any], data: int = 0) -> dict[str, Any]:
    return {row["label"]: row for row in document["data"][data]["rows"]}


def test_figures_are_the_records_and_verdicts_are_words(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("another", 0.5)
    maker.row("terrible", 4.0)
    document = maker.document()
    rows = rows_of(document)
    for label, row in rows.items():
        values = [maker.store.find(f"{label}{seed}a")["test"]["MAE"] for seed in (1, 2)]
        assert row["metrics"]["MAE"]["values"] == values
        assert row["metrics"]["MAE"]["mean"] == pytest.approx(np.mean(values))
        assert row["metrics"]["MAE"]["std"] == pytest.approx(np.std(values))
        assert row["metrics"]["MAE"]["low"] < row["metrics"]["MAE"]["mean"] < row["metrics"]["MAE"]["high"]
    assert "Loss" not in rows["good"]["metrics"]
    assert rows["good"]["against"] == {}
    assert {entry["verdict"] for entry in rows["another"]["against"].values()} == {"not distinguishable"}
    assert {entry["verdict"] for entry in rows["terrible"]["against"].values()} == {"worse"}
    worse = rows["terrible"]["against"]
    assert worse["MAE"]["difference"] > 0 > worse["Corr"]["difference"]
    assert worse["MAE"]["family"] == 2
    assert worse["MAE"]["p_holm"] == pytest.approx(2 * worse["MAE"]["p"])
    from_other_side = rows_of(maker.document("terrible"))["good"]["against"]
    assert {entry["verdict"] for entry in from_other_side.values()} == {"better"}
    best = [label for label, row in rows.items() if row["metrics"]["MAE"]["best"]]
    ties = [label for label, row in rows.items() if row["metrics"]["MAE"]["tie"]]
    assert sorted(best + ties) == ["another", "good"]
    assert len(best) == 1


def test_the_family_of_a_metric_spans_the_data_sets(maker: Maker) -> None:
    for data in "ab":
        maker.row("good", 0.5, data=data)
        maker.row("terrible", 4.0, data=data)
        maker.row("also bad", 4.0, data=data)
    document = maker.document()
    entries = [row["against"]["MAE"] for part in document["data"] for row in part["rows"] if row["against"]]
    assert [entry["family"] for entry in entries] == [4] * 4
    assert [entry["p_holm"] for entry in entries] == pytest.approx(statistics.holm([entry["p"] for entry in entries]))


def test_samples_in_another_order_are_paired_by_their_ids(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("other", 0.9)
    expected = rows_of(maker.document())["other"]["against"]
    shuffled = np.random.default_rng(1).permutation(N)
    maker.store.database.execute("DELETE FROM runs WHERE id LIKE 'other%'")
    maker.store.database.execute("UPDATE cells SET attempts = 0 WHERE model = 'other'")
    maker.cells = [made for made in maker.cells if made.row == "good"]
    maker.row("other", 0.9, order=shuffled)
    assert rows_of(maker.document())["other"]["against"] == expected


def test_what_cannot_be_recomputed_gets_no_interval_and_says_so(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("odd", 0.5, broken=0.01)
    part = maker.document()["data"][0]
    assert "no interval and no test for Has0_acc_2, Non0_acc_2, MAE, Corr" in part["notes"][0]
    assert part["rows"][1]["metrics"]["MAE"]["mean"] is not None
    assert part["rows"][1]["metrics"]["MAE"]["low"] is None
    assert part["rows"][1]["against"] == {}


def test_a_row_with_other_labels_is_not_compared(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.labels["a"] = maker.labels["a"] + np.float32(0.1)
    maker.row("moved", 0.5)
    part = maker.document()["data"][0]
    assert part["notes"] == ["moved: no intervals, since its predictions are not known for the same samples"]
    assert part["rows"][0]["metrics"]["MAE"]["low"] is not None
    assert part["rows"][1]["against"] == {}


def test_rows_without_predictions_runs_or_seeds_are_still_rows(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("part", 0.5, seeds=(1,))
    maker.rows += [Row("mute", "mute"), Row("failed", "failed")]
    mute, failed, missing = maker.cell("mute", 1, "a"), maker.cell("failed", 1, "a"), maker.cell("part", 2, "a")
    maker.finish(mute, record_of(mute.spec, {"MAE": 0.9, "Corr": None}, id="mute"), None)
    for made in (failed, missing):
        assert maker.store.claim(made.key, "t", 0)
        assert maker.store.fail(made.key, "t", "out of memory")
    document = maker.document()
    rows = rows_of(document)
    assert rows["mute"]["metrics"]["MAE"]["mean"] == 0.9
    assert rows["mute"]["metrics"]["Corr"]["mean"] is None
    assert rows["failed"]["metrics"]["MAE"]["mean"] is None
    assert "1 of 2 runs" in rows["part"]["notes"]
    assert rows["part"]["against"]["MAE"]["p"] is not None
    assert [(failure["row"], failure["seed"], failure["error"]) for failure in document["failures"]] == [
        ("part", 2, "out of memory"), ("failed", 1, "out of memory")]
    assert "failed" in writing.as_markdown(document)
    screen.print_table(document, Console(file=io.StringIO(), width=100))


def test_an_empty_store_makes_a_table_without_figures(maker: Maker) -> None:
    maker.rows.append(Row("good", "good"))
    maker.cell("good", 1, "a")
    document = maker.document()
    assert document["data"][0]["metrics"] == []
    json.dumps(document, allow_nan=False)
    writing.as_markdown(document)


def test_classes_have_intervals_too(maker: Maker) -> None:
    names, metrics, rng = ["sad", "happy"], ["WA", "UA", "Weighted_F1", "F1_sad"], np.random.default_rng(0)
    labels = rng.integers(0, 2, N)
    for label, noise in (("good", 0.3), ("bad", 30.0)):
        maker.classes(label, names, labels, noise, metrics, rng=rng)
    rows = rows_of(maker.document())
    assert {entry["verdict"] for entry in rows["bad"]["against"].values()} == {"worse"}
    assert set(rows["bad"]["against"]) == set(metrics)
    assert rows["good"]["metrics"]["UA"]["low"] < rows["good"]["metrics"]["UA"]["mean"]


def test_memory_is_that_of_the_gpu_where_one_was_used(maker: Maker) -> None:
    maker.row("good", 0.5, peak_memory_mib={"process": 900.0, "gpu": 50.0})
    maker.row("cpu", 0.5, peak_memory_mib={"process": 700.0, "gpu": None})
    maker.row("windows", 0.5, peak_memory_mib={"process": None, "gpu": None})
    assert [row["peak_memory_mib"] for row in maker.document()["data"][0]["rows"]] == [50.0, 700.0, None]


@pytest.mark.parametrize(("p", "shown"), [(0.0002, "0.0002"), (0.0099, "0.0099"), (0.01, "0.01"), (0.0496, "0.0496"),
                                          (0.0504, "0.0504"), (0.044, "0.04"), (0.056, "0.06"), (1.0, "1.00")])
def test_a_p_value_shows_on_which_side_of_the_level_it_is(p: float, shown: str) -> None:
    assert writing.p_value(p) == shown


def test_mixed_code_is_noted(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("old", 0.5, git_commit="1" * 40)
    notes = maker.document()["data"][0]["notes"]
    assert notes == ["runs by different code: 000000000000, 111111111111"]


def test_warnings_of_runs_are_footnotes_and_not_more_than_a_few(maker: Maker) -> None:
    warned = [{"what": "the best epoch was the first", "try": "a lower rate"}, {"what": "constant", "try": "more"}]
    maker.row("good", 0.5)
    maker.row("odd", 0.5, warnings=warned)
    document = maker.document()
    good, odd = document["data"][0]["rows"]
    assert good["warnings"] == []
    assert len(odd["warnings"]) == 4
    lines = writing.footnotes(document, document["data"][0])
    assert [line for line in lines if line.startswith("odd")] == [
        "odd, seed 1: the best epoch was the first; try a lower rate", "odd, seed 1: constant; try more",
        "odd, seed 2: the best epoch was the first; try a lower rate", "odd: 1 more warned of in its runs' records"]
    assert not any("see the notes" in line for line in limits(document))


def test_every_form_holds_the_same_figures(maker: Maker, tmp_path: Path) -> None:
    maker.row("good", 0.5)
    maker.row("bad_one", 4.0)
    maker.row("line", 1.0, seeds=(0,), sanity=True)
    document = maker.document()
    paths = writing.write_all(document, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.json", "compare.csv", "compare.md", "compare.tex"]
    assert json.loads(paths[0].read_text()) == document
    mean, low = (document["data"][0]["rows"][1]["metrics"]["MAE"][key] for key in ("mean", "low"))
    lines = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert len(lines) == 3 * len(NAMES)
    (line,) = [line for line in lines if (line["row"], line["metric"]) == ("bad_one", "MAE")]
    assert (float(line["mean"]), float(line["low"])) == (mean, low)
    assert line["verdict"] == "worse"
    assert line["checkpoint"] == "lowest valid Loss"
    assert line["rule"] == "mean absolute error, lower is better"
    markdown, latex = paths[2].read_text(), paths[3].read_text()
    assert f"{mean:.3f}" in markdown
    assert f"{mean:.3f}" in latex
    assert "**" in next(text for text in markdown.splitlines() if text.startswith("| good"))
    assert "**" not in next(text for text in markdown.splitlines() if text.startswith("| bad_one"))
    assert re.search(r"bad_one against good: worse on .*MAE \(\+", markdown)
    assert "samples with label 0 are left out" in markdown
    assert r"bad\_one" in latex
    assert latex.count(r"\midrule") == 2, "a line between models and sanity rows"
    assert [latex.count(word) for word in (r"\toprule", r"\bottomrule")] == [1, 1]
    for text in latex.splitlines():
        if text.endswith(r"\\"):
            assert text.count(" & ") == len(NAMES)
    screen_text = io.StringIO()
    screen.print_table(document, Console(file=screen_text, width=70), paths)
    for name in NAMES:
        assert name in screen_text.getvalue()
    assert f"{mean:.3f}" in screen_text.getvalue()


def test_latex_prints_what_it_is_given() -> None:
    assert writing.escaped(r"a_b & 5 % {x} ~^ \ #$") == (
        r"a\_b \& 5 \% \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{} \#\$")


def test_what_was_selected_on_test_is_marked_in_every_form(maker: Maker, tmp_path: Path) -> None:
    marked = "bad (selected on test)"
    maker.row("good", 0.5)
    own = maker.document()
    assert own["about"] == table.ABOUT
    assert "Checkpoint chosen on validation." in writing.as_latex(own)
    chosen = {"epoch": 1, "metric": "WA", "mode": "max", "split": "test", "value": 1.0}
    maker.row(marked, 0.5, selection=chosen)
    maker.cells = [dataclasses.replace(made, spec={**made.spec, "settings": {**made.spec["settings"],
                                       "protocol": "paper_count"}}) if made.row == marked else made
                   for made in maker.cells]
    document = maker.document()
    for name in ("checkpoint", "test"):
        assert "in rows marked (selected on test)" in document["about"][name].replace("In rows", "in rows")
        assert document["about"][name] != table.ABOUT[name]
    assert document["about"]["p"] == table.ABOUT["p"]
    stream = io.StringIO()
    screen.print_table(document, Console(file=stream, width=200), [])
    plan = Plan(maker.rows, [Data("a", "mosi")], (1, 2), "good", maker.cells)
    forms = {path.suffix: path.read_text() for path in writing.write_all(document, tmp_path)}
    forms |= {"terminal": stream.getvalue(), "html": page.build(document, plan, maker.store)}
    for name, text in forms.items():
        assert marked in text, name
        for claim in ("nothing is chosen by it", "chosen on the validation split"):
            assert all("for any other row" in line for line in text.splitlines() if claim in line), name
    assert "but by the test split in rows marked (selected on test)" in forms[".tex"]
    assert "Checkpoint chosen on validation." not in forms[".tex"]


def test_the_counts_of_joined_splits_are_those_of_the_protocol() -> None:
    def record(protocol: str, train: int) -> dict[str, Any]:
        return {"settings": {"protocol": protocol}, "features": {"samples": {"train": train, "valid": 3, "test": 3}}}

    paper, own = record("paper_count", 9), record("session_valid", 7)
    assert table._samples([paper]) == {"train with valid": 9, "test": 3}
    assert table._samples([paper, own]) == {"train": 7, "valid": 3, "test": 3}
    assert table._samples([]) is None
