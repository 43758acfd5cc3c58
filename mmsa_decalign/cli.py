"""The command ``mmsa``: reads the command line, calls the harness, prints the result, returns the exit code.

No logic of its own beyond that. Whatever takes long to import is imported inside the command that needs it, so that
``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .errors import InputError, RunError, nearest

DESCRIPTION = """\
Train and test models of multimodal sentiment analysis: DecAlign, MMSA's models and plugins (`mmsa list` says what each
needs).

The checkpoint is chosen on the validation split and the test split is read once, after training. Each seed leaves a
JSON record with its settings, data hash, versions and epochs; MMSA's CSV gets a row after the last seed."""

EXAMPLES = """\
examples:
  mmsa -m decalign -d synthetic                       try it: data made on the spot, no download
  mmsa -m lf_dnn -d mosi --feature-file mosi.pkl -s 1111 -s 1112
  mmsa -m decalign -d mosi -c utterance --set learning_rate=0.001 --set num_epochs=30
  mmsa -m decalign -d mosi --pretrained ./bert --device cuda:0
  mmsa -m tfn -d mosi -t -tt 20                       random search, scored on the validation split
  mmsa -m lmf -d synthetic --json > result.json       one JSON document on standard output
  mmsa list                                           models and data sets, and what they need
  mmsa data fetch mosi                                the published file, checked by its SHA-256
  mmsa data inspect mosi.pkl --plot mosi.png          what is in a file, and what is wrong with it
  mmsa data convert mosi.pkl mosi.safetensors         the same features without code, mapped instead of read
  mmsa data synth mosi.pkl --layout mosi              a feature file shaped like MOSI's
  mmsa verify                                         the operators against the NumPy reference, on this machine

exit codes: 0 done, 1 a run failed, 2 wrong usage or input, 130 interrupted"""


class Parser(argparse.ArgumentParser):
    """argparse with mistakes as one InputError that names the nearest valid word, instead of the usage text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "/".join(action.option_strings) or "command"
            raise InputError(f"{name}: unknown {value!r}; {nearest(str(value), map(str, action.choices))}")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, refusing leftovers with the nearest option of this parser or its subcommand."""
        commands = subcommands(self)
        known = all_options(self) if commands.keys() & set(argv) else set(option_names(self))
        for word in argv:  # before argparse takes the value of a misspelt option for a command
            name = word.partition("=")[0]
            attached = word[1:2] != "-" and (word[:2] in known or word[:3] in known)  # -s1111
            if word == "--":
                break
            if re.match(r"--?[A-Za-z]", word) and name not in known and not attached:
                raise InputError(f"unknown option {name!r}; {guess(name, known)}")
        arguments, extra = self.parse_known_args(argv)
        if extra:
            name = extra[0].partition("=")[0]
            what = "option" if name.startswith("-") else "argument"
            raise InputError(f"{what} {name!r} does not belong here; {guess(name, arguments.options)}")
        return arguments


def guess(name: str, options: Iterable[str]) -> str:
    """The nearest option, and where all of them are listed."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "--help lists all"


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """Every option of a parser, as typed."""
    return [name for action in parser._actions for name in action.option_strings]


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's commands, by name."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: choice for action in actions for name, choice in action.choices.items()}


def all_options(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of all its commands."""
    return set(option_names(parser)).union(*map(all_options, subcommands(parser).values()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises for what a user can cause."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        parser = build_parser()
        if not argv:
            parser.print_help()
            return 0
        arguments = parser.parse_strictly(argv)
        arguments.command_line = shlex.join(["mmsa", *argv])
        arguments.run(arguments)
        return 0
    except SystemExit as stop:  # argparse after --help
        return int(stop.code or 0)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted", 130, debug)
    except InputError as error:
        return _fail(str(error), 2, debug)
    except RunError as error:
        return _fail(str(error), 1, debug)
    except BrokenPipeError:  # the reader of our output has gone: `mmsa list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1, debug)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"mmsa: {message}", file=sys.stderr)
    return code


def build_parser() -> Parser:
    """The whole command line. Training needs no subcommand, as in MMSA."""
    parser = Parser(prog="mmsa", description=DESCRIPTION, epilog=EXAMPLES)
    _add_training(parser)
    parser.set_defaults(run=run_training, options=option_names(parser))
    commands = parser.add_subparsers(title="other commands", metavar="COMMAND", prog="mmsa")

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
    _add_common(listing, default=argparse.SUPPRESS)
    listing.set_defaults(run=run_list, options=option_names(listing))

    verification = commands.add_parser(
        "verify", help="check DecAlign's operators against the NumPy reference, on this machine",
        description="Compare DecAlign's operators with their NumPy reference: values and gradients, in float64 and "
                    "float32, on the CPU and every CUDA GPU, or on the one that --device names. Some 10 seconds. "
                    "Exit code 1 if any differs by more than the table allows.")
    verification.add_argument("--device", default=argparse.SUPPRESS, help="auto (all of them), cpu, cuda or cuda:N")
    _add_common(verification, default=argparse.SUPPRESS)
    verification.set_defaults(run=run_verify, options=option_names(verification))

    data = commands.add_parser("data", help="feature files: fetch, verify, inspect, convert, make",
                               description="Fetch, verify, inspect, convert and make feature files.")
    tasks = data.add_subparsers(title="commands", metavar="COMMAND", required=True, prog="mmsa data")
    synth = tasks.add_parser(
        "synth", help="write a synthetic feature file",
        description="Write a synthetic feature file in MMSA's layout: latent factors common to all modalities and "
                    "factors of each, labels that depend on both.")
    synth.add_argument("out", metavar="OUT", help="file to write, for example mosi.pkl")
    synth.add_argument("--layout", default="synthetic", metavar="NAME",
                       help="whose lengths and widths to take: synthetic, mosi, mosei, sims, ... (default: synthetic)")
    synth.add_argument("--seed", type=int, default=None, help="seed of the data (default: that of -d synthetic)")
    _add_common(synth, default=argparse.SUPPRESS)
    synth.set_defaults(run=run_synth, options=option_names(synth))
    _add_files(tasks)
    return parser


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
    _add_common(fetching, default=argparse.SUPPRESS)
    fetching.set_defaults(run=run_fetch, options=option_names(fetching))

    converting = tasks.add_parser(
        "convert", help="write a feature file as one that holds no code",
        description="Write the features of a file as safetensors: no pickle, mapped into memory instead of read, and "
                    "taken wherever a pickle is. float64 becomes float32, as in a training. What no training reads is "
                    "left out and named.")
    converting.add_argument("file", metavar="IN")
    converting.add_argument("out", metavar="OUT", help="file to write, for example mosi.safetensors")
    _add_common(converting, default=argparse.SUPPRESS)
    converting.set_defaults(run=run_convert, options=option_names(converting))

    verifying = tasks.add_parser(
        "verify", help="say which published file a file is",
        description="Say which published file this is, by its SHA-256, and that it reads. Exit codes: 0 a published "
                    "file, 1 none of them but readable, 2 not readable.")
    verifying.add_argument("file", metavar="FILE")
    _add_common(verifying, default=argparse.SUPPRESS)
    verifying.set_defaults(run=run_verify_file, options=option_names(verifying))

    inspecting = tasks.add_parser(
        "inspect", help="measure a feature file and say what is wrong with it",
        description="Shapes, lengths, padding, NaN and Inf, constant columns, labels, what splits share, and a linear "
                    "probe that tells whether features leak the labels. Works on files that a training refuses.")
    inspecting.add_argument("file", metavar="FILE")
    inspecting.add_argument("--plot", default=None, metavar="OUT", help="also draw it: a file .png, .pdf or .svg")
    inspecting.add_argument("--no-probe", action="store_true", help="leave the linear probe out")
    _add_common(inspecting, default=argparse.SUPPRESS)
    inspecting.set_defaults(run=run_inspect, options=option_names(inspecting))


def _add_training(parser: argparse.ArgumentParser) -> None:
    mmsa = parser.add_argument_group("as in MMSA")
    mmsa.add_argument("-m", "--model", default="decalign", metavar="NAME", help="model (default: decalign)")
    mmsa.add_argument("-d", "--dataset", default="synthetic", metavar="NAME", help="data set (default: synthetic)")
    mmsa.add_argument("-c", "--config", default=None, metavar="FILE",
                      help="settings: a file in MMSA's schema, a flat JSON object, or the name of a shipped one")
    mmsa.add_argument("-t", "--tune", action="store_true",
                      help="random search over the model's tuning space, scored on the validation split (MMSA scores "
                           "on the test split)")
    mmsa.add_argument("-tt", "--tune-times", type=_positive, default=50, metavar="N",
                      help="settings to try with -t (default: 50)")
    mmsa.add_argument("-s", "--seeds", action="append", type=_seeds, default=[], metavar="SEED",
                      help="seed; give it again, or 1111,1112, for more (default: 1111 to 1115)")
    mmsa.add_argument("-n", "--num-workers", type=_count, default=0, metavar="N",
                      help="processes that load data (default: 0, since the features are in memory)")
    mmsa.add_argument("-v", "--verbose", type=int, default=1, choices=(0, 1, 2),
                      help="log on standard error: 0 errors, 1 epochs, 2 everything (default: 1)")
    for what, default in (("model", "saved_models"), ("res", "results")):
        mmsa.add_argument(f"--{what}-save-dir", default=None, metavar="DIR",
                          help=f"{'checkpoints' if what == 'model' else 'results'} (default: ~/MMSA/{default})")
    mmsa.add_argument("--log-dir", default=None, metavar="DIR", help="log files (default: ~/MMSA/logs)")
    mmsa.add_argument("-g", "--gpu-ids", action="append", type=_count, default=[], metavar="ID",
                      help="GPU to use; without it the one with most free memory, without a GPU the CPU")
    for letter, modality in (("T", "text"), ("A", "audio"), ("V", "video")):
        mmsa.add_argument(f"-F{letter.lower()}", f"--feature-{letter}", default=None, metavar="FILE",
                          help=f"feature file whose {modality} replaces the data set's")
    ours = parser.add_argument_group("beyond MMSA")
    ours.add_argument("--feature-file", default=None, metavar="FILE", help="feature file, in place of the data set's")
    ours.add_argument("--data-root", default=None, metavar="DIR",
                      help="where the data sets' feature files are (default: $MMSA_DATA_ROOT or ~/MMSA/data)")
    ours.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, see -g)")
    ours.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                      help="one setting; the value is JSON where it can be: 0.1, true, [1,3,3], text")
    ours.add_argument("--pretrained", default=None, metavar="NAME_OR_DIR",
                      help="text encoder, by name or folder, fed with token ids (sets use_bert)")
    ours.add_argument("--mended", action="store_true",
                      help="repair the faults inside MMSA's own model, which are kept otherwise (mmsa list shows them)")
    _add_common(ours, default=False)


def _add_common(parser: Any, default: Any) -> None:
    # A subcommand must not overwrite with its default what stood before it on the command line.
    parser.add_argument("--json", action="store_true", default=default, help="one JSON document on standard output")
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def run_training(arguments: argparse.Namespace) -> None:
    """``mmsa -m MODEL -d DATASET``: train and test, or search with ``-t``."""
    from .harness.config import catalogue, find_dataset, find_model, parse_overrides

    known = catalogue()  # names first: the rest takes seconds to import
    find_model(known, arguments.model), find_dataset(known, arguments.dataset)
    overrides = parse_overrides(arguments.overrides)

    from .harness import runner, tuning

    job = runner.prepare(
        arguments.model, arguments.dataset, config=arguments.config or None, overrides=overrides,
        seeds=[seed for group in arguments.seeds for seed in group], feature_file=arguments.feature_file,
        data_root=arguments.data_root, pretrained=arguments.pretrained, device=arguments.device,
        files={"text": arguments.feature_T, "audio": arguments.feature_A, "vision": arguments.feature_V},
        gpu_ids=arguments.gpu_ids, num_workers=arguments.num_workers, model_save_dir=arguments.model_save_dir,
        res_save_dir=arguments.res_save_dir, log_dir=arguments.log_dir, verbose=arguments.verbose,
        command=arguments.command_line, tuning=arguments.tune, mended=arguments.mended,
    )
    from .harness import report

    if arguments.tune:
        search = tuning.tune(job, arguments.tune_times)
        _print(arguments, tuning.search_document(search), lambda console: report.print_search(search, console))
    else:
        outcome = runner.run(job)
        _print(arguments, report.run_document(outcome), lambda console: report.print_outcome(outcome, console))


def run_list(arguments: argparse.Namespace) -> None:
    """``mmsa list``, and ``mmsa list --check MODEL``."""
    if arguments.check is not None:
        run_check(arguments)
        return
    for value, option in ((arguments.check_dataset, "-d"), (arguments.check_encoder, "--pretrained")):
        if value is not None:
            raise InputError(f"{option} {value}: needs --check MODEL; mmsa list alone takes no such option")
    from .harness.config import catalogue
    from .harness.report import catalogue_document, print_catalogue

    known = catalogue()
    _print(arguments, catalogue_document(known), lambda console: print_catalogue(known, console))


def run_check(arguments: argparse.Namespace) -> None:
    """``mmsa list --check MODEL``: a failed check is a failed run."""
    from .harness.config import catalogue, find_dataset, find_model

    known = catalogue()  # names first: the rest takes seconds to import
    find_model(known, arguments.check)
    if arguments.check_dataset is not None:
        find_dataset(known, arguments.check_dataset)

    from .harness.conformance import check_model, print_report, report_document

    report = check_model(arguments.check, arguments.check_dataset, pretrained=arguments.check_encoder)
    _print(arguments, report_document(report), lambda console: print_report(report, console))
    if not report.conforms:
        raise RunError(f"{report.model} does not conform: {', '.join(report.with_status('failed'))}")


def run_verify(arguments: argparse.Namespace) -> None:
    """``mmsa verify``: a failed comparison is a failed run."""
    from . import verify
    from .harness.machine import pick_device

    everywhere = arguments.device.lower() == "auto"
    rows = verify.verify(verify.devices_here() if everywhere else [pick_device(arguments.device)])
    _print(arguments, verify.document(rows), lambda console: verify.print_rows(rows, console))
    failed = [f"{row.operator} ({row.device}, {row.dtype})" for row in rows if not row.passed]
    if failed:
        raise RunError(f"operators that differ from the reference by more than allowed: {', '.join(failed)}")


def run_synth(arguments: argparse.Namespace) -> None:
    """``mmsa data synth OUT``."""
    from .data.synthetic import write_synthetic

    options = {} if arguments.seed is None else {"seed": arguments.seed}
    path = write_synthetic(arguments.out, layout=arguments.layout, **options)
    _print(arguments, {"schema_version": 1, "path": str(path), "layout": arguments.layout},
           lambda console: console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True))


def run_fetch(arguments: argparse.Namespace) -> None:
    """``mmsa data fetch DATASET``."""
    from .data.published import files_of

    files = files_of(arguments.wanted, arguments.kind)  # names first: the rest takes seconds to import

    from rich.console import Console

    from .data.fetch import fetch
    from .data.report import byte_bar, print_fetched
    from .harness.datasets import data_root

    root = data_root(arguments.data_root)
    results = []
    for file in files:
        with byte_bar(Console(stderr=True)) as progress:
            results.append(fetch(file, root, arguments.source, progress=progress))
    _print(arguments, {"schema_version": 1, "files": results}, lambda console: print_fetched(results, console))


def run_convert(arguments: argparse.Namespace) -> None:
    """``mmsa data convert IN OUT``."""
    from .data.convert import convert, print_converted

    result = convert(arguments.file, arguments.out)
    _print(arguments, result, lambda console: print_converted(result, console))


def run_verify_file(arguments: argparse.Namespace) -> None:
    """``mmsa data verify FILE``: a file that nobody published is a failed verification."""
    from .data.fetch import verify
    from .data.report import print_verified

    result = verify(arguments.file)
    _print(arguments, result, lambda console: print_verified(result, console))
    if result["published"] is None:
        raise RunError(f"{arguments.file}: reads, but none of the published files has its SHA-256")


def run_inspect(arguments: argparse.Namespace) -> None:
    """``mmsa data inspect FILE``."""
    from .data.overview import inspect_file
    from .data.report import print_inspected

    if arguments.plot is not None:  # a picture that cannot be drawn is known before the minutes of measuring
        from .data.plot import picture_path, plot_overview

        arguments.plot = picture_path(arguments.plot)
    document = inspect_file(arguments.file, probing=not arguments.no_probe)
    if arguments.plot is not None:
        document["picture"] = str(plot_overview(document, arguments.plot))
    _print(arguments, document, lambda console: print_inspected(document, console))


def _print(arguments: argparse.Namespace, document: dict[str, Any], show: Any) -> None:
    if arguments.json:
        print(json.dumps(document, indent=1, allow_nan=False), flush=True)
        return
    from rich.console import Console

    show(Console())


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: expected a whole number from 0, or 1111,1112")
    seeds = [int(part) for part in text.split(",")]
    if max(seeds) >= 2**32:
        raise argparse.ArgumentTypeError(f"{max(seeds)} is too large for a seed: expected less than 2**32")
    return seeds


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0")
    return int(text)


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
