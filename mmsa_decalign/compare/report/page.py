"""The report of a comparison: one HTML file that needs nothing else, neither network nor other files.

``build`` makes the page from the table's document and the store, ``write`` puts it beside the other forms. Text goes
through Jinja2 with escaping on. What may change here: which pictures stand where; their look is in the modules beside.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import InputError, RunError
from ...harness.files import write_text
from ..notes import ON_TEST
from ..plan import Data, Plan, Row
from ..sanity import MAJORITY, MEDIAN
from ..store import Store
from ..worker import job_of
from ..writing import figure, footnotes, p_value
from . import inside, pictures, svg, words

NAME = "report.html"
NO_PICTURES = "This report has no pictures, since matplotlib is not installed: pip install mmsa-decalign[plot], and " \
              "the same call makes it again without running anything."


def write(document: Mapping[str, Any], plan: Plan, store: Store, folder: Path) -> Path:
    """Write the page into the folder; returns its path."""
    path = folder / NAME
    write_text(path, build(document, plan, store))
    return path


def build(document: Mapping[str, Any], plan: Plan, store: Store) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_source), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    drawn = svg.available()
    with svg.drawing() if drawn else _nothing():
        parts = [_part(document, plan, store, number, drawn) for number in range(len(document["data"]))]
    return environment.get_template("page.html").render(
        document=document, parts=parts, summary=words.summary(document), limits=words.limits(document),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), title=_title(document),
        no_pictures=None if drawn else NO_PICTURES)


def _source(name: str) -> str:
    return (resources.files(__package__) / name).read_text("utf-8")


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def _title(document: Mapping[str, Any]) -> str:
    models = [row["label"] for row in document["data"][0]["rows"] if not row["sanity"]] if document["data"] else []
    return f"{words.listed(models)} on {words.listed(part['label'] for part in document['data'])}"


def _part(document: Mapping[str, Any], plan: Plan, store: Store, number: int, drawn: bool) -> dict[str, Any]:
    """What the template needs of one data set."""
    part, data = document["data"][number], plan.data[number]
    several = any(len(row["runs"]) > 1 for row in part["rows"])
    rows = [{**row, "cells": [_cell(row["metrics"][name], name, several) for name in part["metrics"]],
             "stamp": _stamp(row)} for row in part["rows"]]
    made = {"id": f"data-{number + 1}", "label": part["label"], "metrics": part["metrics"], "rules": part["rules"],
            "rows": rows, "lower_is_better": part["lower_is_better"],
            "footnotes": [*_origin(plan, data, store), *footnotes(document, part)],
            "against": [{"label": row["label"], "sanity": row["sanity"], "cells": _against(part, row)}
                        for row in part["rows"] if row["against"]],
            "failures": [one for one in document["failures"] if one["data"] == part["label"]],
            "sections": [], "insides": []}
    if drawn:
        made["sections"] = _sections(document, part, plan, data, store)
        ours = sorted((row for row in plan.rows if row.model == "decalign" and not row.sanity),
                      key=lambda row: row.label != plan.reference)  # the reference if it is one, else the first
        made["insides"] = [one for row in ours[:1] if (one := _inside(row, plan, data, store))]
    return made


def _origin(plan: Plan, data: Data, store: Store) -> list[str]:
    """Which bytes the runs have read, and what has run them."""
    records = [record for row in plan.rows for _, record in _runs(row, plan, data, store)]
    files = {f"{Path(record['features']['path']).name}: SHA-256 {record['features']['sha256']}" for record in records}
    makers = {f"made with mmsa-decalign {record['versions']['mmsa_decalign']}"
              + (f" ({str(record['git_commit'])[:12]})" if record["git_commit"] else "")
              + f", MMSA {record['versions']['MMSA']}, torch {record['versions']['torch']}, on "
                f"{record['device']['type']} {record['device']['name']}" for record in records}
    return [*sorted(files), *sorted(makers)]


def _cell(metric: Mapping[str, Any], name: str, several: bool) -> dict[str, Any]:
    span = f"[{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None else None
    return {"text": figure(metric, several and len(metric["values"]) > 1), "value": metric["mean"], "span": span,
            "best": metric["best"], "tie": metric["tie"], "name": name}


def _against(part: Mapping[str, Any], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row against the reference, a cell a metric."""
    cells = []
    for name in part["metrics"]:
        entry = row["against"].get(name)
        if entry is None or entry["difference"] is None:
            cells.append({"verdict": "not tested", "text": "", "value": None, "details": []})
            continue
        details = [f"[{entry['low']:+.3f}, {entry['high']:+.3f}]"] if entry["low"] is not None else []
        effect = f", effect {entry['effect']:+.2f}" if entry["effect"] is not None else ""
        details += [f"p {p_value(entry['p_holm'])}{effect}"] if entry["p_holm"] is not None else []
        cells.append({"verdict": entry["verdict"], "text": f"{entry['difference']:+.3f}", "value": entry["difference"],
                      "details": details})
    return cells


def _stamp(row: Mapping[str, Any]) -> str:
    """The protocol of a row in one line."""
    protocol = row["protocol"]
    if not protocol:
        return "no finished run"
    if protocol["checkpoint"].startswith("fitted"):
        return str(protocol["checkpoint"])
    epochs = ", ".join(map(str, protocol["epochs"]))
    once = "" if ON_TEST in row["label"] else "; test read once"
    return f"checkpoint: {protocol['checkpoint']}, epoch {epochs}; text: {protocol['text']}{once}"


def _sections(document: Mapping[str, Any], part: Mapping[str, Any], plan: Plan, data: Data, store: Store
              ) -> list[dict[str, Any]]:
    """Titles, introductions and pictures, in the order of the page; those without a picture are left out."""
    sanity = {row["label"] for row in part["rows"] if row["sanity"]}
    runs = {row.label: _runs(row, plan, data, store) for row in plan.rows}
    main = words.main_metric(part)
    forests = [pictures.forest(part, name, plan.reference) for name in part["metrics"]]
    courses = [pictures.curves(label, data.label, [record for _, record in found], [main] if main else [])
               for label, found in runs.items() if label not in sanity]
    predicted = [_predictions(row, data, runs[row.label], store) for row in plan.rows
                 if row.model not in (MEDIAN, MAJORITY)]
    classes = any(record["settings"].get("label_names") for found in runs.values() for _, record in found)
    instead = f" (the test split in rows marked {ON_TEST})" if any(ON_TEST in row.label for row in plan.rows) else ""
    sections = [
        ("Metrics with intervals", "Point: mean over the seeds, filled where it is the best (diamond) or not "
         f"distinguishable from the best; line: 95 % bootstrap interval; dashed: the reference, {plan.reference}. "
         "Grey: rows that a model should beat.", forests),
        ("Curves of the training", "Blue: what the model's trainer reports of the training split, terms without their "
         f"weights. Orange: validation{instead}, by which the checkpoint was chosen.", courses),
        ("Confusion matrices" if classes else "Prediction against truth",
         "Of the row's first finished run, on the test split.", predicted),
        ("Time and memory", "Of one run, on the machine that did it.", pictures.costs(part)),
    ]
    return [{"title": title, "about": about, "pictures": [one for one in shown if one is not None]}
            for title, about, shown in sections if any(one is not None for one in shown)]


def _runs(row: Row, plan: Plan, data: Data, store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Keys and records of a row's finished runs."""
    found = ((cell.key, store.record(cell.key)) for cell in plan.of(row.label, data.label))
    return [(key, record) for key, record in found if record is not None]


def _predictions(row: Row, data: Data, runs: Sequence[tuple[str, Mapping[str, Any]]], store: Store
                 ) -> svg.Picture | None:
    for key, record in runs:
        samples = store.samples(key)
        if samples is not None:
            names = record["settings"].get("label_names")
            if names:
                return pictures.confusion(row.label, data.label, record["seed"], samples, [str(one) for one in names])
            return pictures.scatter(row.label, data.label, record["seed"], samples, record["test"])
    return None


def _inside(row: Row, plan: Plan, data: Data, store: Store) -> dict[str, Any] | None:
    """The inside of a DecAlign, from the first run whose checkpoint is there; else why not."""
    from ...harness.inside import look_inside

    runs = _runs(row, plan, data, store)
    made = {"label": row.label, "seed": None, "pictures": [], "terms": [], "why_not": None}
    for key, record in runs:
        checkpoint = store.checkpoint(key)
        if checkpoint is None:
            made["why_not"] = "its checkpoints were not kept"
            continue
        spec = store.spec(key)
        try:
            states = look_inside(job_of(spec, store.folder(key), "cpu"), spec["seed"], checkpoint, spec["sha256"])
        except (InputError, RunError, OSError) as error:
            made["why_not"] = str(error)
            continue
        ordered = [record, *(other for _, other in runs if other is not record)]
        return {**made, "seed": spec["seed"], "split": inside.split_of(ordered),
                "pictures": inside.pictures(row.label, states, ordered), "terms": inside.terms(states), "why_not": None}
    return made if made["why_not"] else None
