"""The command ``mmsa``: puts the commands together, runs the one that was called, turns errors into exit codes.

Each command is a module of ``commands``; the order of COMMANDS is that of ``--help``.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence

from .commands import ablate, compare, data, listing, predict, report, rerun, robust, train, tune, verify
from .commands.parsing import Parser, option_names
from .errors import InputError, Interrupted, RunError

COMMANDS = (compare, ablate, tune, report, rerun, predict, robust, listing, verify, data)

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
  mmsa -m decalign -d mosi --resume                   go on with what a signal, a crash or a full disk ended
  mmsa -m lmf -d synthetic --json > result.json       one JSON document on standard output
  mmsa compare -m decalign -m lf_dnn -d mosi -s 1,2,3  which is better, by how much, and is it more than chance
  mmsa ablate -d mosi -s 1,2,3                        DecAlign without this and without that, in one table
  mmsa tune -m tfn -d mosi --trials 100 -j 2          a search for settings, scored on the validation split
  mmsa report compare.sqlite                          the page and the tables once more, from the results alone
  mmsa rerun 1a2b3c4d                                 a run from its record: do its metrics come back?
  mmsa predict model.pth mosi.pkl --split test        a checkpoint's predictions, as CSV
  mmsa robust -m decalign -m lmf -d mosi              what is left where a modality is missing
  mmsa list                                           models and data sets, and what they need
  mmsa verify                                         the operators against the NumPy reference, on this machine
  mmsa data fetch mosi                                the published file, checked by its SHA-256
  mmsa data inspect mosi.pkl --plot mosi.png          what is in a file, and what is wrong with it
  mmsa data convert mosi.pkl mosi.safetensors         the same features without code, mapped instead of read
  mmsa data synth mosi.pkl --layout mosi              a feature file shaped like MOSI's

exit codes: 0 done, 1 a run failed, 2 wrong usage or input, 130 interrupted, 143 terminated"""


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
        code = stop.exit_code if isinstance(stop, Interrupted) else 130
        return _fail(str(stop) or "interrupted", code, debug)
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
    train.add(parser)
    parser.set_defaults(run=train.run, options=option_names(parser))
    commands = parser.add_subparsers(title="other commands", metavar="COMMAND", prog="mmsa")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
