"""What each part of DecAlign and each choice of its MOSI settings brings on CMU-MOSI folds: ablation, baselines, table.

    python benchmarks/study.py --vectors FOLD.pkl ... --tokens FOLD.safetensors ... [--seeds 3] [--out DIR]

Vectors are files of one feature vector an utterance and modality; tokens are the same folds after `mmsa data embed
FOLD.pkl --encoder NAME_OR_DIR`. Both are trained with the MOSI settings, vectors with `-c utterance` as well. Every row
goes through `mmsa compare`: checkpoint by validation, test read once, intervals and verdicts of its table. Nothing here
chooses a setting: that is done on other videos (choices.py). Finished runs are kept in the store: a second call goes
on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from linear import ridge
from rich.progress import track
from timing import in_words, store, surroundings

from mmsa_decalign.compare import ablate, plan, table, worker
from mmsa_decalign.compare.store import Store
from mmsa_decalign.harness.progress import stderr_console

KINDS = ("vectors", "tokens")
CHOICES: dict[str, dict[str, Any]] = {  # what the settings have beyond the published ones, switched off or exchanged
    "no path past the fusion": {"pooled_skip": [], "skip_start": "zero"},
    "that path from zero": {"skip_start": "zero"},
    "that path from ridge": {"skip_start": "ridge"},
    "inputs as they come": {"need_feature_standardized": False, "feature_clip_percentiles": [0, 100]},
    "no masks": {"use_sequence_mask": False},
    "no activation, linear head": {"projection_activation": "none", "head_width": None},
    "squared error": {"task_loss": "mse"},
    "transport of the release": {"ot_solver": "release"},
    "median bandwidth": {"mmd_bandwidth": "median"},
    "modality dropout 0.2": {"modality_dropout": [0.2, 0.2, 0.2]},
    "without dropout of inputs": {"text_dropout": 0.0, "audio_dropout": 0.0, "vision_dropout": 0.0},
    "five layers, eight heads": {"nlevels": 5, "num_heads": 8},
    "dropout as published": {"relu_dropout": 0.1, "embed_dropout": 0.1, "res_dropout": 0.05, "output_dropout": 0.0,
                             "text_dropout": 0.0, "audio_dropout": 0.0, "vision_dropout": 0.0},
    "batches of 32": {"batch_size": 32},
    "learning rate as published": {"learning_rate": 6e-5},
}
RELEASE, MEMBERS = "settings of the release", "settings for vectors"
BASELINES = ("lf_dnn", "lmf", "mfm")
METRICS = (("Non0_acc_2", 100, 1), ("MAE", 1, 3))


def rows_of(kind: str) -> dict[str, dict[str, Any]]:
    """DecAlign's rows by label: whole, without each part, without each choice that the settings of the kind make."""
    return dict(ablate.ablation("mosi").rows) | choices_of(kind)


def choices_of(kind: str) -> dict[str, dict[str, Any]]:
    """Those of CHOICES that change anything of the settings for a kind of features."""
    own = "that path from zero" if kind == "vectors" else "that path from ridge"
    useless = {own} | ({"no masks"} if kind == "vectors" else set())  # one step has no padding
    return {label: change for label, change in CHOICES.items() if label not in useless}


def measure(kind: str, files: list[Path], seeds: list[int], runs: Path) -> dict[str, Any]:
    """The table of `mmsa compare` over the folds of a kind, and ridge regression on the text alone."""
    rows = rows_of(kind)
    configs = {RELEASE: "release"} | ({MEMBERS: "utterance"} if kind == "vectors" else {})
    made = plan.make_plan(
        [*(f"{label}=decalign" for label in (*rows, *configs)), *BASELINES], ["mosi"],
        feature_files=list(map(str, files)), configs=[f"{label}={config}" for label, config in configs.items()],
        overrides={label: change for label, change in rows.items() if change}, reference=ablate.FULL, seeds=seeds,
        device="cpu",
    )  # fmt: skip
    results, cells = Store(runs), plan.unique(made.cells)
    results.add(cell.entry() for cell in cells)
    for cell in track(cells, kind, console=stderr_console()):
        do(cell.key, results)
    document = table.make_table(made, results)
    for part in document["data"]:
        part["feature_files"] = [Path(path).name for path in part["feature_files"]]  # not of whoever measured
    return {**document, "ridge, text": [ridge(path, ("text",)) for path in files],
            "seconds_an_epoch": seconds_an_epoch(made, results)}


def do(key: str, results: Store) -> None:
    """One run unless it is finished; in this process, since most of a run that short is the start of another."""
    state = results.states([key])[key]
    if not state.run:
        token, began = uuid.uuid4().hex, time.perf_counter()
        results.claim(key, token, state.attempts)
        record, samples = worker.do(results.spec(key), results.folder(key), "cpu")
        results.finish(key, token, record, samples, time.perf_counter() - began)


def markdown(document: Mapping[str, Any]) -> str:
    """A line a row: both metrics on each fold with their deviation over the seeds, and seconds an epoch."""
    parts = document["data"]
    lines = ["| | " + " | ".join(f"{part['label']} {name}" for part in parts for name, *_ in METRICS)
             + " | s an epoch |", "| --- |" + " --- |" * (len(METRICS) * len(parts) + 1)]
    for row in parts[0]["rows"]:
        cells = []
        for part in parts:
            found = _same(part, row["label"])["metrics"]
            for name, factor, digits in METRICS:
                average, deviation = found[name]["mean"], found[name]["std"]
                spread = "" if not deviation else f" ± {factor * deviation:.{digits}f}"
                cells.append("-" if average is None else f"{factor * average:.{digits}f}{spread}")
        seconds = document["seconds_an_epoch"].get(row["label"])
        lines.append(f"| {row['label']} | " + " | ".join(cells) + f" | {'' if seconds is None else f'{seconds:.3f}'} |")
    alone = [f"{factor * one[name]:.{digits}f}" for one in document["ridge, text"] for name, factor, digits in METRICS]
    return "\n".join([*lines, f"| ridge, text | {' | '.join(alone)} | |"])


def differences(document: Mapping[str, Any]) -> str:
    """A line a row: what it has more than the full model, with the 95 % interval, and whether the test tells them."""
    parts = document["data"]
    columns = [f"{part['label']} {name}" for part in parts for name, *_ in METRICS]
    lines = ["| minus the full model | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for row in parts[0]["rows"]:
        if row["label"] == ablate.FULL:
            continue
        cells = []
        for part in parts:
            against = _same(part, row["label"])["against"]
            for name, factor, digits in METRICS:
                one = against.get(name)
                told = one is not None and one["verdict"] in ("better", "worse")
                cells.append("-" if one is None else f"{factor * one['difference']:+.{digits}f} "
                             f"[{factor * one['low']:+.{digits}f}, {factor * one['high']:+.{digits}f}]"
                             + (f" {one['verdict']}" if told else ""))
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _same(part: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    return next(one for one in part["rows"] if one["label"] == label)


def seconds_an_epoch(made: plan.Plan, results: Store) -> dict[str, float]:
    """Median over all epochs of a row's runs; not of ridge and constants, which have none."""
    found: dict[str, list[float]] = {}
    for cell in made.cells:
        record = results.record(cell.key)
        found.setdefault(cell.row, []).extend(epoch["seconds"] for epoch in record["epochs"])
    return {label: float(np.median(seconds)) for label, seconds in found.items() if seconds}


def standing(document: Mapping[str, Any]) -> str:
    """The full model beside the best of the others, in the mean over the folds."""
    figures: dict[str, list[float]] = {"ridge, text": [
        float(np.mean([one[name] for one in document["ridge, text"]])) for name, *_ in METRICS]}
    for row in document["data"][0]["rows"]:
        if row["label"] in (ablate.FULL, RELEASE, *BASELINES, "ridge"):
            figures[row["label"]] = [
                float(np.mean([one["metrics"][name]["mean"] for part in document["data"] for one in part["rows"]
                               if one["label"] == row["label"]])) for name, *_ in METRICS]
    return "Mean of the folds, Acc-2 / MAE: " + ", ".join(
        f"{label} {100 * accuracy:.1f} / {error:.3f}" for label, (accuracy, error) in figures.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1111 on")
    parser.add_argument("--store", type=Path, default=None, help="results store (default: a new one)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    about = surroundings()
    seeds = list(range(1111, 1111 + arguments.seeds))
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.store or Path(folder) / "study.sqlite"
        for kind in KINDS:
            if files := getattr(arguments, kind):
                document = measure(kind, files, seeds, runs)
                text = (f"{in_words(about)}, seeds {seeds}, test splits\n\nMean ± deviation over the seeds, Acc-2 in "
                        f"per cent; seconds with whatever else the machine did\n\n{markdown(document)}\n\n"
                        f"{standing(document)}\n\nDifferences with 95 % intervals; better and worse only where the "
                        f"test says so\n\n{differences(document)}\n")
                store(arguments.out, f"study_{kind}", text, {"about": about, "table": document})
                print(text)


if __name__ == "__main__":
    main()
