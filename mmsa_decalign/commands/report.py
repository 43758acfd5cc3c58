"""``mmsa report STORE``: the table and the report of everything in a results store; nothing is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .parsing import add_common, option_names, show_result


def add(commands: Any) -> None:
    """The parser of the command."""
    report = commands.add_parser(
        "report", help="table and report of everything in a results store",
        description="Make report.html and the tables of all runs in a results store, without running anything. Rows "
                    "are named by model; for those of one comparison alone, with its own names, call that again: "
                    "what is finished is not run.")
    report.add_argument("results_store", metavar="STORE", help="results store that mmsa compare has filled")
    report.add_argument("--reference", default=None, metavar="ROW",
                        help="row that the others are compared with (default: decalign, else the first)")
    report.add_argument("--out", default=None, metavar="DIR", dest="out_dir",
                        help="where the files go (default: a folder NAME-report beside the store)")
    add_common(report, default=argparse.SUPPRESS)
    report.set_defaults(run=run, options=option_names(report))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa report``."""
    from ..compare import report, screen, table, writing
    from ..compare.store import Store
    from ..compare.stored import stored_plan
    from ..harness.job import check_folder
    from ..harness.progress import stderr_console

    path = Path(arguments.results_store).expanduser()
    if not path.is_file():
        raise InputError(f"results store {path} does not exist; give the file that mmsa compare has filled")
    store = Store(path, create=False)
    plan = stored_plan(store, arguments.reference)
    out = Path(arguments.out_dir).expanduser() if arguments.out_dir else path.with_name(f"{path.stem}-report")
    check_folder(out, "--out")
    document = table.make_table(plan, store)
    paths = writing.write_all(document, out)
    show_result(arguments, document, lambda console: screen.print_table(document, console, paths))
    stderr_console().print(f"report: {report.write(document, plan, store, out)}", markup=False)
