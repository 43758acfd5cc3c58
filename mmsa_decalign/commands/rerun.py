"""``mmsa rerun RUN_ID``: repeat a run from its record alone, and say whether the metrics came back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .compare import store_path
from .parsing import add_common, option_names, show_result


def add(commands: Any) -> None:
    """The parser of the command."""
    rerun = commands.add_parser(
        "rerun", help="repeat a run from its record and compare the metrics",
        description="Repeat a run with the settings, feature file (by its SHA-256), seed and number of CPU threads of "
                    "its record, and say whether its metrics came back: exactly, or within what. Nothing is stored.")
    rerun.add_argument("wanted", metavar="RUN_ID",
                       help="id of a run, as records and the JSON of a comparison have it, or a record's JSON file")
    rerun.add_argument("--store", default=None, metavar="FILE", dest="results_store",
                       help="results store (default: ~/MMSA/results/compare.sqlite)")
    rerun.add_argument("--res-save-dir", default=None, metavar="DIR", dest="record_dir",
                       help="results of mmsa -m ..., whose records are looked at too (default: ~/MMSA/results)")
    rerun.add_argument("--feature-file", default=None, metavar="FILE", dest="own_feature_file",
                       help="where the feature file lies now")
    rerun.add_argument("--device", default="auto", dest="run_device", metavar="DEVICE",
                       help="auto, cpu, cuda or cuda:N (default: auto)")
    add_common(rerun, default=argparse.SUPPRESS)
    rerun.set_defaults(run=run, options=option_names(rerun))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa rerun RUN_ID``; metrics that differ are a result, not a failure."""
    from ..compare import rerun

    results = Path(arguments.record_dir or Path.home() / "MMSA" / "results").expanduser()
    record = rerun.find_record(arguments.wanted, store_path(arguments), results)
    result = rerun.rerun(record, feature_file=arguments.own_feature_file, device=arguments.run_device)

    def show(console: Any) -> None:
        from rich.table import Table

        shown = Table(title=f"run {result['id']}", title_justify="left")
        for name in ("metric", "recorded", "now"):
            shown.add_column(name, justify="left" if name == "metric" else "right")
        for name, pair in result["metrics"].items():
            shown.add_row(name, *("none" if value is None else f"{value:.6g}" for value in pair.values()))
        console.print(shown)
        lines = [rerun.verdict(result)]
        lines += [f"not as in the record: {name} ({before}, now {now})" for name, (before, now) in
                  result["changed"].items()]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)

    show_result(arguments, result, show)
