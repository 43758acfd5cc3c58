"""Transport: optimality, exact special cases, gradients, and what the result record promises."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import ot
import pytest
import torch

from mmsa_decalign import ops, reference
from tests.conftest import assert_same


def problem(shape, spread=1.0, seed=0, zeros=()):
    rng = torch.Generator().manual_seed(seed)
    cost = spread * torch.rand(*shape, generator=rng, dtype=torch.float64)
    marginals = []
    for axis, k in enumerate(shape):
        nu = torch.rand(k, generator=rng, dtype=torch.float64) + 0.05
        if axis in zeros:
            nu[0] = 0.0
        marginals.append(nu / nu.sum())
    return cost, marginals


def primal(plan, cost, reg):
    entropy = torch.where(plan > 0, plan * (plan.clamp_min(1e-300).log() - 1), torch.zeros_like(plan)).sum()
    return (plan * cost).sum() + reg * entropy


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6), (3, 2, 4, 5)])
@pytest.mark.parametrize("ratio", [1e-6, 1.0, 50.0, 1e3, 1e5])
@pytest.mark.parametrize("zeros", [(), (0, 1)])
def test_optimality(shape, ratio, zeros):
    cost, marginals = problem(shape, spread=ratio, zeros=zeros)
    result = ops.multimarginal_sinkhorn(cost, marginals, reg=1.0)
    assert result.converged
    for axis, nu in enumerate(marginals):
        others = [a for a in range(cost.dim()) if a != axis]
        assert (result.plan.sum(dim=others) - nu).abs().sum() <= 1e-9
    # The plan is what the potentials say, and the value is the primal value of that plan.
    log_plan = -cost
    for axis, f in enumerate(result.potentials):
        log_plan = log_plan + f.reshape([-1 if a == axis else 1 for a in range(cost.dim())])
    assert_same(log_plan.exp(), result.plan, 1e-9)
    assert_same(result.value, primal(result.plan, cost, 1.0), 1e-7)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("ratio", [1e2, 1e5])
@pytest.mark.parametrize("seed", range(5))
def test_hard_marginals(modalities, ratio, seed):
    """Masses in sixteenths, costs of points: partial sums coincide, and in the limit the plan falls into pieces that
    exchange no mass. Sinkhorn's sweeps alone crawl here; counting rounds guards the Newton step.
    """
    rng = torch.Generator().manual_seed(seed)
    k = 6
    points = [torch.randn(k, 3, generator=rng, dtype=torch.float64) for _ in range(modalities)]
    cost = torch.zeros([k] * modalities, dtype=torch.float64)
    for i, j in itertools.combinations(range(modalities), 2):
        shape = [k if a in (i, j) else 1 for a in range(modalities)]
        cost = cost + torch.cdist(points[i], points[j]).square().reshape(shape)
    draws = [torch.randint(0, k, (16,), generator=rng) for _ in range(modalities)]
    marginals = [torch.bincount(draw, minlength=k).double() / 16 for draw in draws]
    result = ops.multimarginal_sinkhorn(cost / cost.max() * ratio, marginals, reg=1.0)
    assert result.converged
    assert result.n_iter <= (12 if ratio < 1e3 else 32)


@pytest.mark.parametrize("reg", [0.05, 1.0])
def test_two_marginals_are_the_ordinary_problem(reg):
    cost, (a, b) = problem((6, 8), seed=3)
    options = {"method": "sinkhorn_log", "stopThr": 1e-13, "numItermax": 9999}
    expected = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), reg, **options)
    assert_same(ops.multimarginal_sinkhorn(cost, [a, b], reg=reg).plan, expected, 1e-9)


def test_a_single_atom_reduces_to_fewer_marginals():
    cost, (a, b) = problem((5, 4), seed=1)
    three = ops.multimarginal_sinkhorn(cost.unsqueeze(2), [a, b, torch.ones(1, dtype=torch.float64)], reg=0.3)
    two = ops.multimarginal_sinkhorn(cost, [a, b], reg=0.3)
    assert_same(three.plan.squeeze(2), two.plan, 1e-9)
    assert_same(three.value, two.value, 1e-9)


def test_constant_cost_gives_independence():
    _, marginals = problem((3, 4, 5))
    plan = ops.multimarginal_sinkhorn(torch.full((3, 4, 5), 7.0, dtype=torch.float64), marginals, reg=0.1).plan
    assert_same(plan, torch.einsum("i,j,k->ijk", *marginals), 1e-9)


def test_permuting_the_modalities_permutes_the_plan():
    cost, marginals = problem((3, 4, 5), spread=5.0)
    plain = ops.multimarginal_sinkhorn(cost, marginals, reg=0.2)
    turned = ops.multimarginal_sinkhorn(cost.permute(2, 0, 1), [marginals[i] for i in (2, 0, 1)], reg=0.2)
    assert_same(turned.plan, plain.plan.permute(2, 0, 1), 1e-8)
    assert_same(turned.value, plain.value, 1e-9)


def test_scaling_cost_and_reg_scales_the_value():
    cost, marginals = problem((4, 4, 4))
    one = ops.multimarginal_sinkhorn(cost, marginals, reg=0.2)
    ten = ops.multimarginal_sinkhorn(10 * cost, marginals, reg=2.0)
    assert_same(ten.value, 10 * one.value, 1e-9)
    assert_same(ten.plan, one.plan, 1e-9)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_envelope_gradient_against_finite_differences(shape):
    cost, marginals = problem(shape, spread=2.0, seed=5)

    def value(c, *logits):
        return ops.multimarginal_sinkhorn(c, [x.softmax(0) for x in logits], reg=0.3, tol=1e-13).value

    logits = [nu.log().requires_grad_() for nu in marginals]
    assert torch.autograd.gradcheck(value, (cost.requires_grad_(), *logits), eps=1e-5, atol=1e-7, rtol=1e-5)


def test_envelope_gradient_equals_unrolled_differentiation():
    cost, marginals = problem((4, 4, 4), seed=2)
    cost.requires_grad_()
    g = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
    for _ in range(400):
        for axis in range(3):
            scores = sum(x.reshape([-1 if a == i else 1 for a in range(3)]) for i, x in enumerate(g)) - cost / 0.2
            g[axis] = g[axis] + marginals[axis].log() - scores.logsumexp(dim=[a for a in range(3) if a != axis])
    scores = sum(x.reshape([-1 if a == i else 1 for a in range(3)]) for i, x in enumerate(g)) - cost / 0.2
    (unrolled,) = torch.autograd.grad(primal(scores.exp(), cost, 0.2), cost)
    result = ops.multimarginal_sinkhorn(cost, marginals, reg=0.2)
    (envelope,) = torch.autograd.grad(result.value, cost)
    assert_same(envelope, unrolled, 1e-8)
    assert_same(envelope, result.plan, 1e-12)


def test_float32_keeps_its_type_and_the_float64_value():
    cost, marginals = problem((5, 5, 5), spread=100.0)
    single = ops.multimarginal_sinkhorn(cost.float(), [nu.float() for nu in marginals], reg=1.0)
    assert single.value.dtype == single.plan.dtype == torch.float32
    assert_same(single.value, ops.multimarginal_sinkhorn(cost, marginals, reg=1.0).value, 1e-6)


def test_gradient_is_finite_where_a_marginal_is_zero():
    cost, marginals = problem((4, 3, 2), zeros=(0, 2))
    inputs = [cost.requires_grad_(), *[nu.requires_grad_() for nu in marginals]]
    grads = torch.autograd.grad(ops.multimarginal_sinkhorn(inputs[0], inputs[1:], reg=0.1).value, inputs)
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_an_unfinished_solution_says_so():
    cost, marginals = problem((6, 6, 6), spread=1e4)
    with pytest.warns(RuntimeWarning, match="raise max_iter"):
        result = ops.multimarginal_sinkhorn(cost, marginals, reg=1.0, max_iter=2)
    assert not result.converged
    assert result.marginal_error > 1e-9
    assert bool(torch.isfinite(result.value))


@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_rounds_that_end_in_an_earlier_stage_are_measured_on_the_problem_asked_for(max_iter):
    cost = torch.tensor([[0.0, 1000.0], [1000.0, 0.0]], dtype=torch.float64)
    nu = torch.tensor([0.4, 0.6], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = ops.multimarginal_sinkhorn(cost, [nu, nu.flip(0)], reg=1.0, max_iter=max_iter)
    error = max(float((result.plan.sum(dim=1 - a) - m).abs().sum()) for a, m in enumerate((nu, nu.flip(0))))
    assert result.marginal_error == pytest.approx(error, rel=1e-6)
    assert result.converged == (error <= 1e-9)


def test_without_a_limit_it_gives_up_after_1000_rounds():
    cost, marginals = problem((3, 2))
    with pytest.warns(RuntimeWarning, match="1000 rounds"):
        assert ops.multimarginal_sinkhorn(cost, marginals, reg=0.1, tol=1e-300).n_iter == 1000


def test_an_atom_without_mass_has_no_gradient():
    cost, marginals = problem((3, 4), zeros=(0,))
    marginals[0].requires_grad_()
    (gradient,) = torch.autograd.grad(ops.multimarginal_sinkhorn(cost, marginals, reg=0.3).value, marginals[0])
    # Up to the constant of the rescaling to sum 1, which takes <f, nu> off every entry.
    result = ops.multimarginal_sinkhorn(cost, [nu.detach() for nu in marginals], reg=0.3)
    f = torch.where(marginals[0] > 0, result.potentials[0], torch.zeros(3, dtype=torch.float64)).detach()
    assert_same(gradient, f - f @ marginals[0].detach(), 1e-9)


def test_the_release_never_divides_by_less_than_a_millionth():
    cost, marginals = problem((3, 4), spread=1e-6)
    options = {"reg": 2e-7, "solver": "release"}
    ours = ops.multimarginal_sinkhorn(cost.requires_grad_(), marginals, **options)
    theirs = reference.multimarginal_sinkhorn(cost.detach().numpy(), [nu.numpy() for nu in marginals], **options)
    assert_same(ours.plan, theirs.plan, 1e-12)
    assert ours.value.requires_grad
    assert not ours.plan.requires_grad


def test_costs_at_the_edge_of_float64_end():
    cost = torch.tensor([[-1.7e308, 1.7e308], [0.0, 0.0]], dtype=torch.float64)
    nu = torch.tensor([0.5, 0.5], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="stopped"):
        assert not ops.multimarginal_sinkhorn(cost, [nu, nu], reg=1.0, max_iter=50).converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reg": 0.0}, "reg=0.0"),
        ({"reg": float("inf")}, "finite"),
        ({"max_iter": 0}, "at least 1"),
        ({"tol": float("nan")}, "above 0"),
        ({"tol": 0.0}, "above 0"),
        ({"solver": "fast"}, "expected 'log' or 'release'"),
        ({"marginals": [torch.tensor([0.5, 0.5])]}, "one vector"),
        ({"marginals": [torch.tensor([0.5, 0.6]), torch.tensor([0.5, 0.5])]}, "sum 1"),
        ({"marginals": [torch.tensor([0.5, 0.50015]), torch.tensor([0.5, 0.5])]}, "sum 1"),
        ({"marginals": [torch.tensor([0.5, 0.4]), torch.tensor([0.5, 0.5])]}, "sum 1"),
        ({"marginals": [torch.tensor([1.5, -0.5]), torch.tensor([0.5, 0.5])]}, ">= 0"),
        ({"cost": torch.tensor([[0.0, torch.nan], [0.0, 0.0]])}, "NaN or infinite"),
        ({"cost": torch.tensor([[0.0, torch.inf], [0.0, 0.0]])}, "NaN or infinite"),
    ],
)
def test_refused_input(change, message):
    call = {"cost": torch.zeros(2, 2), "marginals": [torch.tensor([0.5, 0.5])] * 2, "reg": 1.0} | change
    with pytest.raises(ValueError, match=message):
        ops.multimarginal_sinkhorn(call.pop("cost"), call.pop("marginals"), **call)


def test_gaussian_cost_against_bures_wasserstein():
    rng = np.random.default_rng(0)

    def mixture(k):
        a = rng.normal(size=(k, 3, 3))
        cov = torch.tensor(a @ a.transpose(0, 2, 1) + 0.1 * np.eye(3))
        means = torch.tensor(rng.normal(size=(k, 3)))
        return ops.GaussianMixture(torch.full((k,), 1 / k), means, cov, torch.ones(1, k))

    def distance(i, j):
        pair = (a.means[i], b.means[j], a.covariances[i], b.covariances[j])
        return ot.gaussian.bures_wasserstein_distance(*(x.numpy() for x in pair))

    a, b = mixture(2), mixture(3)
    expected = [[distance(i, j) ** 2 for j in range(3)] for i in range(2)]
    assert_same(ops.gaussian_cost(a, b, reduction="sum"), expected, 1e-9)
    assert_same(ops.gaussian_cost(a, b), np.array(expected) / 3, 1e-9)


def test_variances_that_hardly_differ_keep_their_digits():
    """a + b - 2 sqrt(a b) is noise of 1e-16 here."""
    def point(variance):
        one = torch.ones(1, 1, dtype=torch.float64)
        return ops.GaussianMixture(one[0], 0 * one, variance * one, one)

    cost = ops.gaussian_cost(point(1.0), point((1 + 1e-9) ** 2))
    assert cost.item() == pytest.approx(1e-18, rel=1e-6, abs=0)


def test_diagonal_cost_is_the_full_cost_of_diagonal_matrices():
    rng = torch.Generator().manual_seed(0)
    means, variances = torch.randn(4, 3, generator=rng), torch.rand(4, 3, generator=rng) + 0.1
    diagonal = ops.GaussianMixture(torch.full((4,), 0.25), means, variances, torch.ones(1, 4))
    full = diagonal._replace(covariances=torch.diag_embed(variances))
    assert_same(ops.gaussian_cost(diagonal, diagonal), ops.gaussian_cost(full, full), 1e-6)
    with pytest.raises(ValueError, match="one covariance type"):
        ops.gaussian_cost(diagonal, full)


def test_joint_cost_is_the_sum_over_pairs():
    rng = torch.Generator().manual_seed(0)
    mixtures = [ops.fit_gaussian_mixture(torch.randn(20, 3, generator=rng), k) for k in (2, 3, 4)]
    joint = ops.joint_cost(mixtures)
    assert joint.shape == (2, 3, 4)
    pairs = {(i, j): ops.gaussian_cost(mixtures[i], mixtures[j]) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert_same(joint[1, 2, 3], pairs[0, 1][1, 2] + pairs[0, 2][1, 3] + pairs[1, 2][2, 3], 1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        ops.joint_cost(mixtures[:1])
