"""The written-out derivative of EM against autograd through the same steps, in all the corners where they bend."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmsa_decalign.ops import diagonal
from mmsa_decalign.ops.mixture import start_rows
from tests.conftest import assert_same


def by_autograd(x, k, n_iter, var_floor, count_floor, weight_floor):
    """The steps as the paper has them, (M, N, K), differentiated operation by operation."""
    m, n, d = x.shape
    weights, means = x.new_full((m, k), 1 / k), x[:, list(start_rows(n, k))]
    variances = x.var(dim=1, unbiased=False, keepdim=True).clamp_min(var_floor).expand(m, k, d)

    def expect():
        squares = ((x.unsqueeze(2) - means.unsqueeze(1)).square() / variances.unsqueeze(1)).sum(dim=3)
        log_density = -0.5 * (squares + variances.log().sum(dim=2).unsqueeze(1))
        return torch.softmax(weights.clamp_min(weight_floor).log().unsqueeze(1) + log_density, dim=2)

    r = expect()
    for _ in range(n_iter):
        count = r.sum(dim=1).clamp_min(count_floor)
        weights, means = count / n, r.mT @ x / count.unsqueeze(2)
        squares = (x.unsqueeze(2) - means.unsqueeze(1)).square()
        variances = ((r.unsqueeze(3) * squares).sum(dim=1) / count.unsqueeze(2)).clamp_min(var_floor)
        r = expect()
    return weights, means, variances, r.mT


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


BATCHES = {
    "spread": (random(3, 20, 4), 5, 1e-4),
    "fewer samples than components": (random(2, 3, 2), 5, 1e-4),
    "one sample": (random(2, 1, 3), 2, 1e-4),
    "one component": (random(2, 9, 3), 1, 1e-4),
    "variances on the floor": (random(2, 12, 3), 4, 0.8),
    "far from the origin": (1e4 + 1e-2 * random(2, 12, 3), 3, 1e-6),
    "more samples than the buffer holds": (random(2, 70, 3), 3, 1e-4),
    "as many samples as the buffer holds, thrice": (random(2, 96, 2), 3, 1e-4),
}


# Of the count and of the weight in the density. No few steps from rows of the batch bring a component below the real
# ones, so that what happens there is shown on floors that are high.
FLOORS = [(diagonal.COUNT_FLOOR, diagonal.WEIGHT_FLOOR), (3.0, 1e-8), (1e-6, 0.2), (2.0, 0.3)]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("n_iter", [0, 1, 4])
@pytest.mark.parametrize("floors", FLOORS)
def test_value_and_derivative_of_every_output(name, n_iter, floors, monkeypatch):
    x, k, var_floor = BATCHES[name]
    for constant, floor in zip(("COUNT_FLOOR", "WEIGHT_FLOOR"), floors, strict=True):
        monkeypatch.setattr(diagonal, constant, floor)
    monkeypatch.setattr(diagonal, "ROOM", 1)
    found, expected = [], []
    for results, fit in (
        (found, lambda t: diagonal.DiagonalEM.apply(t, start_rows(x.shape[1], k), n_iter, var_floor)),
        (expected, lambda t: by_autograd(t, k, n_iter, var_floor, *floors)),
    ):
        leaf = x.clone().requires_grad_()
        outputs = fit(leaf)
        results.extend(outputs)
        weights = [random(*part.shape, seed=i) for i, part in enumerate(outputs)]
        terms = [(part * w).sum() for part, w in zip(outputs, weights, strict=True)]
        for size in (1, 2, 4):  # each output alone, pairs, all
            for chosen in itertools.combinations(terms, size):
                total = sum(chosen)
                gradient = torch.zeros_like(x)
                if total.requires_grad:  # weights and variances without a step may not depend on x
                    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)
                results.append(torch.zeros_like(x) if gradient is None else gradient)
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, 1e-8 * max(1.0, float(theirs.detach().abs().max())))


def test_the_cases_reach_the_floors():
    x, k, var_floor = BATCHES["spread"]
    weights = diagonal.DiagonalEM.apply(x, start_rows(20, k), 4, var_floor)[0]
    assert float(weights.min() * 20) < 2.0 < float(weights.max() * 20)
    x, k, var_floor = BATCHES["variances on the floor"]
    variances = diagonal.DiagonalEM.apply(x, start_rows(12, k), 4, var_floor)[2]
    assert float(variances.min()) == var_floor < float(variances.max())


def test_it_has_no_second_derivative_and_says_so():
    x = random(1, 5, 2).requires_grad_()
    means = diagonal.DiagonalEM.apply(x, (0, 4), 2, 1e-4)[1]
    (gradient,) = torch.autograd.grad(means.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
