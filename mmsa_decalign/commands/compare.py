"""``mmsa compare -m A -m B -d X``: models x data sets x seeds into one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import Interrupted, RunError
from .parsing import add_common, option_names, positive, seeds, show_result

EPILOG = """\
examples:
  mmsa compare -m decalign -m lf_dnn -m mult -d mosi             five seeds each
  mmsa compare -m decalign -m lmf -d mosi=fold0.pkl -d mosi=fold1.pkl -s 1,2,3 -j 2
  mmsa compare -m decalign -m small=decalign --set small:d_model=16 -d synthetic
  mmsa compare -m decalign -m mult -c mult=one_step -d mosi --dry-run

Calling it again goes on where it stopped, and does nothing twice; what failed is tried again."""


def add(commands: Any) -> None:
    """The parser of the command."""
    compare = commands.add_parser(
        "compare", help="models x data sets x seeds into one table, with statistics",
        description="Train every model on every data set with every seed, each run in a process of its own, and say "
                    "which differences are more than chance. Finished runs are kept in one store and never done twice.",
        epilog=EPILOG)
    # Names of their own where training has the option too: its defaults stand in the same namespace.
    compare.add_argument("-m", "--model", action="append", default=[], metavar="[LABEL=]NAME", dest="compared",
                         help="model, once for each row; with a label the same model can stand in several rows")
    compare.add_argument("-d", "--dataset", action="append", default=[], metavar="NAME[=FILE]", dest="datasets",
                         help="data set, with its feature file if it lies elsewhere; give it again for more, or for "
                              "folds of one data set (default: synthetic)")
    compare.add_argument("--feature-file", action="append", default=[], metavar="FILE", dest="feature_files",
                         help="feature file of the only -d; give it again for folds")
    compare.add_argument("-s", "--seeds", action="append", type=seeds, default=[], metavar="SEED", dest="all_seeds",
                         help="seed; give it again, or 1111,1112, for more (default: 1111 to 1115)")
    compare.add_argument("-c", "--config", action="append", default=[], metavar="[LABEL=]FILE", dest="configs",
                         help="settings, of all rows or of one: a file as for mmsa -c, or the name of a shipped one")
    compare.add_argument("--set", action="append", default=[], metavar="[LABEL:]KEY=VALUE", dest="row_overrides",
                         help="one setting, of all rows or of one")
    compare.add_argument("--pretrained", default=None, metavar="NAME_OR_DIR", dest="encoder",
                         help="text encoder of every model that can take one (sets use_bert)")
    compare.add_argument("--mended", action="store_true", dest="mend",
                         help="repair the faults inside MMSA's own models, where there are some")
    compare.add_argument("--reference", default=None, metavar="LABEL",
                         help="row that the others are compared with (default: decalign, else the first)")
    compare.add_argument("--no-sanity", action="store_true",
                         help="leave out the constant, the linear model, and DecAlign on single modalities")
    compare.add_argument("--own-files", action="store_true",
                         help="let each model read the aligned or unaligned file that its settings name, instead of "
                              "one file for all")
    add_grid_options(compare)
    compare.set_defaults(run=run, options=option_names(compare))


def add_grid_options(parser: argparse.ArgumentParser) -> None:
    """What every command has that runs a grid: how, where from, and where to."""
    parser.add_argument("-j", "--jobs", type=positive, default=None, metavar="N",
                        help="runs at a time, which share the CPUs (default: 1, or one for each GPU)")
    parser.add_argument("--device", default="auto", dest="run_device", metavar="DEVICE",
                        help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--data-root", default=argparse.SUPPRESS, metavar="DIR",
                        help="where the data sets' feature files are (default: $MMSA_DATA_ROOT or ~/MMSA/data)")
    parser.add_argument("--store", default=None, metavar="FILE", dest="results_store",
                        help="results store (default: ~/MMSA/results/compare.sqlite)")
    parser.add_argument("--out", default=None, metavar="DIR", dest="out_dir",
                        help="where report.html and compare.json, .csv, .md, .tex go (default: a folder beside "
                             "the store)")
    parser.add_argument("--tensorboard", default=None, metavar="DIR", dest="events_dir",
                        help="event files of the runs that are done now, in a folder for each row (extra: "
                             "tensorboard)")
    parser.add_argument("--dry-run", action="store_true", help="show what would be run and how long it may take")
    parser.add_argument("--again", action="store_true", help="do finished runs once more, too")
    add_common(parser, default=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """``mmsa compare``: plan, run what is missing, show the table. A failed run is a failed comparison, at the end."""
    from ..harness.catalogue import catalogue, find_dataset, find_model

    known = catalogue()  # names first: the rest takes seconds to import
    for one in arguments.compared:
        find_model(known, one.rpartition("=")[2])
    for one in arguments.datasets or ["synthetic"]:
        find_dataset(known, one.partition("=")[0])
    overrides = row_settings(arguments.row_overrides)

    from ..compare.plan import make_plan

    carry_out(arguments, make_plan(
        arguments.compared, arguments.datasets or ["synthetic"], configs=arguments.configs, overrides=overrides,
        seeds=[seed for group in arguments.all_seeds for seed in group], reference=arguments.reference,
        feature_files=arguments.feature_files, data_root=arguments.data_root, pretrained=arguments.encoder,
        mended=arguments.mend, with_sanity=not arguments.no_sanity, own_files=arguments.own_files,
        device=arguments.run_device))


def carry_out(arguments: argparse.Namespace, plan: Any, folder: str = "") -> None:
    """Do what is missing of a plan and show its table, or with ``--dry-run`` the plan.

    folder: ending of the name of the folder for the tables, which else is called like the store.
    """
    from ..compare import grid, report, screen, table, writing
    from ..compare.display import Display
    from ..compare.plan import unique
    from ..compare.store import Store
    from ..harness.event_files import check_tensorboard
    from ..harness.job import check_folder
    from ..harness.progress import stderr_console

    if arguments.events_dir:
        check_tensorboard()
    cells = unique(plan.cells)
    gpus = grid.visible_gpus(arguments.run_device)
    workers = arguments.jobs or max(1, len(gpus))
    path = store_path(arguments)
    if arguments.dry_run:
        store = Store(path) if path.is_file() else None
        document = screen.plan_document(plan, store, workers=workers, again=arguments.again)
        show_result(arguments, document, lambda console: screen.print_plan(document, console))
        return
    out = Path(arguments.out_dir).expanduser() if arguments.out_dir else path.with_name(f"{path.stem}{folder}")
    check_folder(out, "--out")
    store = Store(path)
    console = stderr_console()
    try:
        with Display(console, cells, store, workers).live() as display:
            outcome = grid.run(cells, store, display, workers=workers, device=arguments.run_device, gpus=gpus,
                               again=arguments.again, events=arguments.events_dir)
    except KeyboardInterrupt as stop:
        finished = sum(state.run is not None for state in store.states(cell.key for cell in cells).values())
        raise Interrupted.after(stop, f"{finished} of {len(cells)} runs are finished, in {path}; the same call goes on "
                                      "from there") from None
    document = table.make_table(plan, store)
    paths = writing.write_all(document, out)
    show_result(arguments, document, lambda console: screen.print_table(document, console, paths))
    console.print(f"report: {report.write(document, plan, store, out)}", markup=False)
    if outcome.failed:
        raise RunError(f"{len(outcome.failed)} of {len(cells)} runs failed, see the table; the same call tries them "
                       "again")


def store_path(arguments: argparse.Namespace) -> Path:
    """The results store that the command line names."""
    return Path(arguments.results_store or Path.home() / "MMSA" / "results" / "compare.sqlite").expanduser()


def row_settings(pairs: list[str]) -> dict[str | None, dict[str, Any]]:
    """``label:key=value`` and ``key=value`` texts as settings by label, None standing for all rows."""
    from ..harness.config import parse_overrides

    found: dict[str | None, dict[str, Any]] = {}
    for pair in pairs:
        name = pair.partition("=")[0]
        label, colon, _ = name.rpartition(":")
        rest = pair[len(label) + 1:] if colon else pair
        found.setdefault(label if colon else None, {}).update(parse_overrides([rest]))
    return found
