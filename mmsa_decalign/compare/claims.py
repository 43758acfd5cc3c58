"""Who is at work: a token is a file that its owner keeps locked, so that the system itself says when the owner is gone.

No clock and no process number is read: a lock ends with its process however that ends, and with nothing else.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout


def hold(folder: Path, token: str) -> FileLock:
    """Lock the token's file for as long as this process lives, or until ``drop``. Before the token is shown around."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / token, thread_local=False)
    lock.acquire(timeout=0)
    return lock


def drop(lock: FileLock) -> None:
    """The end of a token, once nothing is claimed by it any more."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def alive(folder: Path, token: str) -> bool:
    """Whether the process that holds the token still runs; what a dead one left is removed."""
    path = folder / token
    if not path.exists():
        return False
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    drop(lock)
    return False
