"""Writing results so that a reader never sees half of one and two writers lose nothing."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..data.whole import whole
from ..locks import guarded


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step: under a temporary name beside it, then renamed over it."""
    with whole(path) as temporary:
        with temporary.open("x", encoding="utf-8", newline="") as stream:
            stream.write(text)
        if path.exists():
            shutil.copymode(path, temporary)  # a file that a group may write stays so


def append_row(path: Path, header: Sequence[str], row: Sequence[object]) -> None:
    """Append one CSV row; the first brings the header. See ``append_lines``."""
    append_lines(path, header, _csv_line(row))


def append_lines(path: Path, header: Sequence[str], lines: str) -> None:
    """Append whole lines of CSV, under a lock and in one step: no writer's row is lost, no reader sees half of one.

    Raises ValueError if the file has other columns, RunError if another process keeps the lock.
    """
    path = Path(os.path.realpath(path))  # what a link points to is written, not the link
    with guarded(path):
        text = _csv_line(header)
        if path.exists():
            with path.open(encoding="utf-8", newline="") as stream:
                text = stream.read()
            present = next(csv.reader(io.StringIO(text)), [])
            if list(present) != list(header):
                raise ValueError(f"{path} has the columns {', '.join(present)}; expected {', '.join(header)}")
        open_line = not text.endswith("\n")  # another program may have left its last line unfinished
        write_text(path, text + ("\n" if open_line else "") + lines)


def _csv_line(row: Sequence[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(row)
    return stream.getvalue()
