"""A run repeated from its record alone: settings, file and seed as recorded; do the metrics come back?"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.reading import sha256_of
from ..errors import InputError
from . import sanity, worker
from .store import Store


def find_record(wanted: str, store: Path, results: Path) -> dict[str, Any]:
    """The record of a run: a JSON file, or an id in the results store or among the records of ``mmsa -m ...``.

    Raises InputError where there is none.
    """
    path = Path(wanted).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _read(path)
    if store.is_file():
        opened = Store(store)
        try:
            record = opened.find(wanted)
        finally:
            opened.close()
        if record is not None:
            return record
    files = sorted((results / "runs").glob("*.json"))
    matching = [file for file in files if wanted and file.stem.rpartition("-")[2].startswith(wanted)]
    if len(matching) == 1:
        return _read(matching[0])
    if wanted and path.exists():
        what = "a folder" if path.is_dir() else "no record of a run"
        raise InputError(f"{wanted}: is {what}; expected a run's id, or the JSON file that it left in "
                         "<res-save-dir>/runs")
    if os.sep in wanted or path.suffix:
        raise InputError(f"{wanted}: no such file; expected a run's id, or the JSON file that it left in "
                         "<res-save-dir>/runs")
    what = "several runs have an id that begins so" if matching else "no run has this id"
    raise InputError(f"run {wanted!r}: {what}; looked in {store} and {results / 'runs'}.\n"
                     "Give an id from a table or a record, the JSON file of a record, or --store FILE")


def rerun(record: Mapping[str, Any], *, feature_file: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Repeat the run; returns both records' metrics and how far they are apart.

    Raises InputError if the feature file is gone or another one, if modalities were replaced by files whose place the
    record does not hold, and RunError if the run fails.
    """
    spec = spec_of(record, feature_file)
    with tempfile.TemporaryDirectory() as folder, _threads(record["device"]["threads"]):
        again, _ = worker.do(spec, Path(folder), device)
    return comparison(record, again)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch with as many CPU threads as the run had: on them depends in which order numbers are added up."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spec_of(record: Mapping[str, Any], feature_file: str | None = None) -> dict[str, Any]:
    """What a worker needs to do the run of a record once more."""
    features = record["features"]
    if features["replaced"]:
        raise InputError(f"run {record['id']}: its {', '.join(features['replaced'])} came from other files, whose "
                         "place is not in the record; repeat it with mmsa -m ... -Ft/-Fa/-Fv")
    if record.get("missing"):
        raise InputError(f"run {record['id']}: modalities were hidden on purpose; repeat it with its command: "
                         f"{record['command']}")
    path = Path(feature_file or features["path"]).expanduser()
    if not path.is_file():
        raise InputError(f"run {record['id']}: its feature file {path} is not there; name it with --feature-file FILE")
    found = sha256_of(path)
    if found != features["sha256"]:
        raise InputError(f"run {record['id']}: {path} is not the file that it read (SHA-256 {found[:12]}..., recorded "
                         f"{features['sha256'][:12]}...); name that one with --feature-file FILE")
    task = "classification" if record["settings"].get("label_names") else "regression"
    return {"kind": "sanity" if record["model"] in sanity.SUMMARIES else "model", "model": record["model"],
            "source": record["model_source"], "dataset": record["dataset"],
            "settings": {**record["settings"], "train_mode": task},
            "overrides": record["overrides"], "settings_of": record.get("settings_of"), "mended": record["mended"],
            "seed": record["seed"], "sha256": features["sha256"], "feature_file": str(path.absolute())}


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Old and new metrics, whether they are equal, the largest difference, and what differs that may explain one."""
    names = list(dict.fromkeys([*before["test"], *after["test"]]))
    metrics = {name: {"recorded": before["test"].get(name), "now": after["test"].get(name)} for name in names}
    apart = [abs(one["recorded"] - one["now"]) for one in metrics.values() if None not in one.values()]
    same = all(one["recorded"] == one["now"] for one in metrics.values())
    changed = {
        "code": (before["git_commit"], after["git_commit"]),
        "device": (before["device"]["type"], after["device"]["type"]),
        "processor": (before["device"]["name"], after["device"]["name"]),
        "threads": (before["device"]["threads"], after["device"]["threads"]),
        **{f"{name} version": (version, after["versions"].get(name)) for name, version in before["versions"].items()},
    }
    return {
        "schema_version": 1, "id": before["id"], "model": before["model"], "dataset": before["dataset"],
        "seed": before["seed"], "came_back": same, "largest_difference": max(apart, default=0.0) if not same else 0.0,
        "comparable": all((one["recorded"] is None) == (one["now"] is None) for one in metrics.values()),
        "metrics": metrics, "same_epoch": before["selection"]["epoch"] == after["selection"]["epoch"],
        "changed": {name: list(pair) for name, pair in changed.items() if pair[0] != pair[1]},
    }


def verdict(result: Mapping[str, Any]) -> str:
    """The answer in one sentence."""
    where = f"{result['model']} on {result['dataset']}, seed {result['seed']}"
    if result["came_back"]:
        return f"{where}: every metric came back exactly"
    if not result["comparable"]:
        return f"{where}: the metrics did not come back: some have a figure on one side only"
    return f"{where}: the metrics came back within {result['largest_difference']:.4g}, not exactly"


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"record {path} cannot be read as JSON: {error}") from error
    needed = ("id", "model", "model_source", "dataset", "seed", "settings", "overrides", "mended", "features", "test",
              "selection", "versions", "device", "git_commit")
    lacking = [key for key in needed if not isinstance(record, dict) or key not in record]
    if lacking:
        raise InputError(f"record {path} has no {lacking[0]!r}: expected the JSON file that a run left in "
                         "<res-save-dir>/runs")
    return record
