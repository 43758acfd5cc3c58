"""TensorBoard's event files of a run: every term of the loss and every validation metric, epoch by epoch.

The package ``tensorboard`` is an extra and is imported only when event files are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .watch import is_number

_SCALARS = ("learning_rate", "seconds")  # of an epoch's entry, beside its groups of figures
_GROUPS = ("train", "valid")


def check_tensorboard() -> None:
    """Raise InputError where the package is absent."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(f"--tensorboard needs the package tensorboard ({error}): "
                         "pip install mmsa-decalign[tensorboard]") from error


class EventFiles:
    """Writes epochs as a run's account of them grows; each once."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer, self._written = SummaryWriter(str(folder)), 0

    def catch_up(self, epochs: Sequence[Mapping[str, Any]]) -> None:
        """Write those of the epochs that are new; None in place of a number is left out."""
        for entry in epochs[self._written:]:
            figures = {f"{group}/{name}": value for group in _GROUPS for name, value in entry.get(group, {}).items()}
            figures |= {name: entry[name] for name in _SCALARS if name in entry}
            for name, value in figures.items():
                if is_number(value):
                    self._writer.add_scalar(name, float(value), entry["epoch"])
        self._written = len(epochs)
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


@contextmanager
def event_files(folder: Path | None) -> Iterator[EventFiles | None]:
    """Event files in ``folder`` for the time of the block; None without one."""
    if folder is None:
        yield None
        return
    events = EventFiles(folder)
    try:
        yield events
    finally:
        events.close()
