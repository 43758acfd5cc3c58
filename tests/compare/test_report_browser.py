"""The report in a real browser: Debian's Chromium, driven by Playwright, where both are installed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare_maker import Maker, few_resamples
from test_report_page import CURVES, NASTY, built

from mmsa_decalign.compare.plan import Row
from mmsa_decalign.compare.store import Store

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"{CHROMIUM} is not installed")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A report with much in it, and its document."""
    folder = tmp_path_factory.mktemp("browser")
    store = Store(folder / "store.sqlite")
    with pytest.MonkeyPatch.context() as patch:
        few_resamples(patch, 99)
        maker = Maker(store)
        for data in "ab":
            maker.row("good", 0.5, data=data, epochs=CURVES)
            maker.row("a_row_with_a_name_that_goes_on_and_on_and_never_ends", 0.7, data=data, epochs=CURVES)
            maker.row(NASTY, 4.0, data=data)
        maker.rows.append(Row("failed", "failed"))
        cell = maker.cell("failed", 1, "a")
        assert store.claim(cell.key, "t", 0)
        assert store.fail(cell.key, "t", "an error without any space: " + "x" * 300)
        maker.rows[1].notes["a"] = [f"text: of {'another_' * 40}kind"]
        html, document = built(maker)
    store.close()
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path, document


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def shown(chromium: Any, path: Path, width: int = 1280, scheme: str = "light") -> Iterator[Any]:
    """The page in a window; on leaving, nothing was complained of and nothing was asked for but the file."""
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=False)
    view = context.new_page()
    complaints, requests = [], []
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(path.as_uri())
    try:
        yield view
        view.wait_for_timeout(100)
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    finally:
        context.close()


def column(view: Any, name: str, table: int = 0) -> list[str]:
    """What a column of the first table holds, by its data."""
    return view.evaluate("""([name, number]) => {
        const table = document.querySelectorAll("table.sortable")[number];
        const heads = [...table.tHead.rows[0].cells];
        const place = heads.findIndex(head => head.textContent.trim().startsWith(name));
        return [...table.tBodies[0].rows].map(row => row.cells[place].dataset.value);
    }""", [name, table])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_and_every_picture_is_drawn(
        chromium: Any, report: tuple[Path, dict[str, Any]], width: int, scheme: str) -> None:
    with shown(chromium, report[0], width, scheme) as view:
        assert view.evaluate("document.documentElement.scrollWidth") == width
        pictures = view.evaluate("[...document.images].map(one => [one.complete, one.naturalWidth, one.alt, "
                                 "one.getBoundingClientRect().right])")
        assert len(pictures) >= 2 * (4 + 2 + 3 + 2)
        for complete, natural, alt, right in pictures:
            assert complete, alt
            assert natural > 0, alt
            assert alt
            assert right <= width, alt
        boxes = view.evaluate("[...document.querySelectorAll('.scroll')].map(one => [one.scrollWidth > "
                              "one.clientWidth, getComputedStyle(one).overflowX, one.getBoundingClientRect().right])")
        assert all(style == "auto" and right <= width for _, style, right in boxes)
        if width == 390:
            assert boxes[0][0], "the table is wider than a phone, and scrolls in its box"


def test_sorting_by_click(chromium: Any, report: tuple[Path, dict[str, Any]]) -> None:
    path, document = report
    rows = document["data"][0]["rows"]
    values = [row["metrics"]["MAE"]["mean"] for row in rows]
    rising = sorted(value for value in values if value is not None)
    with shown(chromium, path) as view:
        head = view.locator("table.sortable").first.locator("thead th", has_text="MAE")
        original = column(view, "Row")
        assert original == [row["label"] for row in rows]
        head.locator("button").click()
        assert [float(one) for one in column(view, "MAE")[:-1]] == rising, "lower is better: the best first"
        assert column(view, "MAE")[-1] == "", "what has no figure comes last"
        assert head.get_attribute("aria-sort") == "ascending"
        head.locator("button").click()
        assert [float(one) for one in column(view, "MAE")[:-1]] == rising[::-1]
        assert column(view, "MAE")[-1] == ""
        assert head.get_attribute("aria-sort") == "descending"
        head.locator("button").click()
        assert column(view, "Row") == original
        assert head.get_attribute("aria-sort") is None
        other = view.locator("table.sortable").first.locator("thead th", has_text="Corr")
        head.locator("button").click()
        other.locator("button").click()
        known = [mean for row in rows if (mean := row["metrics"]["Corr"]["mean"]) is not None]
        assert [float(one) for one in column(view, "Corr")[:-1]] == sorted(known, reverse=True)
        assert head.get_attribute("aria-sort") is None, "one column at a time"
        view.locator("table.sortable").first.locator("thead th button").first.click()
        assert column(view, "Row") == sorted(original, key=str.lower)
        assert column(view, "Row", 1)[0] == original[1], "the other tables stay as they are"


def test_sorting_by_keyboard(chromium: Any, report: tuple[Path, dict[str, Any]]) -> None:
    with shown(chromium, report[0]) as view:
        head = view.locator("table.sortable").first.locator("thead th", has_text="MAE")
        head.locator("button").focus()
        assert view.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "focus is seen"
        for key, expected in (("Enter", "ascending"), ("Space", "descending"), ("Enter", None)):
            view.keyboard.press(key)
            assert head.get_attribute("aria-sort") == expected
        view.keyboard.press("Tab")
        assert "Corr" in view.evaluate("document.activeElement.textContent")


def test_light_and_dark_reach_page_and_pictures(chromium: Any, report: tuple[Path, dict[str, Any]]) -> None:
    """Of page and of a picture: most of it is ground, and its letters are at the other end."""
    from PIL import Image

    for scheme, ground in (("light", (255, 255, 255)), ("dark", (0x14, 0x17, 0x1C))):
        with shown(chromium, report[0], 390, scheme) as view:
            content = view.locator("figure img").first.screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3).astype(int)
        at_ground = (np.abs(pixels - ground).sum(axis=1) < 12).mean()
        far = np.abs(pixels - ground).sum(axis=1).max()
        assert at_ground > 0.5, scheme
        assert far > 450, f"{scheme}: nothing in the picture stands out"


def test_a_link_inside_the_page_leads_there(chromium: Any, report: tuple[Path, dict[str, Any]]) -> None:
    with shown(chromium, report[0]) as view:
        view.locator("nav a", has_text="How to read this").click()
        assert view.evaluate("location.hash") == "#reading"
        assert view.locator("#reading").is_visible()
