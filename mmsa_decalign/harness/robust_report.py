"""Curves over the missing rate for people: a table on standard output, and a picture.

matplotlib is an extra (`pip install mmsa-decalign[plot]`) and imported only for the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..data.plot import COLOURS, picture_path
from ..data.whole import whole
from .destinations import check_destination
from .metrics import LOWER_IS_BETTER
from .robust import Robustness

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")


def print_curves(result: Robustness, console: Console) -> None:
    """For each metric a row a model and modality, a column a rate; the spread where there is room for it."""
    spread = len({row["seed"] for row in result.rows}) > 1
    tables = [_table(result, metric, spread=spread) for metric in result.shown()]
    if spread and max(_width(table, console) for table in tables) > console.width:
        spread, tables = False, [_table(result, metric, spread=False) for metric in result.shown()]
    console.print(f"missing modalities on {result.dataset}, test split", style="bold", markup=False, highlight=False)
    for table in tables:  # names and digits stay whole: a terminal that is too narrow breaks lines itself
        table.width = _width(table, console)
        console.print(table, crop=False)
    seeds = list(dict.fromkeys(row["seed"] for row in result.rows))
    lines = ["columns: share of the test samples that lack the modality, the others being there; mean "
             f"{'± population standard deviation ' if spread else ''}over {len(seeds)} seed{'s' if seeds[1:] else ''}",
             "one checkpoint a seed, chosen on validation before the test split was read"]
    lines += [f"{model}: an absent modality is {how}" for model, how in result.how.items() if model in result.models()]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _table(result: Robustness, metric: str, *, spread: bool) -> Table:
    title = metric + (" (lower is better)" if metric in LOWER_IS_BETTER else "")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("model", "missing"):
        table.add_column(name, no_wrap=True)
    for rate in result.rates:
        table.add_column(f"{rate:g}", justify="right", no_wrap=True)
    for model in result.models():
        for missing in result.missing:
            points = {rate: (mean, std) for rate, mean, std in result.curve(model, missing, metric)}
            cells = ["none" if rate not in points else f"{points[rate][0]:.3f}"
                     + (f" ± {points[rate][1]:.3f}" if spread else "") for rate in result.rates]
            table.add_row(escape(model) if missing == result.missing[0] else "", missing, *cells)
    return table


def checked_picture(out: str | Path) -> Path:
    """``out``, if a picture can be drawn and written there; raises InputError where not."""
    picture_path(out)
    return check_destination("--plot", out)


def plot_curves(result: Robustness, out: str | Path) -> Path:
    """Draw a panel for each metric (rows) and modality (columns) into ``out``, by its suffix. Raises InputError."""
    out = picture_path(out)

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, columns = result.shown(), len(result.missing)
    figure = Figure(figsize=(3.6 * columns + 0.8, 2.3 * len(metrics) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)  # without pyplot: no window, no global state
    axes = figure.subplots(len(metrics), columns, squeeze=False, sharex=True, sharey="row")
    for row, metric in zip(axes, metrics, strict=True):
        for ax, missing in zip(row, result.missing, strict=True):
            for number, model in enumerate(result.models()):
                _curve(ax, result.curve(model, missing, metric), model, number)
            ax.grid(color="0.9", linewidth=0.8)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(metric + ("\n(lower is better)" if metric in LOWER_IS_BETTER else ""))
    for ax, missing in zip(axes[0], result.missing, strict=True):
        ax.set_title("all modalities missing at the rate" if missing == "all" else f"{missing} missing", fontsize=11)
    for ax in axes[-1]:
        ax.set_xlabel("missing rate")
        ax.set_xticks(result.rates)
    seeds = len({row["seed"] for row in result.rows})
    handles, labels = axes[0, 0].get_legend_handles_labels()
    spread = f"mean of {seeds} seeds, band: one standard deviation" if seeds > 1 else "one seed"
    figure.legend(handles, labels, loc="outside upper center", ncols=min(2 * columns, len(labels)), frameon=False,
                  title=f"{result.dataset}, test split; {spread}")
    with whole(out) as unfinished:
        figure.savefig(unfinished, dpi=120, format=out.suffix[1:].lower())
    return out


def _curve(ax: Any, points: list[tuple[float, float, float]], model: str, number: int) -> None:
    if not points:
        return
    rates, means, deviations = zip(*points, strict=True)
    colour = COLOURS[number % len(COLOURS)]
    ax.plot(rates, means, color=colour, marker=MARKERS[number % len(MARKERS)], markersize=4,
            linestyle=DASHES[number // len(COLOURS) % len(DASHES)], label=model.replace("$", r"\$"))
    low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    ax.fill_between(rates, low, high, color=colour, alpha=0.15, linewidth=0)
