"""Files that hold the state of a run: whole or noticed, and never the only one.

A file is one line of JSON (bytes and SHA-256 of what follows) and what ``torch.save`` makes of the state, read with
``weights_only=True``. A new one is written beside, brought to the disk, and then takes the place of the one before,
which is kept as ``<name>.before``. No time stamp is read. What may change here: the format, with VERSION.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .storage import refused

VERSION = 1
SUFFIXES = (".state", ".before")  # of the files here that are worth keeping
LOGGER = logging.getLogger("MMSA")
_LONGEST_HEAD = 1000  # bytes; ours has some 120


class Damaged(Exception):
    """A state file is not what was written."""


class StateFile:
    """The two latest states of one run, in ``path`` (which ends in ``.state``) and beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.before = path, path.with_name(f"{path.name}.before")
        self._new = path.with_name(f"{path.name}.new")
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Whether no other process keeps this file; none will inside the block."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):  # the folder may have vanished
                self._new.unlink(missing_ok=True)
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def write(self, state: Mapping[str, Any]) -> None:
        """Make ``state`` the latest. Raises RunError where it cannot be written; the one before is then intact."""
        import torch

        stream = io.BytesIO()
        torch.save(dict(state), stream)
        content = stream.getbuffer()
        head = {"mmsa_decalign_state": VERSION, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        try:
            with self._new.open("wb") as file:
                file.write(json.dumps(head).encode() + b"\n")
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # before it has the name: a power cut then leaves this one or the one before
            with suppress(FileNotFoundError):
                os.replace(self.path, self.before)
            os.replace(self._new, self.path)
        except OSError as error:
            with suppress(OSError):
                self._new.unlink(missing_ok=True)
            raise refused("state of the run", self.path, error) from error

    def read(self) -> dict[str, Any] | None:
        """The latest state that is whole; None without one. A damaged file is told of."""
        for path, instead in ((self.path, "the one before it is used, if that is whole"),
                              (self.before, "the run starts again")):
            try:
                return read_state(path)
            except FileNotFoundError:
                continue
            except (Damaged, OSError) as error:
                LOGGER.warning("state %s cannot be used, %s: %s", path, error, instead)
        return None

    def remove(self) -> None:
        """Once the run is finished, or when it starts again."""
        for path in (self.path, self.before, self._new):
            path.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, Any]:
    """The state in a file. Raises Damaged, or OSError where it cannot be read at all."""
    import torch

    with path.open("rb") as file:
        line = file.readline(_LONGEST_HEAD)
        content = file.read()
    try:
        head = json.loads(line)
        version, size, digest = head["mmsa_decalign_state"], head["bytes"], head["sha256"]
    except (ValueError, TypeError, KeyError):
        raise Damaged("its first line is not that of a state") from None
    if version != VERSION:
        raise Damaged(f"it has version {version}, expected {VERSION}")
    if len(content) != size:
        raise Damaged(f"it has {len(content)} bytes after its first line, expected {size}")
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damaged("its SHA-256 is another one")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whole, and yet not ours: torch has an error of its own for every kind
        raise Damaged(f"{type(error).__name__} in torch.load") from error
