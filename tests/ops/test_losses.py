"""Moments, kernel means, decoupling and the two composed losses: closed forms, loops, gradients, conventions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import skew

from mmsa_decalign import ops
from mmsa_decalign.ops import kernels
from tests.conftest import assert_same

RNG = np.random.default_rng(1)


def tensor(*shape):
    return torch.tensor(RNG.normal(size=shape), requires_grad=True)


def test_moments_against_numpy_and_scipy():
    z = RNG.gamma(2.0, size=(30, 4))
    moments = ops.batch_moments(torch.tensor(z))
    assert_same(moments.mean, z.mean(axis=0), 1e-12)
    assert_same(moments.cov, np.cov(z, rowvar=False), 1e-12)
    assert_same(moments.skew, skew(z, axis=0), 1e-10)


def test_moments_of_one_sample_and_of_a_constant_are_finite():
    one = ops.batch_moments(torch.ones(1, 3))
    assert one.cov.abs().sum() == 0
    assert one.skew.abs().sum() == 0


def test_moment_distance_weighs_each_moment_by_its_entries():
    a = ops.Moments(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2))
    b = ops.Moments(torch.tensor([2.0, 0.0]), torch.tensor([[4.0, 0.0], [0.0, 0.0]]), torch.tensor([0.0, 6.0]))
    assert ops.moment_distance(a, b).item() == 4 / 2 + 16 / 4 + 36 / 2
    with pytest.raises(ValueError, match="cannot be compared"):
        ops.moment_distance(a, ops.batch_moments(torch.zeros(3, 5)))
    for z in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 2, 2)):
        with pytest.raises(ValueError, match="expected \\(N, p\\)"):
            ops.batch_moments(z)


@pytest.mark.parametrize("bandwidth", [0.5, "median", [0.5, 2.0, 8.0]])
def test_mmd_against_a_double_loop(bandwidth):
    x, y = RNG.normal(size=(5, 3)), RNG.normal(0.5, 1.0, size=(7, 3))
    if bandwidth == "median":
        pooled = np.concatenate([x, y])
        widths = [np.median([((a - b) ** 2).sum() for i, a in enumerate(pooled) for b in pooled[:i]])]
    else:
        widths = bandwidth if isinstance(bandwidth, list) else [bandwidth]

    def mean_kernel(p, q, s):
        return np.mean([[math.exp(-((a - b) ** 2).sum() / (2 * s)) for b in q] for a in p])

    expected = sum(mean_kernel(x, x, s) + mean_kernel(y, y, s) - 2 * mean_kernel(x, y, s) for s in widths)
    assert_same(ops.mmd(torch.tensor(x), torch.tensor(y), bandwidth=bandwidth), expected, 1e-12)


@pytest.mark.parametrize("far", [1.0, 1e3])  # distances by a product of matrices, and one by one
@pytest.mark.parametrize("block", [1, 40, 1 << 17])
@pytest.mark.parametrize("bandwidth", [0.5, [1.0, 4.0, 1.0]])
def test_homo_loss_of_unequal_batches_is_the_mean_over_pairs_and_its_derivative_that_of_the_formula(
    far, block, bandwidth, monkeypatch
):
    monkeypatch.setattr(kernels, "BLOCK", block)
    batches = [torch.tensor(RNG.normal(size=(n, 3))) for n in (5, 8, 4)]
    batches[1][0] *= far
    for x in batches:
        x.requires_grad_()
    pairs = list(itertools.combinations(batches, 2))
    widths = bandwidth if isinstance(bandwidth, list) else [bandwidth]

    def mean_kernel(p, q, s):
        return torch.exp(-(p.unsqueeze(1) - q).square().sum(dim=2) / (2 * s)).mean()

    discrepancy = sum(
        mean_kernel(p, p, s) + mean_kernel(q, q, s) - 2 * mean_kernel(p, q, s) for p, q in pairs for s in widths
    ) / 3
    semantic = sum(ops.moment_distance(ops.batch_moments(p), ops.batch_moments(q)) for p, q in pairs) / 3
    loss = ops.homo_loss(batches, bandwidth=bandwidth)
    assert_same(loss.mmd, discrepancy, 1e-12)
    assert_same(loss.semantic / semantic, 1.0, 1e-12)
    for part, expected in ((loss.mmd, discrepancy), (loss.semantic, semantic)):
        for a, b in zip(*(torch.autograd.grad(v, batches) for v in (part, expected)), strict=True):
            assert_same(a, b, 1e-11 * max(1.0, float(b.abs().max())))


def test_mmd_of_a_sample_with_itself_is_zero_and_of_far_samples_is_two_minus_coincidence():
    x = tensor(6, 2)
    assert abs(ops.mmd(x, x).item()) < 1e-15
    # Distinct points far apart: only each point with itself counts, 1/N + 1/N'.
    assert_same(ops.mmd(100 * x, 100 * x + 1e4, bandwidth=1.0), 2 / 6, 1e-6)


def test_mmd_far_from_the_origin_in_float32():
    x, y = RNG.normal(size=(8, 3)), RNG.normal(size=(9, 3))
    shifted = ops.mmd(torch.tensor(x + 4096).float(), torch.tensor(y + 4096).float())
    assert_same(shifted, ops.mmd(torch.tensor(x), torch.tensor(y)), 1e-3)


def test_the_median_bandwidth_has_a_floor_where_most_points_coincide():
    x, y = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    y[0] = 1e-6  # so that |y - 0|^2 / 2 is half the floor of 1e-12
    near = math.exp(-0.5)
    expected = 1 + (5 + 4 * near) / 9 - 2 * (6 + 3 * near) / 9
    assert_same(ops.mmd(x, y, bandwidth="median"), expected, 1e-12)


@pytest.mark.parametrize(
    ("bandwidth", "message"), [(0.0, "positive"), ([], "positive"), ([1.0, -1.0], "positive"), ("mean", "'median'")]
)
def test_mmd_refuses(bandwidth, message):
    with pytest.raises(ValueError, match=message):
        ops.mmd(torch.zeros(2, 2), torch.zeros(2, 2), bandwidth=bandwidth)


@pytest.mark.parametrize(
    ("one", "other"), [((2, 2), (2, 3)), ((0, 2), (2, 2)), ((2, 2), (0, 2)), ((2,), (2, 2)), ((2, 2), (2,))]
)
def test_mmd_refuses_shapes(one, other):
    with pytest.raises(ValueError, match="expected \\(N, p\\)"):
        ops.mmd(torch.zeros(one), torch.zeros(other))
    assert ops.mmd(torch.zeros(1, 1), torch.zeros(2, 1)).item() == 0.0


def test_decoupling_conventions():
    s, c = torch.tensor([[[3.0], [0.0]]]), torch.tensor([[[-1.0], [0.0]]])  # opposite: cos = -1
    t = torch.tensor([[[0.0], [2.0]]])  # orthogonal to both
    assert ops.decoupling_loss([s], [c]).item() == 1.0
    assert ops.decoupling_loss([s], [c], power=1).item() == -1.0
    assert ops.decoupling_loss([s, s], [c, t]).item() == 0.5  # the mean over modalities
    assert ops.decoupling_loss([s, s], [c, s], power=1).item() == 0.0  # the sum over modalities: -1 + 1
    assert ops.decoupling_loss([s], [0 * c]).item() == 0.0
    refused = (([s], [], 2, "one pair"), ([], [], 2, "one pair"), ([s], [s], 3, "power=3"), ([s], [s[0]], 2, "differ"))
    for unique, common, power, message in refused:
        with pytest.raises(ValueError, match=message):
            ops.decoupling_loss(unique, common, power=power)


def test_prototype_loss_against_loops():
    features = [tensor(9, 2) for _ in range(3)]
    mixtures = [ops.fit_gaussian_mixture(x, 4) for x in features]
    for mahalanobis in (False, True):
        pairs = []
        for i in range(3):
            for j in range(3):
                if i != j:
                    total = 0.0
                    for n in range(9):
                        for k in range(4):
                            square = (features[i][n] - mixtures[j].means[k]) ** 2
                            if mahalanobis:
                                square = square / mixtures[j].covariances[k]
                            total += float((mixtures[i].responsibilities[n, k] * square.mean()).detach())
                    pairs.append(total / 9)
        loss = ops.prototype_loss(features, mixtures, mahalanobis=mahalanobis)
        assert_same(loss, np.mean(pairs), 1e-12)
        assert_same(ops.prototype_loss(features, mixtures, reduction="sum", mahalanobis=mahalanobis), 2 * loss, 1e-12)


def test_hetero_loss_is_transport_plus_prototype_of_its_own_mixtures():
    features = [tensor(16, 3) for _ in range(3)]
    loss = ops.hetero_loss(features, n_components=4, reg=0.2, reduction="sum")
    mixtures = [ops.fit_gaussian_mixture(x, 4) for x in features]
    cost = ops.joint_cost(mixtures, reduction="sum")
    alone = ops.multimarginal_sinkhorn(cost, [m.responsibilities.mean(dim=0) for m in mixtures], reg=0.2)
    assert_same(loss.transport, alone.value, 1e-9)
    assert_same(loss.prototype, ops.prototype_loss(features, mixtures, reduction="sum"), 1e-12)
    assert_same(loss.value, loss.transport + loss.prototype, 1e-12)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_gradients_of_the_composed_losses(modalities, covariance):
    features = [tensor(7, 2) for _ in range(modalities)]

    def hetero(*x):
        return ops.hetero_loss(x, n_components=3, reg=0.3, n_iter=2, covariance=covariance, tol=1e-13).value

    def homo(*x):
        return ops.homo_loss(x, bandwidth="median").value

    assert torch.autograd.gradcheck(hetero, features, atol=1e-5, rtol=1e-3)
    assert torch.autograd.gradcheck(homo, features, atol=1e-5, rtol=1e-3)


def test_one_modality_alone_and_unequal_ones_are_refused():
    x, mixture = tensor(4, 2), ops.fit_gaussian_mixture(tensor(4, 2), 2)
    for features in ([x], [x, tensor(4, 3)], [x, tensor(0, 2)], [tensor(4), tensor(4)], [x[None], x[None]]):
        with pytest.raises(ValueError, match="M >= 2"):
            ops.hetero_loss(features, n_components=2)
    for features in ([x], [x, tensor(4, 3)], [x, tensor(0, 2)]):
        with pytest.raises(ValueError, match="M >= 2"):
            ops.homo_loss(features)
    for features, mixtures in (([x], [mixture]), ([x, x], [mixture]), ([x, x], [mixture] * 3)):
        with pytest.raises(ValueError, match="M >= 2 of each"):
            ops.prototype_loss(features, mixtures)
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        ops.prototype_loss([x, x], [mixture, mixture], reduction="max")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "operator",
    [
        lambda x: ops.fit_gaussian_mixture(x, 2),
        lambda x: ops.mmd(x, torch.zeros_like(x)),
        lambda x: ops.mmd(torch.zeros_like(x), x, bandwidth="median"),
        lambda x: ops.homo_loss([x, x]),
        lambda x: ops.hetero_loss([x, x], n_components=2),
        ops.batch_moments,
        lambda x: ops.decoupling_loss([x.unsqueeze(2)], [x.unsqueeze(2)]),
    ],
)
def test_what_is_no_number_is_refused(operator, bad):
    x = torch.randn(5, 3)
    operator(x)
    x[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        operator(x)


@pytest.mark.parametrize("change", ["components", "samples", "width"])
def test_prototype_loss_refuses_mixtures_of_other_features(change):
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    fitted = ops.fit_gaussian_mixture(x, 2)
    ops.prototype_loss([x, y], [fitted, ops.fit_gaussian_mixture(y, 2)])
    other = {"components": (y, 3), "samples": (y[:4], 2), "width": (y[:, :2], 2)}[change]
    with pytest.raises(ValueError, match="as in the first modality"):
        ops.prototype_loss([x, y], [fitted, ops.fit_gaussian_mixture(*other)])


def test_decoupling_of_nothing_and_an_infinite_floor_are_refused():
    with pytest.raises(ValueError, match="hold nothing"):
        ops.decoupling_loss([torch.zeros(0, 3, 1)], [torch.zeros(0, 3, 1)])
    with pytest.raises(ValueError, match="finite"):
        ops.fit_gaussian_mixture(torch.randn(4, 2), 2, var_floor=math.inf)


def test_hetero_loss_of_unequal_batches_is_that_of_the_operators_it_is_made_of():
    """The short way, all modalities at once and slopes known beforehand, against the public operators one by one."""
    features = [tensor(n, 3) for n in (9, 6, 12)]
    loss = ops.hetero_loss(features, n_components=4, reg=0.2, tol=1e-12)
    mixtures = [ops.fit_gaussian_mixture(x, 4) for x in features]
    marginals = [mixture.responsibilities.mean(dim=0) for mixture in mixtures]
    transport = ops.multimarginal_sinkhorn(ops.joint_cost(mixtures), marginals, reg=0.2, tol=1e-12)
    value = transport.value + ops.prototype_loss(features, mixtures)
    assert_same(loss.value, value, 1e-12)
    assert_same(loss.result.plan, transport.plan, 1e-10)
    for a, b in zip(*(torch.autograd.grad(v, features) for v in (loss.value, value)), strict=True):
        assert_same(a, b, 1e-9)
    for mixture, own in zip(mixtures, loss.mixtures, strict=True):
        for a, b in zip(mixture, own, strict=True):
            assert_same(a, b, 1e-12)


def test_without_a_gradient_the_losses_are_the_same_numbers():
    features = [tensor(9, 3) for _ in range(3)]
    with torch.no_grad():
        quiet = ops.hetero_loss(features, n_components=4).value, ops.homo_loss(features).value
    loud = ops.hetero_loss(features, n_components=4).value, ops.homo_loss(features).value
    assert not any(value.requires_grad for value in quiet)
    assert all(value.requires_grad for value in loud)
    assert [float(value) for value in quiet] == [float(value.detach()) for value in loud]
