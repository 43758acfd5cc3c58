"""Writing a file so that it appears whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError


@contextmanager
def whole(path: Path, *, make_folders: bool = True) -> Iterator[Path]:
    """The name to write under inside the block: what lies there becomes `path` at its end, and goes if it fails.

    make_folders: make those that are missing; without it a folder that has vanished is an OSError.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    if make_folders:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:  # also when interrupted
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """`whole` for a feature file. Raises InputError, of `path`, where an OSError says that it cannot be written."""
    try:
        with whole(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).\n"
                         "Choose a place that is writable and has room.") from None
