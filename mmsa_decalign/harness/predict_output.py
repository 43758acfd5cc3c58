"""What is written of predictions: CSV with a row per sample, or one JSON document. Numbers keep all of their digits.

A regression has the column ``prediction``; a classification the number of the class there, its name in
``predicted_label`` and a column ``probability_NAME`` for each class. ``label`` is there where the file has any, and
empty (null) for samples without one. What may change here: further columns at the end, further keys.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..data.reading import sha256_of
from ..errors import InputError
from .checkpoints import Origin
from .classification import selects_on_test
from .destinations import check_destination, write_destination
from .predict import Predictions
from .progress import stderr_console

FORMATS = ("csv", "json")


def format_of(wanted: str | None, out: str | None) -> str:
    """csv or json: as wanted, else by the ending of the file to write, else csv. Raises InputError for another ending.
    """
    if wanted is not None or out is None:
        return wanted or FORMATS[0]
    ending = Path(out).suffix.lower().lstrip(".")
    if ending not in FORMATS:
        raise InputError(f"--out {out}: expected a name that ends in .csv or .json, or --format beside it")
    return ending


def check_out(out: str, *sources: str | Path | None) -> Path:
    """The file to write, before anything is computed: refused where it is one of those read, or cannot be."""
    path = check_destination("--out", out)
    for source in sources:
        if source is not None and path.exists() and Path(source).expanduser().exists() and path.samefile(
                Path(source).expanduser()):
            raise InputError(f"--out {out}: is a file that predictions are made from; name another")
    return path


def rows_of(found: Predictions) -> list[dict[str, Any]]:
    """A dictionary per sample: split, id, prediction, and what else there is."""
    labelled = any(label is not None for split in found.splits for label in split.labels)
    rows = []
    for split in found.splits:
        for sample, output, label in zip(split.ids, split.outputs, split.labels, strict=True):
            row: dict[str, Any] = {"split": split.name, "id": sample}
            if found.classification:
                chances = _softmax(output.tolist())
                best = max(range(len(chances)), key=chances.__getitem__)
                row |= {"prediction": best, "predicted_label": found.class_names[best],
                        "probabilities": dict(zip(found.class_names, chances, strict=True))}
            else:
                row["prediction"] = float(output[0])
            if labelled:
                row["label"] = int(label) if found.classification and label is not None else label
            rows.append(row)
    return rows


def document(found: Predictions, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The JSON document; without rows what they were made from alone."""
    origin = found.origin
    made = {
        "schema_version": 1,
        "checkpoint": {"path": str(found.checkpoint), "sha256": sha256_of(found.checkpoint), "model": origin.model,
                       "dataset": origin.dataset, "seed": origin.seed, "id": origin.id, "mended": origin.mended,
                       **_seen_by(origin)},
        "features": {"path": str(found.features), "sha256": found.sha256, "replaced": found.replaced},
        "device": found.device,
        "batch_size": found.batch_size,
        "samples": {split.name: len(split.ids) for split in found.splits},
        "metrics": {split.name: _finite(split.metrics) for split in found.splits if split.metrics},
    }
    return made if rows is None else {**made, "predictions": rows}


def _seen_by(origin: Origin) -> dict[str, Any]:
    """Which splits of its run a checkpoint was trained on, and which one chose its epoch."""
    by_test = selects_on_test(origin.settings)
    return {"trained_on": ["train", "valid"] if by_test else ["train"], "selected_on": "test" if by_test else "valid"}


def as_csv(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV, the probabilities of classes in columns of their own."""
    flat = []
    for row in rows:
        chances = {f"probability_{name}": value for name, value in row.get("probabilities", {}).items()}
        label = {"label": row["label"]} if "label" in row else {}
        flat.append({**{key: value for key, value in row.items() if key not in ("probabilities", "label")},
                     **chances, **label})
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def write(found: Predictions, path: Path, kind: str) -> None:
    """Write the predictions to a file, in one step."""
    rows = rows_of(found)
    write_destination(path, as_csv(rows) if kind == "csv" else as_json(document(found, rows)))


def as_json(made: dict[str, Any]) -> str:
    """A document as text."""
    return json.dumps(made, indent=1, allow_nan=False) + "\n"


def _softmax(logits: list[float]) -> list[float]:
    """exp(x_k) / sum_j exp(x_j), in float64 whatever the model computes in."""
    from scipy.special import softmax

    return softmax(logits).tolist()


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in metrics.items()}


def print_found(found: Predictions, out: Path | None) -> None:
    """On standard error: what was predicted with, where it went, and the metrics of splits with labels."""
    origin, console = found.origin, stderr_console()
    of = f" of {origin.dataset}" + ("" if origin.seed is None else f", seed {origin.seed}")
    count = sum(len(split.ids) for split in found.splits)
    where = "" if out is None else f", written to {out}"
    lines = [f"{origin.model}{' (mended)' if origin.mended else ''}{of}: {count} predictions{where}"]
    for split in found.splits:
        if split.metrics:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in split.metrics.items())
            lines.append(f"{split.name} ({len(split.ids)}): {figures}")
    console.print("\n".join(lines), markup=False)
