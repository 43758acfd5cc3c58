"""What must hold for every input that Hypothesis draws: optimality, symmetries, scaling laws; no reference needed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle_draws import KINDS, batches, features, problems
from scipy.special import logsumexp
from scipy.stats import norm

from mmsa_decalign import ops, reference
from tests.conftest import assert_same


def tensors(arrays, dtype=torch.float64):
    return [torch.tensor(a, dtype=dtype) for a in arrays]


def outer_sum(vectors):
    total = torch.zeros([len(v) for v in vectors], dtype=torch.float64)
    for axis, v in enumerate(vectors):
        total = total + v.double().reshape([-1 if a == axis else 1 for a in range(len(vectors))])
    return total


def marginals_of(plan):
    return [plan.sum(axis=tuple(a for a in range(plan.ndim) if a != axis)) for axis in range(plan.ndim)]


# Transport


@pytest.mark.parametrize(("dtype", "accepted"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@given(problem=problems())
def test_transport_is_solved_over_the_whole_range(problem, dtype, accepted):
    """Default options: marginal error as promised, objective within 1e-7 of the reference, the record truthful."""
    # The reference gets the numbers that the type can hold.
    cost, *marginals = (a.astype(str(dtype)[6:]).astype(float) for a in (problem[0], *problem[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ops.multimarginal_sinkhorn(torch.tensor(cost, dtype=dtype), tensors(marginals, dtype), reg=1.0)
    assert result.converged
    assert result.marginal_error <= 1e-9
    plan = result.plan.double().numpy()
    assert (plan >= 0).all()
    for found, nu in zip(marginals_of(plan), marginals, strict=True):
        assert np.abs(found - nu / nu.sum()).sum() <= accepted
    expected = reference.multimarginal_sinkhorn(cost, marginals, reg=1.0)
    assert expected.converged
    assert float(result.value) == pytest.approx(expected.value, rel=1e-7, abs=1e-7)


@given(problem=problems())
def test_log_plan_is_potentials_minus_cost_over_reg_and_the_value_is_that_of_the_plan(problem):
    cost, marginals = torch.tensor(problem[0]), tensors(problem[1])
    reg = 0.5
    result = ops.multimarginal_sinkhorn(cost, marginals, reg=reg)
    for f, nu in zip(result.potentials, marginals, strict=True):
        assert torch.equal(torch.isfinite(f), nu > 0)
        assert torch.equal(f == -torch.inf, nu == 0)
    log_plan = (outer_sum(result.potentials) - cost) / reg
    size = max(1.0, float(cost.abs().max()) / reg)  # of the terms whose difference the exponent is
    assert_same(result.plan, log_plan.exp(), max(1e-9, 1e-14 * size))
    mass = result.plan[result.plan > 0]
    primal = (result.plan * cost).sum() + reg * (mass * (mass.log() - 1)).sum()
    assert float(result.value) == pytest.approx(float(primal), rel=1e-7, abs=1e-7 * size)
    dual = sum(f[nu > 0] @ nu[nu > 0] for f, nu in zip(result.potentials, marginals, strict=True)) - reg
    assert float(result.value) == pytest.approx(float(dual), rel=1e-7, abs=1e-7)
    shares = [float(f[nu > 0] @ nu[nu > 0]) for f, nu in zip(result.potentials, marginals, strict=True)]
    assert np.ptp(shares) <= 1e-9 * size


@given(problem=problems(), reg=st.floats(0.1, 10.0), offset=st.floats(-1e6, 1e6), order=st.randoms())
def test_transport_follows_permutation_scale_and_offset(problem, reg, offset, order):
    cost, marginals = torch.tensor(problem[0]), tensors(problem[1])
    plain = ops.multimarginal_sinkhorn(cost, marginals, reg=1.0)
    size = max(1.0, float(cost.abs().max()))
    axes = list(range(cost.dim()))
    order.shuffle(axes)
    turned = ops.multimarginal_sinkhorn(cost.permute(axes), [marginals[a] for a in axes], reg=1.0)
    assert_same(turned.plan, plain.plan.permute(axes), 1e-8)
    assert_same(turned.value, plain.value, 1e-9)
    scaled = ops.multimarginal_sinkhorn(reg * cost, marginals, reg=reg)
    assert_same(scaled.plan, plain.plan, 1e-8)
    assert_same(scaled.value / reg, plain.value, 1e-9)
    moved = ops.multimarginal_sinkhorn(cost + offset, marginals, reg=1.0)
    assert_same(moved.plan, plain.plan, max(1e-8, 1e-13 * abs(offset)))  # digits that the sum has lost
    assert_same(moved.value - offset, plain.value, 1e-9 * max(1.0, abs(offset)) / size + 1e-8)
    single = ops.multimarginal_sinkhorn(cost.unsqueeze(1), [marginals[0], tensors([[1.0]])[0], *marginals[1:]], reg=1.0)
    assert_same(single.plan.squeeze(1), plain.plan, 1e-8)
    assert_same(single.value, plain.value, 1e-9)


@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_the_value_is_concave_in_the_cost_and_the_plan_its_slope(problem, seed):
    """value(C') <= value(C) + <P, C' - C>: the plan of C is feasible for C' too. No step size, no tolerance on it."""
    cost, marginals = torch.tensor(problem[0]), tensors(problem[1])
    moves = torch.tensor(np.random.default_rng(seed).uniform(-0.5, 0.5, cost.shape))
    other = cost + (cost.max() - cost.min()) * moves
    here = ops.multimarginal_sinkhorn(cost.requires_grad_(), marginals, reg=1.0)
    (slope,) = torch.autograd.grad(here.value, cost)
    cost = cost.detach()
    there = ops.multimarginal_sinkhorn(other, marginals, reg=1.0)
    bound = here.value.detach() + (slope * (other - cost)).sum()
    assert float(there.value) <= float(bound) + 1e-8 * max(1.0, float(cost.abs().max()))
    assert_same(slope, here.plan, 1e-12)


@given(problem=problems())
def test_the_envelope_gradient_is_that_of_unrolled_rounds(problem):
    """Where sweeps converge within 200 rounds: differentiate them, and compare with P and f."""
    cost, marginals = torch.tensor(problem[0]), [(nu + 0.1) / (nu + 0.1).sum() for nu in tensors(problem[1])]
    cost = cost - cost.min()
    assume(float(cost.max()) < 3 and cost.numel() < 500)
    cost.requires_grad_()
    marginals = [nu.requires_grad_() for nu in marginals]
    g = [torch.zeros_like(nu) for nu in marginals]
    for _ in range(200):
        for axis, nu in enumerate(marginals):
            others = [a for a in range(len(g)) if a != axis]
            g[axis] = g[axis] + nu.log() - (outer_sum(g) - cost).logsumexp(dim=others)
    log_plan = outer_sum(g) - cost
    unrolled = (log_plan.exp() * (cost + log_plan - 1)).sum()
    result = ops.multimarginal_sinkhorn(cost, marginals, reg=1.0, tol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, [cost, *marginals]) for v in (result.value, unrolled)), strict=True):
        a, b = (x if x.dim() > 1 else x - x.mean() for x in (a, b))  # a marginal's gradient is free up to a constant
        assert_same(a, b, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 3), (5, 3), (40, 6)])
def test_hetero_loss_with_default_floor_and_reg_is_a_number_or_warns(kind, covariance, dtype, n, k):
    """Clusters 100 apart make costs of 1e6 reg and more: if not solved, then with a warning that names the remedy."""
    x = [t.requires_grad_() for t in tensors(features(kind, n, 4, 3, seed=n), dtype)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = ops.hetero_loss(x, n_components=k, covariance=covariance)
    assert bool(torch.isfinite(loss.value))
    assert loss.value.dtype == dtype
    for gradient in torch.autograd.grad(loss.value, x):
        assert bool(torch.isfinite(gradient).all())
    assert loss.result.converged or ["raise max_iter, or reg" in str(w.message) for w in caught] == [True]
    assert loss.result.converged or kind in ("clusters", "outlier", "wide")


# Mixtures


def log_likelihood(x, mixture):
    terms = norm.logpdf(x[:, None], mixture.means.numpy(), mixture.covariances.sqrt().numpy()).sum(axis=2)
    return logsumexp(terms + np.log(mixture.weights.numpy()), axis=1).mean()


@given(drawn=batches(1, most=5000))
def test_likelihood_never_falls_from_one_em_step_to_the_next(drawn):
    """A floored variance is still the best variance above the floor, so that the floor does not excuse a fall."""
    (x,), k = drawn
    floor = 1e-3 * float(np.var(x)) + 1e-6
    fits = [ops.fit_gaussian_mixture(torch.tensor(x), k, n_iter=steps, var_floor=floor) for steps in range(6)]
    values = np.array([log_likelihood(x, fit) for fit in fits])
    assert np.isfinite(values).all()
    # Components without mass keep a weight of 1e-6 / N: their only rise above the true optimum.
    assert np.diff(values).min() >= -1e-5 * x.shape[1]


@given(drawn=batches(1, most=5000), covariance=st.sampled_from(["diag", "full"]), seed=st.integers(0, 99))
def test_mixture_records_are_mixtures(drawn, covariance, seed):
    (x,), k = drawn
    assume(covariance == "diag" or x.shape[1] <= 8)
    fit = ops.fit_gaussian_mixture(torch.tensor(x), k, covariance=covariance, var_floor=1e-2)
    assert_same(fit.weights.sum(), 1.0, 1e-5)
    assert_same(fit.responsibilities.sum(dim=1), np.ones(len(x)), 1e-12)
    assert bool((fit.responsibilities >= 0).all())
    spread = fit.covariances if covariance == "diag" else torch.linalg.eigvalsh(fit.covariances)
    assert float(spread.min()) >= 1e-2 * (1 - 1e-6) - 1e-14 * float(spread.max())
    # Means are weighted means of samples: none lies outside their range (unless a component has lost its mass).
    alive = fit.weights * len(x) > 2e-6
    slack = 1e-9 * np.abs(x).max()
    assert bool((fit.means[alive] <= torch.tensor(x).amax(dim=0) + slack).all())
    assert bool((fit.means[alive] >= torch.tensor(x).amin(dim=0) - slack).all())


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 4))
def test_the_order_of_samples_matters_only_through_the_rows_that_start(seed, k):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(13, 3))
    first = np.array([0, *{0: [], 1: [12], 2: [6, 12], 3: [4, 8, 12]}[k - 1]])
    rest = np.setdiff1d(np.arange(13), first)
    order = np.arange(13)
    order[rest] = rng.permutation(rest)
    a, b = (ops.fit_gaussian_mixture(torch.tensor(v), k) for v in (x, x[order]))
    assert_same(b.responsibilities, a.responsibilities[order], 1e-9)
    assert_same(b.means, a.means, 1e-9)
    assert_same(b.covariances, a.covariances, 1e-9)


# Scale, place and order of features

KIND = st.sampled_from(["normal", "identical", "few", "constant"])  # no digits are lost by scaling
drawn_features = st.builds(features, KIND, st.integers(2, 30), st.integers(1, 6), st.just(3), st.integers(0, 2**32 - 1))


@given(x=drawn_features, k=st.integers(1, 5), scale=st.floats(0.1, 30.0), covariance=st.sampled_from(["diag", "full"]))
def test_hetero_loss_scales_with_the_square_and_does_not_feel_a_shift(x, k, scale, covariance):
    options = {"n_components": k, "covariance": covariance, "tol": 1e-11}
    plain = ops.hetero_loss(tensors(x), reg=0.3, var_floor=1e-2, **options)
    moved = [scale * v + 3.0 for v in x]
    other = ops.hetero_loss(tensors(moved), reg=0.3 * scale**2, var_floor=1e-2 * scale**2, **options)
    assert_same(other.transport / scale**2, plain.transport, 1e-7)
    assert_same(other.prototype / scale**2, plain.prototype, 1e-7)
    summed = ops.hetero_loss(tensors(x), reg=0.3 * x[0].shape[1], var_floor=1e-2, reduction="sum", **options)
    assert_same(summed.value / x[0].shape[1], plain.value, 1e-7)


@given(x=drawn_features, order=st.permutations([0, 1, 2]), k=st.integers(1, 4))
def test_losses_do_not_depend_on_the_order_of_modalities(x, order, k):
    turned = [x[i] for i in order]
    a, b = (ops.hetero_loss(tensors(v), n_components=k, reg=0.5, tol=1e-11) for v in (x, turned))
    assert_same(a.value, b.value, 1e-8)
    assert_same(a.result.plan.permute(*order), b.result.plan, 1e-8)
    assert_same(ops.joint_cost(a.mixtures).permute(*order), ops.joint_cost(b.mixtures), 1e-12)
    a, b = (ops.homo_loss(tensors(v), bandwidth="median") for v in (x, turned))
    assert_same(a.value, b.value, 1e-10)
    a, b = (ops.prototype_loss(tensors(v), [ops.fit_gaussian_mixture(t, k) for t in tensors(v)]) for v in (x, turned))
    assert_same(a, b, 1e-10)


@given(x=drawn_features, seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 30.0))
def test_statistics_of_a_batch_do_not_depend_on_the_order_of_samples(x, seed, scale):
    order = np.random.default_rng(seed).permutation(len(x[0]))
    mixed = [v[order] for v in x]
    assert_same(ops.homo_loss(tensors(mixed)).value, ops.homo_loss(tensors(x)).value, 1e-10)
    assert_same(ops.mmd(*tensors([x[0], mixed[0]])), 0.0, 1e-14)
    unique, common = ([v[:, :, None] for v in pair] for pair in (x, [v + 1 for v in x]))
    plain = ops.decoupling_loss(tensors(unique), tensors(common))
    reordered = ([v[order] for v in pair] for pair in (unique, common))
    assert_same(ops.decoupling_loss(*map(tensors, reordered)), plain, 1e-12)
    # A cosine feels neither length, and its square not the sign.
    scaled = ops.decoupling_loss(tensors([-scale * u for u in unique]), tensors([c / scale for c in common]))
    assert_same(scaled, plain, 1e-12)
    moments = ops.batch_moments(torch.tensor(scale * x[0] + 2.0))
    small = ops.batch_moments(torch.tensor(x[0]))
    assert_same(moments.mean, scale * small.mean + 2.0, 1e-10)
    assert_same(moments.cov / scale**2, small.cov, 1e-10)
    varied = torch.tensor(x[0].var(axis=0) > 1e-3)  # below, the floor sets the scale of the skewness
    assert_same(moments.skew[varied], small.skew[varied], 1e-8)


@given(drawn=batches(2, most=1000), bandwidth=st.sampled_from([0.5, "median", [0.1, 10.0]]), scale=st.floats(0.1, 10.0))
def test_mmd_of_a_sample_with_itself_is_zero_and_never_below(drawn, bandwidth, scale):
    x, y = tensors(drawn[0])
    assert abs(ops.mmd(x, x, bandwidth=bandwidth).item()) <= 1e-14
    assert -1e-14 <= ops.mmd(x, y, bandwidth=bandwidth).item() <= 2.0 * (2 if isinstance(bandwidth, list) else 1)
    assert_same(ops.mmd(y, x, bandwidth=bandwidth), ops.mmd(x, y, bandwidth=bandwidth), 1e-12)
    assume(float((x - y.mean(dim=0)).abs().max()) < 1e3)  # a shift of 1e4 costs the scaled numbers their digits
    wide = {0.5: 0.5 * scale**2, "median": "median"}.get(str(bandwidth) if isinstance(bandwidth, list) else bandwidth,
                                                          [0.1 * scale**2, 10.0 * scale**2])  # fmt: skip
    origin = x.mean(dim=0)
    scaled = ops.mmd(scale * (x - origin), scale * (y - origin), bandwidth=wide)
    assert_same(scaled, ops.mmd(x, y, bandwidth=bandwidth), 1e-6)
