"""A plan made from a results store alone: everything that it holds, as one comparison.

Labels of rows are not in the store: a row is named by its model. Runs of one model on the same data with other
settings, or by another version, are rows with a number, whose notes say what is different. What may change here: how
rows are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, RunError, nearest
from .notes import ON_TEST, differences, marked
from .plan import Cell, Data, Plan, Row
from .store import Store
from .worker import job_of

_OF_A_RUN = ("seed", "feature_file", "overrides")  # parts of a spec in which the cells of a row may differ
_LONGEST = 12  # settings that a note lists


def stored_plan(store: Store, reference: str | None = None) -> Plan:
    """The plan of all runs in the store that finished or failed. Raises InputError for an empty store."""
    rows: dict[str, Row] = {}
    same: dict[tuple[str, str], dict[str, Any]] = {}  # (row, data) -> what all its cells have in common
    cells: list[Cell] = []
    specs = _specs(store)
    names = _data_labels(specs)
    for key, spec in specs.items():
        data = names[spec["dataset"], spec["sha256"]].label
        common = {name: value for name, value in spec.items() if name not in _OF_A_RUN}
        base, single = spec["model"], _single(spec)
        base += f": {single} only" if single else ""
        if spec["kind"] != "sanity":
            base = marked(base, {data: spec["settings"]})
        label = _free(base, data, common, same)
        sanity = spec["kind"] == "sanity" or single is not None
        row = rows.setdefault(label, Row(label, spec["model"], sanity=sanity))
        if (label, data) not in same and label != base:
            row.notes[data] = [f"not the runs of {base}: {_changes(common, same[base, data])}"]
        same[label, data] = common
        cells.append(Cell(key, label, data, spec["seed"], spec))
    ordered = sorted(rows.values(), key=lambda row: row.sanity)
    reference = _reference(reference, ordered)
    seeds = sorted({cell.seed for cell in cells if cell.spec["kind"] != "sanity"})
    plan = Plan(ordered, list(names.values()), tuple(seeds), reference, cells)
    _note(plan, store)
    return plan


def _specs(store: Store) -> dict[str, dict[str, Any]]:
    """Key -> spec of what finished or failed, in the order in which it was asked for."""
    found = store.database.execute(
        "SELECT key, spec FROM cells LEFT JOIN runs ON cell = key WHERE runs.id IS NOT NULL OR error IS NOT NULL "
        "ORDER BY cells.rowid").fetchall()
    if not found:
        raise InputError(f"results store {store.path} holds no run yet; fill it with mmsa compare --store FILE")
    return {key: json.loads(spec) for key, spec in found}


def _data_labels(specs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], Data]:
    """(data set, hash of the file) -> a label, with the file's name where a data set has several."""
    found: dict[tuple[str, str], str] = {}
    for spec in specs.values():
        found[spec["dataset"], spec["sha256"]] = spec["feature_file"]
    labels: dict[tuple[str, str], Data] = {}
    for (dataset, digest), file in found.items():
        several = sum(one == dataset for one, _ in found) > 1
        label = f"{dataset} {Path(file).stem}" if several else dataset
        if label in [one.label for one in labels.values()]:
            label = f"{label} {digest[:8]}"
        labels[dataset, digest] = Data(label, dataset, file)
    return labels


def _single(spec: Mapping[str, Any]) -> str | None:
    """The modality of a DecAlign that looks at one alone."""
    chosen = spec["settings"].get("modalities") if spec["model"] == "decalign" else None
    return chosen[0] if isinstance(chosen, list) and len(chosen) == 1 else None


def _changes(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two rows' cells differ, in words."""
    found = [f"{name} {own.get(name)!r}, there {other.get(name)!r}"
             for name in dict.fromkeys([*own, *other]) if name != "settings" and own.get(name) != other.get(name)]
    mine, theirs = own["settings"], other["settings"]
    found += [f"{name}={mine.get(name)!r}, there {theirs.get(name)!r}" for name in dict.fromkeys([*mine, *theirs])
              if mine.get(name) != theirs.get(name)]
    more = f"; and {len(found) - _LONGEST} more" if len(found) > _LONGEST else ""
    return "; ".join(found[:_LONGEST]) + more


def _free(name: str, data: str, common: Mapping[str, Any], same: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The name itself, or with the first number under which nothing else stands for this data set."""
    label, number = name, 1
    while same.get((label, data), common) != common:
        number += 1
        label = f"{name} #{number}"
    return label


def _reference(wanted: str | None, rows: list[Row]) -> str:
    models = [row.label for row in rows if not row.sanity] or [row.label for row in rows]
    if wanted is not None and f"{wanted} ({ON_TEST})" in models and wanted not in models:
        wanted = f"{wanted} ({ON_TEST})"
    if wanted is not None and wanted not in models:
        raise InputError(f"--reference {wanted}: no row of that name; {nearest(wanted, models)}")
    return wanted or next((row.label for row in rows if row.model == "decalign" and not row.sanity), models[0])


def _note(plan: Plan, store: Store) -> None:
    """What is not the same for a row as for the reference, as in a comparison that was just made."""
    for data in plan.data:
        of_reference = next(iter(plan.of(plan.reference, data.label)), None)
        if of_reference is None or of_reference.spec["kind"] == "sanity":
            continue
        for row in plan.rows:
            cell = next(iter(plan.of(row.label, data.label)), None)
            if cell is None or cell.spec["kind"] == "sanity":
                continue
            try:
                jobs = [job_of(one.spec, store.folder(one.key), "cpu") for one in (cell, of_reference)]
            except (InputError, RunError) as error:
                found = [f"its settings cannot be compared any more: {error}"]
            else:
                found = differences(*jobs, plan.reference)
            row.notes[data.label] = [*row.notes.get(data.label, []), *found]
