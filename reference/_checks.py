"""Input checks shared by every file of the reference.

Each check raises a ValueError that says what was expected, what came, and what to do. No mathematics here.
"""

from collections.abc import Sequence

import numpy as np


def finite(name: str, value, ndim: int | None = None) -> np.ndarray:
    """`value` as a float64 array with finite entries, at least one of them, and `ndim` axes if that is given."""
    array = np.asarray(value, dtype=np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}: reshape it first")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}: pass at least one row and one column")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinite entries: clean the input first")
    return array


def batch(name: str, arrays: Sequence) -> list[np.ndarray]:
    """One (N, d) array for each of M >= 2 modalities, all of one shape."""
    checked = [finite(f"{name}[{m}]", array, 2) for m, array in enumerate(arrays)]
    if len(checked) < 2 or len({array.shape for array in checked}) > 1:
        shapes = [array.shape for array in checked]
        raise ValueError(f"{name} must hold 2 or more arrays of one shape, got {shapes}: pass one (N, d) per modality")
    return checked


def require(name: str, value, holds: bool, expected: str) -> None:
    """`value` is what is expected of it: `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}: choose such a value")
