"""How a training step grows with the number of time steps and of samples: time and memory, and a plot.

    python benchmarks/scaling.py [--release DIR] [--threads 1] [--repeats 5] [--out benchmarks/results]

At a moderate width (32 features a modality, d = 32, 4 heads, 2 layers, K = 7): T from 1 to 500 at N = 32, N from 16 to
4096 at T = 10. Memory is that of a process of its own, beyond what it held before the step. A size at which the release
would need more than --most-memory is left out for it. May change: sizes and width, but then all is measured anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peer import Release
from rich.progress import track
from step import batch_of, our_model, our_step, their_step
from timing import in_words, measure, peak_memory, store, surroundings, threads

STEPS, SAMPLES = (1, 5, 10, 20, 50, 100, 200, 500), (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WIDTH: dict[str, Any] = {
    "feature_dims": [48, 40, 36], "dst_feature_dim_nheads": [32, 4], "nlevels": 2, "pde_dim": 32, "num_prototypes": 7,
}  # fmt: skip


def ours(samples: int, steps: int, device: str = "cpu") -> Callable[[], Any]:
    """A step of ours at some size."""
    torch.manual_seed(0)
    config = WIDTH | {"attn_dropout": 0.1, "attn_dropout_a": 0.1, "attn_dropout_v": 0.1}
    return our_step(our_model(config, None, device), batch_of(config, samples, steps, device), device)


def theirs(samples: int, steps: int, folder: str, device: str = "cpu") -> Callable[[], Any]:
    """A step of the release at some size."""
    torch.manual_seed(0)
    release = Release(folder)
    config = WIDTH | {"attn_dropout": 0.1, "attn_dropout_a": 0.1, "attn_dropout_v": 0.1}
    model = release.model("mosi", **config).to(device)
    return their_step(release, "mosi", model, batch_of(config, samples, steps, device))


def curve(sizes: list[tuple[int, int]], make: Callable[..., Any], name: str, repeats: int, most: float,
          **more: Any) -> list[dict[str, Any]]:
    """Seconds and bytes at each size, until one needs more memory than there is for it."""
    found: list[dict[str, Any]] = []
    for samples, steps in track(sizes, name):
        peak = peak_memory(__file__, name, samples=samples, steps=steps, **more)
        one = measure(make(samples, steps, **more), repeats=repeats, warm_up=1)
        found.append({"N": samples, "T": steps, "seconds": one, "bytes": peak.total - peak.before})
        if 4 * found[-1]["bytes"] > most * 1e9:  # the next size takes up to four times as much
            break
    return found


def plot(curves: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Four panels: time and memory over T and over N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex="col", constrained_layout=True)
    for column, (size, other) in enumerate((("T", "N = 32"), ("N", "T = 10"))):
        for who, style in (("ours", "o-"), ("theirs", "s--")):
            points = curves.get(who, {}).get(size, [])
            label = {"ours": "this package", "theirs": "the authors' release"}[who]
            at = [point[size] for point in points]
            axes[0, column].loglog(at, [1e3 * point["seconds"].median for point in points], style, label=label)
            axes[1, column].loglog(at, [point["bytes"] / 1e6 for point in points], style, label=label)
        axes[0, column].set_title(f"over {size}, {other}")
        axes[1, column].set_xlabel({"T": "T, time steps", "N": "N, samples in the batch"}[size])
    axes[0, 0].set_ylabel("a training step, ms")
    axes[1, 0].set_ylabel("memory it adds, MB")
    for axis in axes.flat:
        axis.grid(alpha=0.3, which="both")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    if "theirs" in curves:
        axes[0, 0].legend()
    figure.savefig(path, dpi=120)


def markdown(about: dict[str, Any], curves: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """One line a size."""
    lines = [
        f"{in_words(about)}, {about['threads']} thread(s). A training step at d = 32, 2 layers; medians.", "",
        "| N | T | ours, ms | ours, MB | release, ms | release, MB |", "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in ("T", "N"):
        other = {(point["N"], point["T"]): point for point in curves.get("theirs", {}).get(size, [])}
        for point in curves["ours"][size]:
            cells = [point, other.get((point["N"], point["T"]))]
            texts = [f"{one['seconds'].median * 1e3:.1f} | {one['bytes'] / 1e6:.0f}" if one else " | " for one in cells]
            lines.append(f"| {point['N']} | {point['T']} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, plot, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, help="checkout of github.com/taco-group/DecAlign")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-memory", type=float, default=8.0, help="gigabytes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    sizes = {"T": [(32, steps) for steps in STEPS], "N": [(samples, 10) for samples in SAMPLES]}
    makers: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {"ours": (ours, {})}
    if arguments.release is not None:
        makers["theirs"] = (theirs, {"folder": str(arguments.release)})
    with threads(arguments.threads):
        about = surroundings()
        curves = {
            name: {size: curve(points, make, name, arguments.repeats, arguments.most_memory, **more)
                   for size, points in sizes.items()}
            for name, (make, more) in makers.items()
        }  # fmt: skip
    text = markdown(about, curves)
    print(text)
    store(arguments.out, "scaling", text, {"about": about, "results": curves})
    plot(curves, arguments.out / "scaling.png")


if __name__ == "__main__":
    main()
