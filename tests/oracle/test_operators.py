"""Every operator against its NumPy twin: values in float64 and float32, all options, on every device that is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mmsa_decalign import ops, reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
# Relative to the size of the values compared; float32 loses digits in every sum over d and N, and EM repeats them.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
SHAPES = [(1, 1, 1), (2, 3, 4), (16, 4, 3), (33, 8, 5)]  # samples N, width d, prototypes K


def batch(n, d, modalities, seed=0, offset=0.0):
    rng = np.random.default_rng([n, d, modalities, seed])
    return [rng.normal(size=(n, d)) + offset + m / 2 for m in range(modalities)]


def leaves(value: Any) -> list[Any]:
    """The numbers in a result record, in order."""
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def close(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    actual, expected = leaves(actual), leaves(expected)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        a = a.detach().cpu().double().numpy() if isinstance(a, torch.Tensor) else np.asarray(a)
        e = np.asarray(e)
        assert a.shape == e.shape
        finite = np.isfinite(e)
        np.testing.assert_array_equal(np.isfinite(a), finite)
        scale = max(1.0, float(np.abs(e[finite]).max(initial=0.0)))
        np.testing.assert_allclose(a[finite], e[finite], rtol=0, atol=TOLERANCE[dtype] * scale)


def to_torch(value: Any, dtype: torch.dtype, device: str) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        twin = getattr(ops, type(value).__name__)
        return twin(*[to_torch(item, dtype, device) for item in value])
    if isinstance(value, (list, tuple)):
        return [to_torch(item, dtype, device) for item in value]
    return torch.tensor(value, dtype=dtype, device=device) if isinstance(value, np.ndarray) else value


def run(name: str, arguments: list[Any], options: dict[str, Any], dtype: torch.dtype, device: str, part: Callable):
    expected = part(getattr(reference, name)(*arguments, **options))
    actual = part(getattr(ops, name)(*to_torch(arguments, dtype, device), **options))
    close(actual, expected, dtype)


def whole(result: Any) -> Any:
    return result


def transport_values(result: Any) -> Any:
    return result.value, result.plan, result.potentials


def hetero_values(result: Any) -> Any:
    return result.value, result.transport, result.prototype


def mixtures_of(features, k, covariance="diag"):
    return [reference.fit_gaussian_mixture(x, k, covariance=covariance, var_floor=1e-2) for x in features]


def cases():
    """(operator, arguments, options, what is compared) over the shapes and options of each operator."""
    for n, d, k in SHAPES:
        for modalities in (2, 3, 4):
            x = batch(n, d, modalities)
            tensors = [np.stack([v, v[::-1] * 2, v + 1], axis=2) for v in x]
            for power in (1, 2):
                yield "decoupling_loss", [tensors, tensors[::-1]], {"power": power}, whole
            for bandwidth in (0.5, "median", [0.5, 2.0]):
                yield "homo_loss", [x], {"bandwidth": bandwidth}, whole
            for reduction in ("mean", "sum"):
                for mahalanobis in (False, True):
                    options = {"reduction": reduction, "mahalanobis": mahalanobis}
                    for covariance in ("diag", "full"):
                        yield "prototype_loss", [x, mixtures_of(x, k, covariance)], options, whole
                yield "joint_cost", [mixtures_of(x, k)], {"reduction": reduction}, whole
                for covariance in ("diag", "full"):
                    for solver in ("log", "release"):
                        options = {"n_components": k, "reg": 0.3, "reduction": reduction, "covariance": covariance,
                                   "mahalanobis": True, "solver": solver, "var_floor": 1e-2}  # fmt: skip
                        yield "hetero_loss", [x], options, hetero_values
            rng = np.random.default_rng(7)
            cost, marginals = rng.random([k + 1] * modalities), rng.random((modalities, k + 1))
            marginals[0, 0] = 0.0
            marginals = list(marginals / marginals.sum(axis=1, keepdims=True))
            for reg in (0.05, 1.0):
                for solver in ("log", "release"):
                    options = {"reg": reg, "solver": solver}
                    yield "multimarginal_sinkhorn", [cost, marginals], options, transport_values
        one, other = batch(n, d, 2)
        for covariance in ("diag", "full"):
            yield "fit_gaussian_mixture", [one, k], {"covariance": covariance, "var_floor": 1e-2}, whole
            for product_floor in (0.0, 1e-8) if covariance == "diag" else (0.0,):
                pair = mixtures_of([one, other], k, covariance)
                yield "gaussian_cost", pair, {"product_floor": product_floor}, whole
        yield "batch_moments", [one], {}, whole
        yield "moment_distance", [reference.batch_moments(one), reference.batch_moments(other)], {}, whole
        for bandwidth in (0.5, "median", [0.5, 2.0, 8.0]):
            yield "mmd", [one, other], {"bandwidth": bandwidth}, whole


CASES = list(cases())
OPERATORS = sorted(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_equals_reference(operator, dtype, device):
    mine = [case for case in CASES if case[0] == operator]
    assert mine, f"{operator} has no entry in the table"
    for name, arguments, options, part in mine:
        run(name, arguments, options, dtype, device, part)


def test_a_wrong_operator_is_noticed(monkeypatch):
    """The comparison itself can fail: a factor of 1.001 in one operator is seen."""
    original = ops.mmd
    monkeypatch.setattr(ops, "mmd", lambda *a, **k: original(*a, **k) * 1.001)
    with pytest.raises(AssertionError):
        test_operator_equals_reference("mmd", torch.float64, "cpu")


@pytest.mark.parametrize("solver", ["log", "release"])
def test_gradient_of_hetero_loss_is_the_references_slope(solver):
    """Central differences of the NumPy value along random directions."""
    x = batch(12, 3, 3)
    options = {"n_components": 3, "reg": 0.4, "solver": solver}
    if solver == "log":
        options["tol"] = 1e-13
    inputs = [torch.tensor(v, requires_grad=True) for v in x]
    grads = torch.autograd.grad(ops.hetero_loss(inputs, **options).value, inputs)
    rng = np.random.default_rng(3)
    for _ in range(3):
        step = [rng.normal(size=v.shape) for v in x]
        ends = [reference.hetero_loss([v + s * h for v, h in zip(x, step, strict=True)], **options).value
                for s in (1e-5, -1e-5)]
        slope = sum(float((g * torch.tensor(h)).sum()) for g, h in zip(grads, step, strict=True))
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)
