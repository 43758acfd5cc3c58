"""``mmsa list``: models and data sets; with ``--check MODEL`` a test of one model."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError, RunError
from .parsing import add_common, option_names, show_result


def add(commands: Any) -> None:
    """The parser of the command."""
    listing = commands.add_parser("list", help="models and data sets: where each comes from and what it needs",
                                  description="List models and data sets: where each comes from and what it needs.")
    listing.add_argument("--check", default=None, metavar="MODEL",
                         help="train this model on a tiny file and check what every model must do; exit code 1 if a "
                              "check fails")
    # -d and --pretrained have defaults of their own here: those of training stand in the same namespace.
    listing.add_argument("-d", "--dataset", default=None, metavar="NAME", dest="check_dataset",
                         help="with --check: the data set whose layout and settings to take (default: the model's "
                              "first)")
    listing.add_argument("--pretrained", default=None, metavar="DIR", dest="check_encoder",
                         help="with --check: text encoder (default: a tiny random one, where the model wants one)")
    add_common(listing, default=argparse.SUPPRESS)
    listing.set_defaults(run=run, options=option_names(listing))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa list``, and ``mmsa list --check MODEL``."""
    if arguments.check is not None:
        run_check(arguments)
        return
    for value, option in ((arguments.check_dataset, "-d"), (arguments.check_encoder, "--pretrained")):
        if value is not None:
            raise InputError(f"{option} {value}: needs --check MODEL; mmsa list alone takes no such option")
    from ..harness.catalogue import catalogue
    from ..harness.report import catalogue_document, print_catalogue

    known = catalogue()
    show_result(arguments, catalogue_document(known), lambda console: print_catalogue(known, console))


def run_check(arguments: argparse.Namespace) -> None:
    """``mmsa list --check MODEL``: a failed check is a failed run."""
    from ..harness.catalogue import catalogue, find_dataset, find_model

    known = catalogue()  # names first: the rest takes seconds to import
    find_model(known, arguments.check)
    if arguments.check_dataset is not None:
        find_dataset(known, arguments.check_dataset)

    from ..harness.conformance import check_model, print_report, report_document

    report = check_model(arguments.check, arguments.check_dataset, pretrained=arguments.check_encoder)
    show_result(arguments, report_document(report), lambda console: print_report(report, console))
    if not report.conforms:
        raise RunError(f"{report.model} does not conform: {', '.join(report.with_status('failed'))}")
