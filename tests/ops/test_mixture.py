"""Mixtures: EM against an independent library, numerics far from the origin, degenerate batches, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from mmsa_decalign import ops
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
        (torch.zeros(3, 3), {"n_iter": -1}, "n_iter=-1"),
        (torch.zeros(3, 3), {"var_floor": 0.0}, "var_floor=0.0"),
        (torch.zeros(3, 3), {"covariance": "tied"}, "'diag' or 'full'"),
    ],
)
def test_refused_input(x, options, message):
    with pytest.raises(ValueError, match=message):
        ops.fit_gaussian_mixture(x, 2, **options)
