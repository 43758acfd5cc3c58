"""How the commands `mmsa data fetch`, `verify` and `inspect` show what they did and found: tables and bars by rich.

What may change here: words and layout; numbers are measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from .embed import embedding_lines


@contextmanager
def byte_bar(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A function for `fetch`: shows what is done with how many bytes, one bar per doing, if this is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
               TimeRemainingColumn())
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def show(doing: str, done: int, total: int | None) -> None:
            if doing not in tasks:
                tasks[doing] = bar.add_task(doing, total=total)
            bar.update(tasks[doing], completed=done, total=total)

        yield show


@contextmanager
def sample_bar(console: Console, doing: str) -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many samples of how many are done, if this is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_fetched(results: list[Mapping[str, Any]], console: Console) -> None:
    """One line per file, and the hash where nobody published one."""
    for result in results:
        what = "fetched" if result["fetched"] else "already there"
        state = ": size and SHA-256 are the published ones" if result["verified"] else (
            f"; no SHA-256 was published to check it by, it is {result['sha256']}")
        _line(console, f"{what} {result['path']}{state}")
        if result["path"].endswith(".zip"):
            _line(console, "it is a zip archive: unpack it before use" + (
                ", then convert its raw pickle with mmsa data convert" if "iemocap" in result["path"].lower() else ""))


def print_verified(result: Mapping[str, Any], console: Console) -> None:
    """Which published file it is, its hash, and what it holds."""
    found = result["published"]
    _line(console, f"{result['path']}: " + (
        f"the published {found['path']} ({found['dataset']}, {found['kind']})" if found
        else "none of the published files"))
    _line(console, f"SHA-256 {result['sha256']}, {result['size']} bytes")
    samples = ", ".join(f"{name} {number}" for name, number in result["samples"].items())
    pairs = " ".join(f"{m} {t}x{d}" for m, t, d in zip(("text", "audio", "vision"), result["steps"], result["widths"],
                                                        strict=True))
    _line(console, f"reads: {samples} samples; steps x width: {pairs}")


def print_inspected(document: Mapping[str, Any], console: Console) -> None:
    """Tables of splits, modalities, labels and the probe, then the findings."""
    found = document["published"]
    _line(console, f"{document['path']}: " + (f"the published {found['path']}" if found else "not a published file")
          + f", {document['size'] / 1e6:.1f} MB")
    _line(console, f"SHA-256 {document['sha256']}")
    for line in embedding_lines(document["embedded"]) if document["embedded"] else ():
        _line(console, line)
    splits = document["splits"]
    if splits:
        tables = (_splits(splits), _shapes(splits), _values(splits), _labels(document), _probe(document["probe"]))
        for table in tables:
            if table is not None and table.row_count:
                console.print()
                console.print(table)
    console.print()
    for finding in document["findings"]:
        console.print(f"- {finding}", markup=False, highlight=False)
    if not document["findings"]:
        _line(console, "nothing wrong was found")


def _table(*columns: str, left: int = 1) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if number < left else "right", no_wrap=True)
    return table


def _add(table: Table, *cells: str | Text) -> None:
    """A row of texts as they are: names come out of the file, and rich would take brackets in them for styles."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _splits(splits: Mapping[str, Any]) -> Table:
    table = _table("split", "layout", "samples", "videos", "same id", "same text", "same features", left=2)
    for name, split in splits.items():
        videos = "?" if split["videos"] is None else str(split["videos"])
        again = split["repeated"]
        _add(table, name, split["layout"] or "-", str(split["samples"]), videos, str(again["ids"]),
                      str(again["raw_text"]), str(again["features"]))
    return table


def _shapes(splits: Mapping[str, Any]) -> Table:
    table = _table("split", "modality", "shape", "dtype", "length", "padding", left=2)
    for name, split in splits.items():
        for modality, about in split["modalities"].items():
            key = split["keys"][modality]
            q = about["lengths"] or [0]
            length = f"{q[0]:.0f}..{q[-1]:.0f}, half {q[len(q) // 2]:.0f}" if q[0] != q[-1] else f"{q[0]:.0f}"
            _add(table, name, modality, "x".join(map(str, key["shape"])), key["dtype"], length,
                          f"{about['padding']:.0%}")
    return table


def _values(splits: Mapping[str, Any]) -> Table:
    table = _table("split", "modality", "least", "greatest", "NaN", "Inf", "constant columns", "empty samples", left=2)
    for name, split in splits.items():
        for modality, about in split["modalities"].items():
            key = split["keys"][modality]
            ends = ("-" if about[end] is None else f"{about[end]:.4g}" for end in ("min", "max"))
            _add(table, name, modality, *ends, str(key["nan"]), str(key["inf"]),
                          f"{len(about['constant_columns'])} of {about['width']}", str(about["empty_samples"]))
    return table


def _labels(document: Mapping[str, Any]) -> Table | None:
    histogram = document["histogram"]
    if histogram is None:
        return None
    names = list(histogram["counts"])
    table = _table(histogram["key"], *names)
    edges = histogram.get("edges")
    bins = [f"{a:.2f} to {b:.2f}" for a, b in zip(edges, edges[1:], strict=False)] if edges else [
        f"{one:.4g}" if isinstance(one, float) else str(one) for one in histogram["classes"]]
    known = histogram.get("names", {})
    bins = [f"{label} {known[label]}" if label in known else label for label in bins]
    for row, label in enumerate(bins):
        _add(table, label, *(str(histogram["counts"][name][row]) for name in names))
    return table


def _probe(results: Mapping[str, Any]) -> Table:
    table = _table("linear probe", "train, by sample", "by video", "valid", "gap", "+-", "leak?")
    for modality, one in results.items():
        numbers = [one[key] for key in ("by_sample", "by_video", "valid", "gap", "spread")]
        verdict = Text("ALARM", "bold red") if one["alarm"] else "-" if one["gap"] is None else "no"
        _add(table, modality, *("-" if number is None else f"{number:.2f}" for number in numbers), verdict)
    return table


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
