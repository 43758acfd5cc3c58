"""One modality missing at test against never having had it: DecAlign on utterance-level CMU-MOSI folds.

    python benchmarks/missing.py FOLD.pkl [FOLD.pkl ...] --out benchmarks/results

For each settings in ROWS and each modality two things are compared, seed by seed and fold by fold: the model trained on
complete samples and tested with the modality absent from every one, and the model trained without that modality
(`--set modalities=...`). The checkpoint is chosen on validation with complete samples (or without the modality, for the
second), the test split read afterwards. `--search` compares rates of modality dropout instead, by cross-validation over
the videos that no fold tests on (see choices.py), so that none is chosen by a test split.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
from choices import rounds
from scipy.stats import sem

from mmsa_decalign.harness import robust, runner

MODALITIES = ("text", "audio", "vision")
METRICS = ("Non0_acc_2", "MAE")
Settings = tuple[str, str | None, dict[str, Any]]
DROPOUT = [0.2, 0.2, 0.2]  # by --search
ROWS: tuple[Settings, ...] = (  # label, shipped configuration, change
    ("MOSI settings", None, {}),
    ("settings for vectors", "utterance", {}),
    (f"MOSI settings, modality_dropout={DROPOUT}", None, {"modality_dropout": DROPOUT}),
)
SEARCHED: tuple[Settings, ...] = tuple(
    (f"modality_dropout={rates}", None, {"modality_dropout": rates})
    for rates in ([0.0] * 3, [0.1] * 3, DROPOUT, [0.3] * 3, [0.1, 0.3, 0.3], [0.3, 0.1, 0.1], [0.5, 0.2, 0.2])
)


def measure(files: Sequence[Path], seeds: Sequence[int], row: Settings, scratch: Path) -> dict[str, Any]:
    """Figures (files, seeds, METRICS) of a model: complete, and by modality with it absent at test and in training."""
    found: dict[str, Any] = {"complete": [], "at test": {m: [] for m in MODALITIES},
                             "never had": {m: [] for m in MODALITIES}}
    for file in files:
        whole = _train(file, seeds, row, scratch)
        found["complete"].append(_figures(whole, "text", 0.0))
        for modality in MODALITIES:
            found["at test"][modality].append(_figures(whole, modality, 1.0))
            rest = [m for m in MODALITIES if m != modality]
            # Modality dropout of the two that are left: a training without the third goes by the same settings.
            without = _train(file, seeds, (row[0], row[1], row[2] | {"modalities": rest}), scratch, rest[:1])
            found["never had"][modality].append(_figures(without, rest[0], 0.0))
        print(file.stem, row[0], flush=True)
    return found


def _train(file: Path, seeds: Sequence[int], row: Settings, scratch: Path, missing: Sequence[str] = MODALITIES) -> Any:
    label, config, change = row
    job = runner.prepare(
        "decalign", "mosi", config=config, overrides=change, seeds=seeds, feature_file=file, device="cpu", verbose=0,
        model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
    )
    return robust.measure({label: job}, robust.plan({label: job}, missing, (0.0, 1.0)))


def _figures(result: robust.Robustness, missing: str, rate: float) -> list[list[float]]:
    (model,) = result.models()
    columns = [result.figures(model, missing, rate, metric) for metric in METRICS]
    return [list(seed) for seed in zip(*columns, strict=True)]


def markdown(results: dict[str, dict[str, Any]], by_file: bool) -> str:
    """A line for each settings and modality: Acc-2 complete, absent at test, never had, and the last two compared.

    Behind a difference stands its standard error: over files and seeds, or with `by_file` over files after the mean
    over the seeds. Test samples are the same for all seeds, so that the former takes no account of there being few.
    """
    lines = ["| decalign | missing | complete | missing at test | trained without it | difference | of MAE |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for label, found in results.items():
        full = np.array(found["complete"])
        by_modality = [(np.array(found["at test"][m]), np.array(found["never had"][m])) for m in MODALITIES]
        means = np.mean(by_modality, axis=0)  # over the three, run by run
        for modality, (absent, never) in zip((*MODALITIES, "mean of the three"), [*by_modality, means], strict=True):
            difference = (absent - never).mean(axis=1) if by_file else (absent - never).reshape(-1, len(METRICS))
            mean, error = difference.mean(axis=0), sem(difference, axis=0)
            accuracies = [f"{100 * x[..., 0].mean():.1f}" for x in (full, absent, never)]
            lines.append(f"| {label} | {modality} | " + " | ".join(accuracies)
                         + f" | {100 * mean[0]:+.1f} ± {100 * error[0]:.1f} | {mean[1]:+.3f} ± {error[1]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path, help="feature files in MMSA's layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1111, 1112, 1113])
    parser.add_argument("--search", action="store_true", help="compare rates of modality dropout")
    parser.add_argument("--deals", type=int, nargs="+", default=[0, 1], help="with --search: states of the deals")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = list(rounds(arguments.folds, Path(folder), arguments.deals)) if arguments.search else arguments.folds
        rows = SEARCHED if arguments.search else ROWS
        results: dict[str, Any] = {}
        about = timing.surroundings()
        for row in rows:
            results[row[0]] = measure(files, arguments.seeds, row, Path(folder))
            table = store(results, about, arguments)
    print(table)


def store(results: dict[str, Any], about: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Write the table and the figures behind it; returns the table."""
    what = f"videos that no fold tests on, deals {arguments.deals} of 5 rounds" if arguments.search else (
        f"test splits of {', '.join(path.stem for path in arguments.folds)}")
    head = f"{timing.in_words(about)}, {about['threads']} thread(s), {what}, seeds {arguments.seeds}"
    table = (f"{head}\n\nNon0_acc_2 in per cent; difference: missing at test minus trained without it, ± standard "
             f"error over {'rounds' if arguments.search else 'folds and seeds'}\n\n"
             f"{markdown(results, arguments.search)}\n")
    about = about | {"of": what, "seeds": arguments.seeds}
    name = "missing_search" if arguments.search else "missing"
    timing.store(arguments.out, name, table, {"about": about, "results": results})
    return table


if __name__ == "__main__":
    main()
