"""The alignment losses against the authors' release, their peak memory, and how they scale in N, K and M.

    python benchmarks/operators.py --release path/to/DecAlign --out benchmarks/results

Forward and backward in turns with the release, the same batch and the same number of threads on both sides; without
--release that column is left out. Times are medians with quartiles (timing.py says how they are taken).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer
import timing
import torch
from torch import Tensor, nn

from mmsa_decalign import ops

N, D, K, M = 32, 64, 7, 3
LARGE = {"n": 256, "d": 64, "k": 256}
SCALING = {  # what is varied, its values, and what it is varied in; the rest stays at N, D, K, M
    "N": (32, 64, 128, 256, 512, 1024, 2048, 4096),
    "K": (4, 7, 16, 32, 64, 128, 256),
    "M": (2, 3, 4, 5),
}
OPERATORS = ("hetero_loss", "homo_loss")
RELEASE_LIMIT = {"N": 4096, "K": 64, "M": 3}  # beyond, the release stores tens of gigabytes, or has no such setting
SLOW = 2.0  # seconds of a call from which on fewer repetitions have to do
FEATURES = {"standard normal": (1.0, 0.0), "spread 0.3, means 0.2 apart": (0.3, 0.2)}


def features(n: int = N, d: int = D, m: int = M, spread: float = 1.0, apart: float = 0.0) -> list[Tensor]:
    """M batches (N, d), the same in every run."""
    rng = torch.Generator().manual_seed(0)
    return [spread * torch.randn(n, d, generator=rng) + apart * i for i in range(m)]


def leaves(batches: list[Tensor]) -> Callable[[], tuple[list[Tensor]]]:
    """What makes fresh leaves of the graph before each call."""
    return lambda: ([x.clone().requires_grad_() for x in batches],)


def hetero(k: int = K) -> Callable[[list[Tensor]], Any]:
    return lambda x: ops.hetero_loss(x, n_components=k).value.backward()


def homo(x: list[Tensor]) -> None:
    ops.homo_loss(x).value.backward()


def their_model(release: peer.Release, k: int = K) -> nn.Module:
    """The release's model with MOSI's settings and K prototypes; all but its losses is kept small."""
    return release.model("mosi", feature_dims=[8, 8, 8], nlevels=1, num_prototypes=k)


def their_hetero(model: nn.Module) -> Callable[[list[Tensor]], Any]:
    return lambda x: model.compute_hetero_loss(*(t.unsqueeze(2) for t in x)).backward()


def their_homo(model: nn.Module) -> Callable[[list[Tensor]], Any]:
    return lambda x: model.compute_homo_loss(*(t.unsqueeze(2) for t in x))[0].backward()


def table(release: peer.Release, pairs: int) -> list[dict[str, Any]]:
    """The rows of the goals, for each kind of features and number of threads."""
    model = their_model(release)
    perceptrons = [model.pde_l, model.pde_a, model.pde_v]  # the same ones on both sides: theirs are part of their loss

    def homo_with_perceptrons(x: list[Tensor]) -> None:
        ops.homo_loss([mlp(t) for mlp, t in zip(perceptrons, x, strict=True)]).value.backward()

    rows = []
    for name, (spread, apart) in FEATURES.items():
        fresh = leaves(features(spread=spread, apart=apart))
        result = ops.hetero_loss(*fresh(), n_components=K).result
        for number in (1, 2):
            with timing.threads(number):
                for operator, ours, theirs in (
                    ("heterogeneity loss", hetero(), their_hetero(model)),
                    ("homogeneity loss, perceptrons included", homo_with_perceptrons, their_homo(model)),
                ):
                    found = timing.alternate(ours, theirs, fresh, fresh, pairs=pairs, warm_up=5)
                    rows.append({
                        "operator": operator, "features": name, "threads": number, **found._asdict(),
                        "solver_rounds": result.n_iter, "marginal_error": result.marginal_error,
                    })  # fmt: skip
    return rows


def large_hetero(n: int, d: int, k: int) -> Callable[[], None]:
    """The call whose peak memory is measured, in a process of its own."""
    (x,) = leaves(features(n, d))()
    return lambda: hetero(k)(x)


def curves(release: peer.Release | None) -> list[dict[str, Any]]:
    """Seconds of every operator along N, K and M, ours and theirs."""
    rows = []
    for axis, values in SCALING.items():
        for operator in OPERATORS:
            if operator == "homo_loss" and axis == "K":
                continue  # it has no prototypes
            for value in values:
                sizes = {"N": N, "K": K, "M": M} | {axis: value}
                fresh = leaves(features(sizes["N"], D, sizes["M"]))
                ours = hetero(sizes["K"]) if operator == "hetero_loss" else homo
                row = {"axis": axis, "value": value, "operator": operator, "ours": _measured(ours, fresh)}
                if release is not None and sizes["M"] == 3 and value <= RELEASE_LIMIT[axis]:
                    model = their_model(release, sizes["K"])
                    if operator == "homo_loss":
                        model.pde_l = model.pde_a = model.pde_v = nn.Identity()
                    theirs = their_hetero(model) if operator == "hetero_loss" else their_homo(model)
                    row["theirs"] = _measured(theirs, fresh)
                rows.append(row)
                print(f"{axis} = {value}: {operator} {row['ours'].median * 1e3:.2f} ms", flush=True)
    return rows


def _measured(call: Callable[..., Any], fresh: Callable[[], Any]) -> timing.Spread:
    once = timing.seconds(call, fresh)
    return timing.measure(call, fresh, repeats=3 if once > SLOW else 15, warm_up=0 if once > SLOW else 2)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Three panels, one per axis, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "operators", "svg.fonttype": "none"})
    colours = dict(zip(OPERATORS, ("C0", "C1"), strict=True))
    names = {"hetero_loss": "heterogeneity", "homo_loss": "homogeneity"}
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for panel, axis in zip(panels, SCALING, strict=True):
        for operator in OPERATORS:
            for who, style in (("ours", "o-"), ("theirs", "s--")):
                points = [(r["value"], r[who].median) for r in rows
                          if r["axis"] == axis and r["operator"] == operator and who in r]
                if points:
                    label = names[operator] + ("" if who == "ours" else ", release")
                    panel.plot(*zip(*points, strict=True), style, color=colours[operator], label=label, markersize=4)
        panel.set(xscale="log", yscale="log", xlabel=axis)
        panel.set_xticks(SCALING[axis], [str(v) for v in SCALING[axis]], fontsize=7)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds, forward and backward")
    panels[0].legend(fontsize=7)
    figure.suptitle(f"N = {N}, d = {D}, K = {K}, M = {M} but for what is varied", fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def report(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    place = document["surroundings"]
    lines = [
        "# Operators", "",
        f"`benchmarks/operators.py`, {timing.in_words(place)}, Python {place['versions']['python']}. "
        f"CUDA device: {place['gpu'] or 'none at hand; nothing here was measured on one'}.",
        "Forward and backward, float32 in and out; medians with quartiles.", "",
    ]  # fmt: skip
    if document["table"]:
        lines += [
            f"## Against the release ({document['release']})", "",
            f"N = {N}, d = {D}, K = {K}, M = {M}; {document['table'][0]['pairs']} alternating pairs; the default "
            "solver to its tolerance of 1e-9. Last but one column: the fastest call of each, for a busy machine.", "",
            "| loss | features | threads | ours, ms | release, ms | release / ours | fastest calls | solver rounds |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for row in document["table"]:
            ours, theirs = (timing.milliseconds(timing.Spread(*row[who]), 2) for who in ("ours", "theirs"))
            rounds = row["solver_rounds"] if row["operator"] == "heterogeneity loss" else ""
            lines.append(f"| {row['operator']} | {row['features']} | {row['threads']} | {ours} | {theirs} | "
                         f"{timing.Spread(*row['ratio'])} | {row['fastest']:.2f} | {rounds} |")
        lines.append("")
    memory = timing.Peak(*document["memory"])
    lines += [
        "## Peak memory", "",
        f"Heterogeneity loss at N = {LARGE['n']}, d = {LARGE['d']}, K = {LARGE['k']}, forward and backward, in a "
        f"process of its own: {memory.total / 2**30:.2f} GiB in all, of which {memory.before / 2**30:.2f} before it.",
        "",
        "## Scaling", "", "![Seconds along N, K and M](operators.svg)", "",
        "| | operator | ours, ms | release, ms |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in document["curves"]:
        both = [f"{1e3 * row[who][0]:.3g}" if who in row else "" for who in ("ours", "theirs")]
        lines.append(f"| {row['axis']} = {row['value']} | {row['operator']} | {both[0]} | {both[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", metavar="DIR", help="a checkout of github.com/taco-group/DecAlign to compare with")
    parser.add_argument("--pairs", type=int, default=200, help="alternating pairs per row of the table")
    parser.add_argument("--out", type=Path, required=True, help="folder for operators.json, .md and .svg")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    release = peer.Release(arguments.release) if arguments.release else None
    document = {
        "surroundings": timing.surroundings(),
        "release": (release.commit or "commit unknown") if release else None,
        "table": table(release, arguments.pairs) if release else [],
        "memory": timing.peak_memory(__file__, "large_hetero", **LARGE),
        "curves": curves(release),
    }
    timing.store(arguments.out, "operators", report(document), document)
    plot(document["curves"], arguments.out / "operators.svg")
    for row in document["table"]:
        print(row["operator"], row["features"], row["threads"], "threads:", row["ratio"])


if __name__ == "__main__":
    main()
