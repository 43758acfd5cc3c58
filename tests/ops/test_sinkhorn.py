"""The parts of the stable solver, each against what defines it: a slower solver is noticed as well as a wrong one."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

from mmsa_decalign.ops import newton, sinkhorn


def problem(shape, seed=0):
    rng = torch.Generator().manual_seed(seed)
    cost = torch.rand(*shape, generator=rng, dtype=torch.float64)
    g = [torch.randn(k, generator=rng, dtype=torch.float64) for k in shape]
    nus = [torch.rand(k, generator=rng, dtype=torch.float64) + 0.1 for k in shape]
    return cost, g, [nu / nu.sum() for nu in nus]


def log_plan_of(cost, g):
    total = -cost
    for axis, x in enumerate(g):
        total = total + x.reshape([-1 if a == axis else 1 for a in range(cost.dim())])
    return total


def dual(flat, cost, nus):
    g = flat.split([len(nu) for nu in nus])
    return sum(x @ nu for x, nu in zip(g, nus, strict=True)) - log_plan_of(cost, g).exp().sum()


def error_of(cost, g, nus):
    plan = log_plan_of(cost, g).exp()
    sums = [plan.sum(dim=[a for a in range(plan.dim()) if a != axis]) for axis in range(plan.dim())]
    return max(float((p - nu).abs().sum()) for p, nu in zip(sums, nus, strict=True))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 3)])
def test_curvature_is_the_second_derivative_of_the_dual(shape):
    cost, g, nus = problem(shape)
    plan = log_plan_of(cost, g).exp()
    margins = [sinkhorn.marginal(plan, axis) for axis in range(len(shape))]
    expected = -hessian(lambda flat: dual(flat, cost, nus), torch.cat(g))
    torch.testing.assert_close(sinkhorn._negative_hessian(plan, margins), expected)
    slope = jacobian(lambda flat: dual(flat, cost, nus), torch.cat(g))
    torch.testing.assert_close(torch.cat([nu - p for nu, p in zip(nus, margins, strict=True)]), slope)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_a_sweep_makes_the_last_marginal_exact_and_raises_the_dual(shape):
    cost, g, nus = problem(shape)
    after, log_plan = sinkhorn._sweep(g, cost, nus)
    torch.testing.assert_close(log_plan, log_plan_of(cost, after))
    torch.testing.assert_close(sinkhorn.marginal(log_plan.exp(), len(shape) - 1), nus[-1])
    assert dual(torch.cat(after), cost, nus) > dual(torch.cat(g), cost, nus)
    assert sinkhorn._error(log_plan.exp(), nus) == pytest.approx(error_of(cost, after, nus), rel=1e-12)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_newton_steps_converge_quadratically(shape):
    cost, g, nus = problem(shape)
    g, log_plan = sinkhorn._sweep(g, cost, nus)
    errors = [error_of(cost, g, nus)]
    for _ in range(4):
        g, log_plan, error = sinkhorn._newton_step(g, log_plan, nus, errors[-1])
        torch.testing.assert_close(log_plan, log_plan_of(cost, g))
        assert error == pytest.approx(error_of(cost, g, nus), rel=1e-6, abs=1e-15)
        errors.append(error)
    assert errors[0] > 1e-3
    for before, after in zip(errors, errors[1:], strict=False):
        assert after <= max(10 * before**2, 1e-11)


@pytest.mark.parametrize("masses", [[0.4, 0.6], [0.6, 0.4]])
@pytest.mark.parametrize("link", [40.0, 1.0])
def test_a_newton_step_from_far_away_is_shortened_until_it_helps(masses, link):
    """Two blocks that hardly exchange mass: the full step is astronomic, upwards or downwards."""
    cost = torch.tensor([[0.0, 40.0], [link * 40.0, 0.0]], dtype=torch.float64)
    nus = [torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor(masses, dtype=torch.float64)]
    g, log_plan = sinkhorn._sweep([torch.zeros(2, dtype=torch.float64)] * 2, cost, nus)
    error = error_of(cost, g, nus)
    moved, _, after = sinkhorn._newton_step(g, log_plan, nus, error)
    assert max(float((a - b).abs().max()) for a, b in zip(moved, g, strict=True)) <= 30.0
    assert dual(torch.cat(moved), cost, nus) > dual(torch.cat(g), cost, nus)
    assert after == pytest.approx(error_of(cost, moved, nus), rel=1e-6)


def test_at_the_optimum_a_newton_step_gives_the_point_back():
    half, zero = torch.full((2,), 0.5, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    nus = [half, half]
    g, log_plan = sinkhorn._sweep([zero, zero], torch.zeros(2, 2, dtype=torch.float64), nus)
    moved, same_plan, error = sinkhorn._newton_step(g, log_plan, nus, 0.0)
    assert error == 0.0
    assert same_plan is log_plan
    assert all(torch.equal(a, b) for a, b in zip(moved, g, strict=True))


def test_a_singular_system_is_solved_in_its_range_and_nonsense_gives_no_step():
    system = torch.tensor([[2.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    right = torch.tensor([1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(system @ sinkhorn._solve(system, right), right)
    assert torch.equal(system, torch.full((2, 2), 2.0, dtype=torch.float64))
    indefinite = torch.tensor([[1.0, 0.0], [0.0, -1e-3]], dtype=torch.float64)  # the ridge of 1e-2 makes it definite
    expected = right / torch.tensor([1.01, 0.009], dtype=torch.float64)
    torch.testing.assert_close(sinkhorn._solve(indefinite, right), expected)
    assert sinkhorn._solve(torch.full((2, 2), torch.nan, dtype=torch.float64), right).tolist() == [0.0, 0.0]


def test_large_costs_are_approached_in_stages():
    cost = torch.tensor([[0.0, 30.0]], dtype=torch.float64)
    assert sinkhorn._stages(cost, 1.0, 1e-9) == [(1.0, 1e-9)]
    assert sinkhorn._stages(cost, 0.9, 1e-9) == [(3.6, 1e-3), (0.9, 1e-9)]
    assert sinkhorn._stages(100 * cost, 1.0, 1e-2) == [(reg, 1e-2) for reg in (256.0, 64.0, 16.0, 4.0, 1.0)]


@pytest.mark.parametrize("max_iter", [1, 2, 7])
def test_rounds_are_counted_and_limited(max_iter):
    cost, _, nus = problem((3, 4))
    solution = sinkhorn.solve_dual(1e4 * cost, nus, 1.0, 1e-15, max_iter)
    assert solution.n_iter == max_iter
    assert solution.error > 1e-15


@pytest.mark.parametrize("max_iter", [1, 5, 20, 21])
@pytest.mark.parametrize("easy", [True, False])
def test_a_plan_that_ran_out_of_rounds_still_has_mass_one_and_the_last_marginal(max_iter, easy, monkeypatch):
    """Also when Newton's method took all rounds in vain, or when they ended while reg was larger than asked for."""
    monkeypatch.setattr(newton, "solve", lambda *arguments: None)
    cost, _, nus = problem((3, 4, 3))
    cost = (20.0 if easy else 85.0) * cost
    solution = sinkhorn.solve_dual(cost, nus, 1.0, 1e-300, max_iter)
    assert solution.n_iter == max_iter
    assert solution.error > 0
    torch.testing.assert_close(sinkhorn.marginal(solution.plan, 2), nus[2])
    g = list(solution.potentials)
    torch.testing.assert_close(solution.plan, log_plan_of(cost, g).exp())
    assert solution.error == pytest.approx(error_of(cost, g, nus), rel=1e-6, abs=1e-15)
    best = sinkhorn.solve_dual(cost, nus, 1.0, 1e-12, 300).value
    nothing_done = sinkhorn.marginal((-cost + cost.min()).exp(), 0).sum()
    assert cost.min() - nothing_done < solution.value <= best + 1e-9


def test_the_solver_starts_at_zero_and_stops_at_the_first_good_round():
    cost, _, nus = problem((3, 4))
    independent = sinkhorn.solve_dual(torch.zeros_like(cost), nus, 1.0, 1e-9, 100)
    assert independent.n_iter == 1
    assert sinkhorn.solve_dual(cost, nus, 1.0, 1e-9, 100).n_iter <= 3


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 3)])
@pytest.mark.parametrize("small", [1e-4, 1e-8])
def test_atoms_with_little_mass_do_not_slow_the_solver_down(shape, small):
    """The Newton system has to be scaled by the masses: unscaled it takes hundreds of rounds here."""
    rng = torch.Generator().manual_seed(1)
    cost = 1e3 * torch.rand(*shape, generator=rng, dtype=torch.float64)
    nus = []
    for k in shape:
        nu = torch.ones(k, dtype=torch.float64)
        nu[: k // 2] = small * torch.rand(k // 2, generator=rng, dtype=torch.float64)
        nus.append(nu / nu.sum())
    solution = sinkhorn.solve_dual(cost, nus, 1.0, 1e-13, 300)
    assert solution.error <= 1e-13
    assert solution.n_iter <= 40


@pytest.mark.parametrize(("seed", "ratio", "rise"), [(0, 20.0, 0.3), (0, 60.0, 3.0), (14, 20.0, 0.5)])
def test_a_newton_step_that_raises_the_dual_is_taken_though_the_error_grows(seed, ratio, rise):
    cost, _, nus = problem((3, 3), seed)
    zero = torch.zeros(3, dtype=torch.float64)
    g, log_plan = sinkhorn._sweep([zero, zero], ratio * cost, nus)
    error = error_of(ratio * cost, g, nus)
    moved, _, after = sinkhorn._newton_step(g, log_plan, nus, error)
    assert after > 1.5 * error
    assert dual(torch.cat(moved), ratio * cost, nus) > dual(torch.cat(g), ratio * cost, nus) + rise


@pytest.mark.parametrize("seed", [2, 3, 19, 21])
def test_a_newton_step_is_bounded_downwards_too(seed):
    """Three modalities: one potential falls by the sum of what the other two rise."""
    cost, _, nus = problem((2, 2, 2), seed)
    g, log_plan = sinkhorn._sweep([torch.zeros(2, dtype=torch.float64)] * 3, 200 * cost, nus)
    moved, _, _ = sinkhorn._newton_step(g, log_plan, nus, error_of(200 * cost, g, nus))
    largest = max(float((a - b).abs().max()) for a, b in zip(moved, g, strict=True))
    assert 25.0 < largest <= 30.0 + 1e-9
