"""What each choice of DecAlign's MOSI settings does, beside baselines, by cross-validation on videos of no test split.

    python benchmarks/choices.py vectors FOLD.pkl [FOLD.pkl ...] --out benchmarks/results
    python benchmarks/choices.py tokens FOLD.safetensors [FOLD.safetensors ...]

Vectors and tokens are those of study.py, which measures the same choices on the test splits.

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
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
from linear import ridge
from scipy.stats import sem
from sklearn.model_selection import GroupKFold
from study import KINDS, choices_of

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.harness import runner

KEYS = ("text", "audio", "vision")
METRICS = ("MAE", "Non0_acc_2", "Corr")
Row = tuple[str, str, str | None, dict[str, Any]]  # label, model, shipped configuration, change


def rows_of(kind: str) -> list[Row]:
    """The shipped settings for a kind of features first, then what each line of the table changes of them."""
    changes = {label: change for label, change in choices_of(kind).items()} | {
        "learning rate doubled": {"learning_rate": 0.001},
        "no alignment": {"alpha": 0.0, "beta": 0.0, "dec_loss_weight": 0.0},
        "no cross-modal attention": {"use_cross_modal_attention": False},
        "text alone": {"modalities": ["text"]},
        "three members": {"members": 3},
    }
    return [
        ("shipped settings", "decalign", None, {}),
        *((label, "decalign", None, change) for label, change in changes.items()),
        ("settings of the release", "decalign", "release", {}),
        ("lf_dnn", "lf_dnn", None, {}), ("lmf", "lmf", None, {}), ("mfm", "mfm", None, {}),
        ("ridge, text", "ridge", None, {"modalities": ("text",)}),
        ("ridge, all three", "ridge", None, {"modalities": KEYS}),
    ]  # fmt: skip


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


def score(file: Path, row: Row, seeds: list[int], scratch: str) -> np.ndarray:
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
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folds", nargs="+", type=Path)
    parser.add_argument("--rows", nargs="+", default=None, metavar="LABEL", help="only these, and the shipped settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 2000])
    parser.add_argument("--deals", type=int, nargs="+", default=[0, 1, 2], help="random states of the deals")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    about = timing.surroundings()
    lines = [f"{timing.in_words(about)}, {arguments.kind}, videos that no fold tests on, deals {arguments.deals} of 5 "
             f"rounds, seeds {arguments.seeds}", "",
             "| settings | MAE | difference | Non0_acc_2 | difference | Corr |", "| --- |" + " --- |" * 5]
    first, found = None, {}
    with tempfile.TemporaryDirectory() as scratch:
        files = list(rounds(arguments.folds, Path(scratch), arguments.deals))
        for row in rows_of(arguments.kind):
            if arguments.rows and first is not None and row[0] not in arguments.rows:
                continue
            figures = np.array([score(file, row, arguments.seeds, scratch) for file in files])
            first = figures if first is None else first
            found[row[0]] = figures.tolist()
            lines.append(line(row[0], figures, first))
            print(lines[-1], flush=True)
    about |= {"deals": arguments.deals, "seeds": arguments.seeds}
    document = {"about": about, "metrics": METRICS, "rounds": found}
    timing.store(arguments.out, f"choices_{arguments.kind}", "\n".join(lines) + "\n", document)


if __name__ == "__main__":
    main()
