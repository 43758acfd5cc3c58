"""One call of an operator against its NumPy twin: how far values and gradients are apart, and how far they may be.

Lives here: the comparison and its tolerances, for `mmsa verify` and for the tests.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import ops, reference

# Largest error accepted, relative to the largest entry of what is compared (or to the case's unit, if that is larger).
# The operators compute in float64: in float32 only the result is rounded, to 6e-8 of its size. In float64 it is the
# features of 1e4 with a spread of 1e-2 that cost digits, here as in the reference.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-6}
# Differences of the reference lose digits of their own, and so does a gradient that is added up in the input's type.
GRADIENT_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-6}
STEP = 1e-4  # of the differences, in units of a random direction; fourth order: errors of STEP^4 and 1e-16 / STEP
DIRECTIONS = 1
NO_SLOPE = 1e-6  # below this a slope of numbers of size 1 counts as zero


def whole(result: Any) -> Any:
    """All numbers of a result."""
    return result


def transport_numbers(result: Any) -> Any:
    """Value, plan, potentials and error: how many rounds a solver took is its own affair."""
    return result.value, result.plan, result.potentials, result.marginal_error


def loss_numbers(result: Any) -> Any:
    """The three sums of a HeteroLoss."""
    return result.value, result.transport, result.prototype


def value_only(result: Any) -> Any:
    """The number of a TransportResult that is differentiable."""
    return result.value


class Case(NamedTuple):
    """One call of an operator and its twin, and what to compare."""

    operator: str
    arguments: tuple[Any, ...]  # arrays, sequences of arrays, records of the reference
    options: dict[str, Any] = {}
    compared: Callable[[Any], Any] = whole
    differentiated: Callable[[Any], Any] | None = whole  # None: no gradient check
    unit: float = 1.0  # size below which an entry counts as zero


def leaves(value: Any) -> list[Any]:
    """The arrays and numbers in a result record, in order."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def convert(value: Any, change: Callable[[np.ndarray], Any], home: Any) -> Any:
    """`value` with every array changed, and every record as the class of that name in `home`."""
    if isinstance(value, tuple | list):
        parts = [convert(item, change, home) for item in value]
        return getattr(home, type(value).__name__)(*parts) if hasattr(value, "_fields") else parts
    return change(value) if isinstance(value, np.ndarray) else value


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case with the numbers that `dtype` can hold: what the operator sees, the reference shall see as well."""
    to = {torch.float64: np.float64, torch.float32: np.float32}[dtype]
    return case._replace(arguments=convert(case.arguments, lambda a: a.astype(to).astype(np.float64), reference))


def to_tensors(case: Case, dtype: torch.dtype, device: Any, inputs: list[Tensor] | None = None) -> list[Any]:
    """The case's arguments for the operator; the tensors made are appended to `inputs` and then require gradients."""

    def change(array: np.ndarray) -> Tensor:
        tensor = torch.tensor(array, dtype=dtype, device=device, requires_grad=inputs is not None)
        if inputs is not None:
            inputs.append(tensor)
        return tensor

    return convert(case.arguments, change, ops)


def _numbers(leaf: Any) -> np.ndarray:
    return leaf.detach().cpu().double().numpy() if isinstance(leaf, Tensor) else np.asarray(leaf, dtype=np.float64)


def error_of(actual: Any, expected: Any, unit: float = 1.0) -> float:
    """Largest difference, each relative to the largest entry of its array (at least `unit`); inf where shapes differ.

    Infinite entries (potentials without mass) must be the same on both sides. NaN is never right.
    """
    actual, expected = [_numbers(x) for x in leaves(actual)], [_numbers(x) for x in leaves(expected)]
    if [a.shape for a in actual] != [e.shape for e in expected]:
        return math.inf
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        finite = np.isfinite(e)
        if np.isnan(a).any() or not np.array_equal(a[~finite], e[~finite]) or not np.isfinite(a[finite]).all():
            return math.inf
        scale = max(unit, float(np.abs(e[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(a[finite] - e[finite]).max(initial=0.0)) / scale)
    return worst


def value_error(case: Case, dtype: torch.dtype, device: Any) -> float:
    """How far the operator's numbers are from the reference's."""
    case = rounded(case, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a solver that says so itself is not the question here
        expected = case.compared(getattr(reference, case.operator)(*case.arguments, **case.options))
        actual = case.compared(getattr(ops, case.operator)(*to_tensors(case, dtype, device), **case.options))
    right_type = all(leaf.dtype == dtype for leaf in leaves(actual) if isinstance(leaf, Tensor))
    return error_of(actual, expected, case.unit) if right_type else math.inf


def gradient_error(case: Case, dtype: torch.dtype, device: Any, seed: int = 0) -> float:
    """How far back-propagation is from fourth-order differences of the reference, along random directions.

    What is differentiated is a random mean of the case's numbers. Relative to the slope, or to that which a direction
    typically has where it happens to be small.
    """
    if case.differentiated is None:
        return 0.0
    case, rng = rounded(case, dtype), np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        inputs: list[Tensor] = []
        arguments = to_tensors(case, dtype, device, inputs)
        outputs = leaves(case.differentiated(getattr(ops, case.operator)(*arguments, **case.options)))
        weights = [rng.normal(size=_numbers(x).shape) / max(case.unit, np.abs(_numbers(x)).max()) for x in outputs]
        pairs = zip(outputs, weights, strict=True)
        total = sum((x.double() * torch.tensor(w, device=x.device)).sum() for x, w in pairs)
        gradients = [
            np.zeros(x.shape) if g is None else _numbers(g)
            for x, g in zip(inputs, torch.autograd.grad(total, inputs, allow_unused=True), strict=True)
        ]

        def mean_along(direction: list[np.ndarray], length: float) -> float:
            steps = iter(direction)
            moved = convert(case.arguments, lambda a: a + length * next(steps), reference)
            found = leaves(case.differentiated(getattr(reference, case.operator)(*moved, **case.options)))
            return sum(float((w * x).sum()) for w, x in zip(weights, found, strict=True))

        worst = 0.0
        for _ in range(DIRECTIONS):
            direction = [_direction(case, _numbers(x), rng) for x in inputs]
            one, two = (mean_along(direction, n * STEP) - mean_along(direction, -n * STEP) for n in (1, 2))
            slope = (8 * one - two) / (12 * STEP)
            found = sum(float((g * v).sum()) for g, v in zip(gradients, direction, strict=True))
            typical = math.sqrt(sum(float(((g * v) ** 2).sum()) for g, v in zip(gradients, direction, strict=True)))
            error = abs(found - slope) / max(abs(slope), typical, NO_SLOPE)
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _direction(case: Case, array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random step that stays inside the operator's domain."""
    v = rng.normal(size=array.shape)
    if case.operator == "multimarginal_sinkhorn" and array.ndim == 1:  # a marginal keeps its sum and its zeros
        return array * (v - array @ v / array.sum())
    if array.ndim == 3 and array.shape[1] == array.shape[2]:  # full covariances stay symmetric
        v = (v + v.transpose(0, 2, 1)) / 2
    return v * 0.1 * max(float(np.abs(array).max()), 1e-3) if case.operator == "decoupling_loss" else v * 0.1
