"""How alignment.py shows what it found: tables with standard errors over the seeds, and a picture.

A row's difference to the row without alignment is taken seed by seed. What may change here: columns and panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timing
from scipy.stats import sem

REGIMES = {"shipped": "shipped", "chosen": "mechanism", "control": "control"}
REFERENCE = "without alignment"
SHARES = {
    "common: common factors": "common: holds common", "common: own factors": "common: holds unique",
    "compared: common factors": "compared: holds common", "compared: own factors": "compared: holds unique",
    "unique: own factors": "unique: holds unique", "unique: common factors": "unique: holds common",
}  # fmt: skip
PROBES = {
    "common: common": "common: shows common", "common: own": "common: shows unique",
    "unique: own": "unique: shows unique", "unique: common": "unique: shows common",
    "common: common, 20 rows": "common: shows common, few rows",
    "common: own, 20 rows": "common: shows unique, few rows",
    "compared: common": "compared: shows common", "compared: own": "compared: shows unique",
    "common: CCA with truth": "common: correlates with common", "common: CCA of two": "common: correlates",
    "compared: CCA of two": "compared: correlates",
}  # fmt: skip
DISTANCES = {
    f"{kind}: {column}": f"{kind}: {name}" for kind in ("unique", "common", "compared")
    for column, name in (("energy", "energy"), ("told apart", "told apart"), ("pairing", "pairing"))
} | {"squared cosine": "cosine", "idle prototypes": "idle", "transport residual": "residual"}  # fmt: skip

PANELS = {
    "in common features,\nshare of variance": {
        "common factors": "common: holds common", "modality's own": "common: holds unique"},
    "in unique features,\nshare of variance": {
        "common factors": "unique: holds common", "modality's own": "unique: holds unique"},
    "energy distance of two\nmodalities, 0 to 1": {
        "unique": "unique: energy", "common": "common: energy", "compared": "compared: energy"},
    "pairing of compared\nfeatures, chance 0.5": {"compared": "compared: pairing"},
}  # fmt: skip
COLOURS = {"common factors": "C0", "modality's own": "C1", "unique": "C2", "common": "C4", "compared": "C3"}


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Mean ± standard error; of a single value no error."""
    error = f" ± {sem(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):{sign}.{digits}f}{error}"


def of(rows: Sequence[dict[str, Any]], name: str, when: str = "after") -> list[float]:
    """A measure of a row of the table, seed by seed."""
    return [row[when][name] for row in rows]


def cell(label: str, rows: Sequence[dict[str, Any]], name: str) -> str:
    """Figure of a row; none of the perceptrons' features where nothing trains them and weight decay shrinks them."""
    return "" if untrained(label, name) else _small(of(rows, name))


def untrained(label: str, name: str) -> bool:
    return label.endswith(REFERENCE) and name.startswith("compared")


def tables(document: dict[str, Any]) -> str:
    """The results as Markdown."""
    results, seeds = document["results"], document["seeds"]
    first = next(iter(results.values()))
    counts = "{} training, {} validation and {} test samples".format(*document["samples"])
    lines = [
        "# Alignment where the truth is known", "",
        f"`benchmarks/alignment.py`, {timing.in_words(document['about'])}, seeds {seeds}, {counts}. Mean ± standard "
        "error over the seeds, each a data set and a model of its own.", "",
        f"*shipped*: the package's settings for this data set. *mechanism*: {document['chosen']}, chosen for showing "
        "what the terms can do (alignment_search.md), not for a better model. *control*: the latter with three times "
        "the batch, of which the homogeneity loss sees one third, the same samples for all modalities or other samples "
        f"for each ({len(results['control: a third for each'])} seeds).", "",
        "![Features with and without alignment](alignment.svg)", "",
        "## What the features hold", "",
        "Share of the features' variance that linear functions of the known factors explain. *compared*: the common "
        "features after the perceptrons, where moments and MMD are taken; no figures where nothing trains these.", "",
        *_table(["", *SHARES, "MAE"], [
            ["before training", *(spread(of(first, name, "before")) for name in SHARES.values()), ""],
            *([_named(label), *(cell(label, rows, name) for name in SHARES.values()),
               spread([row["test"]["MAE"] for row in rows])] for label, rows in results.items())]),
        "", f"Differences to *{REFERENCE}*, seed by seed:", "",
        *_differences(results, {name: SHARES[name] for name in SHARES if not name.startswith("compared")}),
        "## What can be read off them", "",
        "R2 of ridge regression fitted on the validation split (or on 20 rows of it), and canonical correlations (the "
        "first two, of rows they were not fitted to) with the common factors, or of two modalities.", "",
    ]  # fmt: skip
    raw = {f"{kind}: {name}": name for name in document["ceiling"][0] for kind in ("common", "unique")}
    lines += _table(["", *PROBES], [
        ["raw inputs", *(spread([one[raw[name]] for one in document["ceiling"]]) if name in raw else ""
                         for name in PROBES.values())],
        ["before training", *(spread(of(first, name, "before")) for name in PROBES.values())],
        *([_named(label), *(cell(label, rows, name) for name in PROBES.values())] for label, rows in results.items())])
    lines += [
        "", "## How far the modalities are apart", "",
        "Energy coefficient (0 equal clouds, 1 far apart), accuracy of a linear classifier at telling the three "
        "modalities apart (chance 0.333), pairing (share of samples that are further away than a sample's own partner "
        "in the other modality; chance 0.5): no figure depends on the features' scale. Then the mean squared cosine "
        "of unique and common features, prototypes that hold less than one sample, and the plan's marginal error.", "",
        *_table(["", *DISTANCES], [
            ["before training", *(spread(of(first, name, "before")) for name in DISTANCES.values())],
            *([_named(label), *(cell(label, rows, name) for name in DISTANCES.values())]
              for label, rows in results.items())]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def search(document: dict[str, Any], tolerance: float) -> str:
    """What `--search` found: the rows in the order of pairing, those whose loss is too high last."""
    results = document["results"]
    limit = (1 + tolerance) * float(np.mean([row["loss"] for row in results["searched: shipped"]]))
    figures = {label.removeprefix("searched: "): ([row["loss"] for row in rows], [row["pairing"] for row in rows])
               for label, rows in results.items()}
    order = sorted(figures, key=lambda label: (np.mean(figures[label][0]) > limit, -np.mean(figures[label][1])))
    lines = [
        f"`benchmarks/alignment.py --search`, {timing.in_words(document['about'])}, seeds {document['seeds']}.",
        "Validation split alone, without the true factors (the list of settings was drawn up after trials on seed 1 "
        "whose factors were looked at). Pairing: share of samples further away than a sample's own "
        f"partner in the other modality, after the perceptrons (chance 0.5). Rows above a loss of {limit:.3f}, "
        f"{tolerance:.0%} more than the shipped settings', are out of the running.", "",
        *_table(["settings", "pairing", "validation loss", ""], [
            [label, spread(figures[label][1]), spread(figures[label][0]),
             "loss too high" if np.mean(figures[label][0]) > limit else ""] for label in order]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _differences(results: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> list[str]:
    lines = []
    for label, rows in results.items():
        regime, row = label.split(": ", 1)
        if row == REFERENCE or f"{regime}: {REFERENCE}" not in results:
            continue
        base = results[f"{regime}: {REFERENCE}"]
        pairs = [(of(rows, name), of(base, name)) for name in names.values()]
        pairs += [tuple([one["test"]["MAE"] for one in which] for which in (rows, base))]
        lines.append([_named(label), *(spread(np.subtract(a, b), sign="+") for a, b in pairs)])
    return [*_table(["", *names, "MAE"], lines), ""]


def _small(values: Sequence[float]) -> str:
    top = max(map(abs, values))
    return spread(values) if top >= 5e-4 or top == 0 else f"{top:.0e} at most"


def _named(label: str) -> str:
    regime, row = label.split(": ", 1)
    return f"{REGIMES[regime]}, {row}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body]]


def plot(document: dict[str, Any], path: Path) -> None:
    """Above, the same samples in two modalities; below, what fills the features, how far apart the modalities are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = document["results"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "alignment", "svg.fonttype": "none", "font.size": 9}):
        figure = pyplot.figure(figsize=(11, 8.6), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.45))
        shipped, chosen = results["shipped: all terms"], results["chosen: all terms"]
        _clouds(above.subplots(1, 3), {"before training": (shipped, "before"), "shipped, all terms": (shipped, "after"),
                                       "mechanism, all terms": (chosen, "after")})
        axes = below.subplots(1, len(PANELS), sharey=True)
        for axis, (title, series) in zip(axes, PANELS.items(), strict=True):
            _dots(axis, results, series)
            axis.set_xlabel(title)
        axes[0].invert_yaxis()
        for axis, limits in zip(axes, ((-0.02, 0.82), (-0.02, 0.82), (-0.03, 1.03), (0.45, 1.03)), strict=True):
            axis.set_xlim(limits)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _clouds(axes: Any, panels: dict[str, tuple[list[dict[str, Any]], str]]) -> None:
    """Test samples of the first seed, text against vision, after the perceptrons; on the line where both agree."""
    for axis, (title, (rows, when)) in zip(axes, panels.items(), strict=True):
        text, vision = np.array(rows[0]["points"][when]).T
        ends = min(text.min(), vision.min()), max(text.max(), vision.max())
        axis.plot(ends, ends, color="0.7", linewidth=0.8)
        axis.scatter(text, vision, s=9, alpha=0.6, linewidths=0, color="C3")
        axis.set_title(f"{title}: pairing {np.mean(of(rows, 'compared: pairing', when)):.2f}", fontsize=9)
        axis.set(xlabel="text, compared features", xticks=[], yticks=[], box_aspect=1)
    axes[0].set_ylabel("the same samples in vision")


def _dots(axis: Any, results: dict[str, Any], series: dict[str, str]) -> None:
    """A line a row of the table, mean and standard error; the regimes are parted by a rule."""
    first = next(iter(results.values()))
    labels = ["before training", *map(_named, results)]
    for name, measure in series.items():
        values = [of(first, measure, "before"), *(of(rows, measure) for rows in results.values())]
        errors = [sem(one) if len(one) > 1 else 0.0 for one in values]
        shown = [True, *(not untrained(label, measure) for label in results)]
        means = [np.mean(one) if here else np.nan for one, here in zip(values, shown, strict=True)]
        axis.errorbar(means, range(len(values)), xerr=errors, fmt="o", color=COLOURS[name], markersize=4, label=name)
    regimes = [label.split(",")[0] for label in labels]
    for row in range(1, len(labels)):
        if regimes[row] != regimes[row - 1]:
            axis.axhline(row - 0.5, color="0.7", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(series), frameon=False,
                handletextpad=0.0, columnspacing=0.5, borderpad=0)
