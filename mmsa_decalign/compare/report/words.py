"""The summary of a comparison in plain words, each sentence made from the table's document.

What may change here: what is worth saying; nothing is said that the document does not hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from ..statistics import LEVEL


def summary(document: Mapping[str, Any]) -> list[str]:
    """A paragraph for each data set: who is best by what, and what cannot be told apart."""
    return [" ".join(_about(document, part)) for part in document["data"]]


def main_metric(part: Mapping[str, Any]) -> str | None:
    """The metric that is spoken of when there is room for one: MAE, or the first of the table."""
    names = part["metrics"]
    return "MAE" if "MAE" in names else (names[0] if names else None)


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    words = list(words)
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def quoted(label: str) -> str:
    """A label as it stands in a sentence: one of several words between quotation marks."""
    return label if re.fullmatch(r"[\w.-]+", label) else f"“{label}”"


def _rows(labels: Iterable[str]) -> str:
    return listed(map(quoted, labels))


def _about(document: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    rows, main = part["rows"], main_metric(part)
    if main is None:
        return [f"{part['label']}: no run has finished, so there is nothing to compare yet."]
    found = [f"{part['label']}{_size(document, part)}:"]
    best: dict[str, list[str]] = {}
    for row in rows:
        for name in part["metrics"]:
            if row["metrics"][name]["best"]:
                best.setdefault(row["label"], []).append(name)
    found.append("; ".join(f"{quoted(label)} has the best mean of {_names(names, part)}"
                           for label, names in best.items()) + ".")
    found += _ties(rows, main)
    found += _against(document["reference"], [row for row in rows if not row["sanity"]], part)
    found += _sanity(document["reference"], [row for row in rows if row["sanity"]], main)
    return found


def _size(document: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    seeds = len(document["seeds"])
    words = f"{seeds} seeds a model" if seeds > 1 else "one seed a model"
    return f" ({part['samples']['test']} test samples, {words})" if part["samples"] else f" ({words})"


def _names(names: Sequence[str], part: Mapping[str, Any]) -> str:
    if len(names) == len(part["metrics"]) > 2:
        return f"every metric ({', '.join(names)})"
    return listed(names)


def _ties(rows: Sequence[Mapping[str, Any]], main: str) -> list[str]:
    """Who shares the best place of the main metric."""
    best = next((row for row in rows if row["metrics"][main]["best"]), None)
    tested = [row for row in rows if row["metrics"][main]["low"] is not None]
    if best not in tested or len(tested) < 2:
        return []
    tied = [row["label"] for row in rows if row["metrics"][main]["tie"]]
    if not tied:
        figures = sum(row["metrics"][main]["mean"] is not None for row in rows)
        which = "row" if len(tested) == figures else "row that could be tested"
        return [f"On {main} no other {which} ties with {quoted(best['label'])}."]
    return [f"On {main} the test cannot tell {_rows(tied)} from the best, {quoted(best['label'])}: "
            f"{'it shares' if len(tied) == 1 else 'they share'} the first place."]


def _against(reference: str, rows: Sequence[Mapping[str, Any]], part: Mapping[str, Any]) -> list[str]:
    """The models against the reference, over all metrics."""
    same, sentences, everything = [], [], True
    for row in rows:
        verdicts: dict[str, list[str]] = {}
        for name, entry in row["against"].items():
            verdicts.setdefault(entry["verdict"], []).append(name)
        told = [f"{verdict} on {listed(verdicts[verdict])}" for verdict in ("better", "worse") if verdict in verdicts]
        unclear = len(verdicts.get("not distinguishable", []))
        if told and unclear:
            told.append(f"not distinguishable on the other {unclear}")
        if told:
            sentences.append(f"{quoted(row['label'])} is {listed(told)}")
        elif unclear:
            same.append(row["label"])
            everything = everything and unclear == len(part["metrics"])
    found = []
    if same:
        found.append(f"{_rows(same)} {'is' if len(same) == 1 else 'are'} not distinguishable from the reference "
                     f"{quoted(reference)} on any metric{'' if everything else ' that could be tested'}.")
    if sentences:
        found.append(f"Against the reference {quoted(reference)}, {'; '.join(sentences)}.")
    untested = [row["label"] for row in rows if row["label"] != reference and not row["against"] and row["runs"]]
    if untested:
        found.append(f"{_rows(untested)} could not be tested against {quoted(reference)}.")
    return found


def _sanity(reference: str, rows: Sequence[Mapping[str, Any]], main: str) -> list[str]:
    """The reference against what it should beat."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if main in row["against"]:
            groups.setdefault(row["against"][main]["verdict"], []).append(row["label"])
    said = [f"{words} {_rows(groups[verdict])}" for verdict, words in (
        ("worse", "better than"), ("not distinguishable", "not distinguishable from"), ("better", "worse than"))
        if verdict in groups]
    return [f"Of the rows that it should beat, on {main} {quoted(reference)} is {listed(said)}."] if said else []


def limits(document: Mapping[str, Any]) -> list[str]:
    """What the figures cannot say, as far as the document shows it."""
    found = []
    if len(document["seeds"]) == 1:
        found.append("Each model was trained with one seed: how far another seed would move the figures is not known.")
    for part in document["data"]:
        found += _resolution(document, part)
    failed = document["failures"]
    if failed:
        rows = list(dict.fromkeys(f"{one['row']} on {one['data']}" for one in failed))
        found.append(f"{len(failed)} {'run' if len(failed) == 1 else 'runs'} failed ({listed(rows)}): their rows have "
                     "fewer runs, or none.")
    notes: dict[str, list[str]] = {}
    for part in document["data"]:
        for note in part["notes"]:
            notes.setdefault(note, []).append(part["label"])
    found += [f"{listed(labels)}: {note}." for note, labels in notes.items()]
    noted = list(dict.fromkeys(row["label"] for part in document["data"] for row in part["rows"] if row["notes"]))
    if noted:
        found.append(f"Not everything is the same for all rows: see the notes of {_rows(noted)}.")
    if any(metric["low"] is not None for part in document["data"] for row in part["rows"]
           for metric in row["metrics"].values()):
        found.append("Intervals and tests are about these trained models on other test samples, taken as independent; "
                     "the spread over seeds is no part of them.")
    return found


def _resolution(document: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """How fine the test split can tell, and how much a seed matters, by the main metric of the reference."""
    main = main_metric(part)
    row = next((row for row in part["rows"] if row["label"] == document["reference"]), None)
    if row is None or main is None or row["metrics"][main]["mean"] is None:
        return []
    metric, found = row["metrics"][main], []
    if metric["low"] is not None:
        found.append(f"the {LEVEL:.0%} interval of {main} of {quoted(row['label'])} reaches from {metric['low']:.3f} "
                     f"to {metric['high']:.3f}")
    halves = [(entry["high"] - entry["low"]) / 2 for other in part["rows"] if not other["sanity"]
              and (entry := other["against"].get(main)) and entry["low"] is not None]
    if halves:
        found.append(f"the difference between it and another model is known to about ±{median(halves):.3f} (half the "
                     "median width of those intervals), so that smaller ones are hardly seen")
    if len(metric["values"]) > 1:
        found.append(f"over {len(metric['values'])} seeds its {main} has a standard deviation of {metric['std']:.3f}")
    return [f"{part['label']}: {'; '.join(found)}."] if found else []
