"""Pictures of any comparison: intervals, curves of the training, predictions, time and memory.

What may change here: further pictures; each says in its alternative text what it shows, with the figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...harness.samples import Samples
from . import svg
from .svg import BLUE, FAINT, GRID, INK, ORANGE, Picture, short


def forest(part: Mapping[str, Any], name: str, reference: str) -> Picture | None:
    """One metric of all rows with its intervals; None where no row has a figure."""
    rows = [row for row in part["rows"] if row["metrics"][name]["mean"] is not None]
    if not rows:
        return None
    made, axes = svg.figure(0.75 + 0.235 * len(rows))
    ax = axes[0, 0]
    line = next((row["metrics"][name]["mean"] for row in rows if row["label"] == reference), None)
    if line is not None:
        ax.axvline(line, color=FAINT, linewidth=0.9, linestyle=(0, (3, 2)))
    for place, row in enumerate(rows):
        metric = row["metrics"][name]
        near, colour = metric["best"] or metric["tie"], FAINT if row["sanity"] else BLUE
        if metric["low"] is not None:
            ax.plot([metric["low"], metric["high"]], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        ax.plot([metric["mean"]], [place], marker="D" if metric["best"] else "o", color=colour, linestyle="none",
                markersize=7 if metric["best"] else 6, markerfacecolor=colour if near else "none", markeredgewidth=1.4)
    last_model = sum(not row["sanity"] for row in rows) - 0.5
    if 0 < last_model < len(rows) - 0.5 and [row["sanity"] for row in rows] == sorted(row["sanity"] for row in rows):
        ax.axhline(last_model, color=GRID, linewidth=1)
    ax.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    better = "lower" if name in part["lower_is_better"] else "higher"
    ax.set_xlabel(f"{better} is better")
    figures = "; ".join(f"{row['label']} {_figure(row['metrics'][name])}" for row in rows)
    best = next((row["label"] for row in rows if row["metrics"][name]["best"]), None)
    return Picture(name, f"{part['rules'].get(name, name)}",
                   f"{name} on {part['label']} with intervals, {better} is better. Best: {best}. {figures}.",
                   svg.data_uri(made))


def _figure(metric: Mapping[str, Any]) -> str:
    span = f" from {metric['low']:.3f} to {metric['high']:.3f}" if metric["low"] is not None else ""
    return f"{metric['mean']:.3f}{span}" + (", tied with the best" if metric["tie"] else "")


def curves(label: str, data: str, records: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> Picture | None:
    """Every term that the model's trainer reports and what the checkpoint was chosen by, over the epochs; a line a run.

    more: further validation metrics to show. None for a row that is not trained in epochs.
    """
    records = [record for record in records if record["epochs"]]
    chosen = records[0]["selection"]["metric"] if records else None
    wanted = [("train", name) for record in records[:1] for name in _terms(record)]
    wanted += [("valid", name) for name in dict.fromkeys([chosen, *more]) if name]
    panels = [(split, name, lines) for split, name in wanted if (lines := _lines(records, split, name))]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    made, axes = svg.figure(0.35 + 1.35 * rows, rows, 2)
    for ax, (split, name, lines) in zip(axes.flat, panels, strict=False):
        for record, (epochs, values) in zip(records, lines, strict=True):
            colour = BLUE if split == "train" else ORANGE
            ax.plot(epochs, values, color=colour, linewidth=1.2, alpha=0.9 if record is records[0] else 0.5)
            best = record["selection"]["epoch"]
            if best in epochs:
                ax.plot([best], [values[epochs.index(best)]], marker="o", markersize=4.5, color=INK, linestyle="none",
                        markerfacecolor=colour)
        ax.set_title(f"{split} {name}", loc="left")
        ax.grid(axis="y")
        ax.locator_params(axis="both", nbins=5)
        ax.xaxis.get_major_locator().set_params(integer=True)
    for ax in list(axes.flat)[len(panels):]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    told = "; ".join(_course(split, name, lines[0]) for split, name, lines in panels)
    epochs = ", ".join(f"{record['selection']['epoch']} of {len(record['epochs'])}" for record in records)
    return Picture(label, f"Chosen epoch: {epochs}. A line a seed; the point is the checkpoint.",
                   f"Curves of {label} on {data} over the epochs, seed {records[0]['seed']}: {told}. "
                   f"Chosen epoch: {epochs}.", svg.data_uri(made))


def _terms(record: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for entry in record["epochs"] for name in entry.get("train") or {}))


def _lines(records: Sequence[Mapping[str, Any]], split: str, name: str) -> list[tuple[list[int], list[float]]]:
    """Epochs and values of each record; empty where no record has any."""
    found = []
    for record in records:
        pairs = [(entry["epoch"], value) for entry in record["epochs"]
                 if isinstance(value := (entry.get(split) or {}).get(name), (int, float))]
        found.append(([epoch for epoch, _ in pairs], [float(value) for _, value in pairs]))
    return found if any(epochs for epochs, _ in found) else []


def _course(split: str, name: str, line: tuple[list[int], list[float]]) -> str:
    epochs, values = line
    if not epochs:
        return f"{split} {name} not reported"
    return f"{split} {name} from {values[0]:.3g} in epoch {epochs[0]} to {values[-1]:.3g} in epoch {epochs[-1]}"


def scatter(label: str, data: str, seed: int, samples: Samples, test: Mapping[str, Any]) -> Picture:
    """Predictions of one run against the labels."""
    labels, predictions = samples.labels.astype(float), samples.predictions[:, 0].astype(float)
    made, axes = svg.figure(3.9)
    ax = axes[0, 0]
    low, high = float(min(labels.min(), predictions.min())), float(max(labels.max(), predictions.max()))
    room = 0.04 * (high - low or 1.0)
    ax.plot([low, high], [low, high], color=FAINT, linewidth=1, linestyle=(0, (3, 2)))
    ax.scatter(labels, predictions, s=14, color=BLUE, alpha=0.6, linewidths=0, rasterized=True)
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room), xlabel="truth", ylabel="prediction",
           aspect="equal")
    ax.grid()
    figures = ", ".join(f"{name} {test[name]:.3f}" for name in ("MAE", "Corr") if test.get(name) is not None)
    spread = f"predictions from {predictions.min():.2f} to {predictions.max():.2f}, " \
             f"truth from {labels.min():.2f} to {labels.max():.2f}"
    return Picture(label, f"Seed {seed}, {len(labels)} test samples" + (f": {figures}." if figures else "."),
                   f"Prediction against truth of {label} on {data}, seed {seed}, {len(labels)} test samples: {spread}"
                   + (f"; {figures}." if figures else "."), svg.data_uri(made))


def confusion(label: str, data: str, seed: int, samples: Samples, names: Sequence[str]) -> Picture:
    """Confusion matrix of one run: counts, shaded by the share of the true class."""
    true, found = samples.labels.astype(int), samples.predictions.argmax(axis=1)
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (true, found), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    made, axes = svg.figure(3.4)
    heatmap(axes[0, 0], shares, [str(count) for count in counts.flat], limits=(0, 1))
    axes[0, 0].set_xticks(range(len(names)), [short(name, 14) for name in names], rotation=30, ha="right")
    axes[0, 0].set_yticks(range(len(names)), [short(name, 14) for name in names])
    axes[0, 0].set(xlabel="predicted", ylabel="truth")
    told = "; ".join(f"of {counts[place].sum()} {name}, {counts[place, place]} are recognised"
                     for place, name in enumerate(names))
    return Picture(label, f"Seed {seed}, {len(true)} test samples; shade: share of the true class.",
                   f"Confusion matrix of {label} on {data}, seed {seed}: {told}.", svg.data_uri(made))


def heatmap(ax: Any, values: np.ndarray, texts: Sequence[str], limits: tuple[float, float]) -> None:
    """A matrix as squares with a text in each, the first row on top."""
    from matplotlib import colormaps

    rows, columns = values.shape
    ax.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, values, cmap="cividis", vmin=limits[0],
                  vmax=limits[1] if limits[1] > limits[0] else limits[0] + 1, edgecolors="none")
    for place, text in enumerate(texts):
        row, column = divmod(place, columns)
        share = (values[row, column] - limits[0]) / ((limits[1] - limits[0]) or 1)
        bright = float(np.dot((0.3, 0.59, 0.11), colormaps["cividis"](share)[:3]))
        ax.text(column, row, text, ha="center", va="center", color="#111111" if bright > 0.5 else "#ffffff",
                fontsize=8 if columns < 6 else 6.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def costs(part: Mapping[str, Any]) -> list[Picture]:
    """Time and memory of a run, by row."""
    shown = []
    for key, title, unit, caption in (
        ("seconds", "Time of a run", "s", "Mean over the seeds: training, choice of the checkpoint and test."),
        ("peak_memory_mib", "Peak memory", "MiB", "Largest over the seeds: of the GPU where one was used, else of the "
                                                  "process with Python and all its libraries."),
    ):
        rows = [row for row in part["rows"] if row[key] is not None]
        if not rows:
            continue
        values = [float(row[key]) for row in rows]
        made, axes = svg.figure(0.75 + 0.235 * len(rows))
        ax = axes[0, 0]
        ax.barh(range(len(rows)), values, color=[FAINT if row["sanity"] else BLUE for row in rows], height=0.62)
        for place, value in enumerate(values):
            ax.annotate(amount(value), (value, place), xytext=(4, 0), textcoords="offset points", va="center",
                        fontsize=8)
        ax.set_yticks(range(len(rows)), [short(row["label"]) for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.margins(x=0.18)
        ax.set_xlabel(unit)
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
        told = "; ".join(f"{row['label']} {amount(value)} {unit}" for row, value in zip(rows, values, strict=True))
        shown.append(Picture(title, caption, f"{title} on {part['label']}: {told}.", svg.data_uri(made)))
    return shown


def amount(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
