"""The table of a comparison as a plain document: what every way of showing it is made from.

Means and deviations are those of the runs' records, as MMSA computed the metrics. Intervals and tests come from the
stored predictions, and only for metrics whose recomputed figures agree with the records. What may change here: further
columns; a change of the document's fields raises TABLE_VERSION.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..harness.classification import selects_on_test
from ..harness.metrics import LOWER_IS_BETTER, metric_rules
from . import statistics
from .measures import Measure, measures
from .notes import ON_TEST, text_source
from .plan import Data, Plan, Row
from .statistics import ALPHA, LEVEL, RESAMPLES, Scores
from .store import Samples, Store
from .verdicts import compare_with, correct, mark_best

TABLE_VERSION = 1
NOT_COMPARED = ("Loss",)  # each model's own: not the same quantity in two rows
_AGREES = 1.01e-4  # records hold four digits
ABOUT = {
    "checkpoint": "one checkpoint a run, chosen on the validation split; every metric is of that checkpoint",
    "test": "the test split is read once, after the choice; nothing is chosen by it",
    "same for all": "splits, feature file and preprocessing are the same for all rows, but for what the notes name",
    "mean, std": "over the seeds; population standard deviation, as in MMSA's tables",
    "interval": f"{LEVEL:.0%} bootstrap percentile interval of the mean over the seeds, {RESAMPLES} resamples of the "
                "test samples: how far the figure of these trained models would move on other samples drawn like "
                "these. It takes samples as independent and leaves the spread over seeds out",
    "difference": "row minus reference, with its interval from the same resamples",
    "p": f"two-sided paired permutation test, {RESAMPLES} swaps of the two rows' predictions of test samples, metrics "
         "averaged over the seeds; p_holm is corrected by Holm over all comparisons of the metric in this table",
    "effect": "mean over standard deviation of the samples' differences in loss or correctness; sign as the difference",
    "verdict": f"'not distinguishable' where p_holm is {ALPHA} or more: it does not say that the two are equal",
    "best": "best mean of the data set; ties are the rows that the same test, Holm-corrected over the rows, does not "
            "tell from the best",
}

ABOUT_ON_TEST = {  # instead, where such rows are in the table
    "checkpoint": f"one checkpoint a run; every metric is of that checkpoint. In rows marked ({ON_TEST}) the epoch was "
                  "chosen by the test split, after training on train and valid together; in any other on validation",
    "test": f"in rows marked ({ON_TEST}) the test split was read after every epoch and chose the checkpoint, so that "
            "their figures are too good, and a verdict on them is none between equals; for any other row it is read "
            "once, after the choice, and nothing is chosen by it",
}


@dataclass
class _Result:
    """What the store holds for a row on a data set."""

    row: Row
    records: list[dict[str, Any]]
    samples: list[Samples | None]
    failed: list[dict[str, Any]]
    asked: int
    scores: Scores | None = None


def make_table(plan: Plan, store: Store) -> dict[str, Any]:
    """The document: rows by data set with metrics, comparisons, protocol and notes; failures; what the columns mean."""
    parts = [_one_data(plan, data, store) for data in plan.data]
    correct(parts)
    failures = [{"row": row["label"], "data": part["label"], **failure}
                for part in parts for row in part["rows"] for failure in row["failed"]]
    on_test = any(selects_on_test(cell.spec["settings"]) for cell in plan.cells)
    return {"table_version": TABLE_VERSION, "reference": plan.reference, "seeds": list(plan.seeds),
            "about": {**ABOUT, **(ABOUT_ON_TEST if on_test else {})}, "data": parts, "failures": failures}


def _one_data(plan: Plan, data: Data, store: Store) -> dict[str, Any]:
    results = [_result(plan, row, data, store) for row in plan.rows if plan.of(row.label, data.label)]
    records = [record for one in results for record in one.records]
    names = list(dict.fromkeys(name for record in records for name in record["test"] if name not in NOT_COMPARED))
    notes, known = _score(results, data, names)
    boots = dict(zip([one.row.label for one in results if one.scores], statistics.resampled(
        [one.scores for one in results if one.scores]), strict=True)) if any(one.scores for one in results) else {}
    rows = [_row(one, data, names, known, boots.get(one.row.label)) for one in results]
    compare_with(rows, results, boots, known, plan.reference)
    mark_best(rows, results, boots, known, names)
    return {
        "label": data.label, "dataset": data.dataset, "metrics": names,
        "lower_is_better": [name for name in names if name in LOWER_IS_BETTER],
        "rules": {name: rule for name, rule in metric_rules(data.dataset).items() if name in names},
        "samples": _samples(records),
        "feature_files": sorted({record["features"]["path"] for record in records}),
        "notes": plan.notes + notes + _mixtures(records), "rows": rows,
    }


def _result(plan: Plan, row: Row, data: Data, store: Store) -> _Result:
    found = _Result(row, [], [], [], 0)
    cells = plan.of(row.label, data.label)
    states = store.states(cell.key for cell in cells)
    for cell in cells:
        found.asked += 1
        record, state = store.record(cell.key), states.get(cell.key)
        if record is not None:
            found.records.append(record)
            found.samples.append(store.samples(cell.key))
        elif state is not None and state.error:
            found.failed.append({"seed": cell.seed, "error": state.error})
    return found


def _score(results: Sequence[_Result], data: Data, names: list[str]) -> tuple[list[str], list[Measure]]:
    """Fill in ``scores`` where a row can be resampled; returns notes, and the measures that all those rows have."""
    first = next((one for one in results if one.samples and all(one.samples)), None)
    if first is None:
        return [], []
    known = list(measures({**first.records[0]["settings"], "dataset_name": data.dataset}, names).values())
    lacking = [name for name in names if name not in [one.name for one in known]]
    ids, labels = first.samples[0].ids, first.samples[0].labels
    aligned: list[tuple[_Result, np.ndarray]] = []
    notes = []
    for one in results:
        predictions = _aligned(one.samples, ids, labels) if one.samples else None
        if predictions is not None:
            aligned.append((one, predictions))
        elif one.samples:
            notes.append(f"{one.row.label}: no intervals, since its predictions are not known for the same samples")
    for measure in list(known):
        if not all(_agrees(measure, predictions, labels, one.records) for one, predictions in aligned):
            known.remove(measure)
            lacking.append(measure.name)
    if known:
        for one, predictions in aligned:
            one.scores = statistics.scores(predictions, labels, known)
    if lacking:
        notes.append(f"no interval and no test for {', '.join(lacking)}: not known as a function of the samples")
    return notes, known


def _aligned(samples: Sequence[Samples | None], ids: list[str], labels: np.ndarray) -> np.ndarray | None:
    """(S, N) or (S, N, C) predictions in the order of ``ids``; None where some run has not these samples."""
    found = []
    for one in samples:
        if one is None or len(set(one.ids)) != len(one.ids) and one.ids != ids:
            return None
        if one.ids != ids:
            place = {name: number for number, name in enumerate(one.ids)}
            if place.keys() != set(ids):
                return None
            order = [place[name] for name in ids]
            one = Samples(ids, one.labels[order], one.predictions[order])
        if not np.array_equal(one.labels, labels):
            return None
        found.append(one.predictions)
    if len({each.shape for each in found}) != 1:
        return None
    stacked = np.stack(found)
    return stacked[..., 0] if stacked.shape[2] == 1 else stacked


def _agrees(measure: Measure, predictions: np.ndarray, labels: np.ndarray, records: Sequence[Mapping[str, Any]]
            ) -> bool:
    for value, record in zip(measure.of(predictions, labels), records, strict=True):
        stored = record["test"].get(measure.name)
        if np.isfinite(value) != (stored is not None) or (stored is not None and abs(value - stored) > _AGREES):
            return False
    return True


def _row(one: _Result, data: Data, names: list[str], known: list[Measure], boots: np.ndarray | None) -> dict[str, Any]:
    metrics = {}
    for name in names:
        values = [record["test"].get(name) for record in one.records]
        whole = bool(values) and None not in values
        mean = sum(values) / len(values) if whole else None
        place = next((number for number, measure in enumerate(known) if measure.name == name), None)
        low, high = statistics.interval(boots[place]) if whole and boots is not None and place is not None else (
            None, None)
        metrics[name] = {"values": values, "mean": mean, "std": float(np.std(values)) if whole else None, "low": low,
                         "high": high, "best": False, "tie": False}
    records, notes = one.records, list(one.row.notes.get(data.label, []))
    for flag in records[0]["flags"] if records else []:
        notes.append(f"{'repaired' if flag['repaired'] else 'as MMSA ships it'}: {flag['fault']}")
    if len(records) < one.asked:
        notes.append(f"{len(records)} of {one.asked} runs")
    memory = [found for record in records if (found := _memory(record["peak_memory_mib"])) is not None]
    return {
        "label": one.row.label, "model": one.row.model, "sanity": one.row.sanity,
        "source": records[0]["model_source"] if records else None,
        "runs": [record["id"] for record in records], "seeds": [record["seed"] for record in records],
        "failed": one.failed, "notes": notes, "warnings": _warnings(records),
        "protocol": _protocol(records), "metrics": metrics, "against": {},
        "parameters": records[0]["parameters"] if records else None,
        "seconds": sum(record["wall_seconds"] for record in records) / len(records) if records else None,
        "peak_memory_mib": max(memory, default=None),
    }


def _warnings(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the runs of a row warn of; records of earlier versions have none."""
    return [f"seed {record['seed']}: {one['what']}; try {one['try']}" for record in records
            for one in record.get("warnings", [])]


def _memory(peak: Mapping[str, float | None]) -> float | None:
    """Of the GPU where one was used, else of the process."""
    return peak["process"] if peak["gpu"] is None else peak["gpu"]


def _samples(records: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Of the file's splits; of those of the protocol that joins train and valid, where there is no other run."""
    own = [record for record in records if not selects_on_test(record["settings"])]
    if own or not records:
        return own[0]["features"]["samples"] if own else None
    joined = records[0]["features"]["samples"]
    return {"train with valid": joined["train"], "test": joined["test"]}


def _protocol(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What is stamped on a row: how the checkpoint was chosen, and from what data."""
    if not records:
        return None
    chosen, settings = records[0]["selection"], records[0]["settings"]
    if chosen["metric"] is None:
        checkpoint = f"fitted on train: {chosen['rule']}"
    else:
        best = "lowest" if chosen["mode"] == "min" else "highest"
        checkpoint = f"{best} {chosen['split']} {chosen['metric']}"
        if chosen["split"] == "test":
            checkpoint += ": SELECTED ON TEST"
    return {
        "checkpoint": checkpoint, "epochs": [record["selection"]["epoch"] for record in records],
        "text": text_source(settings), "feature_sha256": records[0]["features"]["sha256"],
        "mended": any(record["mended"] for record in records),
    }


def _mixtures(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What differs between the runs of one table beside the models: the code, the libraries, the device."""
    looks = {
        "code": lambda record: str(record["git_commit"] or record["versions"]["mmsa_decalign"])[:12],
        "torch": lambda record: str(record["versions"]["torch"]),
        "MMSA": lambda record: str(record["versions"]["MMSA"]),
        "device": lambda record: f"{record['device']['type'].partition(':')[0]} {record['device']['name']}",
    }
    trained = [record for record in records if record["epochs"]]
    found = {what: sorted({look(record) for record in trained}) for what, look in looks.items()}
    return [f"runs by different {what}: {', '.join(values)}" for what, values in found.items() if len(values) > 1]
