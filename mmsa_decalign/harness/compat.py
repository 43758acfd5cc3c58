"""Faults of MMSA on today's libraries, one small undoable patch each, applied only where the fault is present.

``PATCHES`` is the whole list. A patch replaces a name that MMSA itself looks up, never a name of torch, NumPy or
pandas for everybody else. To add one: a function that tells whether the fault is there, one that mends it and returns
its undoing, and a test that shows the fault without it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .compat_models import MODEL_PATCHES
from .compat_writing import WRITING_PATCHES
from .patching import Patch, Undo, View, replace


def apply_patches() -> Undo:
    """Apply every patch whose fault is present; returns a function that takes them back in reverse order."""
    undos: list[Undo] = []

    def undo() -> None:
        while undos:
            undos.pop()()

    try:
        undos.extend(patch.apply() for patch in PATCHES if patch.applies())
    except BaseException:
        undo()
        raise
    return undo


@contextmanager
def overlaid(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of one object or module for the time of the block, above whatever it inherits."""
    inherited, before = name not in vars(owner), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


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


def _metrics_fail_on_neutral_labels() -> bool:
    import torch
    from MMSA.utils import MetricsTop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            MetricsTop("regression").getMetics("mosi")(torch.ones(2), torch.zeros(2))
        except (IndexError, ValueError):
            return True
    return False


def _metrics_of_nothing_are_nan() -> Undo:
    import MMSA.utils.metricsTop as module
    import numpy as np

    def array(values: Any, *args: Any, **kwargs: Any) -> Any:
        # the positions of non-neutral labels; without any NumPy makes floats, which index nothing
        return np.array(values, *args, **kwargs) if len(values) else np.empty(0, dtype=int)

    def corrcoef(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # of a single sample, of constant predictions: it is NaN
            return np.corrcoef(*args, **kwargs)

    def of_something(score: Callable[..., float]) -> Callable[..., float]:
        return lambda first, second, **options: score(first, second, **options) if len(first) else float("nan")

    undos = [
        replace(module, "np", View(module.np, array=array, corrcoef=corrcoef)),
        replace(module, "accuracy_score", of_something(module.accuracy_score)),
        replace(module, "f1_score", of_something(module.f1_score)),
    ]

    def undo() -> None:
        for take_back in reversed(undos):
            take_back()

    return undo


def _log_handlers_pile_up() -> bool:
    import MMSA.run

    return "addHandler" in MMSA.run._set_logger.__code__.co_names


def _one_pair_of_log_handlers() -> Undo:
    import MMSA.run

    original, left_behind = MMSA.run._set_logger, []

    def set_logger(*args: Any, **kwargs: Any) -> logging.Logger:
        close_old()
        logger = logging.getLogger("MMSA")
        before = list(logger.handlers)
        original(*args, **kwargs)
        left_behind.extend(handler for handler in logger.handlers if handler not in before)
        return logger

    def close_old() -> None:
        while left_behind:
            handler = left_behind.pop()
            logging.getLogger("MMSA").removeHandler(handler)
            handler.close()

    undo = replace(MMSA.run, "_set_logger", set_logger)

    def undo_and_close() -> None:
        undo()
        close_old()

    return undo_and_close


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
    Patch(
        "metrics_of_neutral_labels",
        _metrics_fail_on_neutral_labels,
        _metrics_of_nothing_are_nan,
        "MMSA/utils/metricsTop.py, __eval_mosei_regression (2.2.1): without a label other than 0 the list of positions "
        "is an array of floats, which cannot index; Non0_acc_2 and Non0_F1_score of no sample are not a number",
    ),
    Patch(
        "log_handlers_once",
        _log_handlers_pile_up,
        _one_pair_of_log_handlers,
        "MMSA/run.py, _set_logger (2.2.1): every MMSA_run adds two handlers and removes none; the n-th run of a "
        "process writes each line n times and keeps n files open",
    ),
    *WRITING_PATCHES,
    *MODEL_PATCHES,
)
