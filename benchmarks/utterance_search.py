"""How `configs/utterance.json` compares with its neighbours and with baselines, by cross-validation.

    python benchmarks/utterance_search.py FOLD.pkl [FOLD.pkl ...] --out benchmarks/results

The folds are cut from the same videos, so one fold's test videos lie in another's training split: only videos that are
in no fold's test split take part. They are dealt into five groups, twice; in each of the ten rounds three groups train,
one chooses the checkpoint and one is scored, so that no video is on two sides and a model that tries more epochs gains
nothing by it. Baselines go through the same rounds. Each row changes one thing of the shipped settings.
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
    ("utterance settings", "decalign", "utterance", {}),
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


def rounds(folds: list[Path], folder: Path) -> Iterator[Path]:
    """Feature files of the ten rounds, their `test` being a group of videos that no fold tests on."""
    splits = [read_features(path).splits for path in folds]
    tested = {video(one) for fold in splits for one in fold["test"].ids}
    rows = {}  # id -> (split, row): a clip that several folds have is taken once
    for fold in splits:
        for part in (fold["train"], fold["valid"]):
            rows |= {one: (part, row) for row, one in enumerate(part.ids) if video(one) not in tested}
    ids = sorted(rows)
    for deal in (0, 1):
        dealt = GroupKFold(5, shuffle=True, random_state=deal).split(ids, groups=[video(one) for one in ids])
        groups = [[ids[i] for i in chosen] for _, chosen in dealt]
        for i in range(5):
            j = (i + 1) % 5
            training = [one for k in range(5) if k not in (i, j) for one in groups[k]]
            content = {}
            for name, members in (("train", training), ("valid", groups[j]), ("test", groups[i])):
                content[name] = {
                    key: np.stack([getattr(part, key)[row] for part, row in map(rows.get, members)]) for key in KEYS
                } | {
                    "regression_labels": np.array([part.labels[row] for part, row in map(rows.get, members)]),
                    "id": members, "raw_text": [""] * len(members),
                    "audio_lengths": [1] * len(members), "vision_lengths": [1] * len(members),
                }  # fmt: skip
            target = folder / f"round-{deal}-{i}.pkl"
            target.write_bytes(pickle.dumps(content))
            yield target


def video(sample: str) -> str:
    """The video of a clip's id `video$_$clip`."""
    return sample.split("$_$")[0]


def main() -> None:
    """Measure every row on every round, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 2000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    lines = [f"{datetime.date.today()}, videos that no fold tests on, 10 rounds x seeds {arguments.seeds}", "",
             "| settings | MAE | Non0_acc_2 | Corr |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        files = list(rounds(arguments.folds, Path(scratch)))
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
