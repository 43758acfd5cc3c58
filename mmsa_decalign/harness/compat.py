"""Faults of MMSA on today's libraries, one small undoable patch each, applied only where the fault is present.

``PATCHES`` is the whole list. A patch replaces a name that MMSA itself looks up, never a name of torch, NumPy or
pandas for everybody else. To add one: a function that tells whether the fault is there, one that mends it and returns
its undoing, and a test that shows the fault without it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Undo = Callable[[], None]


@dataclass(frozen=True)
class Patch:
    """``upstream`` says which line is wrong, in which versions, and why."""

    name: str
    applies: Callable[[], bool]
    apply: Callable[[], Undo]
    upstream: str


class View:
    """A module with some of its names replaced, for one importer only."""

    def __init__(self, module: ModuleType | View, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def apply_patches() -> Undo:
    """Apply every patch whose fault is present; returns a function that takes them back in reverse order."""
    undos = [patch.apply() for patch in PATCHES if patch.applies()]

    def undo() -> None:
        while undos:
            undos.pop()()

    return undo


def replace(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute; returns the function that puts the old one back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def _set_device_fails_on_cpu() -> bool:
    import MMSA.run
    import torch

    if "set_device" not in MMSA.run.MMSA_run.__code__.co_names:
        return False
    try:
        torch.cuda.set_device(torch.device("cpu"))
    except (ValueError, AssertionError, RuntimeError):
        return True
    return False


def _set_device_only_on_cuda() -> Undo:
    import MMSA.run
    import torch

    def set_device(device: Any) -> None:
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)

    view = View(MMSA.run.torch, cuda=View(torch.cuda, set_device=set_device))
    return replace(MMSA.run, "torch", view)


def _numpy_scalars_have_long_names() -> bool:
    import numpy as np

    return repr(round(np.mean([0.5]), 2)) != "0.5"


def _plain_numbers_in_results() -> Undo:
    import MMSA.run
    import numpy as np

    def mean(values: Any) -> float:
        return float(np.mean(values))

    def std(values: Any) -> float:
        return float(np.std(values))

    return replace(MMSA.run, "np", View(MMSA.run.np, mean=mean, std=std))


def _pandas_refuses_tuples_among_text() -> bool:
    import pandas as pd

    frame = pd.read_csv(io.StringIO('Model,MAE\ntfn,"(1.0, 0.0)"\n'))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            frame.loc[len(frame)] = ["lmf", (1.0, 0.0)]
        except Exception:  # a warning of pandas 3, an error announced for pandas 4
            return True
    return False


def _read_results_as_objects() -> Undo:
    import MMSA.run
    import pandas as pd

    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        return pd.read_csv(*args, **kwargs).astype(object)

    return replace(MMSA.run, "pd", View(MMSA.run.pd, read_csv=read_csv))


PATCHES = (
    Patch(
        "set_device_on_cpu",
        _set_device_fails_on_cpu,
        _set_device_only_on_cuda,
        "MMSA/run.py, MMSA_run (2.2.1): torch.cuda.set_device(args['device']) is called for a CPU device too, which "
        "torch refuses, so that nothing runs without a GPU",
    ),
    Patch(
        "plain_numbers_in_results",
        _numpy_scalars_have_long_names,
        _plain_numbers_in_results,
        "MMSA/run.py, MMSA_run (2.2.1): the CSV holds tuples of NumPy scalars, which NumPy 2 writes as "
        "'(np.float64(71.6), np.float64(0.0))' instead of '(71.6, 0.0)'",
    ),
    Patch(
        "second_result_row",
        _pandas_refuses_tuples_among_text,
        _read_results_as_objects,
        "MMSA/run.py, MMSA_run (2.2.1): df.loc[len(df)] = res puts tuples into columns that pandas 3 has read as "
        "strings: a deprecation warning there, announced as an error",
    ),
)
