"""DecAlign, three baselines of MMSA and ridge regression on utterance-level CMU-MOSI folds: one table.

    python benchmarks/mosi31.py FOLD.pkl [FOLD.pkl ...] --out benchmarks/results

Every model goes through the same harness: checkpoint by validation, test split read once. The ridge penalty is chosen
by validation MAE. Nothing is chosen by looking at the test split.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from timing import in_words, store, surroundings

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.harness import runner

MODELS = (  # name in the table, model, shipped configuration
    ("decalign (MOSI settings)", "decalign", None),
    ("decalign -c utterance", "decalign", "utterance"),
    ("lf_dnn", "lf_dnn", None),
    ("lmf", "lmf", None),
    ("mfm", "mfm", None),
)
METRICS = ("MAE", "Corr", "Non0_acc_2", "Has0_acc_2", "Mult_acc_7")


def ridge(path: Path, modalities: tuple[str, ...]) -> dict[str, float]:
    """Test figures of ridge regression on the standardised vectors of some modalities."""
    splits = read_features(path).splits

    def vectors(split: str) -> np.ndarray:
        return np.concatenate([getattr(splits[split], m).mean(axis=1) for m in modalities], axis=1)

    scale = StandardScaler().fit(vectors("train"))
    penalties, train = np.logspace(0, 5, 21), scale.transform(vectors("train"))
    fits = [Ridge(penalty).fit(train, splits["train"].labels) for penalty in penalties]
    errors = [np.abs(f.predict(scale.transform(vectors("valid"))) - splits["valid"].labels).mean() for f in fits]
    predicted = fits[int(np.argmin(errors))].predict(scale.transform(vectors("test")))

    from MMSA.utils import MetricsTop

    as_tensor = [torch.as_tensor(x, dtype=torch.float32) for x in (predicted, splits["test"].labels)]
    return {name: float(value) for name, value in MetricsTop("regression").getMetics("mosi")(*as_tensor).items()}


def measure(path: Path, seeds: list[int], scratch: Path) -> dict[str, list[dict[str, float]]]:
    """Per row of the table the test figures of each seed (ridge has no seed: one entry)."""
    rows: dict[str, list[dict[str, float]]] = {
        "ridge, text": [ridge(path, ("text",))],
        "ridge, all three": [ridge(path, ("text", "audio", "vision"))],
    }
    for label, model, config in MODELS:
        job = runner.prepare(
            model, "mosi", config=config, seeds=seeds, feature_file=path, device="cpu", verbose=0,
            model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
        )
        records = runner.run(job).records
        rows[label] = [record["test"] | {"seconds": record["wall_seconds"]} for record in records]
        print(path.name, label, {m: round(float(np.mean([r[m] for r in rows[label]])), 4) for m in METRICS}, flush=True)
    return rows


def markdown(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """One line a model, per fold Non0 Acc-2 in per cent and MAE, mean and population deviation over the seeds."""
    folds = list(results)
    lines = ["| | " + " | ".join(f"{fold} Acc-2 (non-zero) | {fold} MAE" for fold in folds) + " |"]
    lines.append("| --- |" + " --- | --- |" * len(folds))
    for label in results[folds[0]]:
        cells = []
        for fold in folds:
            for metric, factor, digits in (("Non0_acc_2", 100, 1), ("MAE", 1, 3)):
                values = [factor * entry[metric] for entry in results[fold][label]]
                spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.{digits}f}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path, help="feature files in MMSA's layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 1112, 1113])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    about = surroundings()
    with tempfile.TemporaryDirectory() as scratch:
        results = {path.stem: measure(path, arguments.seeds, Path(scratch)) for path in arguments.folds}
    head = f"{in_words(about)}, {about['threads']} thread(s), seeds {arguments.seeds}"
    table = f"{head}\n\n{markdown(results)}\n"
    print(table)
    store(arguments.out, "mosi31", table, {"about": about | {"seeds": arguments.seeds}, "results": results})


if __name__ == "__main__":
    main()
