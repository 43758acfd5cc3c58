"""What the alignment terms do where the truth is known: DecAlign on synthetic data, with and without each term.

    python benchmarks/alignment.py [--search] [--seeds 11 12 13 14 15] [--jobs 2] [--out benchmarks/results]

Each seed draws a data set of its own (600 training samples) and a model; all settings share both, so that differences
are taken seed by seed. The checkpoint is chosen by validation loss. Measured are its features and those of the model
before its first step: linear probes and canonical directions are fitted on the validation split, of which training uses
no more than the loss, and scored on the test split, which nothing else reads.

`--search` ranks other settings on seeds of their own by what can be known without the truth: of those whose validation
loss is at most TOLERANCE above the shipped settings' the one whose common features best find a sample's partner in the
other modality (`retrieved`, validation split). The list was drawn up after trials on another seed (1) whose factors
were looked at. CHOSEN is what the search found: settings that show a mechanism, not a better model. The measures are
those of `mmsa_decalign.harness.diagnostics`. What may change here: rows, then all is run anew.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import alignment_report
import numpy as np
import timing
import torch

from mmsa_decalign import model
from mmsa_decalign.data.schema import MODALITIES
from mmsa_decalign.data.synthetic import make_synthetic, write_synthetic
from mmsa_decalign.harness import diagnostics, runner
from mmsa_decalign.harness.inside import State, look_inside

SAMPLES = (600, 400, 600)
KINDS = ("unique", "common", "compared")
FEW = 20  # rows of the small probe
TOLERANCE = 0.1
NONE: dict[str, Any] = {"alpha": 0.0, "beta": 0.0, "dec_loss_weight": 0.0}
TERMS: dict[str, dict[str, Any]] = {
    "transport": {"transport_weight": 0.0}, "prototypes": {"prototype_weight": 0.0}, "moments": {"moments_weight": 0.0},
    "MMD": {"mmd_weight": 0.0}, "decoupling": {"dec_loss_weight": 0.0},
}  # fmt: skip
MEDIAN: dict[str, Any] = {"beta": 1.0, "mmd_bandwidth": "median"}
NO_MOMENTS: dict[str, Any] = MEDIAN | {"moments_weight": 0.0}
SEARCHED: dict[str, dict[str, Any]] = {
    "shipped": {},
    "alpha=1": {"alpha": 1.0},
    "dec_loss_weight=10": {"dec_loss_weight": 10.0},
    "beta=1": {"beta": 1.0},
    "beta=1, median": MEDIAN,
    "beta=1, median, batch_size=16": MEDIAN | {"batch_size": 16},
    "beta=1, median, no moments, batch_size=16": NO_MOMENTS | {"batch_size": 16},
    "beta=3, median, no moments": NO_MOMENTS | {"beta": 3.0},
    "beta=3, median, no moments, batch_size=16": NO_MOMENTS | {"beta": 3.0, "batch_size": 16},
    "beta=10, median, no moments, batch_size=16": NO_MOMENTS | {"beta": 10.0, "batch_size": 16},
}
CHOSEN = SEARCHED["beta=3, median, no moments, batch_size=16"]  # by --search
# The same loss on a third of each batch, the same samples for all modalities or samples of its own for each: what a
# batch says of distributions is alike, what it says of a sample's other modalities is not.
CONTROLS: dict[str, dict[str, Any]] = {
    name: CHOSEN | {"batch_size": 3 * CHOSEN["batch_size"]} for name in ("one third for all", "a third for each")
}  # fmt: skip
CONTROL_SEEDS = 3
Task = tuple[str, dict[str, Any], int, tuple[int, int, int]]  # label, change of settings, seed, samples
REGIMES: dict[str, dict[str, dict[str, Any]]] = {
    "shipped": {"without alignment": NONE, "all terms": {},
                **{f"without {name}": change for name, change in TERMS.items()}},
    "chosen": {"without alignment": CHOSEN | NONE, "all terms": CHOSEN},
    "control": CONTROLS,
}  # fmt: skip


def measure(task: Task) -> dict[str, Any]:
    """Train once; figures of the features before and after it, on the test split, and a sample of them for a plot."""
    label, change, seed, samples = task
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, _thirds(label):
        file = write_synthetic(Path(folder) / "data.pkl", seed=seed, samples=samples)
        job = runner.prepare(
            "decalign", "synthetic", overrides=change, seeds=[seed], feature_file=file, device="cpu", verbose=0,
            model_save_dir=folder, res_save_dir=folder, log_dir=folder,
        )  # fmt: skip
        (record,) = runner.run(job).records
        valid, test = (
            look_inside(job, seed, Path(record["checkpoint"]), record["features"]["sha256"], split)
            for split in ("valid", "test")
        )
    data = make_synthetic(seed=seed, samples=samples)
    found = {when: inside(valid[when], test[when], data["valid"], data["test"]) for when in ("before", "after")}
    return found | {
        "test": record["test"], "loss": record["selection"]["value"], "epoch": record["selection"]["epoch"],
        "pairing": diagnostics.mean_over_pairs(diagnostics.retrieved, valid["after"].compared.values()),
        "points": {when: points(test[when]) for when in found},
    }  # fmt: skip


@contextmanager
def _thirds(label: str) -> Iterator[None]:
    """For the two rows of CONTROLS: the homogeneity loss sees a third of the batch, as they say."""
    kept = model.homo_loss

    def homo_loss(features: list[torch.Tensor], **options: Any) -> Any:
        size = len(features[0]) // 3
        if label.endswith("a third for each"):
            return kept([z[i * size : (i + 1) * size] for i, z in enumerate(features)], **options)
        return kept([z[:size] for z in features], **options)

    if label.startswith("control: "):
        model.homo_loss = homo_loss
    try:
        yield
    finally:
        model.homo_loss = kept


def inside(seen: State, unseen: State, known: dict[str, Any], truth: dict[str, Any]) -> dict[str, float]:
    """The measures of one state; probes learn from `seen` and what is `known` of it, and are scored on `unseen`."""
    found: dict[str, float] = {}
    for kind in KINDS:
        fitted, scored = getattr(seen, kind), getattr(unseen, kind)
        found |= {f"{kind}: {name}": value for name, value in recovery(fitted, scored, known, truth).items()}
        found |= {f"{kind}: {name}": value for name, value in distances(fitted, scored).items()}
    idle = float(np.mean([diagnostics.idle(weights, len(truth["id"])) for weights in unseen.weights.values()]))
    return found | {"cosine": unseen.terms["decoupling"], "idle": idle, "residual": unseen.marginal_error}


def recovery(
    fitted: dict[str, np.ndarray], scored: dict[str, np.ndarray], known: dict[str, Any], truth: dict[str, Any]
) -> dict[str, float]:
    """What features by modality, (N, d), hold of the common factors and of their modality's own, in the mean."""
    found = {}
    for factors, key in (("common", "latent_common"), ("unique", "latent_unique_{}")):
        of = [(fitted[m], known[key.format(m)], scored[m], truth[key.format(m)]) for m in fitted]
        found[f"holds {factors}"] = float(np.mean([diagnostics.held(x, z) for _, _, x, z in of]))
        found[f"shows {factors}"] = float(np.mean([diagnostics.recovered(*one) for one in of]))
        few = [diagnostics.recovered(seen[:FEW], z[:FEW], x, y) for seen, z, x, y in of]
        found[f"shows {factors}, few rows"] = float(np.mean(few))
        if factors == "common":
            with_truth = [diagnostics.canonical_correlation(seen, z, x, y, 2) for seen, z, x, y in of]
            found["correlates with common"] = float(np.mean(with_truth))
    return found


def distances(fitted: dict[str, np.ndarray], scored: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the modalities are apart, whatever the scale, and whether the rows of one sample belong together."""
    return {
        "told apart": diagnostics.told_apart(list(scored.values())),
        "energy": diagnostics.mean_over_pairs(diagnostics.energy_distance, scored.values()),
        "pairing": diagnostics.mean_over_pairs(diagnostics.retrieved, scored.values()),
        "correlates": float(np.mean([
            diagnostics.canonical_correlation(fitted[a], fitted[b], scored[a], scored[b], 2)
            for a, b in combinations(MODALITIES, 2)
        ])),
    }  # fmt: skip


def ceiling(seed: int, samples: tuple[int, int, int]) -> dict[str, float]:
    """The same for the raw inputs, averaged over valid steps: what no probe of a linear encoding can exceed."""
    data = make_synthetic(seed=seed, samples=samples)
    known, truth = ({m: _averages(data[split][m]) for m in MODALITIES} for split in ("valid", "test"))
    return recovery(known, truth, data["valid"], data["test"])


def _averages(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=1) / np.maximum((x != 0).any(axis=2).sum(axis=1, keepdims=True), 1)


def points(state: State, count: int = 250) -> list[list[float]]:
    """Samples for the plot: where text and vision lie along the main direction of the two."""
    text, vision = state.compared["text"], state.compared["vision"]
    centre = np.concatenate([text, vision]).mean(axis=0)
    direction = np.linalg.svd(np.concatenate([text, vision]) - centre, full_matrices=False)[2][0]
    columns = np.stack([(text - centre) @ direction, (vision - centre) @ direction], axis=1)
    return np.round(columns[:count].astype(float), 4).tolist()


def run(tasks: Sequence[Task], jobs: int) -> dict[str, list[dict[str, Any]]]:
    """By label what each seed gave, in the order of the tasks."""
    found: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for task, result in zip(tasks, pool.map(measure, tasks), strict=True):
            found.setdefault(task[0], []).append(result)
            print(f"{task[0]}, seed {task[2]}: loss {result['loss']:.3f}, pairing {result['pairing']:.3f}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="rank settings without the truth")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 11 to 15; with --search 201 and 202")
    parser.add_argument("--samples", type=int, nargs=3, default=SAMPLES, help="rows of train, valid and test")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--set", dest="change", type=json.loads, default={}, help="settings of all rows, as JSON")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args(argv)
    seeds = arguments.seeds or ([201, 202] if arguments.search else [11, 12, 13, 14, 15])
    document = {"about": timing.surroundings(), "seeds": seeds, "samples": arguments.samples, "chosen": CHOSEN}
    regimes = {"searched": SEARCHED} if arguments.search else REGIMES
    tasks = [(f"{regime}: {label}", change | arguments.change, seed, tuple(arguments.samples))
             for regime, labels in regimes.items() for label, change in labels.items()
             for seed in (seeds[:CONTROL_SEEDS] if regime == "control" else seeds)]
    print(store(document | {"results": run(tasks, arguments.jobs)}, arguments.search, arguments.out))


def store(document: dict[str, Any], search: bool, out: Path) -> str:
    """Write table, figures and picture; returns the table."""
    found = [figures for row in document["results"].values() for figures in row]
    if search:
        for figures in found:
            del figures["before"], figures["after"], figures["test"], figures["points"]  # nothing is chosen by these
        text = alignment_report.search(document, TOLERANCE)
        timing.store(out, "alignment_search", text, document)
        return text
    document = document | {"ceiling": [ceiling(seed, tuple(document["samples"])) for seed in document["seeds"]]}
    alignment_report.plot(document, out / "alignment.svg")
    text = alignment_report.tables(document)
    for figures in found:
        del figures["points"]
    timing.store(out, "alignment", text, document)
    return text


if __name__ == "__main__":
    main()
