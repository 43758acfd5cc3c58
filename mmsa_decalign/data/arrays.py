"""Checks and conversions of single arrays of a feature file; every refusal is an InputError that starts with `where`.

`where` is the text "file: split 'train', key 'audio'". What may change here: which dtypes and shapes are let in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import InputError

_MOST_CLASSES = 1 << 16
_BLOCK_VALUES = 1 << 22  # values looked at at once: the masks of a check stay small beside gigabytes of features


def as_strings(values: Any, where: str) -> list[str]:
    """Ids or sentences as plain strings, whatever the file keeps them in (list, array, bytes, numbers)."""
    if not isinstance(values, (list, tuple, np.ndarray)) or getattr(values, "ndim", 1) == 0:
        raise InputError(f"{where} is a {type(values).__name__}; expected a list with one entry per sample.")
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def _array(values: Any, where: str, kinds: str, expected: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):  # rows of different shapes
        raise InputError(f"{where} is a {type(values).__name__} of unequal rows; expected {expected}.\n"
                         "Pad the rows to one length with zeros.") from None
    if array.dtype.kind not in kinds:
        raise InputError(f"{where} has dtype {array.dtype}; expected {expected}.\nConvert it and write the file again.")
    return array


def feature_array(values: Any, where: str) -> np.ndarray:
    expected = "numbers of shape (samples, steps, width)"
    array = _array(values, where, "fiu", expected)
    if array.ndim != 3:
        hint = "Add the axis of steps: x[:, None, :]." if array.ndim == 2 else "Bring it to three axes."
        raise InputError(f"{where} has shape {array.shape}; expected {expected}.\n{hint}")
    if len(array) and 0 in array.shape:
        raise InputError(f"{where} has shape {array.shape}: no steps or no width; expected {expected}.\n"
                         "Leave a modality out with a setting, not with an empty array.")
    return _float32(array)


def label_array(values: Any, where: str) -> np.ndarray:
    array = _array(values, where, "fiu", "numbers of shape (samples,)")
    if array.ndim == 2 and array.shape[1] == 1:  # one column is as good as none
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{where} has shape {array.shape}; expected (samples,).\nKeep one label per sample.")
    return _float32(array)


def class_array(values: Any, where: str) -> np.ndarray:
    """(N,) int64 from numbers that are whole and not negative."""
    expected = "one whole number from 0 for each sample"
    array = _array(values, where, "fiu", expected)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{where} has shape {array.shape}; expected {expected}.\nKeep the number of one class each.")
    numbers = array.astype(np.float64)
    wrong = ~((numbers >= 0) & (numbers < _MOST_CLASSES) & (numbers == np.floor(numbers)))  # also of NaN and Inf
    if wrong.any():
        raise InputError(f"{where} holds {numbers[wrong][0]:g}; expected {expected}.\n"
                         "Number the classes 0, 1, 2, ... and leave out samples without one.")
    return array.astype(np.int64)


def token_array(values: Any, where: str) -> np.ndarray:
    expected = "whole numbers of shape (samples, 3, tokens): ids, attention mask, segments"
    array = _array(values, where, "fiu", expected)
    if array.ndim != 3 or array.shape[1] != 3:
        raise InputError(f"{where} has shape {array.shape}; expected {expected}.\nStack the tokenizer's three outputs.")
    return _int64(array, where, expected)


def length_array(values: Any, where: str) -> np.ndarray:
    expected = "one whole number of steps per sample"
    return _int64(_array(values, where, "fiu", expected).reshape(-1), where, expected)


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf and is then reported as such
        # Also in rows and writable, since torch wants it so: a copy made later would stay beside this one.
        return np.require(array, np.float32, "CWA")


def _int64(array: np.ndarray, where: str, expected: str) -> np.ndarray:
    if array.dtype == np.float16:  # has no 2**53
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not ((array == np.rint(array)) & (abs(array) < 2**53)).all():
        raise InputError(f"{where} holds fractions, NaN or Inf; expected {expected}.\nWrite it as integers.")
    return np.require(array, np.int64, "CWA")


def blocks(array: np.ndarray) -> Iterator[slice]:
    """Row ranges of at most about `_BLOCK_VALUES` values, for whoever goes through all of a large array."""
    rows = max(1, _BLOCK_VALUES // max(1, array[:1].size))
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)


def refuse_non_finite(
    array: np.ndarray, where: str, ids: list[str], *, zero_minus_inf: bool = False
) -> tuple[np.ndarray, int]:
    """Refuse NaN and Inf; with `zero_minus_inf` set -inf to 0 in place (in a copy if read-only) and count it."""
    bad = zeroed = 0
    first = ""
    for block in blocks(array):
        wrong = ~np.isfinite(array[block])
        if not wrong.any():
            continue
        if zero_minus_inf:
            minus = np.isneginf(array[block])
            if minus.any():
                array = array if array.flags.writeable else array.copy()
                array[block][minus] = 0
                zeroed += int(minus.sum())
                wrong &= ~minus
        if wrong.any():
            rows = wrong.reshape(len(wrong), -1).any(axis=1)
            first = first or ids[block.start + int(rows.argmax())]
            bad += int(wrong.sum())
    if bad:
        raise InputError(f"{where} holds NaN or Inf ({bad} value{'s' * (bad != 1)}), first in sample {first!r}; "
                         "expected finite float32 values.\nRepair or remove these samples in the file.")
    return array, zeroed


def last_nonzero(array: np.ndarray) -> np.ndarray:
    """(N, T, D) -> (N,): steps up to and including the last one with a non-zero value; 1 where all are zero."""
    lengths = np.empty(len(array), dtype=np.int64)
    steps = np.arange(1, array.shape[1] + 1)
    for block in blocks(array):
        lengths[block] = ((array[block] != 0).any(axis=2) * steps).max(axis=1)
    return np.maximum(lengths, 1)


def clip_lengths(lengths: np.ndarray, steps: int, where: str, ids: list[str]) -> np.ndarray:
    """Lengths into 1..steps. Too long is an error, except with one step: an averaged array beside the old lengths."""
    too_long = lengths > steps
    if steps > 1 and too_long.any():
        first = int(too_long.argmax())
        raise InputError(f"{where} says {lengths[first]} steps for sample {ids[first]!r}, but the array has {steps}.\n"
                         "Lengths count the steps before the padding: write those of this array.")
    return np.clip(lengths, 1, steps)
