"""Files that a command is to write by a name that the user gave, checked before anything is computed.

What may change here: further checks, for every command alike.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import InputError, RunError
from .files import write_text


def check_destination(option: str, given: str | Path) -> Path:
    """The path of a file to write. Raises InputError where its folder is absent or takes no files."""
    path = Path(given).expanduser()
    try:
        free = not path.exists()
        if not (free or path.is_file()) or not path.absolute().parent.is_dir():
            raise InputError(f"{option} {given}: expected the name of a file in a folder that exists")
        if not free and not os.access(path, os.W_OK):
            raise InputError(f"{option} {given}: is there already and cannot be written; name another")
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise InputError(f"{option} {given}: cannot be written ({error.strerror or error}); name a file in another "
                         "folder") from error
    return path


def write_destination(path: Path, text: str) -> None:
    """Write a file in one step. Raises RunError with the user's name of it, not that of the step."""
    try:
        write_text(path, text)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
