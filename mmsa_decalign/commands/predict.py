"""``mmsa predict``: a checkpoint's predictions for the samples of a feature file."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .parsing import add_common, option_names, positive


def add(commands: Any) -> None:
    """The parser of the command."""
    predicting = commands.add_parser(
        "predict", help="a checkpoint's predictions for the samples of a feature file",
        description="Predict with a checkpoint that mmsa wrote, for a feature file or for one sample. Labels may be "
                    "absent; where they are not, the metrics are shown on standard error. Inputs are standardised with "
                    "the statistics of the training split, which the checkpoint carries.")
    predicting.add_argument("checkpoint", metavar="CHECKPOINT", help="a .pth file that a run left in its "
                                                                     "--model-save-dir")
    predicting.add_argument("features", metavar="FEATURES",
                            help="a feature file, converted or not, with any splits or none, or one sample: a pickle "
                                 "of arrays text, audio and vision of shape (steps, width), as MMSA-FET writes it")
    predicting.add_argument("--split", action="append", default=[], metavar="NAME", dest="splits",
                            help="train, valid, test or all; give it again for more (default: all)")
    predicting.add_argument("--sample", action="append", default=[], metavar="ID", dest="samples",
                            help="only the sample with this id; give it again for more")
    for letter, modality in (("T", "text"), ("A", "audio"), ("V", "video")):
        predicting.add_argument(f"-F{letter.lower()}", f"--feature-{letter}", default=argparse.SUPPRESS, metavar="FILE",
                                help=f"feature file whose {modality} replaces that of FEATURES")
    predicting.add_argument("--format", default=None, choices=("csv", "json"),
                            help="default: by the ending of --out, else csv")
    predicting.add_argument("--out", default=None, metavar="FILE", help="file to write (default: standard output)")
    predicting.add_argument("--batch-size", type=positive, default=None, metavar="N",
                            help="samples at once, at most; predictions do not depend on it (default, and the most: as "
                                 "in the run)")
    predicting.add_argument("--truncate", action="store_true",
                            help="cut sequences that are longer than those of training")
    predicting.add_argument("--record", default=None, metavar="FILE",
                            help="record of the run, for a checkpoint that does not carry its settings")
    predicting.add_argument("--device", default=argparse.SUPPRESS, help="auto, cpu, cuda or cuda:N (default: auto)")
    predicting.add_argument("--pretrained", default=argparse.SUPPRESS, metavar="NAME_OR_DIR",
                            help="where the text encoder lies now, if the checkpoint has one")
    add_common(predicting, default=argparse.SUPPRESS)
    predicting.set_defaults(run=run, options=option_names(predicting))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa predict CHECKPOINT FEATURES``."""
    if arguments.json and arguments.format == "csv" and arguments.out is None:
        raise InputError("--json --format csv: both are for standard output; leave one out, or add --out FILE")

    from ..harness.predict import predict
    from ..harness.predict_output import as_csv, as_json, check_out, document, format_of, print_found, rows_of, write

    files = {"text": arguments.feature_T, "audio": arguments.feature_A, "vision": arguments.feature_V}
    kind = format_of(arguments.format, arguments.out)
    sources = (arguments.checkpoint, arguments.features, arguments.record, *files.values())
    out = None if arguments.out is None else check_out(arguments.out, *sources)
    found = predict(
        arguments.checkpoint, arguments.features, files=files, splits=arguments.splits, samples=arguments.samples,
        record=arguments.record, pretrained=arguments.pretrained, truncate=arguments.truncate,
        batch_size=arguments.batch_size, device=arguments.device)
    if out is not None:
        write(found, out, kind)
        if arguments.json:
            print(as_json({**document(found), "out": str(out)}), end="", flush=True)
    elif arguments.json or kind == "json":
        print(as_json(document(found, rows_of(found))), end="", flush=True)
    else:
        print(as_csv(rows_of(found)), end="", flush=True)
    if not arguments.json:
        print_found(found, out)
