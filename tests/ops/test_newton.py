"""The short way through the transport problem: optimality, agreement with the long way, and when it gives up."""

from __future__ import annotations

import math

import pytest
import torch

from mmsa_decalign import ops
from mmsa_decalign.ops import newton, sinkhorn
from tests.conftest import assert_same


def problem(shape, spread, seed=0):
    rng = torch.Generator().manual_seed(seed)
    nus = [torch.rand(k, generator=rng, dtype=torch.float64) + 0.1 for k in shape]
    return spread * torch.rand(*shape, generator=rng, dtype=torch.float64), [nu / nu.sum() for nu in nus]


@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (4, 1), (2, 3, 4), (7, 7, 7), (2, 3, 2, 4)])
@pytest.mark.parametrize("spread", [1e-6, 5.0, 30.0])
def test_it_reaches_the_optimum(shape, spread):
    cost, nus = problem(shape, spread)
    found = newton.solve(cost, nus, 1e-11, 100)
    margins = [sinkhorn.marginal(found.plan, axis) for axis in range(len(shape))]
    worst = max(float((margin - nu).abs().sum()) for margin, nu in zip(margins, nus, strict=True))
    assert worst <= found.error + 1e-15
    assert found.error <= 1e-11
    log_plan = sinkhorn._add(-cost, found.potentials)
    assert_same(found.plan, log_plan.exp(), 1e-12)
    assert 1 <= found.n_iter <= 7


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
def test_both_ways_arrive_at_the_same(shape, monkeypatch):
    cost, nus = problem(shape, 20.0)
    short = sinkhorn.solve_dual(cost, nus, 0.5, 1e-11, 100)
    monkeypatch.setattr(newton, "solve", lambda *arguments: None)
    long = sinkhorn.solve_dual(cost, nus, 0.5, 1e-11, 100)
    assert_same(short.value, long.value, 1e-11)
    assert_same(short.plan, long.plan, 1e-10)
    for a, b in zip(short.potentials, long.potentials, strict=True):
        assert_same(a, b, 1e-9)
    assert long.n_iter >= newton.ROUNDS  # the rounds in vain are counted


@pytest.mark.parametrize("rounds", [1, 2, newton.ROUNDS, 100])
def test_it_gives_up_after_the_rounds_it_may_take(rounds):
    cost, nus = problem((4, 5), 40.0)
    assert newton.solve(cost, nus, 1e-300, rounds) is None
    assert newton.solve(cost, nus, 1e-2, rounds + 8) is not None


def test_no_numbers_are_not_taken_for_a_solution():
    cost, nus = problem((3, 3), math.nan)
    assert newton.solve(cost, nus, 1e-9, 100) is None


@pytest.mark.parametrize("small", [1e-6, 1e-12])
def test_atoms_with_little_mass_count_like_the_others(small):
    cost, nus = problem((5, 5, 5), 20.0)
    nus = [torch.where(torch.arange(5) < 2, small * nu, nu) for nu in nus]
    nus = [nu / nu.sum() for nu in nus]
    found = newton.solve(cost, nus, 1e-13, 100)
    assert found.error <= 1e-13
    assert_same(sinkhorn.marginal(found.plan, 0) / nus[0], torch.ones(5), 1e-3)


@pytest.mark.parametrize(("spread", "zero", "tried"), [(80.0, False, True), (200.0, False, False), (10.0, True, False)])
def test_it_is_tried_where_costs_are_moderate_and_all_atoms_have_mass(spread, zero, tried, monkeypatch):
    cost, nus = problem((4, 4), 1.0)
    cost = spread * (cost - cost.min()) / (cost.max() - cost.min())
    if zero:
        nus[0] = torch.tensor([0.0, 0.5, 0.25, 0.25], dtype=torch.float64)
    calls, solve = [], newton.solve
    monkeypatch.setattr(newton, "solve", lambda *arguments: calls.append(1) or solve(*arguments))
    assert ops.multimarginal_sinkhorn(cost, nus, reg=1.0).converged
    assert bool(calls) == tried


def test_a_permuted_cost_is_no_other_problem():
    cost, nus = problem((3, 4, 5), 10.0)
    turned = newton.solve(cost.permute(2, 0, 1), [nus[2], nus[0], nus[1]], 1e-12, 100)
    assert_same(turned.plan.permute(1, 2, 0), newton.solve(cost, nus, 1e-12, 100).plan, 1e-11)
