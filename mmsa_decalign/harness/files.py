"""Writing results so that a reader never sees half of one and two writers lose nothing."""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step: under a temporary name beside it, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        _write_new(temporary, text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_row(path: Path, header: Sequence[str], row: Sequence[object]) -> None:
    """Append one CSV row; the first brings the header. Each row is one write, so that two writers cannot interleave.

    Raises ValueError if the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = _csv_line(row)
    if not path.exists() and _create(path, _csv_line(header) + line):
        return
    with path.open(encoding="utf-8", newline="") as stream:
        present = next(csv.reader(stream), [])
    if list(present) != list(header):
        raise ValueError(f"{path} has the columns {', '.join(present)}; expected {', '.join(header)}")
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        open_line = stream.read(1) != b"\n"  # another program may have left its last line unfinished
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, (("\n" if open_line else "") + line).encode())
    finally:
        os.close(descriptor)


def _create(path: Path, text: str) -> bool:
    """Make ``path`` with this content unless it exists; True if it was made here."""
    temporary = _beside(path)
    try:
        _write_new(temporary, text)
        try:
            os.link(temporary, path)  # unlike a rename, a link fails when another writer came first
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="") as stream:
        stream.write(text)


def _csv_line(row: Sequence[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(row)
    return stream.getvalue()
