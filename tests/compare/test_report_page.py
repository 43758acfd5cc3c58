"""The report as a file: whole, self-contained, escaped, and with the table's own figures."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from compare_maker import Maker, N
from compare_stub import record_of
from report_reading import Element, pictures, read, table

from mmsa_decalign.compare import table as tables
from mmsa_decalign.compare.plan import Data, Plan, Row
from mmsa_decalign.compare.report import inside, page, svg, words
from mmsa_decalign.compare.writing import figure

NASTY = "<script>alert('x')</script> & \"q\" $a_b$ {{ 7*7 }} 情感"
CURVES = [{"epoch": epoch, "train": {"loss": 4.0 / epoch, "odd_term": -0.25 * epoch},
           "valid": {"Loss": 2.0 / epoch, "MAE": 1.5 / epoch}} for epoch in (1, 2, 3, 4)]


def built(maker: Maker, reference: str = "good", seeds: tuple[int, ...] = (1, 2), dataset: str = "mosi"
          ) -> tuple[str, dict[str, Any]]:
    """The page and the document that it was made from."""
    labels = list(dict.fromkeys(made.data for made in maker.cells))
    plan = Plan(maker.rows, [Data(label, dataset) for label in labels], seeds, reference, maker.cells)
    document = tables.make_table(plan, maker.store)
    return page.build(document, plan, maker.store), document


def three_rows(maker: Maker) -> None:
    maker.row("good", 0.5, epochs=CURVES)
    maker.row("another", 0.5, epochs=CURVES)
    maker.row("terrible", 4.0, sanity=True)


def assert_whole(html: str) -> Element:
    """What holds for every report."""
    found = read(html)
    assert html.startswith("<!DOCTYPE html>")
    for one in found.all():
        for name, value in one.attributes.items():
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                assert value.startswith(("data:", "#")), f"<{one.tag} {name}={value[:80]}>"
            assert not name.startswith("on"), f"<{one.tag} {name}>"
    assert [one.attributes for one in found.all("script")] == [{}], "one script, inside the file"
    (style,) = found.all("style")
    assert not re.search(r"@import|url\(", style.text())
    for alt, content in pictures(found).items():
        assert len(alt) > 30, alt
        for node in ElementTree.fromstring(content).iter():
            assert all(value.startswith(("data:", "#")) for name, value in node.attrib.items() if "href" in name)
        assert set(re.findall(r"https?://[^\"' ]+", content)) <= {"http://www.w3.org/2000/svg",
                                                                   "http://www.w3.org/1999/xlink"}
    ids = [one.attributes["id"] for one in found.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for one in found.all():
        for name in ("aria-labelledby", "href"):
            if (value := one.attributes.get(name, "")) and not value.startswith("data:"):
                assert value.lstrip("#") in ids, value
    levels = [int(one.tag[1]) for one in found.all("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= before + 1 for before, later in zip(levels, levels[1:], strict=False)), levels
    return found


def test_the_page_is_whole_and_needs_nothing_else(maker: Maker) -> None:
    for data in "ab":
        maker.row("good", 0.5, data=data, epochs=CURVES)
        maker.row("terrible", 4.0, data=data)
    html, document = built(maker)
    found = assert_whole(html)
    assert [one.text() for one in found.all("h2")] == ["Summary", "a", "b", "How to read this"]
    for name in document["about"]:
        assert name in [one.text() for one in found.all("dt")]
    for data in "ab":
        for name in document["data"][0]["metrics"]:
            assert sum(alt.startswith(f"{name} on {data} with intervals") for alt in pictures(found)) == 1
        for wanted in ("Curves of good", "Prediction against truth of good", "Time of a run", "Peak memory"):
            assert sum(alt.startswith(f"{wanted} on {data}") for alt in pictures(found)) == 1, (wanted, data)


def test_the_checks_of_wholeness_find_what_is_wrong() -> None:
    for bad in ("<p><b></p></b>", "<p>", "<img src='http://a/b.png' alt='x'>"):
        with pytest.raises(AssertionError):
            assert_whole(f"<!DOCTYPE html><h1>x</h1>{bad}<script></script><style></style>")


def test_the_figures_are_the_tables(maker: Maker) -> None:
    three_rows(maker)
    html, document = built(maker)
    shown = table(read(html))
    (part,) = document["data"]
    assert list(shown) == [row["label"] for row in part["rows"]]
    for row in part["rows"]:
        for name, metric in row["metrics"].items():
            cell = shown[row["label"]][name]
            assert float(cell.attributes["data-value"]) == metric["mean"]
            assert figure(metric, several=True) in cell.text()
            assert f"[{metric['low']:.3f}, {metric['high']:.3f}]" in cell.text()
            assert bool(cell.all("strong")) == metric["best"]
            assert ("≈" in cell.text()) == (metric["tie"] and not metric["best"])
    ties = [row["metrics"]["MAE"]["tie"] for row in part["rows"]]
    assert True in ties
    assert ties[2] is False


def test_differences_from_the_reference_are_the_tables(maker: Maker) -> None:
    three_rows(maker)
    html, document = built(maker)
    (shown,) = [one for one in read(html).all("table") if "against" in one.attributes.get("class", "")]
    lines = [row.text() for row in shown.all("tbody")[0].all("tr")]
    assert len(lines) == 2
    entry = document["data"][0]["rows"][2]["against"]["MAE"]
    assert lines[1].startswith("terrible worse")
    assert f"worse {entry['difference']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]" in lines[1]
    assert lines[0].count("not distinguishable") == 4


def test_every_row_has_its_protocol_and_its_notes(maker: Maker) -> None:
    three_rows(maker)
    maker.rows[1].notes["a"] = ["text: of another kind"]
    html, _ = built(maker)
    rows = read(html).all("tbody")[0].all("tr")
    assert all("lowest valid Loss, epoch 1, 1; text: features of the file" in row.text() for row in rows)
    assert ["text: of another kind" in row.text() for row in rows] == [False, True, False]
    assert f"fold0.pkl: SHA-256 {'f' * 64}" in read(html).text()
    assert "made with mmsa-decalign 0.1 (000000000000), MMSA 2.2.1, torch 2, on cpu x" in read(html).text()


def test_what_users_write_is_text(maker: Maker) -> None:
    maker.row(NASTY, 0.5, epochs=CURVES)
    maker.row("情感 $x$", 0.5)
    maker.row("bad", 4.0)
    maker.rows[0].notes["a"] = [NASTY]
    failed = maker.cell("bad", 3, "a")
    assert maker.store.claim(failed.key, "t", 0)
    assert maker.store.fail(failed.key, "t", f"failed with {NASTY}")
    html, _ = built(maker, reference=NASTY)
    found = assert_whole(html)
    assert "alert(" not in found.all("script")[0].text()
    assert NASTY in table(found)
    assert f"failed with {NASTY}" in found.text()
    assert "49" not in found.all("h1")[0].text()
    of_time = next(content for alt, content in pictures(found).items() if alt.startswith("Time of a run"))
    assert "<script" not in of_time
    drawn = [node.text for node in ElementTree.fromstring(of_time).iter()]
    assert "情感 $x$" in drawn, "neither a formula nor a complaint about letters that matplotlib's own font lacks"
    assert any((text or "").startswith("<script>") for text in drawn)


def test_curves_show_every_term_and_the_validation_metric(maker: Maker) -> None:
    three_rows(maker)
    html, _ = built(maker)
    (alt,) = [alt for alt in pictures(read(html)) if alt.startswith("Curves of good")]
    for text in ("train loss from 4 in epoch 1 to 1 in epoch 4", "train odd_term from -0.25 in epoch 1 to -1 in",
                 "valid Loss from 2 in epoch 1 to 0.5", "valid MAE from 1.5"):
        assert text in alt
    assert not [alt for alt in pictures(read(html)) if alt.startswith("Curves of terrible")], "it has no epochs"


def test_curves_of_models_that_report_little(maker: Maker) -> None:
    for epochs in ([{"epoch": 1}], [{"epoch": 1, "train": None, "valid": {"Loss": None}}], []):
        record = record_of(maker_spec(), {}, epochs=epochs)
        with svg.drawing():
            assert pictures_of(record) is None


def maker_spec() -> dict[str, Any]:
    return {"kind": "model", "model": "m", "dataset": "mosi", "seed": 1, "settings": {}}


def pictures_of(record: dict[str, Any]) -> Any:
    from mmsa_decalign.compare.report.pictures import curves

    return curves("m", "a", [record], ["MAE"])


def test_the_summary_says_what_the_table_says(maker: Maker) -> None:
    maker.row("good", 0.4)
    maker.row("another", 0.4)
    maker.row("terrible", 4.0)
    maker.row("ridge", 0.4, sanity=True)
    maker.row("a constant", 4.0, sanity=True)
    html, document = built(maker)
    (text,) = words.summary(document)
    assert text in read(html).text()
    (part,) = document["data"]
    for row in part["rows"]:
        for name in part["metrics"]:
            if row["metrics"][name]["best"]:
                assert re.search(rf"\b{row['label']} has the best mean of [^.;]*{name}", text), (row["label"], name)
    assert "another is not distinguishable from the reference good on any metric" in text
    assert "Against the reference good, terrible is worse on Has0_acc_2, Non0_acc_2, MAE and Corr." in text
    assert "on MAE good is better than “a constant” and not distinguishable from ridge" in text
    assert f"({N} test samples" not in text  # of the record, not of the stored predictions
    assert "(9 test samples, 2 seeds a model)" in text
    (reversed_text,) = words.summary(built(maker, reference="terrible")[1])
    assert "Against the reference terrible, good is better on" in reversed_text
    assert "on MAE terrible is not distinguishable from “a constant” and worse than ridge" in reversed_text


def mute(maker: Maker, label: str, mae: float) -> None:
    """A row whose predictions are not known, so that nothing of it is tested."""
    maker.rows.append(Row(label, label))
    made = maker.cell(label, 1, "a")
    maker.finish(made, record_of(made.spec, {"MAE": mae}, id=label), None)


def test_nothing_is_said_of_ties_that_were_not_tested(maker: Maker) -> None:
    maker.row("good", 0.4)
    maker.row("terrible", 4.0)
    assert "On MAE no other row ties with good." in words.summary(maker.document())[0]
    mute(maker, "mute", 0.9)
    assert "On MAE no other row that could be tested ties with good." in words.summary(maker.document())[0]
    mute(maker, "mute but best", 0.01)
    (text,) = words.summary(maker.document())
    assert "“mute but best” has the best mean of MAE" in text
    assert "ties" not in text
    assert "share" not in text


def test_a_metric_that_has_no_test_is_not_counted_as_equal(maker: Maker) -> None:
    maker.row("good", 0.4)
    maker.row("another", 0.4)
    assert "not distinguishable from the reference good on any metric." in words.summary(maker.document())[0]
    document = maker.document()
    del document["data"][0]["rows"][1]["against"]["Corr"]
    assert "the reference good on any metric that could be tested." in words.summary(document)[0]


def test_the_limits_are_those_of_the_data(maker: Maker) -> None:
    three_rows(maker)
    _, document = built(maker)
    metric = document["data"][0]["rows"][0]["metrics"]["MAE"]
    text = " ".join(words.limits(document))
    assert f"MAE of good reaches from {metric['low']:.3f} to {metric['high']:.3f}" in text
    assert f"over 2 seeds its MAE has a standard deviation of {metric['std']:.3f}" in text
    entry = document["data"][0]["rows"][1]["against"]["MAE"]
    assert f"is known to about ±{(entry['high'] - entry['low']) / 2:.3f} (half" in text
    assert "failed" not in text
    assert "one seed" not in text


def test_one_seed_is_a_limit_and_has_no_deviation(maker: Maker) -> None:
    maker.row("good", 0.5, seeds=(1,))
    maker.row("bad", 4.0, seeds=(1,))
    html, document = built(maker, seeds=(1,))
    found = assert_whole(html)
    assert "Each model was trained with one seed" in found.text()
    assert "one seed a model" in found.text()
    assert not any("±" in cell.text() for row in table(found).values() for cell in row.values())
    assert len(document["seeds"]) == 1


def test_failed_runs_are_named_and_the_rest_is_shown(maker: Maker) -> None:
    maker.row("good", 0.5)
    maker.row("part", 0.5, seeds=(1,))
    maker.rows += [Row("failed", "failed"), Row("mute", "mute")]
    for made in (maker.cell("failed", 1, "a"), maker.cell("part", 2, "a")):
        assert maker.store.claim(made.key, "t", 0)
        assert maker.store.fail(made.key, "t", "out of memory")
    mute = maker.cell("mute", 1, "a")
    maker.finish(mute, record_of(mute.spec, {"MAE": 0.9, "Corr": None}, id="mute"), None)
    html, _ = built(maker)
    found = assert_whole(html)
    assert "failed, seed 1: out of memory" in found.text()
    assert "2 runs failed (part on a and failed on a)" in found.text()
    assert table(found)["failed"]["MAE"].text() == "failed"
    assert table(found)["failed"]["MAE"].attributes["data-value"] == ""
    assert table(found)["mute"]["Corr"].text() == "none"
    assert "mute could not be tested against good" in found.text()
    (forest,) = [alt for alt in pictures(found) if alt.startswith("MAE on a")]
    assert "mute 0.900" in forest
    assert "failed" not in forest


def test_nothing_finished_is_still_a_page(maker: Maker) -> None:
    maker.rows.append(Row("good", "good"))
    maker.cell("good", 1, "a")
    found = assert_whole(built(maker)[0])
    assert "no run has finished" in found.text()
    assert found.all("img") == []


def test_classes_have_a_confusion_matrix(maker: Maker) -> None:
    names, rng = ["sad", "happy & <b>"], np.random.default_rng(0)
    labels = rng.integers(0, 2, N)
    for label, noise in (("good", 0.3), ("bad", 30.0)):
        scores = maker.classes(label, names, labels, noise, ["WA", "UA"], rng=rng)
    right = [int(((scores.argmax(axis=1) == labels) & (labels == one)).sum()) for one in (0, 1)]
    html, _ = built(maker, seeds=(1,), dataset="iemocap4")
    found = assert_whole(html)
    assert "Confusion matrices" in [one.text() for one in found.all("h3")]
    (alt,) = [alt for alt in pictures(found) if alt.startswith("Confusion matrix of bad")]
    assert f"of {(labels == 0).sum()} sad, {right[0]} are recognised" in alt
    assert f"of {(labels == 1).sum()} happy & <b>, {right[1]} are recognised" in alt
    drawn = ElementTree.fromstring(pictures(found)[alt])
    texts = [node.text for node in drawn.iter() if node.tag.endswith("text")]
    for count in (*right, int((labels == 0).sum()) - right[0]):
        assert str(count) in texts


def test_without_matplotlib_there_is_a_page_that_says_so(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    three_rows(maker)
    monkeypatch.setattr(svg, "available", lambda: False)
    html, document = built(maker)
    found = assert_whole(html)
    assert found.all("img") == []
    assert "pip install mmsa-decalign[plot]" in found.text()
    assert list(table(found)) == [row["label"] for row in document["data"][0]["rows"]]


def test_notes_of_several_data_sets_are_said_once(maker: Maker) -> None:
    for data in "ab":
        maker.row("good", 0.5, data=data)
        maker.row("old", 0.5, data=data, git_commit="1" * 40)
    html, _ = built(maker)
    limits = [one.text() for one in read(html).all("section")[0].all("li")]
    assert [one for one in limits if "different code" in one] == [
        "a and b: runs by different code: 000000000000, 111111111111."]


def test_pictures_follow_the_mode_and_are_small(maker: Maker) -> None:
    three_rows(maker)
    html, _ = built(maker)
    for alt, content in pictures(read(html)).items():
        style = re.search(r"<style>(.*?)</style>", content)[1]
        rest = content.replace(style, "")
        for mode in ("light", "dark"):
            assert f"@media (prefers-color-scheme:{mode})" in style
        assert "var(--ink)" in rest
        for tones in svg.COLOURS.values():
            assert tones[0] not in rest, alt
        assert len(content) < 60_000, alt
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize(("tone", "ground"), [(1, "#ffffff"), (2, "#14171c")])
def test_letters_and_lines_of_pictures_stand_out(tone: int, ground: str) -> None:
    def light(colour: str) -> float:
        parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        bright, dark = sorted((light(one), light(other)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast(svg.COLOURS["ink"][tone], ground) >= 7
    for name in ("blue", "orange", "green", "pink", "faint"):
        assert contrast(svg.COLOURS[name][tone], ground) >= 3, name


def test_a_report_without_decalign_has_no_inside(maker: Maker) -> None:
    three_rows(maker)
    assert "Inside" not in read(built(maker)[0]).text()


# Mathematics of the pictures of the inside


def test_the_plane_is_that_of_principal_components() -> None:
    from sklearn.decomposition import PCA

    rows = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8) + 3
    flat, shares, place = inside._plane(rows)
    theirs = PCA(2).fit(rows)
    np.testing.assert_allclose(np.abs(flat), np.abs(theirs.transform(rows)), atol=1e-9)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-9)
    np.testing.assert_allclose(place(rows[:3]), flat[:3], atol=1e-12)
    flat, shares, _ = inside._plane(np.ones((4, 1)))
    assert flat.shape == (4, 2)
    assert shares.tolist() == [0, 0]


def test_dependence_of_a_plan_is_zero_for_a_product_and_one_for_a_matching() -> None:
    assert inside._dependence(np.outer([0.2, 0.8], [0.5, 0.3, 0.2])) == pytest.approx(0.0, abs=1e-12)
    assert inside._dependence(np.diag([0.2, 0.5, 0.3])) == pytest.approx(1.0)
    of_the_coarser = np.array([[0.25, 0.25, 0, 0], [0, 0, 0.25, 0.25]])
    assert inside._dependence(of_the_coarser) == pytest.approx(1.0)
    assert inside._dependence(np.array([[0.25, 0.75]])) == 0.0
