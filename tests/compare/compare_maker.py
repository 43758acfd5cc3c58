"""Stores filled with runs whose predictions are labels plus noise, for the tests of tables and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compare_stub import cell, record_of

from mmsa_decalign.compare import statistics, table
from mmsa_decalign.compare.measures import measures
from mmsa_decalign.compare.plan import Cell, Data, Plan, Row
from mmsa_decalign.compare.store import Store
from mmsa_decalign.harness.samples import Samples

NAMES = ["Has0_acc_2", "Non0_acc_2", "MAE", "Corr"]
KNOWN = measures({"dataset_name": "mosi"}, NAMES)
N = 120


class Maker:
    """Fills a store with runs whose predictions are labels plus noise."""

    def __init__(self, store: Store) -> None:
        self.store, self.cells, self.rows = store, [], []
        rng = np.random.default_rng(0)
        self.labels = {data: np.clip(rng.normal(0, 1.5, N).round(1), -3, 3).astype(np.float32) for data in "ab"}
        self.ids = [f"s{number}" for number in range(N)]

    def row(self, label: str, noise: float, *, seeds: tuple[int, ...] = (1, 2), data: str = "a", broken: float = 0.0,
            order: Any = None, sanity: bool = False, **more: Any) -> None:
        if label not in [row.label for row in self.rows]:
            self.rows.append(Row(label, label, sanity=sanity))
        for seed in seeds:
            made = self.cell(label, seed, data)
            rng = np.random.default_rng([seed, len(label), len(data)])
            labels = self.labels[data]
            predictions = (labels + rng.normal(0, noise, N) + (2.5 if noise > 2 else 0)).astype(np.float32)
            test = {name: round(float(KNOWN[name].of(predictions, labels)), 4) + broken for name in NAMES}
            samples = Samples(self.ids, labels, predictions[:, None])
            if order is not None:
                samples = Samples([self.ids[n] for n in order], labels[order], predictions[order][:, None])
            self.finish(made, record_of(made.spec, {**test, "Loss": 1.0}, id=f"{label}{seed}{data}", **more), samples)

    def classes(self, label: str, names: list[str], labels: np.ndarray, noise: float, metrics: list[str], *,
                rng: np.random.Generator) -> np.ndarray:
        """A row of one run that scores classes; returns the scores (N, classes)."""
        self.rows.append(Row(label, label))
        made = self.cell(label, 1, "a")
        made.spec["settings"] = {"label_names": names}
        scores = (np.eye(len(names))[labels] + rng.normal(0, noise, (N, len(names)))).astype(np.float32)
        known = measures({"dataset_name": "iemocap4", "label_names": names}, metrics)
        test = {name: float(measure.of(scores, labels)) for name, measure in known.items()}
        self.finish(made, record_of(made.spec, test, id=label), Samples(self.ids, labels, scores))
        return scores

    def cell(self, label: str, seed: int, data: str) -> Cell:
        made = cell(label, seed, data=data)
        made = Cell(made.key, label, data, seed, made.spec)
        self.store.add([made.entry()])
        self.cells.append(made)
        return made

    def finish(self, made: Cell, record: dict[str, Any], samples: Samples | None) -> None:
        assert self.store.claim(made.key, record["id"], 0)
        assert self.store.finish(made.key, record["id"], record, {} if samples is None else {"test": samples})

    def document(self, reference: str = "good") -> dict[str, Any]:
        labels = list(dict.fromkeys(made.data for made in self.cells))
        plan = Plan(self.rows, [Data(label, "mosi") for label in labels], (1, 2), reference, self.cells)
        return table.make_table(plan, self.store)


def few_resamples(patch: pytest.MonkeyPatch, count: int = 199) -> None:
    """Intervals and tests that are rough and quick."""
    for function in (statistics.resampled, statistics.compare):
        patch.setattr(function, "__kwdefaults__", {"resamples": count, "seed": 0})
