"""The table and the plan on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from .display import duration
from .plan import Plan, unique
from .store import Store
from .writing import figure, footnotes, sentences


def print_table(document: Mapping[str, Any], console: Console, paths: Sequence[Any] = ()) -> None:
    """The metrics of each data set, what they are worth against the reference, and the protocol."""
    for part in document["data"]:
        start, names = 0, part["metrics"]
        while start < len(names):
            count = len(names) - start
            while count > 1 and _width(_metrics(part, names[start:start + count]), console) > console.width:
                count -= 1
            console.print(_metrics(part, names[start:start + count]))
            start += count
        lines = [text for row in part["rows"] if (text := sentences(document, part, row))]
        _lines(console, [*lines, *footnotes(document, part), ""])
    about = document["about"]
    _lines(console, [f"{name}: {about[name]}" for name in ("interval", "p", "verdict", "best")]
           + ([f"written: {', '.join(str(path) for path in paths)}"] if paths else []))


def _metrics(part: Mapping[str, Any], names: Sequence[str]) -> Table:
    table = Table(title=f"{escape(part['label'])}, test split", title_justify="left")
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(part["rows"]):
        cells = []
        for name in names:
            metric = row["metrics"][name]
            text = figure(metric, len(metric["values"]) > 1)
            text = f"[bold]{text}[/bold]" if metric["best"] or metric["tie"] else text
            span = f"\n[dim]{metric['low']:.3f} to {metric['high']:.3f}[/dim]" if metric["low"] is not None else ""
            cells.append(text + span)
        after = part["rows"][number + 1:number + 2]
        table.add_row(escape(row["label"]), *cells, end_section=bool(after) and after[0]["sanity"] != row["sanity"])
    return table


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _lines(console: Console, lines: Sequence[str]) -> None:
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def plan_document(plan: Plan, store: Store | None, *, workers: int, again: bool) -> dict[str, Any]:
    """What ``--dry-run`` says: what is to be run, what is finished, and how long it may take."""
    cells = unique(plan.cells)
    states = store.states(cell.key for cell in cells) if store else {}
    rows, total, unknown = [], 0.0, 0
    for data in plan.data:
        for row in plan.rows:
            own = plan.of(row.label, data.label)
            if not own:
                continue
            done = [cell.seed for cell in own if cell.key in states and states[cell.key].run]
            rows.append({"row": row.label, "data": data.label, "model": own[0].spec["model"],
                         "seeds": [cell.seed for cell in own], "done": done, "notes": row.notes.get(data.label, []),
                         "seconds_each": store.seconds(own[0].spec["model"], data.dataset) if store else None})
    for cell in cells:
        if again or not (cell.key in states and states[cell.key].run):
            seconds = store.seconds(cell.spec["model"], cell.spec["dataset"]) if store else None
            total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
    to_run = sum(again or not (cell.key in states and states[cell.key].run) for cell in cells)
    return {"schema_version": 1, "reference": plan.reference, "notes": plan.notes, "workers": workers, "rows": rows,
            "runs": len(cells), "to_run": to_run, "seconds_known": total / workers, "runs_of_unknown_time": unknown}


def print_plan(document: Mapping[str, Any], console: Console) -> None:
    """The plan as a table, with the estimate under it."""
    table = Table(title="plan", title_justify="left")
    for name in ("row", "data", "runs", "finished", "a run takes"):
        table.add_column(name, overflow="fold")
    for row in document["rows"]:
        table.add_row(escape(row["row"]), escape(row["data"]), str(len(row["seeds"])), str(len(row["done"])),
                      duration(row["seconds_each"]))
    console.print(table)
    lines = [f"{row['row']} on {row['data']}: {note}" for row in document["rows"] for note in row["notes"]]
    lines += document["notes"]
    unknown = document["runs_of_unknown_time"]
    time = f"about {duration(document['seconds_known'])}" if document["seconds_known"] else "time unknown"
    if unknown and document["seconds_known"]:
        time += f", and {unknown} runs of unknown time"
    lines.append(f"{document['to_run']} of {document['runs']} runs to do, {document['workers']} at a time: "
                 + ("nothing to do" if not document["to_run"] else time))
    _lines(console, lines)
