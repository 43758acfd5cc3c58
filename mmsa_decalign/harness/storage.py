"""What is said when a disk is full, a folder has become read-only, or a network folder has vanished."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError

REMEDY = "free space there, or make the folder writable; what is finished stays, and --resume does the rest"
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOENT,
            errno.ENOTDIR}
# In the RuntimeErrors that torch.save raises in place of an OSError.
_TORCH = ("PytorchStreamWriter", "unexpected pos", "Parent directory")


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """An OSError inside the block becomes a RunError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise refused(what, path, error) from error


def not_written(error: Exception, checkpoint: Path) -> RunError | None:
    """The RunError for what a model's trainer raised, if the reason is that its checkpoint could not be written."""
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return refused("file", Path(error.filename or checkpoint), error)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH):
        return refused("checkpoint", checkpoint, "no space, or the folder is gone or read-only")
    return None


def refused(what: str, path: Path, reason: OSError | str) -> RunError:
    """The error for a file that cannot be written."""
    reason = (reason.strerror or str(reason)) if isinstance(reason, OSError) else reason
    return RunError(f"{what} {path} cannot be written ({reason}): {REMEDY}")
