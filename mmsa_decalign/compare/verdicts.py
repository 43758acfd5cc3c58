"""Rows against the reference and against the best, corrected for how many comparisons there are, and said in words.

``results`` are those of table.py: a row with its label and, where it can be resampled, its scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..harness.metrics import LOWER_IS_BETTER
from . import statistics
from .measures import Measure
from .statistics import ALPHA


def compare_with(rows: list[dict[str, Any]], results: Sequence[Any], boots: Mapping[str, np.ndarray],
             known: Sequence[Measure], reference: str) -> None:
    """Compare every row with the reference."""
    other = next((one for one in results if one.row.label == reference and one.scores), None)
    compared = [one for one in results if one.scores and one.row.label != reference]
    if other is None or not compared:
        return
    found = statistics.compare([one.scores for one in compared], other.scores,
                               [boots[one.row.label] for one in compared], boots[reference])
    by_label = {row["label"]: row for row in rows}
    for one, differences in zip(compared, found, strict=True):
        by_label[one.row.label]["against"] = {
            measure.name: {"difference" if key == "value" else key: value
                           for key, value in dataclasses.asdict(difference).items()}
            for measure, difference in zip(known, differences, strict=True)}


def correct(parts: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all comparisons of a metric in the table, and the verdict in words."""
    family: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for row in part["rows"]:
            for name, entry in row["against"].items():
                family.setdefault(name, []).append(entry)
    for name, entries in family.items():
        tested = [entry for entry in entries if entry["p"] is not None]
        for entry, adjusted in zip(tested, statistics.holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = adjusted
        for entry in entries:
            entry.setdefault("p_holm", None)
            entry["family"] = len(tested)
            entry["verdict"] = _verdict(name, entry)


def _verdict(name: str, entry: Mapping[str, Any]) -> str:
    if entry["p_holm"] is None:
        return "not tested"
    if entry["p_holm"] >= ALPHA:
        return "not distinguishable"
    return "better" if (entry["difference"] < 0) == (name in LOWER_IS_BETTER) else "worse"


def mark_best(rows: list[dict[str, Any]], results: Sequence[Any], boots: Mapping[str, np.ndarray],
               known: Sequence[Measure], names: Sequence[str]) -> None:
    """The best mean of each metric, and the rows that cannot be told from it."""
    by_label = {row["label"]: row for row in rows}
    scored = {one.row.label: one for one in results if one.scores}
    bests: dict[str, list[str]] = {}
    for name in names:
        means = {label: row["metrics"][name]["mean"] for label, row in by_label.items()
                 if row["metrics"][name]["mean"] is not None}
        if means:
            best = (min if name in LOWER_IS_BETTER else max)(means, key=lambda label: means[label])
            by_label[best]["metrics"][name]["best"] = True
            bests.setdefault(best, []).append(name)
    for best, own in bests.items():
        others = [one for label, one in scored.items() if label != best]
        if best not in scored or not others:
            continue
        found = statistics.compare([one.scores for one in others], scored[best].scores,
                                   [boots[one.row.label] for one in others], boots[best])
        for number, measure in enumerate(known):
            tested = [(one.row.label, row[number].p) for one, row in zip(others, found, strict=True)
                      if row[number].p is not None]
            if measure.name in own:
                for (label, _), p in zip(tested, statistics.holm([p for _, p in tested]), strict=True):
                    by_label[label]["metrics"][measure.name]["tie"] = p >= ALPHA
