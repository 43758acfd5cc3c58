"""What is stored of a run: a JSON record per seed, and MMSA's table with a row per set of seeds.

The record is the interface to everything that reads results later; a change of its fields raises SCHEMA_VERSION.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunError
from .files import append_row, write_text
from .watch import is_number

SCHEMA_VERSION = 2  # 2: "warnings", and "gradient_norms" and "alignment" in epochs
LOGGER = logging.getLogger("MMSA")

Summary = dict[str, dict[str, "float | None"]]  # metric -> "mean" and "std" over the seeds


def plain(value: Any) -> Any:
    """The same as JSON can hold it: tuples as lists, NumPy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if is_number(value):
        number = float(value)
        if number != number or number in (float("inf"), float("-inf")):
            return None
        return int(value) if number.is_integer() and not isinstance(value, float) else number
    return str(value)


def write_record(res_save_dir: Path, record: Mapping[str, Any]) -> Path:
    """Store one record under <res-save-dir>/runs and return its path."""
    stamp = record["started"].replace("-", "").replace(":", "").replace("+0000", "Z")
    name = "-".join(str(part) for part in (record["model"], record["dataset"], record["seed"], stamp, record["id"]))
    path = res_save_dir / "runs" / f"{name}.json"
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return path


def summarise(records: Sequence[Mapping[str, Any]], split: str = "test") -> Summary:
    """Per metric the mean and the population standard deviation over the seeds; None where a seed has no number."""
    summary: Summary = {}
    for name in records[0][split]:
        values = [record[split][name] for record in records]
        if None in values:
            summary[name] = {"mean": None, "std": None}
            continue
        mean = sum(values) / len(values)
        summary[name] = {"mean": mean, "std": (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5}
    return summary


def append_summary(res_save_dir: Path, model: str, dataset: str, summary: Summary, *, again: bool = False
                   ) -> Path | None:
    """MMSA's row of results: the model and, per metric, (mean, standard deviation) times 100, rounded to 2 digits.

    A table that has other columns is left as it is, with a warning and None: the records hold everything. again: the
    same results may have been appended before; then they are not a second time. Raises RunError where another process
    keeps the table's lock.
    """
    path = res_save_dir / "normal" / f"{dataset}.csv"
    cells = [tuple(float("nan") if part is None else round(part * 100, 2) for part in (item["mean"], item["std"]))
             for item in summary.values()]
    row = [model, *map(str, cells)]
    if again and _holds(path, row):
        return path
    try:
        append_row(path, ["Model", *summary], row)
    except ValueError as error:
        LOGGER.warning("no row added to MMSA's table: %s; move it away", error)
        return None
    except RunError as error:
        raise RunError(f"{error} The records of this run are in {res_save_dir / 'runs'}.") from error
    return path


def _holds(path: Path, row: Sequence[str]) -> bool:
    """Whether a table has this very row."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8", newline="") as stream:
        return list(row) in csv.reader(stream)
