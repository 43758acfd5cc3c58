"""Moments, MMD, decoupling and the composed losses against SciPy, NumPy and loops over single entries."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis
from scipy.stats import skew

from mmsa_decalign import reference as ref

# Moments


def test_moments_are_numpys_and_scipys(blobs):
    moments = ref.batch_moments(blobs)
    assert_allclose(moments.mean, np.mean(blobs, axis=0), rtol=1e-12)
    assert_allclose(moments.cov, np.cov(blobs, rowvar=False), rtol=1e-12)
    assert_allclose(moments.skew, skew(blobs, bias=True), rtol=1e-12)


def test_moments_of_one_row_and_of_a_constant_column():
    one = ref.batch_moments([[2.0, -1.0]])
    assert_array_equal(one.mean, [2.0, -1.0])
    assert_array_equal(one.cov, np.zeros((2, 2)))
    assert_array_equal(one.skew, [0.0, 0.0])
    assert_array_equal(ref.batch_moments([[7.0], [7.0], [7.0]]).skew, [0.0])


def test_covariance_of_two_and_three_rows_is_numpys(rng):
    for n in (2, 3):
        z = rng.normal(size=(n, 2))
        assert_allclose(ref.batch_moments(z).cov, np.cov(z, rowvar=False), rtol=1e-12)


def test_skewness_uses_the_variance_floor():
    z = np.array([[0.0], [0.0], [3e-4]])  # deviations 1e-4 * (-1, -1, 2): variance 2e-8, third moment 2e-12
    assert_allclose(ref.batch_moments(z).skew, [2e-12 / 1e-6**1.5], rtol=1e-9)


def test_moment_distance_by_hand(rng):
    a, b = ref.batch_moments(rng.normal(size=(9, 3))), ref.batch_moments(rng.exponential(size=(7, 3)))
    expected = sum((a.mean[i] - b.mean[i]) ** 2 for i in range(3)) / 3
    expected += sum((a.cov[i, j] - b.cov[i, j]) ** 2 for i in range(3) for j in range(3)) / 9
    expected += sum((a.skew[i] - b.skew[i]) ** 2 for i in range(3)) / 3
    assert_allclose(ref.moment_distance(a, b), expected, rtol=1e-12)
    assert ref.moment_distance(a, a) == 0.0


# MMD


def mmd_by_hand(x, y, s):
    def mean_kernel(u, v):
        total = 0.0
        for p in u:
            for q in v:
                total += np.exp(-np.linalg.norm(p - q) ** 2 / (2 * s))
        return total / (len(u) * len(v))

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.fixture
def samples(rng):
    return rng.normal(size=(7, 2)), rng.normal(size=(5, 2)) + 0.5


def test_mmd_is_the_double_loop(samples):
    for s in (0.3, 1.0, 4.0):
        assert_allclose(ref.mmd(*samples, bandwidth=s), mmd_by_hand(*samples, s), rtol=1e-12)
    assert ref.mmd(*samples) == ref.mmd(*samples, bandwidth=1.0)
    several = mmd_by_hand(*samples, 0.3) + mmd_by_hand(*samples, 4.0)
    assert_allclose(ref.mmd(*samples, bandwidth=[0.3, 4.0]), several, rtol=1e-12)


def test_mmd_is_the_mean_of_scikit_learns_kernels(samples):
    kernel = pytest.importorskip("sklearn.metrics.pairwise").rbf_kernel
    x, y = samples
    for s in (0.3, 1.0, 4.0):
        gamma = 1 / (2 * s)
        expected = kernel(x, x, gamma).mean() + kernel(y, y, gamma).mean() - 2 * kernel(x, y, gamma).mean()
        assert_allclose(ref.mmd(x, y, bandwidth=s), expected, rtol=1e-12)


def test_median_bandwidth(samples):
    pooled = np.concatenate(samples)
    squares = [np.linalg.norm(pooled[i] - pooled[j]) ** 2 for i in range(12) for j in range(i)]
    assert_allclose(ref.mmd(*samples, bandwidth="median"), mmd_by_hand(*samples, np.median(squares)), rtol=1e-12)
    larger = [100 * sample for sample in samples]
    assert_allclose(ref.mmd(*larger, bandwidth="median"), ref.mmd(*samples, bandwidth="median"), rtol=1e-12)


def test_median_of_mostly_equal_points():
    x, y = np.zeros((6, 1)), np.array([[0.0], [0.0], [1.0]])
    assert_allclose(ref.mmd(x, y, bandwidth="median"), 1 + 5 / 9 - 2 * 2 / 3, rtol=1e-12)


def test_median_is_at_least_a_trillionth():
    x, y = np.zeros((6, 1)), np.array([[0.0], [0.0], [1e-6]])  # 1e-12 apart, squared: k = exp(-1/2) where not 1
    expected = 1 + (5 + 4 * np.exp(-0.5)) / 9 - 2 * (2 + np.exp(-0.5)) / 3
    assert_allclose(ref.mmd(x, y, bandwidth="median"), expected, rtol=1e-9)


def test_mmd_of_a_sample_with_itself_and_of_far_samples(samples):
    x, y = samples
    for bandwidth in (1.0, "median", (0.1, 1.0)):
        assert_allclose(ref.mmd(x, x[::-1], bandwidth=bandwidth), 0.0, atol=1e-14)
        assert_allclose(ref.mmd(x, y, bandwidth=bandwidth), ref.mmd(y, x, bandwidth=bandwidth), rtol=1e-12)
        assert ref.mmd(x, y, bandwidth=bandwidth) > 1e-3
    assert_allclose(ref.mmd([[0.0], [1e3]], [[2e3]]), 0.5 + 1.0, rtol=1e-12)


# Decoupling


def test_decoupling_by_hand():
    zero, one = np.zeros((2, 2)), np.array([[1.0, 0.0], [0.0, 0.0]])
    unique = np.array([[[1.0, 2.0], [2.0, 0.0]], zero, one, one])
    common = np.array([[[2.0, 0.0], [1.0, 2.0]], one, -one, zero])
    cosines = np.array([4 / 9, 0.0, -1.0, 0.0])
    assert_allclose(ref.decoupling_loss([unique], [common]), (cosines**2).mean(), rtol=1e-12)
    assert_allclose(ref.decoupling_loss([unique], [common], power=1), cosines.mean(), rtol=1e-12)


def test_decoupling_over_modalities(rng):
    shapes = [(4, 2, 3), (4, 5, 1), (4, 1, 6)]
    unique, common = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    squares = [ref.decoupling_loss([u], [c]) for u, c in zip(unique, common, strict=True)]
    cosines = [ref.decoupling_loss([u], [c], power=1) for u, c in zip(unique, common, strict=True)]
    assert_allclose(ref.decoupling_loss(unique, common), np.mean(squares), rtol=1e-12)
    assert_allclose(ref.decoupling_loss(unique, common, power=1), np.sum(cosines), rtol=1e-12)
    rescaled = [1e-150 * u for u in unique]
    assert_allclose(ref.decoupling_loss(rescaled, common), np.mean(squares), rtol=1e-9)


# Compositions


@pytest.mark.parametrize("form", ["diag", "full"])
@pytest.mark.parametrize("mahalanobis", [False, True])
@pytest.mark.parametrize("n_modalities", [2, 3, 4])
def test_prototype_loss_is_the_loop_over_everything(make_mixture, rng, n_modalities, mahalanobis, form):
    features = [rng.normal(size=(5, 3)) for _ in range(n_modalities)]
    mixtures = [make_mixture(2, 3, form, n=5) for _ in features]
    total = 0.0
    for i in range(n_modalities):
        for j in range(n_modalities):
            if i == j:
                continue
            for n, k in itertools.product(range(5), range(2)):
                covariance = mixtures[j].covariances[k]
                dense = covariance if form == "full" else np.diag(covariance)
                inverse = np.linalg.inv(dense) if mahalanobis else np.eye(3)
                distance = scipy_mahalanobis(features[i][n], mixtures[j].means[k], inverse) ** 2
                total += mixtures[i].responsibilities[n, k] * distance / 5
    total /= n_modalities * (n_modalities - 1)
    options = {"mahalanobis": mahalanobis}
    assert_allclose(ref.prototype_loss(features, mixtures, reduction="sum", **options), total, rtol=1e-10)
    assert_allclose(ref.prototype_loss(features, mixtures, **options), total / 3, rtol=1e-10)


@pytest.mark.parametrize("solver", ["log", "release"])
@pytest.mark.parametrize("form", ["diag", "full"])
def test_hetero_loss_hands_every_option_on(rng, form, solver):
    features = [rng.normal(size=(20, 3)) + m for m in range(3)]
    em = {"n_iter": 3, "var_floor": 0.2, "covariance": form}
    rounds = {"reg": 0.4, "solver": solver, "tol": 1e-6, "max_iter": 40}
    loss = ref.hetero_loss(features, n_components=2, reduction="sum", mahalanobis=True, **em, **rounds)

    mixtures = [ref.fit_gaussian_mixture(x, 2, **em) for x in features]
    for found, expected in zip(loss.mixtures, mixtures, strict=True):
        for name in ref.GaussianMixture._fields:
            assert_array_equal(getattr(found, name), getattr(expected, name))
    product_floor = 1e-8 if solver == "release" else 0.0
    cost = ref.joint_cost(mixtures, reduction="sum", product_floor=product_floor)
    marginals = [mixture.responsibilities.mean(axis=0) for mixture in mixtures]
    transport = ref.multimarginal_sinkhorn(cost, marginals, **rounds)
    prototype = ref.prototype_loss(features, mixtures, reduction="sum", mahalanobis=True)
    assert_array_equal(loss.result.plan, transport.plan)
    assert loss.result.n_iter == transport.n_iter
    assert (loss.transport, loss.prototype) == (transport.value, prototype)
    assert_allclose(loss.value, transport.value + prototype, rtol=1e-15)


def test_hetero_loss_takes_any_number_of_modalities_in_any_order(rng):
    features = [rng.normal(size=(12, 2)) + m for m in range(4)]
    for number in (2, 3, 4):
        forward = ref.hetero_loss(features[:number], n_components=3)
        backward = ref.hetero_loss(features[:number][::-1], n_components=3)
        assert forward.result.plan.shape == (3,) * number
        assert_allclose(forward.value, backward.value, rtol=1e-9)


@pytest.mark.parametrize("n_modalities", [2, 3, 4])
@pytest.mark.parametrize("bandwidth", [2.0, "median", (0.5, 2.0)])
def test_homo_loss_averages_the_pairs(rng, n_modalities, bandwidth):
    features = [rng.normal(size=(6, 2)) * (m + 1) for m in range(n_modalities)]
    semantic, discrepancy = [], []
    for i in range(n_modalities):
        for j in range(i):
            semantic.append(ref.moment_distance(ref.batch_moments(features[i]), ref.batch_moments(features[j])))
            discrepancy.append(ref.mmd(features[i], features[j], bandwidth=bandwidth))
    loss = ref.homo_loss(features, bandwidth=bandwidth)
    assert_allclose(loss.semantic, np.mean(semantic), rtol=1e-12)
    assert_allclose(loss.mmd, np.mean(discrepancy), rtol=1e-12)
    assert_allclose(loss.value, loss.semantic + loss.mmd, rtol=1e-15)


# Wrong input

ROW = [[1.0, 2.0]]
CUBE = np.ones((1, 1, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.batch_moments([1.0]), "z must have 2 axes"),
        (
            lambda: ref.moment_distance(ref.batch_moments(ROW), ref.batch_moments([[1.0]])),
            r"one width, got \(2,\) and \(1,\)",
        ),
        (lambda: ref.mmd(ROW, [[1.0]]), r"one width, got shapes \(1, 2\) and \(1, 1\)"),
        (lambda: ref.mmd(ROW, ROW, bandwidth=0.0), "bandwidth must be a finite number above 0"),
        (lambda: ref.mmd(ROW, ROW, bandwidth=[]), "at least one number, got an empty sequence"),
        (lambda: ref.mmd(ROW, ROW, bandwidth="mean"), r"bandwidth must be one of \['median'\], got 'mean'"),
        (lambda: ref.decoupling_loss([CUBE], [CUBE], power=3), r"power must be one of \[1, 2\], got 3"),
        (lambda: ref.decoupling_loss([CUBE], [CUBE, CUBE]), "pair up, got 1 and 2: pass one per modality"),
        (lambda: ref.decoupling_loss([], []), "pair up, got 0 and 0"),
        (lambda: ref.decoupling_loss(CUBE, CUBE), r"unique\[0\] must have 3 axes, got shape \(1, 2\)"),
        (lambda: ref.decoupling_loss([CUBE], [np.ones((1, 2, 2))]), r"got \(1, 1, 2\) and \(1, 2, 2\)"),
        (lambda: ref.homo_loss([ROW]), r"2 or more arrays of one shape, got \[\(1, 2\)\]"),
        (lambda: ref.homo_loss([ROW, [[1.0]]]), r"arrays of one shape, got \[\(1, 2\), \(1, 1\)\]"),
        (lambda: ref.hetero_loss([ROW, [[1.0]]], n_components=1), "features must hold 2 or more arrays of one shape"),
        (lambda: ref.prototype_loss([ROW, ROW], []), r"mixtures must be 2, with responsibilities \(1, K\)"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mixtures_of_other_samples_are_refused(make_mixture):
    features = [np.ones((5, 3))] * 2
    good = make_mixture(2, 3, n=5)
    for bad in (make_mixture(2, 3, n=6), make_mixture(3, 3, n=5), make_mixture(2, 4, n=5)):
        for pair in ([good, bad], [bad, good]):
            with pytest.raises(ValueError, match="fit one mixture per modality on these features"):
                ref.prototype_loss(features, pair)
    with pytest.raises(ValueError, match="reduction must be one of"):
        ref.prototype_loss(features, [good, good], reduction="max")
