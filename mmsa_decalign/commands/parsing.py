"""What the commands share: strict parsing, common options, types of arguments, and how a result is shown."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from ..errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """argparse with mistakes as one InputError that names the nearest valid word, instead of the usage text."""

    def __init__(self, *args: Any, description: str | None = None, **kwargs: Any) -> None:
        if description and "\n" not in description:  # the formatter leaves texts as they are, for the examples
            description = textwrap.fill(description, 100)
        super().__init__(*args, description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

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
    close = [one for one in difflib.get_close_matches(name, list(options), n=5, cutoff=0.5) if _alike(name, one)]
    return (f"did you mean {close[0]!r}? " if close else "") + "--help lists all"


def _alike(name: str, option: str) -> bool:
    """Whether one may be a slip for the other: not --model-save-dir for --res-save-dir, whose first words differ."""
    if name.count("-") != option.count("-"):
        joined = (text.replace("-", "").lower() for text in (name, option))
        return difflib.SequenceMatcher(None, *joined).ratio() >= 0.75
    pairs = zip(*(text.strip("-").lower().split("-") for text in (name, option)), strict=False)
    return all(difflib.SequenceMatcher(None, *pair).ratio() >= 0.5 for pair in pairs)


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


def add_common(parser: Any, default: Any) -> None:
    """--json and --debug; a command takes ``default=argparse.SUPPRESS``."""
    # A subcommand must not overwrite with its default what stood before it on the command line.
    parser.add_argument("--json", action="store_true", default=default, help="one JSON document on standard output")
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def show_result(arguments: argparse.Namespace, document: dict[str, Any], show: Any) -> None:
    """The document as JSON with ``--json``, else ``show`` on a console."""
    if arguments.json:
        print(json.dumps(document, indent=1, allow_nan=False), flush=True)
        return
    from rich.console import Console

    show(Console())


def seeds(text: str) -> list[int]:
    """1111 or 1111,1112."""
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed: expected a whole number from 0, or 1111,1112")
    seeds = [int(part) for part in text.split(",")]
    if max(seeds) >= 2**32:
        raise argparse.ArgumentTypeError(f"{max(seeds)} is too large for a seed: expected less than 2**32")
    return seeds


def count(text: str) -> int:
    """A whole number from 0."""
    if not re.fullmatch(r"[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)
