"""Seconds an epoch takes with the shipped MOSI settings and with those of the release, in alternation.

    python benchmarks/presets.py FEATURES [FEATURES ...] [--pairs 10] [--out benchmarks/results]

Epochs as records have them: training, validation and the checkpoint; the median over the epochs of a run but its first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from timing import compare, in_words, milliseconds, store, surroundings, threads

from mmsa_decalign.harness import runner

EPOCHS = 4


def epoch(file: Path, config: str | None, scratch: Path) -> float:
    """Seconds an epoch."""
    job = runner.prepare(
        "decalign", "mosi", config=config, seeds=[1111], overrides={"num_epochs": EPOCHS}, feature_file=file,
        device="cpu", verbose=0, model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
    )  # fmt: skip
    (record,) = runner.run(job).records
    return median(one["seconds"] for one in record["epochs"][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    lines = ["| features | release, ms | shipped, ms | release / shipped |", "| --- |" + " --- |" * 3]
    found = {}
    with threads(arguments.threads), tempfile.TemporaryDirectory() as scratch:
        about = surroundings()
        for file in arguments.files:
            pairs = [(epoch(file, None, Path(scratch)), epoch(file, "release", Path(scratch)))
                     for _ in range(arguments.pairs)]
            one = compare(pairs)
            found[file.name] = one._asdict()
            ratio = f"{one.ratio[0]:.2f} ({one.ratio[1]:.2f} to {one.ratio[2]:.2f})"
            lines.append(f"| {file.name} | {milliseconds(one.theirs)} | {milliseconds(one.ours)} | {ratio} |")
    table = "\n".join(lines)
    text = f"{in_words(about)}, {about['threads']} thread(s), {arguments.pairs} pairs; medians (quartiles)\n\n{table}\n"
    store(arguments.out, "presets", text, {"about": about, "found": found})
    print(text)


if __name__ == "__main__":
    main()
