"""The picture of `mmsa data inspect --plot`: labels, linear probe, lengths by modality, findings.

matplotlib is an extra (`pip install mmsa-decalign[plot]`) and only imported here. What may change here: the picture.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .overview import QUANTILES
from .schema import MODALITIES
from .whole import whole

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")  # Okabe and Ito: told apart by colour-blind readers


def picture_path(out: str | Path) -> Path:
    """`out`, if a picture can be drawn there; raises InputError for another suffix or without matplotlib."""
    out = Path(out).expanduser()
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--plot {out}: expected a name that ends with .png, .pdf or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("--plot needs matplotlib, which is not installed: pip install mmsa-decalign[plot]") from None
    return out


def plot_overview(document: Mapping[str, Any], out: str | Path) -> Path:
    """Draw the result of `inspect_file` into `out`, a PNG, PDF or SVG by its suffix. Raises InputError."""
    out = picture_path(out)

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [about["steps"] for split in document["splits"].values() for about in split["modalities"].values()]
    rows = 2 if max(steps, default=1) > 1 else 1  # one vector per sample has no lengths to show
    figure = Figure(figsize=(12, 3.7 * rows), layout="constrained")  # without pyplot: no window, no global state
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 3, squeeze=False)
    published = document["published"]
    title = f"{Path(document['path']).name}: {published['path'] if published else 'not a published file'}"
    figure.suptitle(_plain(title), fontsize=13, fontweight="bold", x=0.01, ha="left")
    _labels(axes[0, 0], document["histogram"])
    _probe(axes[0, 1], document["probe"])
    _findings(axes[0, 2], document["findings"])
    for ax, modality in zip(axes[-1], MODALITIES if rows == 2 else (), strict=False):
        _lengths(ax, modality, document["splits"])
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    try:
        with whole(out) as unfinished:
            figure.savefig(unfinished, dpi=120, format=out.suffix[1:].lower())
    except OSError as error:
        raise InputError(f"--plot {out}: cannot be written ({error.strerror or error}); name a file in another "
                         "folder") from None
    return out


def _labels(ax: Any, histogram: Mapping[str, Any] | None) -> None:
    """Shares of the labels by split, side by side."""
    if histogram is None:
        _nothing(ax, "no labels")
        return
    counts = histogram["counts"]
    edges = histogram.get("edges")
    names = [f"{(a + b) / 2:.2f}" for a, b in zip(edges, edges[1:], strict=False)] if edges else [
        f"{one:.3g}" if isinstance(one, float) else _plain(str(one)) for one in histogram["classes"]]
    at = np.arange(len(names))
    for number, (name, values) in enumerate(counts.items()):
        share = np.asarray(values) / max(1, sum(values))
        ax.bar(at + (number - (len(counts) - 1) / 2) * 0.8 / len(counts), share, 0.8 / len(counts),
               label=_plain(f"{name} ({sum(values)})"), color=COLOURS[number % len(COLOURS)])
    ax.set_xticks(at, names, rotation=45 if len(names) > 7 else 0)
    ax.set(title=f"{histogram['key']}, share of the split", ylabel="share", ylim=(0, ax.get_ylim()[1] * 1.15))
    ax.legend(frameon=False, fontsize=9, loc="upper center", ncols=3, columnspacing=1, handlelength=1)


def _probe(ax: Any, results: Mapping[str, Any]) -> None:
    """Scores of the linear probe; a modality with an alarm is named in red."""
    results = {modality: one for modality, one in results.items() if one["valid"] is not None}
    if not results:
        _nothing(ax, "no linear probe")
        return
    at = np.arange(len(results))
    kinds = (("by_sample", "inside train, by sample", "#9ecae1"), ("by_video", "inside train, by video", COLOURS[0]),
             ("valid", "on valid", COLOURS[1]))
    for number, (key, label, colour) in enumerate(kinds):
        values = [np.nan if one[key] is None else one[key] for one in results.values()]
        ax.bar(at + (number - 1) * 0.27, values, 0.27, label=label, color=colour)
    ax.axhline(0, color="black", linewidth=0.8)
    low = min([0.0, *(one[k] or 0.0 for one in results.values() for k, _, _ in kinds)])
    ax.set_ylim(low - 0.05 if low < 0 else 0, 1.25)  # room for the legend
    ax.set_yticks(np.arange(-1, 1.01, 0.25)[np.arange(-1, 1.01, 0.25) >= low - 0.05])
    ax.set_xticks(at, [f"{m}: ALARM" if one["alarm"] else m for m, one in results.items()])
    for tick, one in zip(ax.get_xticklabels(), results.values(), strict=True):
        tick.set(color="red" if one["alarm"] else "black", fontweight="bold" if one["alarm"] else "normal")
    ax.set(title="linear probe: feature mean to label", ylabel="correlation")
    ax.legend(frameon=False, fontsize=9, loc="upper left", ncols=1)


def _findings(ax: Any, findings: list[str]) -> None:
    ax.set_axis_off()
    ax.set_title(f"findings: {len(findings) or 'none'}", loc="left")
    lines: list[str] = []
    for finding in findings:
        new = textwrap.wrap(finding, 46, initial_indent="- ", subsequent_indent="  ")
        if len(lines) + len(new) > 15:
            lines.append("  ... (the table has all)")
            break
        lines += new
    ax.text(0, 0.97, _plain("\n".join(lines)), va="top", fontsize=9, family="monospace", transform=ax.transAxes)


def _lengths(ax: Any, modality: str, splits: Mapping[str, Any]) -> None:
    """Which share of the samples is at most so long, from the lengths' quantiles."""
    present = {name: s["modalities"][modality] for name, s in splits.items()
               if modality in s["modalities"] and s["modalities"][modality]["lengths"]
               and s["modalities"][modality]["steps"]}
    if not present:
        _nothing(ax, f"no {modality}")
        return
    first = next(iter(present.values()))
    steps = max(about["steps"] for about in present.values())
    for number, (name, about) in enumerate(present.items()):
        ax.plot(about["lengths"], np.asarray(QUANTILES) / 100, color=COLOURS[number % len(COLOURS)],
                label=_plain(f"{name}, padding {about['padding']:.0%}"))
    ax.axvline(steps, color="grey", linewidth=0.8, linestyle=":")
    ax.set(xlim=(0, steps * 1.02), ylim=(0, 1.02), title=f"{modality}: lengths ({steps} steps x {first['width']})",
           xlabel="steps before the padding", ylabel="share of samples at most so long")
    ax.legend(frameon=False, fontsize=9, loc="upper left")


def _plain(text: str) -> str:
    """Text of the file as it is: matplotlib takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _nothing(ax: Any, text: str) -> None:
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, color="grey")
