"""How `configs/utterance.json` was chosen: cross-validation inside the training and validation videos of each fold.

    python benchmarks/utterance_search.py FOLD.pkl [FOLD.pkl ...] --out benchmarks/results

The test split of a fold is not read. Its training and validation videos are dealt into five groups; in each round three
groups train, one chooses the checkpoint and one is scored, so that no video is on two sides and a model that tries more
epochs gains nothing by it. Baselines go through the same rounds. Each row changes one thing of the chosen settings.
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.harness import runner

KEYS = ("text", "audio", "vision")
ROWS: tuple[tuple[str, str, str | None, dict[str, Any]], ...] = (  # label, model, shipped configuration, change
    ("chosen", "decalign", "utterance", {}),
    ("no activation, linear head", "decalign", "utterance", {"projection_activation": "none", "head_width": None}),
    ("linear head", "decalign", "utterance", {"head_width": None}),
    ("task_loss=l1", "decalign", "utterance", {"task_loss": "l1"}),
    ("text_dropout=0", "decalign", "utterance", {"text_dropout": 0.0}),
    ("weight_decay=0.005", "decalign", "utterance", {"weight_decay": 0.005}),
    ("no dropout of audio and vision", "decalign", "utterance", {"audio_dropout": 0.0, "vision_dropout": 0.0}),
    ("without alignment", "decalign", "utterance",
     {"alpha": 0.0, "beta": 0.0, "dec_loss_weight": 0.0, "ct_weight": 0.0}),
    ("without cross-modal attention", "decalign", "utterance", {"use_cross_modal_attention": False}),
    ("text alone", "decalign", "utterance", {"modalities": ["text"]}),
    ("MOSI settings", "decalign", None, {}),
    ("lf_dnn", "lf_dnn", None, {}),
    ("lmf", "lmf", None, {}),
    ("mfm", "mfm", None, {}),
)


def rounds(path: Path, seed: int, folder: Path) -> Iterator[Path]:
    """Feature files of the five rounds, their `test` being a group of training videos."""
    splits = read_features(path).splits
    parts = [splits["train"], splits["valid"]]
    pool = {key: np.concatenate([getattr(part, key) for part in parts]) for key in KEYS}
    labels = np.concatenate([part.labels for part in parts])
    ids = [one for part in parts for one in part.ids]
    videos = [one.split("$_$")[0] for one in ids]
    groups = [rows for _, rows in GroupKFold(5, shuffle=True, random_state=seed).split(ids, groups=videos)]
    for i in range(5):
        scored, choosing = groups[i], groups[(i + 1) % 5]
        training = np.concatenate([groups[j] for j in range(5) if j not in (i, (i + 1) % 5)])
        content = {}
        for name, rows in (("train", training), ("valid", choosing), ("test", scored)):
            content[name] = {key: pool[key][rows] for key in KEYS} | {
                "regression_labels": labels[rows], "id": [ids[r] for r in rows], "raw_text": [""] * len(rows),
                "audio_lengths": [1] * len(rows), "vision_lengths": [1] * len(rows),
            }  # fmt: skip
        target = folder / f"{path.stem}-{i}.pkl"
        target.write_bytes(pickle.dumps(content))
        yield target


def main() -> None:
    """Measure every row on every round, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 2000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    lines = [f"{datetime.date.today()}, {len(arguments.folds)} folds x 5 rounds x seeds {arguments.seeds}", "",
             "| settings | MAE | Non0_acc_2 | Corr |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        files = [f for n, path in enumerate(arguments.folds) for f in rounds(path, n, Path(scratch))]
        for label, model, config, change in ROWS:
            figures = []
            for file in files:
                job = runner.prepare(
                    model, "mosi", config=config, overrides=change, seeds=arguments.seeds, feature_file=file,
                    device="cpu", verbose=0, model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
                )
                figures += [[r["test"][m] for m in ("MAE", "Non0_acc_2", "Corr")] for r in runner.run(job).records]
            mean = np.mean(figures, axis=0)
            lines.append(f"| {label} | {mean[0]:.3f} | {100 * mean[1]:.1f} | {mean[2]:.3f} |")
            print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "utterance_search.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
