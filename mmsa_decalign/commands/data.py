"""``mmsa data ...``: feature files fetched, verified, inspected, converted, made."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import RunError
from . import embed
from .parsing import add_common, option_names, show_result


def add(commands: Any) -> None:
    """The parsers of the commands."""
    data = commands.add_parser("data", help="feature files: fetch, verify, inspect, convert, embed, make",
                               description="Fetch, verify, inspect, convert, embed and make feature files.")
    tasks = data.add_subparsers(title="commands", metavar="COMMAND", required=True, prog="mmsa data")
    synth = tasks.add_parser(
        "synth", help="write a synthetic feature file",
        description="Write a synthetic feature file in MMSA's layout: latent factors common to all modalities and "
                    "factors of each, labels that depend on both.")
    synth.add_argument("out", metavar="OUT", help="file to write, for example mosi.pkl")
    synth.add_argument("--layout", default="synthetic", metavar="NAME",
                       help="whose lengths and widths to take: synthetic, mosi, mosei, sims, ... (default: synthetic)")
    synth.add_argument("--seed", type=int, default=None, help="seed of the data (default: that of -d synthetic)")
    add_common(synth, default=argparse.SUPPRESS)
    synth.set_defaults(run=run_synth, options=option_names(synth))
    _add_files(tasks)


def _add_files(tasks: Any) -> None:
    fetching = tasks.add_parser(
        "fetch", help="download a published feature file",
        description="Download a published feature file to where -d DATASET looks for it. Size and SHA-256 are checked; "
                    "a download that broke off goes on where it stopped.")
    fetching.add_argument("wanted", metavar="DATASET", help="mosi, mosei, sims, simsv2 or iemocap")
    fetching.add_argument("--kind", default=None, choices=("aligned", "unaligned", "all"),
                          help="which of its files (default: the one that decalign reads, aligned if there is one)")
    fetching.add_argument("--from", default=None, metavar="PATH_OR_URL", dest="source",
                          help="a local copy, a folder that holds it, or another address, in place of Google Drive")
    fetching.add_argument("--data-root", default=argparse.SUPPRESS, metavar="DIR",
                          help="where to put it (default: $MMSA_DATA_ROOT or ~/MMSA/data)")
    add_common(fetching, default=argparse.SUPPRESS)
    fetching.set_defaults(run=run_fetch, options=option_names(fetching))

    converting = tasks.add_parser(
        "convert", help="write a feature file as one that holds no code",
        description="Write the features of a file as safetensors: no pickle, mapped into memory instead of read, and "
                    "taken wherever a pickle is. float64 becomes float32, as in a training. What no training reads is "
                    "left out and named.")
    converting.add_argument("file", metavar="IN")
    converting.add_argument("out", metavar="OUT", help="file to write, for example mosi.safetensors")
    add_common(converting, default=argparse.SUPPRESS)
    converting.set_defaults(run=run_convert, options=option_names(converting))

    embed.add(tasks)

    verifying = tasks.add_parser(
        "verify", help="say which published file a file is",
        description="Say which published file this is, by its SHA-256, and that it reads. Exit codes: 0 a published "
                    "file, 1 none of them but readable, 2 not readable.")
    verifying.add_argument("file", metavar="FILE")
    add_common(verifying, default=argparse.SUPPRESS)
    verifying.set_defaults(run=run_verify_file, options=option_names(verifying))

    inspecting = tasks.add_parser(
        "inspect", help="measure a feature file and say what is wrong with it",
        description="Shapes, lengths, padding, NaN and Inf, constant columns, labels, what splits share, and a linear "
                    "probe that tells whether features leak the labels. Works on files that a training refuses.")
    inspecting.add_argument("file", metavar="FILE")
    inspecting.add_argument("--plot", default=None, metavar="OUT", help="also draw it: a file .png, .pdf or .svg")
    inspecting.add_argument("--no-probe", action="store_true", help="leave the linear probe out")
    add_common(inspecting, default=argparse.SUPPRESS)
    inspecting.set_defaults(run=run_inspect, options=option_names(inspecting))


def run_synth(arguments: argparse.Namespace) -> None:
    """``mmsa data synth OUT``."""
    from ..data.synthetic import write_synthetic

    options = {} if arguments.seed is None else {"seed": arguments.seed}
    path = write_synthetic(arguments.out, layout=arguments.layout, **options)
    show_result(arguments, {"schema_version": 1, "path": str(path), "layout": arguments.layout},
           lambda console: console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True))


def run_fetch(arguments: argparse.Namespace) -> None:
    """``mmsa data fetch DATASET``."""
    from ..data.published import files_of

    files = files_of(arguments.wanted, arguments.kind)  # names first: the rest takes seconds to import

    from rich.console import Console

    from ..data.fetch import fetch
    from ..data.report import byte_bar, print_fetched
    from ..harness.datasets import data_root

    root = data_root(arguments.data_root)
    results = []
    for file in files:
        with byte_bar(Console(stderr=True)) as progress:
            results.append(fetch(file, root, arguments.source, progress=progress))
    show_result(arguments, {"schema_version": 1, "files": results}, lambda console: print_fetched(results, console))


def run_convert(arguments: argparse.Namespace) -> None:
    """``mmsa data convert IN OUT``."""
    from ..data.convert import convert, print_converted

    result = convert(arguments.file, arguments.out)
    show_result(arguments, result, lambda console: print_converted(result, console))


def run_verify_file(arguments: argparse.Namespace) -> None:
    """``mmsa data verify FILE``: a file that nobody published is a failed verification."""
    from ..data.fetch import verify
    from ..data.report import print_verified

    result = verify(arguments.file)
    show_result(arguments, result, lambda console: print_verified(result, console))
    if result["published"] is None:
        raise RunError(f"{arguments.file}: reads, but none of the published files has its SHA-256")


def run_inspect(arguments: argparse.Namespace) -> None:
    """``mmsa data inspect FILE``."""
    from ..data.overview import inspect_file
    from ..data.report import print_inspected

    if arguments.plot is not None:  # a picture that cannot be drawn is known before the minutes of measuring
        from ..data.plot import picture_path, plot_overview

        arguments.plot = picture_path(arguments.plot)
    document = inspect_file(arguments.file, probing=not arguments.no_probe)
    if arguments.plot is not None:
        document["picture"] = str(plot_overview(document, arguments.plot))
    show_result(arguments, document, lambda console: print_inspected(document, console))
