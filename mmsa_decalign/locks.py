"""Files that several processes write: one at a time, by a lock that the system itself gives back.

Lives here: the lock and how long it is waited for. A lock ends with its process however that ends; the empty lock file
stays, since removing it would let two processes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import RunError

WAIT_SECONDS = 60.0  # all that is done under a lock of ours but for downloads takes some milliseconds
_POLL_SECONDS = 0.01
_SHARED = 0o666  # less the umask it would keep a colleague out who may write the file itself


def lock_of(path: Path) -> Path:
    """The lock file of ``path``: a hidden one beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def guarded(path: Path, seconds: float | None = None) -> Iterator[None]:
    """One process, and one thread of it, at a time inside the block; who comes waits at most ``seconds``
    (None: WAIT_SECONDS).

    Missing folders are made. Raises RunError that names the file when the time is over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = WAIT_SECONDS if seconds is None else seconds
    lock = FileLock(lock_of(path), timeout=seconds, mode=_SHARED)
    try:
        lock.acquire(poll_interval=_POLL_SECONDS)
    except Timeout:
        raise RunError(f"{path}: another process has held its lock for over {seconds:g} s ({lock_of(path)}).\n"
                       "Wait for that process or end it, then repeat; the file is as it was.") from None
    try:
        yield
    finally:
        lock.release()
