"""Faults of MMSA where several processes write the same file; one patch each, as in compat.py."""

from __future__ import annotations

import functools
import os
import uuid
from pathlib import Path
from typing import Any

from .files import append_lines
from .patching import Patch, Undo, View, replace


def _table_is_written_anew() -> bool:
    import MMSA.run

    names = MMSA.run.MMSA_run.__code__.co_names
    return "read_csv" in names and "to_csv" in names


def _rows_are_appended() -> Undo:
    import MMSA.run
    import pandas as pd

    class Table(pd.DataFrame):
        """Knows how many of its rows came from the file; ``to_csv`` appends the rest to what is there by now."""

        _metadata = ["rows_read"]

        @property
        def _constructor(self) -> type[Table]:
            return Table

        def to_csv(self, path: Any, index: Any = None) -> None:
            rows = pd.DataFrame(self).iloc[self.rows_read:]
            append_lines(Path(path), list(self.columns), rows.to_csv(index=index, header=False, lineterminator="\n"))
            self.rows_read = len(self)

    def table(frame: pd.DataFrame) -> Table:
        made = Table(frame)
        made.rows_read = len(made)
        return made

    read_csv = MMSA.run.pd.read_csv  # perhaps of another patch

    def read(*args: Any, **kwargs: Any) -> Table:
        return table(read_csv(*args, **kwargs))

    def empty(*args: Any, **kwargs: Any) -> Table:
        return table(pd.DataFrame(*args, **kwargs))

    return replace(MMSA.run, "pd", View(MMSA.run.pd, read_csv=read, DataFrame=empty))


def _checkpoints_share_a_name() -> bool:
    import MMSA.run

    code = MMSA.run.MMSA_run.__code__
    return "_run" in code.co_names and "model_save_path" in code.co_consts and "uuid4" not in code.co_names


def _checkpoint_of_its_own() -> Undo:
    import MMSA.run

    original = MMSA.run._run

    @functools.wraps(original)
    def run(args: Any, *rest: Any, **options: Any) -> Any:
        shared = Path(args["model_save_path"])
        own = shared.with_name(f".{shared.name}.{uuid.uuid4().hex[:8]}.tmp")
        args["model_save_path"] = own
        try:
            results = original(args, *rest, **options)
            if own.exists():  # not after a trial of a search
                os.replace(own, shared)
            return results
        finally:
            args["model_save_path"] = shared
            own.unlink(missing_ok=True)

    return replace(MMSA.run, "_run", run)


WRITING_PATCHES = (
    Patch(
        "rows_of_others",
        _table_is_written_anew,
        _rows_are_appended,
        "MMSA/run.py, MMSA_run (2.2.1): the table of results is read, extended and written without a lock, so that "
        "of two runs that end together one row is lost; and a reader may meet half a table",
    ),
    Patch(
        "checkpoint_of_others",
        _checkpoints_share_a_name,
        _checkpoint_of_its_own,
        "MMSA/run.py, MMSA_run (2.2.1): the checkpoint is named after model and data set alone, so that two runs at "
        "once write to one file, and each may test what the other has saved",
    ),
)
