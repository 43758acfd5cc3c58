"""What training does inside DecAlign on CMU-MOSI folds: decoupling, distances, prototypes, transport, gradients.

    python benchmarks/diagnosed.py --vectors FOLD.pkl ... --tokens FOLD.safetensors ... [--seeds 3] [--out DIR]

Files and settings are those of study.py; features are those of the validation split, before the first step and in the
checkpoint. It explains the study's figures and chooses nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from study import KINDS
from timing import in_words, store, surroundings

from mmsa_decalign.compare.report.inside import terms
from mmsa_decalign.harness import runner
from mmsa_decalign.harness.inside import look_inside


def diagnose(kind: str, files: list[Path], seeds: list[int], scratch: Path) -> dict[str, Any]:
    """Means over files and seeds: of each measure before and after training, of each term's gradient norm the median
    over the epochs where it was measured, and the share of batches with an empty component or without convergence."""
    states, norms, batches = [], [], []
    for path in files:
        job = runner.prepare(
            "decalign", "mosi", seeds=seeds, feature_file=path, device="cpu", verbose=0,
            model_save_dir=scratch, res_save_dir=scratch, log_dir=scratch,
        )
        for record in runner.run(job).records:
            seen = [epoch["gradient_norms"] for epoch in record["epochs"] if "gradient_norms" in epoch]
            norms.append({name: median(one[name] for one in seen) for name in seen[0]})
            batches += [epoch["alignment"] for epoch in record["epochs"]]
            found = look_inside(job, record["seed"], Path(record["checkpoint"]), record["features"]["sha256"])
            states.append({row["name"]: row for row in terms(found)})
    total = sum(one["batches"] for one in batches)
    return {
        "measures": {name: {"meaning": row["meaning"], **{when: mean(one[name][when] for one in states)
                                                          for when in ("before", "after")}}
                     for name, row in states[0].items()},
        "gradient_norms": {name: mean(one[name] for one in norms) for name in norms[0]},
        "batches": {"all": total, **{name: sum(one[name] for one in batches)
                                     for name in ("empty_component", "not_converged")},
                    "marginal_error": max(one["marginal_error"] for one in batches)},
    }  # fmt: skip


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """Both kinds side by side."""
    kinds = list(found)
    lines = ["| | " + " | ".join(f"{kind}, {when}" for kind in kinds for when in ("before", "after")) + " |",
             "| --- |" + " --- |" * (2 * len(kinds))]
    for name in found[kinds[0]]["measures"]:
        cells = [f"{found[kind]['measures'][name][when]:.4g}" for kind in kinds for when in ("before", "after")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| gradient norm, weight included | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * len(kinds)]
    for name in found[kinds[0]]["gradient_norms"]:
        lines.append(f"| {name} | " + " | ".join(f"{found[kind]['gradient_norms'][name]:.3g}" for kind in kinds) + " |")
    for kind in kinds:
        seen = found[kind]["batches"]
        lines += ["", f"{kind}: {seen['all']} batches, {seen['empty_component']} with an empty component, "
                      f"{seen['not_converged']} where transport did not converge; marginal error at most "
                      f"{seen['marginal_error']:.1e}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1111 on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    about, seeds = surroundings(), list(range(1111, 1111 + arguments.seeds))
    with tempfile.TemporaryDirectory() as scratch:
        found = {kind: diagnose(kind, files, seeds, Path(scratch))
                 for kind in KINDS if (files := getattr(arguments, kind))}
    text = f"{in_words(about)}, seeds {seeds}, means over folds and seeds, validation split\n\n{markdown(found)}\n"
    store(arguments.out, "diagnosed", text, {"about": about, "seeds": seeds, "found": found})
    print(text)


if __name__ == "__main__":
    main()
