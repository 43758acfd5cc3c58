"""Writing a feature file so that it appears whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """The name to write under inside the block: what lies there becomes `path` at its end, and goes if it fails.

    Missing folders are made. Raises InputError, of `path`, where an OSError says that it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            os.replace(unfinished, path)
        finally:  # also when interrupted
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}).\n"
                         "Choose a place that is writable and has room.") from None
