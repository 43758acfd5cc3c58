"""The kinds of failure that a user sees, and the end by a signal; their text is part of the interface.

A message is one or two lines: the thing at fault, what was expected, and the remedy.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong or missing (a file, key, name or value). Exit code 2; nothing was written."""


class RunError(RuntimeError):
    """A run with valid input failed on its way. Exit code 1; finished results stay."""


class Interrupted(KeyboardInterrupt):
    """The end by Ctrl-C (SIGINT) or SIGTERM; the text says what is finished. Exit code 130 or 143; results stay.

    orderly: it was raised where everything is in order, not in the middle of something.
    """

    def __init__(self, message: str = "", number: int = signal.SIGINT, *, orderly: bool = False) -> None:
        super().__init__(message)
        self.number, self.orderly = int(number), orderly

    @classmethod
    def after(cls, stop: KeyboardInterrupt, message: str) -> Interrupted:
        """The same end, told to the user: "interrupted; ..." or "terminated; ..."."""
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        return cls(f"{'terminated' if number == signal.SIGTERM else 'interrupted'}; {message}", number)

    @property
    def exit_code(self) -> int:
        """As shells count it."""
        return 128 + self.number


def nearest(name: str, valid: Iterable[str]) -> str:
    """End of an error message: the closest valid name if there is one, and all of them unless they are many."""
    valid = sorted(valid)
    by_case = {one.lower(): one for one in valid}
    close = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.5)
    if close and len(valid) > 20:
        return f"did you mean {by_case[close[0]]!r}?"
    guess = f"did you mean {by_case[close[0]]!r}? " if close else ""
    return f"{guess}valid: {', '.join(map(on_one_line, valid))}"


def on_one_line(name: str) -> str:
    """A name as it is, or quoted with its escapes if it would break the line: names come out of files, too."""
    return name if name.isprintable() else repr(name)
