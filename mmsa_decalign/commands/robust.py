"""``mmsa robust``: the curve of each metric against the rate at which modalities are missing, for several models."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .parsing import add_common, count, option_names, seeds, show_result

_MODALITIES = ("text", "audio", "vision", "all")


def add(commands: Any) -> None:
    """The parser of the command."""
    robust = commands.add_parser(
        "robust", help="test models with modalities missing, at several rates",
        description="Train each model once a seed, on complete samples, and test its one checkpoint with a modality "
                    "missing from more and more of the test samples. Which samples lack it depends on the seed and "
                    "their ids alone, so that all models meet the same gaps. DecAlign masks what is absent; MMSA's "
                    "models see zeros.")
    # Names of their own: the options of training stand in the same namespace.
    robust.add_argument("-m", "--model", action="append", required=True, metavar="NAME[@CONFIG]", dest="robust_models",
                        help="model, with @ a shipped config or a JSON file of settings: decalign@utterance; give it "
                             "again for more")
    robust.add_argument("-d", "--dataset", required=True, metavar="NAME", dest="robust_dataset", help="data set")
    robust.add_argument("--modality", action="append", default=[], choices=_MODALITIES, dest="robust_missing",
                        help="what goes missing; all: each modality at the rate, but never all of a sample; give it "
                             "again for more (default: each in turn)")
    robust.add_argument("--rates", default=None, metavar="RATES", dest="robust_rates",
                        help="missing rates (default: 0,0.2,0.4,0.6,0.8,1)")
    robust.add_argument("--metric", action="append", default=[], metavar="NAME", dest="robust_metrics",
                        help="metric to print and draw; give it again for more (default: all but the loss)")
    robust.add_argument("-s", "--seeds", action="append", type=seeds, default=[], metavar="SEED", dest="robust_seeds",
                        help="seed; give it again, or 1111,1112, for more (default: 1111 to 1115)")
    robust.add_argument("--missing-train", default=argparse.SUPPRESS, metavar="RATES",
                        help="modalities missing in training and validation too: vision=0.3 (default: none)")
    robust.add_argument("--out", default=None, metavar="FILE", dest="robust_out",
                        help="write every figure to a file .csv or .json, after each training")
    robust.add_argument("--plot", default=None, metavar="FILE", dest="robust_plot",
                        help="draw the curves: a file .png, .pdf or .svg")
    as_in_training: dict[str, Any] = {"default": argparse.SUPPRESS, "help": "as in training"}
    robust.add_argument("-v", "--verbose", type=int, choices=(0, 1, 2), **as_in_training)
    robust.add_argument("-n", "--num-workers", type=count, metavar="N", **as_in_training)
    for option, meta in (("--feature-file", "FILE"), ("--data-root", "DIR"), ("--device", "NAME"),
                         ("--pretrained", "NAME_OR_DIR"), ("--model-save-dir", "DIR"), ("--res-save-dir", "DIR"),
                         ("--log-dir", "DIR")):
        robust.add_argument(option, metavar=meta, **as_in_training)
    robust.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="robust_set",
                        help="one setting, for every model")
    add_common(robust, default=argparse.SUPPRESS)
    robust.set_defaults(run=run, options=option_names(robust))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa robust``: plan, measure, show; what is finished is shown even where the rest fails."""
    from ..harness.catalogue import catalogue, find_dataset, find_model
    from ..harness.config import parse_overrides

    if arguments.missing is not None:
        raise InputError("--missing: mmsa robust takes the rates from --rates and --modality")
    known = catalogue()  # names first: the rest takes seconds to import
    find_dataset(known, arguments.robust_dataset)
    for label in arguments.robust_models:
        find_model(known, label.partition("@")[0])
    overrides = parse_overrides(arguments.robust_set)

    from ..harness import robust, robust_report, runner

    rates = None if arguments.robust_rates is None else robust.parse_grid(arguments.robust_rates)
    out = None if arguments.robust_out is None else robust.table_path(arguments.robust_out)
    picture = None if arguments.robust_plot is None else robust_report.checked_picture(arguments.robust_plot)
    jobs = {}
    for label in dict.fromkeys(arguments.robust_models):
        model, _, config = label.partition("@")
        jobs[label] = runner.prepare(
            model, arguments.robust_dataset, config=config or None, overrides=overrides,
            seeds=[seed for group in arguments.robust_seeds for seed in group], feature_file=arguments.feature_file,
            data_root=arguments.data_root, pretrained=arguments.pretrained, device=arguments.device,
            num_workers=arguments.num_workers, model_save_dir=arguments.model_save_dir,
            res_save_dir=arguments.res_save_dir, log_dir=arguments.log_dir, verbose=arguments.verbose,
            command=arguments.command_line, missing_train=arguments.missing_train,
        )
    result = robust.plan(jobs, arguments.robust_missing, rates, arguments.robust_metrics)

    def show() -> None:
        if picture is not None:
            robust_report.plot_curves(result, picture)
        show_result(arguments, robust.document(result), lambda console: robust_report.print_curves(result, console))

    try:
        robust.measure(jobs, result, out)
    except (Exception, KeyboardInterrupt):
        if result.rows:
            show()
        raise
    show()
