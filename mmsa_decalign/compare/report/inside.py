"""Pictures of the inside of a DecAlign: transport plan, maps of features and prototypes, distances, decoupling.

All but the curves are computed from one run's checkpoint and its untrained beginning, on the validation split. What may
change here: further looks at the two states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ...harness.diagnostics import energy_distance, idle, mean_over_pairs, retrieved, separation
from ...harness.inside import State
from . import svg
from .pictures import heatmap
from .svg import INK, MODALITY_COLOURS, Picture

SHOWN = {"decoupling": "mean squared cosine between a sample's unique and common features; 0: orthogonal",
         "transport": "value of the transport problem between the modalities' mixtures; holds an entropy, so that it "
                      "may be negative",
         "prototype": "squared distance of samples to the other modalities' prototypes",
         "semantic": "distance of the common features' moments",
         "mmd": "maximum mean discrepancy of the common features"}
DIAGNOSED = {
    "energy, unique": "energy distance of two modalities' unique features, mean over the pairs; 0: equal clouds, 1: "
                      "far apart, whatever their scale",
    "energy, common": "likewise of the common features",
    "energy, compared": "likewise of the common features after the perceptrons, where moments and MMD are taken",
    "pairing": "share of samples further away than a sample's own partner in the other modality, after the "
               "perceptrons; 1: always the nearest, 0.5: chance",
    "idle prototypes": "prototypes with less than one sample, of the modality that has most of them",
    "marginal error": "largest L1 distance of the plan's marginals from the mixtures' shares",
}
_WHEN = {"before": "before training", "after": "after training"}


def pictures(label: str, states: Mapping[str, State], records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """All that there are: a DecAlign of one modality has no plan and no distances."""
    split = split_of(records)
    made = [plan(label, states["after"]), *(maps(label, states, kind, split) for kind in ("unique", "common")),
            distances(label, states), decoupling(label, states, records)]
    return [one for one in made if one is not None]


def split_of(records: Sequence[Mapping[str, Any]]) -> str:
    """The split that chose the checkpoint, and that its inside is shown on."""
    return "test" if records[0]["selection"]["split"] == "test" else "validation"


def plan(label: str, state: State) -> Picture | None:
    """The two-way marginals of the transport plan."""
    if state.plan is None:
        return None
    names, pairs = list(state.unique), list(combinations(range(len(state.unique)), 2))
    marginals = {pair: state.plan.sum(axis=tuple(axis for axis in range(len(names)) if axis not in pair))
                 for pair in pairs}
    columns = min(2, len(pairs))
    rows = -(-len(pairs) // columns)
    made, axes = svg.figure(0.2 + (2.5 if columns == 2 else 4.2) * rows, rows, columns)
    top = max(float(one.max()) for one in marginals.values())
    told = []
    for ax, (first, second) in zip(axes.flat, pairs, strict=False):
        values = marginals[first, second]
        heatmap(ax, values, [f"{100 * value:.0f}" if value >= 0.005 else "" for value in values.flat], (0.0, top))
        ax.set_xticks(range(values.shape[1]), range(1, values.shape[1] + 1))
        ax.set_yticks(range(values.shape[0]), range(1, values.shape[0] + 1))
        ax.set(xlabel=f"{names[second]} prototype", ylabel=f"{names[first]} prototype")
        k, other = np.unravel_index(values.argmax(), values.shape)
        told.append(f"{names[first]} and {names[second]}: most mass, {values.max():.0%}, between prototypes {k + 1} "
                    f"and {other + 1}; {_dependence(values):.0%} of the dependence that is possible")
    for ax in list(axes.flat)[len(pairs):]:
        ax.set_axis_off()
    missed = "" if state.converged else " The solver stopped short of the marginals."
    return Picture("Transport plan", "Mass between the prototypes of two modalities, in percent: the plan summed over "
                   f"the other modality.{missed}", f"Transport plan of {label}. {'. '.join(told)}.{missed}",
                   svg.data_uri(made))


def _dependence(joint: np.ndarray) -> float:
    """Mutual information of a plan's two axes over the smaller of their entropies: 0 independent, 1 one to one."""
    def entropy(p: np.ndarray) -> float:
        p = p[p > 0] / p.sum()
        return float(-(p * np.log(p)).sum())

    parts = entropy(joint.sum(axis=1)), entropy(joint.sum(axis=0))
    return (sum(parts) - entropy(joint.ravel())) / min(parts) if min(parts) > 1e-9 else 0.0


def maps(label: str, states: Mapping[str, State], kind: str, split: str) -> Picture:
    """Features of all modalities in the plane of their first two principal components, before and after training."""
    made, axes = svg.figure(2.75, 1, 2)
    told = []
    for ax, (when, state) in zip(axes.flat, states.items(), strict=True):
        features = getattr(state, kind)
        flat, shares, place = _plane(np.concatenate(list(features.values())))
        start = 0
        for m, rows in features.items():
            own = flat[start:start + len(rows)]
            start += len(rows)
            ax.scatter(own[:, 0], own[:, 1], s=8, color=MODALITY_COLOURS[m], alpha=0.55, linewidths=0, label=m,
                       rasterized=True)
        if kind == "unique":
            for m, prototypes in state.prototypes.items():
                own = place(prototypes)
                ax.scatter(own[:, 0], own[:, 1], s=42, marker="X", color=MODALITY_COLOURS[m], edgecolors=INK,
                           linewidths=0.8)
        ax.set_title(_WHEN[when], loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set(xlabel=f"PC 1 ({shares[0]:.0%})", ylabel=f"PC 2 ({shares[1]:.0%})")
        told.append(f"{_WHEN[when]} two components hold {shares.sum():.0%} of the variance")
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, handletextpad=0.1,
                markerscale=2)
    crosses = ", crosses are the prototypes" if kind == "unique" and states["after"].prototypes else ""
    rows = len(next(iter(states["after"].unique.values())))
    return Picture(f"{kind.capitalize()} features", f"A point a sample and modality{crosses}; each map has axes of its "
                   "own, so that only positions within one map compare.",
                   f"Principal component maps of the {kind} features of {label}, {rows} {split} samples, coloured "
                   f"by modality ({', '.join(states['after'].unique)}){crosses}: {'; '.join(told)}.",
                   svg.data_uri(made))


def _plane(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """(N, 2) coordinates, the two components' shares of the variance, and the map itself for further rows."""
    centre = rows.mean(axis=0)
    _, singular, directions = np.linalg.svd((rows - centre).astype(np.float64), full_matrices=False)
    power = np.concatenate([singular**2, np.zeros(2)])
    directions = np.concatenate([directions, np.zeros((2, rows.shape[1]))])[:2]

    def place(more: np.ndarray) -> np.ndarray:
        return (more - centre) @ directions.T

    return place(rows), power[:2] / (power.sum() or 1.0), place


def distances(label: str, states: Mapping[str, State]) -> Picture | None:
    """How far the modalities are from each other, before and after training."""
    names = list(states["after"].unique)
    pairs = list(combinations(names, 2))
    if not pairs:
        return None
    made, axes = svg.figure(0.8 + 0.3 * 2 * len(pairs))
    ax, told, ticks = axes[0, 0], [], []
    for kind, colour in (("unique", svg.BLUE), ("common", svg.ORANGE)):
        for a, b in pairs:
            before, after = (separation(getattr(states[when], kind)[a], getattr(states[when], kind)[b])
                             for when in _WHEN)
            row = len(ticks)
            ticks.append(f"{kind}: {a}, {b}")
            ax.annotate("", xy=(after, row), xytext=(before, row),
                        arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.4, "shrinkA": 3, "shrinkB": 1})
            ax.plot([before], [row], marker="o", color=colour, markerfacecolor="none", markersize=5, linestyle="none")
            ax.plot([after], [row], marker="|", color=colour, markersize=8, linestyle="none")
            told.append(f"{kind} features of {a} and {b} from {before:.2f} to {after:.2f}")
    ax.set_yticks(range(len(ticks)), ticks)
    ax.set_ylim(len(ticks) - 0.4, -0.6)
    ax.set_xlim(left=0)
    ax.grid(axis="x")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("distance in units of the spread")
    return Picture("Distance between modalities", "Between the means of two modalities, over the root mean variance "
                   "inside them; circle: before training, arrow head: after.",
                   f"Distance between modalities of {label}, before and after training: {'; '.join(told)}.",
                   svg.data_uri(made))


def decoupling(label: str, states: Mapping[str, State], records: Sequence[Mapping[str, Any]]) -> Picture:
    """The decoupling term over the epochs, as the records have it, and the mean squared cosine of the two states."""
    made, axes = svg.figure(2.4)
    ax, split = axes[0, 0], split_of(records)
    chosen = records[0]["selection"]["epoch"]
    ends = [states[when].terms["decoupling"] for when in _WHEN]
    squared = records[0]["settings"].get("decoupling_power", 2) == 2
    lines = [[(entry["epoch"], entry["train"]["decoupling"]) for entry in record["epochs"]
              if "decoupling" in (entry.get("train") or {})] for record in records]
    lines = [line for line in lines if line] if squared else []
    for line in lines:
        ax.plot(*zip(*line, strict=True), color=svg.BLUE, linewidth=1.2, alpha=0.9 if line is lines[0] else 0.5)
    ax.plot([0, chosen], ends, marker="o", color=svg.ORANGE, linestyle="none" if lines else "-", markersize=6,
            label=f"{split}, seed {records[0]['seed']}, before and after")
    if lines:
        ax.plot([], [], color=svg.BLUE, label="training batches, a line a seed")
    ax.legend(loc="best")
    ax.set_ylim(bottom=0)
    ax.set(xlabel="epoch", ylabel="mean squared cosine")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y")
    source = ("Lines: the decoupling term of the training batches, from the runs' records. " if lines else
              "The epochs hold no squared cosine: the two states are joined by a straight line. ")
    course = f"; over the epochs of training from {lines[0][0][1]:.4f} to {lines[0][-1][1]:.4f}" if lines else ""
    return Picture("Decoupling", f"Squared cosine between unique and common features, 0 is orthogonal. {source}Points: "
                   f"computed on the {split} split before the first step and from the checkpoint.",
                   f"Decoupling of {label}: mean squared cosine on {split} {ends[0]:.4f} before training, "
                   f"{ends[1]:.4f} in the checkpoint of epoch {chosen}{course}.", svg.data_uri(made))


def terms(states: Mapping[str, State]) -> list[dict[str, Any]]:
    """The alignment terms of the two states, and what diagnoses them, for a small table."""
    values = {when: {**state.terms, **_diagnosed(state)} for when, state in states.items()}
    return [{"name": name, "meaning": meaning, "before": values["before"][name], "after": values["after"][name]}
            for name, meaning in (SHOWN | DIAGNOSED).items() if name in values["before"]]


def _diagnosed(state: State) -> dict[str, float]:
    if len(state.unique) < 2:
        return {}
    samples = len(next(iter(state.unique.values())))
    found = {f"energy, {kind}": mean_over_pairs(energy_distance, getattr(state, kind).values())
             for kind in ("unique", "common", "compared")}
    return {**found, "pairing": mean_over_pairs(retrieved, state.compared.values()),
            "idle prototypes": max(idle(weights, samples) for weights in state.weights.values()),
            "marginal error": state.marginal_error}
