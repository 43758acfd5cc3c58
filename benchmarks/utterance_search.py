"""How `configs/utterance.json` compares with its neighbours and with baselines, by cross-validation.

    python benchmarks/utterance_search.py FOLD.pkl [FOLD.pkl ...] --out benchmarks/results

The folds are cut from the same videos, so one fold's test videos lie in another's training split: only videos that are
in no fold's test split take part. They are dealt into five groups, several times; in each of a deal's five rounds three
groups train, one chooses the checkpoint and one is scored, so that no video is on two sides and a model that tries more
epochs gains nothing by it. Baselines go through the same rounds. Each row changes one thing of the shipped settings.

A difference is that to the first row, round by round, after the mean over the seeds; behind it its standard error over
the rounds. All deals share the same few videos, so that the true uncertainty is larger. Two deals are not enough: a
baseline that leads on two can trail on the next two. A row that was picked for its figures here needs deals of its own
(`--deals`) before it is believed.
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mosi31 import ridge
from scipy.stats import sem
from sklearn.model_selection import GroupKFold

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.harness import runner

KEYS = ("text", "audio", "vision")
METRICS = ("MAE", "Non0_acc_2", "Corr")
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
    ("ridge, text", "ridge", None, {"modalities": ("text",)}),
    ("ridge, all three", "ridge", None, {"modalities": KEYS}),
)


def rounds(folds: list[Path], folder: Path, deals: Sequence[int]) -> Iterator[Path]:
    """Feature files of five rounds a deal, their `test` being a group of videos that no fold tests on."""
    splits = [read_features(path).splits for path in folds]
    tested = {video(one) for fold in splits for one in fold["test"].ids}
    rows = {}  # id -> (split, row): a clip that several folds have is taken once
    for fold in splits:
        for part in (fold["train"], fold["valid"]):
            rows |= {one: (part, row) for row, one in enumerate(part.ids) if video(one) not in tested}
    ids = sorted(rows)
    for deal in deals:
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


def score(file: Path, row: tuple[str, str, str | None, dict[str, Any]], seeds: list[int], scratch: str) -> np.ndarray:
    """METRICS of one row of the table on the scored group of one round, mean over the seeds (ridge has none)."""
    _, model, config, change = row
    if model == "ridge":
        figures = [ridge(file, **change)]
    else:
        job = runner.prepare(
            model, "mosi", config=config, overrides=change, seeds=seeds, feature_file=file, device="cpu", verbose=0,
            model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
        )
        figures = [record["test"] for record in runner.run(job).records]
    return np.mean([[one[m] for m in METRICS] for one in figures], axis=0)


def line(label: str, figures: np.ndarray, first: np.ndarray) -> str:
    """A row of the table from the figures (rounds, METRICS) of a model and of the first row."""
    mae, accuracy, corr = figures.mean(axis=0)
    difference, error = (figures - first).mean(axis=0), sem(figures - first, axis=0)
    cells = [f"{mae:.3f}", f"{difference[0]:+.3f} ± {error[0]:.3f}", f"{100 * accuracy:.1f}",
             f"{100 * difference[1]:+.1f} ± {100 * error[1]:.1f}", f"{corr:.3f}"]
    if figures is first:
        cells[1] = cells[3] = ""
    return f"| {label} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure every row on every round, print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 2000])
    parser.add_argument("--deals", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5], help="random states of the deals")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    lines = [f"{datetime.date.today()}, videos that no fold tests on, deals {arguments.deals} of 5 rounds, "
             f"seeds {arguments.seeds}", "",
             "| settings | MAE | difference | Non0_acc_2 | difference | Corr |", "| --- |" + " --- |" * 5]
    first = None
    with tempfile.TemporaryDirectory() as scratch:
        files = list(rounds(arguments.folds, Path(scratch), arguments.deals))
        for row in ROWS:
            figures = np.array([score(file, row, arguments.seeds, scratch) for file in files])
            first = figures if first is None else first
            lines.append(line(row[0], figures, first))
            print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "utterance_search.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
