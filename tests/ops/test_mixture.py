"""Mixtures: EM against an independent library, numerics far from the origin, degenerate batches, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mmsa_decalign import ops
from mmsa_decalign.ops import diagonal
from mmsa_decalign.ops.mixture import _e_step, _m_step, cholesky
from tests.conftest import assert_same

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("covariance", ["diag", "full"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 5), (40, 4), (64, 7)])
def test_responsibilities_are_bayes_of_the_final_parameters(covariance, n, k):
    x = torch.tensor(RNG.normal(size=(n, 3)))
    fit = ops.fit_gaussian_mixture(x, k, covariance=covariance)
    assert_same(fit.responsibilities.sum(dim=1), np.ones(n), 1e-12)
    density = np.zeros((n, k))
    for j in range(k):
        cov = np.diag(fit.covariances[j]) if covariance == "diag" else fit.covariances[j].numpy()
        density[:, j] = multivariate_normal(fit.means[j].numpy(), cov, allow_singular=True).logpdf(x.numpy())
    density += np.log(np.maximum(fit.weights.numpy(), 1e-8))
    expected = np.exp(density - density.max(axis=1, keepdims=True))
    assert_same(fit.responsibilities, expected / expected.sum(axis=1, keepdims=True), 1e-9)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_likelihood_never_falls(covariance):
    x = torch.tensor(np.concatenate([RNG.normal(-2, 1, (60, 2)), RNG.normal(3, 0.5, (40, 2))]))

    def log_likelihood(steps):
        fit = ops.fit_gaussian_mixture(x, 3, n_iter=steps, var_floor=1e-9, covariance=covariance)
        total = np.zeros(len(x))
        for j in range(3):
            cov = np.diag(fit.covariances[j]) if covariance == "diag" else fit.covariances[j].numpy()
            total += float(fit.weights[j]) * multivariate_normal(fit.means[j].numpy(), cov).pdf(x.numpy())
        return np.log(total).mean()

    values = [log_likelihood(steps) for steps in range(12)]
    assert np.diff(values).min() >= -1e-9
    assert values[-1] > values[0] + 1e-3


def test_the_start_is_evenly_spaced_rows_and_the_batch_variance():
    x = torch.arange(10.0).unsqueeze(1)
    fit = ops.fit_gaussian_mixture(x, 4, n_iter=0)
    assert fit.means.flatten().tolist() == [0.0, 3.0, 6.0, 9.0]
    assert_same(fit.covariances, np.full((4, 1), np.var(np.arange(10.0))), 1e-6)
    few = ops.fit_gaussian_mixture(x[:2], 5, n_iter=0)
    assert few.means.flatten().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert ops.fit_gaussian_mixture(x[:4], 4, n_iter=0).means.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    # 119.5 rounds to even, whatever the rounding errors of 239 / 14 say.
    many = torch.arange(240.0, dtype=torch.float64).unsqueeze(1)
    assert ops.fit_gaussian_mixture(many, 15, n_iter=0).means[7].item() == 120.0


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_large_means_with_small_spread_keep_their_variance_in_float32(covariance):
    """1e4 +- 1e-2: E[x^2] - mean^2 would be noise of the size of 8 here."""
    steps = torch.tensor(RNG.integers(-8, 9, (64, 2)) / 1024)  # representable in float32 at 1e4
    fit = ops.fit_gaussian_mixture((1e4 + steps).float(), 1, var_floor=1e-12, covariance=covariance)
    variances = fit.covariances[0] if covariance == "diag" else fit.covariances[0].diagonal()
    np.testing.assert_allclose(variances.numpy(), steps.numpy().var(axis=0), rtol=1e-4)


def test_identical_samples_and_empty_components_stay_finite():
    x = torch.ones(6, 3, requires_grad=True)
    fit = ops.fit_gaussian_mixture(x, 4)
    assert_same(fit.covariances, np.full((4, 3), 1e-4), 1e-6)
    far = torch.tensor([[0.0], [0.0], [1e6], [0.0]], requires_grad=True)
    lost = ops.fit_gaussian_mixture(far, 3, n_iter=10)
    loss = fit.means.sum() + lost.means.sum() + lost.responsibilities.square().sum()
    for grad in torch.autograd.grad(loss, (x, far)):
        assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1e2, 1e5, 1e8])
def test_full_covariances_of_few_wide_samples_are_factored(dtype, scale):
    """Rank 4 in 12 dimensions with a floor of rounding's size: as stored, the matrices have eigenvalues below 0."""
    x = (torch.tensor(RNG.normal(size=(5, 12))) * scale).to(dtype).requires_grad_()
    fit = ops.fit_gaussian_mixture(x, 2, covariance="full", n_iter=2)
    assert bool(torch.isfinite(fit.responsibilities).all())
    cost = ops.gaussian_cost(fit, fit)
    (gradient,) = torch.autograd.grad(cost.sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert_same(cost.diagonal() / scale**2, [0.0, 0.0], 1e-4)
    assert float(cost[0, 1].detach()) > 0.1 * scale**2


def m_step(x, responsibilities, covariance):
    """Weights, means and covariances by the steps of either kind of covariance."""
    if covariance == "full":
        return _m_step(x, responsibilities, 1e-4)
    step = diagonal.m_step(x, responsibilities.mT.contiguous(), 1e-4, diagonal.Room(x, responsibilities.shape[2]))
    return step.count / x.shape[1], step.means, step.variances


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_component_without_samples_has_the_floor_as_its_mass(covariance):
    x = torch.arange(5.0, dtype=torch.float64).unsqueeze(1)
    responsibilities = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(5, 3)
    weights, means, covariances = m_step(x[None], responsibilities[None], covariance)
    assert weights[0].tolist() == pytest.approx([1.0, 1e-6 / 5, 1e-6 / 5], rel=1e-12)
    assert means[0, :, 0].tolist() == [2.0, 0.0, 0.0]
    assert covariances[0].flatten().tolist()[1:] == [1e-4, 1e-4]


def test_a_component_without_weight_is_a_hundred_millionth_as_likely():
    x, means = torch.zeros(1, 1, 1, dtype=torch.float64), torch.zeros(1, 2, 1, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    responsibilities = _e_step(x, weights, means, torch.ones(1, 2, 1, 1, dtype=torch.float64))
    assert responsibilities[0, 0, 1].item() == pytest.approx(1e-8, rel=1e-6)


def test_a_component_of_a_large_batch_that_has_lost_its_samples_is_a_hundred_millionth_as_likely():
    """The floor of the count, a millionth of a sample, is less than that from 100 samples on."""
    x = torch.zeros(1, 1000, 1, dtype=torch.float64)
    responsibilities = torch.tensor([1.0, 0.0], dtype=torch.float64)[None, :, None].expand(1, 2, 1000).contiguous()
    step = diagonal.m_step(x, responsibilities, 1e-4, diagonal.Room(x, 2))
    assert step.responsibilities[0, 1, 0].item() == pytest.approx(1e-8, rel=1e-6)


def test_only_what_rounding_has_spoilt_gets_a_ridge():
    good = 1e6 * torch.eye(2, dtype=torch.float64)
    spoilt = torch.tensor([[1.0, 1.0 + 1e-11], [1.0 + 1e-11, 1.0]], dtype=torch.float64)
    negative = torch.tensor([[-1e-17, 0.0], [0.0, 1.0]], dtype=torch.float64)
    matrices = torch.stack([good, spoilt, negative]).unsqueeze(0)
    factors = cholesky(matrices)
    assert torch.equal(factors[0, 0], 1e3 * torch.eye(2, dtype=torch.float64))
    added = factors @ factors.mT - matrices
    assert 1e-11 < float(added[0, 1].abs().max()) < 2e-9
    assert 1e-16 < float(added[0, 2].abs().max()) < 2e-15
    with pytest.raises(ValueError, match="not positive definite"):
        cholesky(torch.stack([good, -good]))


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_gradients(covariance):
    x = torch.tensor(RNG.normal(size=(6, 2)), requires_grad=True)

    def parts(x):
        return tuple(ops.fit_gaussian_mixture(x, 2, n_iter=3, covariance=covariance))

    assert torch.autograd.gradcheck(parts, (x,), atol=1e-5)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(3), {}, "expected \\(N, d\\)"),
        (torch.zeros(0, 3), {}, "N, d >= 1"),
        (torch.zeros(3, 0), {}, "N, d >= 1"),
        (torch.zeros(3, 3, dtype=torch.int64), {}, "call .float\\(\\)"),
        (torch.zeros(3, 3), {"n_components": 0}, "n_components=0"),
        (torch.zeros(3, 3), {"n_iter": -1}, "n_iter=-1"),
        (torch.zeros(3, 3), {"var_floor": 0.0}, "var_floor=0.0"),
        (torch.zeros(3, 3), {"covariance": "tied"}, "'diag' or 'full'"),
    ],
)
def test_refused_input(x, options, message):
    with pytest.raises(ValueError, match=message):
        ops.fit_gaussian_mixture(x, **{"n_components": 2} | options)
