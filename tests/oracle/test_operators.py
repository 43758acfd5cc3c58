"""Every operator against its NumPy twin: values and gradients, in float64 and float32, all options, on every device.

The table of cases and the tolerances are those of `mmsa verify`; here are also drawn sizes and numbers.
"""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle_draws import drawn_case
from torch.utils._python_dispatch import TorchDispatchMode

from mmsa_decalign import ops, reference, verify
from mmsa_decalign.verify import comparison, table
from mmsa_decalign.verify.comparison import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    Case,
    gradient_error,
    leaves,
    to_tensors,
    value_error,
)

CASES = list(verify.cases())
OPERATORS = sorted(name for name in ops.__all__ if inspect.isfunction(getattr(ops, name)))

on_every_device = pytest.mark.parametrize("device", [str(device) for device in verify.devices_here()])
in_every_type = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
of_every_operator = pytest.mark.parametrize("operator", OPERATORS)


def entries(operator: str) -> list[Case]:
    own = [case for case in CASES if case.operator == operator]
    assert own, f"{operator} has no entry in the table"
    return own


@on_every_device
@in_every_type
@of_every_operator
def test_operator_equals_reference(operator, dtype, device):
    for case in entries(operator):
        assert value_error(case, dtype, device) <= TOLERANCE[dtype], case


@on_every_device
@in_every_type
@of_every_operator
def test_gradient_is_the_references_slope(operator, dtype, device):
    assert any(case.differentiated for case in entries(operator))
    for case in entries(operator):
        assert gradient_error(case, dtype, device) <= GRADIENT_TOLERANCE[dtype], case


@on_every_device
@in_every_type
@of_every_operator
@given(data=st.data())
def test_operator_equals_reference_on_drawn_input(operator, dtype, device, data):
    case = data.draw(drawn_case(operator))
    assert value_error(case, dtype, device) <= TOLERANCE[dtype]


@in_every_type
@of_every_operator
@given(data=st.data())
def test_gradients_on_drawn_input_are_finite(operator, dtype, data):
    case = data.draw(drawn_case(operator))
    inputs: list[torch.Tensor] = []
    arguments = to_tensors(case, dtype, "cpu", inputs)
    outputs = leaves(case.differentiated(getattr(ops, operator)(*arguments, **case.options)))
    for gradient in torch.autograd.grad(sum(x.sum() for x in outputs), inputs, allow_unused=True):
        assert gradient is None or bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_the_largest_sizes(covariance, dtype):
    """N = 512, d = 128 and K = 32 at once (K = 4 with full covariances: the reference takes matrix roots)."""
    x = table.batch(512, 128, 2)
    options = {"n_components": 32 if covariance == "diag" else 4, "covariance": covariance, "var_floor": 1e-2}
    case = Case("hetero_loss", (x,), options, comparison.loss_numbers)
    assert value_error(case, dtype, "cpu") <= TOLERANCE[dtype]


def large_cases():
    """The operators that `hetero_loss` does not use, and transport over more than two modalities, at full size."""
    x = table.batch(512, 128, 4)
    steps = [np.stack([part, part[::-1] * 2], axis=2) for part in x]
    yield Case("homo_loss", (x,), {"bandwidth": "median"})
    yield Case("mmd", (x[0], x[1]), {"bandwidth": 64.0})
    yield Case("batch_moments", (x[0],))
    yield Case("decoupling_loss", (steps, steps[::-1]))
    mixtures = [reference.fit_gaussian_mixture(part, 32) for part in x[:3]]
    yield Case("joint_cost", (mixtures,))
    cost = np.random.default_rng(0).random((32, 32, 32))
    marginals = [np.random.default_rng(m).dirichlet(np.ones(32)) for m in range(3)]
    yield Case("multimarginal_sinkhorn", (cost, marginals), {"reg": 0.1}, comparison.transport_numbers)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.operator) for case in large_cases()])
def test_the_largest_sizes_of_the_others(case, dtype):
    assert value_error(case, dtype, "cpu") <= TOLERANCE[dtype]


@of_every_operator
def test_gradcheck(operator):
    """Against differences of the operator itself, for the small cases of the table: every entry of every input."""
    most = 15 if operator == "hetero_loss" else 90
    sizes = [sum(map(np.size, leaves(case.arguments))) for case in entries(operator)]
    small = [case for case, size in zip(entries(operator), sizes, strict=True) if case.differentiated and size < most]
    assert max(map(np.size, leaves([case.arguments for case in small]))) >= 6
    for case in small:
        inputs: list[torch.Tensor] = []
        to_tensors(case, torch.float64, "cpu", inputs)
        if operator == "multimarginal_sinkhorn":  # logits: a marginal keeps its sum and its zeros
            case = case._replace(options=case.options | {"tol": 1e-13})
            inputs = [x.detach().log().requires_grad_() if x.dim() == 1 else x for x in inputs]

        def numbers(*tensors, case=case):
            given_back = iter(tensors)

            def replacement(array):
                tensor = next(given_back)
                return tensor.softmax(0) if operator == "multimarginal_sinkhorn" and array.ndim == 1 else tensor

            arguments = comparison.convert(case.arguments, replacement, ops)
            return tuple(leaves(case.differentiated(getattr(ops, operator)(*arguments, **case.options))))

        assert torch.autograd.gradcheck(numbers, inputs, eps=1e-5, atol=1e-6, rtol=1e-4, check_batched_grad=False)


# Precision: no product of matrices in float32, which TF32 and autocast would round to 10 bits or fewer

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "dot", "matmul", "linalg", "cholesky", "triangular", "cdist")


class Products(TorchDispatchMode):
    """Remembers the types of the tensors that go into products and factorisations."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in function.__name__ for word in PRODUCTS):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return function(*args, **(kwargs or {}))


def product_types(case: Case) -> set[torch.dtype]:
    """Types of the products in a float32 call of an operator and in its backward pass."""
    inputs: list[torch.Tensor] = []
    arguments = to_tensors(case, torch.float32, "cpu", inputs)
    with Products() as seen:
        outputs = leaves(comparison.value_only(getattr(ops, case.operator)(*arguments, **case.options))
                         if case.operator == "multimarginal_sinkhorn"
                         else getattr(ops, case.operator)(*arguments, **case.options))  # fmt: skip
        total = sum(x.sum() for x in outputs if isinstance(x, torch.Tensor) and x.requires_grad)
        torch.autograd.grad(total, inputs, allow_unused=True)
    return seen.types - {torch.int32, torch.int64}


def test_no_product_in_float32():
    found: dict[str, set[torch.dtype]] = {}
    for case in CASES:
        if np.size(leaves(case.arguments)[0]) < 10:
            found.setdefault(case.operator, set()).update(product_types(case))
    assert set(found) == set(OPERATORS)
    assert found["fit_gaussian_mixture"] == found["gaussian_cost"] == found["mmd"] == {torch.float64}
    assert set().union(*found.values()) == {torch.float64}


def test_a_product_in_float32_is_found():
    with Products() as seen:
        torch.ones(2, 2) @ torch.ones(2, 2)
        torch.linalg.solve_triangular(torch.eye(2), torch.eye(2), upper=False)
    assert seen.types == {torch.float32}


@of_every_operator
def test_autocast_changes_nothing(operator):
    for case in entries(operator):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            error = value_error(case, torch.float32, "cpu")
        assert error <= TOLERANCE[torch.float32], case


# The table and the comparison themselves


def records(value):
    """Names of all records in a result."""
    if isinstance(value, tuple | list):
        own = {type(value).__name__} if hasattr(value, "_fields") else set()
        return own.union(*(records(item) for item in value))
    return set()


def test_every_public_name_is_in_the_table():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        results = [getattr(ops, c.operator)(*to_tensors(c, torch.float64, "cpu"), **c.options) for c in CASES]
    assert {case.operator for case in CASES} | records(results) == set(ops.__all__)


def test_every_option_of_an_operator_is_in_the_table():
    """Each keyword of each operator has a case that sets it, but for those that only limit the rounds."""
    for operator in OPERATORS:
        keywords = inspect.signature(getattr(ops, operator)).parameters.values()
        named = {p.name for p in keywords if p.kind is p.KEYWORD_ONLY} - {"n_iter", "max_iter", "tol", "product_floor"}
        assert named <= {option for case in entries(operator) for option in case.options}, operator


def wrong(monkeypatch, operator, change):
    original = getattr(ops, operator)
    monkeypatch.setattr(ops, operator, lambda *a, **k: change(original(*a, **k)))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_wrong_value_and_a_wrong_gradient_are_noticed(monkeypatch, dtype):
    case = entries("joint_cost")[-1]
    assert value_error(case, dtype, "cpu") < TOLERANCE[dtype]
    with monkeypatch.context() as patch:
        wrong(patch, "joint_cost", lambda x: x * (1 + 1e-5))
        assert 0.9e-5 < value_error(case, dtype, "cpu") < 1.1e-5
        assert 0.5e-5 < gradient_error(case, dtype, "cpu") < 2e-5
    with monkeypatch.context() as patch:
        wrong(patch, "joint_cost", lambda x: x.detach() + 0 * x)
        assert value_error(case, dtype, "cpu") < TOLERANCE[dtype]
        assert gradient_error(case, dtype, "cpu") > 0.5


@pytest.mark.parametrize(
    "change",
    [lambda x: x * torch.nan, lambda x: x / 0, lambda x: x.expand(1), lambda x: x.half()],
    ids=["NaN", "infinite", "shape", "type"],
)
def test_a_result_that_is_no_number_of_the_right_kind_is_infinitely_wrong(monkeypatch, change):
    wrong(monkeypatch, "mmd", change)
    assert value_error(entries("mmd")[0], torch.float32, "cpu") == np.inf


def test_where_the_reference_is_infinite_the_operator_must_be():
    minus = np.array([-np.inf, 1.0])
    assert comparison.error_of([minus], [minus]) == 0.0
    assert comparison.error_of([np.array([-1e300, 1.0])], [minus]) == np.inf
    assert comparison.error_of([minus], [np.array([0.0, 1.0])]) == np.inf
    assert comparison.error_of([np.array([3.0, 1.0])], [np.array([4.0, 1.0])]) == 0.25
    assert comparison.error_of([np.array([3.0])], [np.array([4.0])], unit=10.0) == 0.1


def test_reference_and_operator_see_the_same_rounded_numbers():
    case = Case("batch_moments", (np.array([[0.1], [0.2]]),))
    (seen,) = comparison.rounded(case, torch.float32).arguments
    assert seen.tolist() == [[float(np.float32(0.1))], [float(np.float32(0.2))]]
    assert comparison.rounded(case, torch.float64).arguments[0].tolist() == [[0.1], [0.2]]
    assert isinstance(comparison.rounded(CASES[-1], torch.float32).arguments, list)
    mixture = reference.fit_gaussian_mixture(np.eye(2), 2)
    assert isinstance(to_tensors(Case("joint_cost", ([mixture],)), torch.float32, "cpu")[0][0], ops.GaussianMixture)
