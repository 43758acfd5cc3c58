"""The table as files: JSON, CSV (one line a metric), Markdown and LaTeX (booktabs). Each is replaced in one step."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..harness.files import write_text
from .notes import ON_TEST
from .statistics import ALPHA

NAME = "compare"
WARNINGS_SHOWN = 3  # of a row; all are in the records and in the JSON document
_COLUMNS = ("data", "row", "model", "sanity", "metric", "mean", "std", "low", "high", "best", "tie", "runs",
            "reference", "difference", "difference_low", "difference_high", "p", "p_holm", "effect", "verdict",
            "checkpoint", "epochs", "text", "feature_sha256", "notes", "seconds", "peak_memory_mib", "parameters",
            "rule")


def write_all(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every form into the folder; returns the paths."""
    forms = {"json": json.dumps(document, indent=1, allow_nan=False) + "\n", "csv": as_csv(document),
             "md": as_markdown(document), "tex": as_latex(document)}
    paths = [folder / f"{NAME}.{ending}" for ending in forms]
    for path, text in zip(paths, forms.values(), strict=True):
        write_text(path, text)
    return paths


def as_csv(document: Mapping[str, Any]) -> str:
    """One line for each data set, row and metric, with the protocol on every line."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for part in document["data"]:
        for row in part["rows"]:
            for name in part["metrics"]:
                writer.writerow(_line(document, part, row, name))
    return stream.getvalue()


def _line(document: Mapping[str, Any], part: Mapping[str, Any], row: Mapping[str, Any], name: str) -> dict[str, Any]:
    metric, against, protocol = row["metrics"][name], row["against"].get(name, {}), row["protocol"] or {}
    return {
        "data": part["label"], "row": row["label"], "model": row["model"], "sanity": int(row["sanity"]),
        "metric": name, **{key: metric[key] for key in ("mean", "std", "low", "high")}, "best": int(metric["best"]),
        "tie": int(metric["tie"]), "runs": len(row["runs"]), "reference": document["reference"],
        "difference": against.get("difference"), "difference_low": against.get("low"),
        "difference_high": against.get("high"), **{key: against.get(key) for key in ("p", "p_holm", "effect",
                                                                                     "verdict")},
        "checkpoint": protocol.get("checkpoint"), "epochs": " ".join(map(str, protocol.get("epochs", []))),
        "text": protocol.get("text"), "feature_sha256": protocol.get("feature_sha256"),
        "notes": "; ".join(row["notes"]), **{key: row[key] for key in ("seconds", "peak_memory_mib", "parameters")},
        "rule": part["rules"].get(name),
    }


def figure(metric: Mapping[str, Any], several: bool, plus_minus: str = "±") -> str:
    """Mean and deviation, the latter where there are several seeds."""
    if metric["mean"] is None:
        return "none" if metric["values"] else "failed"
    return f"{metric['mean']:.3f}" + (f" {plus_minus} {metric['std']:.3f}" if several else "")


def sentences(document: Mapping[str, Any], part: Mapping[str, Any], row: Mapping[str, Any]) -> str | None:
    """A row against the reference in words: on which metrics better, worse, not distinguishable."""
    found: dict[str, list[str]] = {}
    for name, entry in row["against"].items():
        detail = ""
        if entry["verdict"] in ("better", "worse"):
            effect = f", effect {entry['effect']:+.2f}" if entry["effect"] is not None else ""
            span = f" [{entry['low']:+.3f}, {entry['high']:+.3f}]" if entry["low"] is not None else ""
            detail = f" ({entry['difference']:+.3f}{span}, p {p_value(entry['p_holm'])}{effect})"
        found.setdefault(entry["verdict"], []).append(name + detail)
    order = ("better", "worse", "not distinguishable", "not tested")
    parts = [f"{verdict}{' on' if verdict != 'not tested' else ':'} {', '.join(found[verdict])}"
             for verdict in order if verdict in found]
    return f"{row['label']} against {document['reference']}: {'; '.join(parts)}" if parts else None


def p_value(p: float) -> str:
    """A p-value with what its resamples can tell; near the level with digits enough to see on which side it is."""
    short = f"{p:.2f}"
    return f"{p:.4f}" if p < 0.01 or short == f"{ALPHA:.2f}" else short


def footnotes(document: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """What belongs under the table of one data set: rules, notes, protocol, failures."""
    lines = []
    if part["samples"]:
        counts = f"{'/'.join(part['samples'])} {'/'.join(map(str, part['samples'].values()))}"
        lines.append(f"{counts}; " + ", ".join(Path(path).name for path in part["feature_files"]))
    lines += [f"{name}: {rule}" for name, rule in part["rules"].items() if "acc_2" in name or name in ("WA", "UA")]
    if part["lower_is_better"]:
        lines.append(f"lower is better: {', '.join(part['lower_is_better'])}")
    lines += part["notes"]
    stamps: dict[str, list[str]] = {}
    for row in part["rows"]:
        if row["protocol"]:
            stamp = f"checkpoint: {row['protocol']['checkpoint']}; text: {row['protocol']['text']}"
            stamps.setdefault(stamp if not row["protocol"]["checkpoint"].startswith("fitted") else
                              row["protocol"]["checkpoint"], []).append(row["label"])
    lines += [f"{', '.join(labels)}: {stamp}" for stamp, labels in stamps.items()]
    for row in part["rows"]:
        lines += [f"{row['label']}: {note}" for note in row["notes"]]
        lines += [f"{row['label']}, {warning}" for warning in row["warnings"][:WARNINGS_SHOWN]]
        if (more := len(row["warnings"]) - WARNINGS_SHOWN) > 0:
            lines.append(f"{row['label']}: {more} more warned of in its runs' records")
        lines += [f"{row['label']}, seed {failure['seed']}: failed: {failure['error']}" for failure in row["failed"]]
    return lines


def as_markdown(document: Mapping[str, Any]) -> str:
    """A table for each data set; bold: the best mean, and what the test cannot tell from it."""
    blocks = []
    for part in document["data"]:
        several = any(len(row["runs"]) > 1 for row in part["rows"])
        lines = [f"### {part['label']}, test split", "", "| | " + " | ".join(part["metrics"]) + " |",
                 "| --- |" + " --- |" * len(part["metrics"])]
        for row in part["rows"]:
            cells = []
            for name in part["metrics"]:
                metric = row["metrics"][name]
                text = figure(metric, several and len(metric["values"]) > 1)
                text = f"**{text}**" if metric["best"] or metric["tie"] else text
                cells.append(text + (f"<br>[{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None
                                     else ""))
            lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
        verdicts = [text for row in part["rows"] if (text := sentences(document, part, row))]
        lines += ["", *(f"- {one}" for one in verdicts), "", *(f"- {one}" for one in footnotes(document, part))]
        blocks.append("\n".join(lines))
    about = [f"- {name}: {text}" for name, text in document["about"].items()]
    return "\n\n".join([*blocks, "\n".join(["#### How to read this", "", *about])]) + "\n"


def as_latex(document: Mapping[str, Any]) -> str:
    """A table for each data set, for the package booktabs."""
    blocks = []
    for part in document["data"]:
        several = any(len(row["runs"]) > 1 for row in part["rows"])
        lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * len(part["metrics"]) + "}", r"\toprule",
                 " & ".join(["", *(escaped(name) for name in part["metrics"])]) + r" \\", r"\midrule"]
        sanity = False
        for row in part["rows"]:
            if row["sanity"] and not sanity:
                lines.append(r"\midrule")
            sanity = row["sanity"]
            cells = []
            for name in part["metrics"]:
                metric = row["metrics"][name]
                text = figure(metric, several and len(metric["values"]) > 1, r"$\pm$")
                cells.append(rf"\textbf{{{text}}}" if metric["best"] or metric["tie"] else text)
            lines.append(" & ".join([escaped(row["label"]), *cells]) + r" \\")
        seeds = ", ".join(map(str, document["seeds"]))
        but = (f", but by the test split in rows marked ({ON_TEST}), whose figures are too good"
               if any(ON_TEST in row["label"] for row in part["rows"]) else "")
        caption = (f"{part['label']}, test split: mean and population standard deviation over seeds {seeds}; bold: "
                   "best and what a paired permutation test (Holm) does not tell from it. "
                   f"Checkpoint chosen on validation{but}.")
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escaped(caption)}}}", r"\end{table}"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """As LaTeX prints it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return re.sub(r"[\\~^&%$#_{}]", lambda found: special.get(found[0], "\\" + found[0]), text)
