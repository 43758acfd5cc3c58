"""EM against scikit-learn, SciPy's densities and hand-made cases."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal, norm

from mmsa_decalign import reference as ref


def dense(covariance):
    return np.diag(covariance) if covariance.ndim == 1 else covariance


def log_likelihood(x, fit):
    densities = [
        multivariate_normal(mean, dense(covariance)).pdf(x)
        for mean, covariance in zip(fit.means, fit.covariances, strict=True)
    ]
    return np.log(fit.weights @ densities).sum()


@pytest.mark.parametrize(("form", "var_floor"), [("diag", 1e-12), ("full", 1e-12), ("full", 0.05)])
def test_every_em_step_is_scikit_learns(blobs, form, var_floor):
    sklearn_mixture = pytest.importorskip("sklearn.mixture")
    from sklearn.exceptions import ConvergenceWarning

    for step in range(6):
        before = ref.fit_gaussian_mixture(blobs, 4, n_iter=step, var_floor=var_floor, covariance=form)
        after = ref.fit_gaussian_mixture(blobs, 4, n_iter=step + 1, var_floor=var_floor, covariance=form)
        precisions = 1 / before.covariances if form == "diag" else np.linalg.inv(before.covariances)
        other = sklearn_mixture.GaussianMixture(
            4,
            covariance_type=form,
            reg_covar=var_floor if form == "full" else 0.0,
            max_iter=1,
            weights_init=before.weights,
            means_init=before.means,
            precisions_init=precisions,
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # one step is what is asked for
            other.fit(blobs)
        assert_allclose(after.weights, other.weights_, rtol=1e-9)
        assert_allclose(after.means, other.means_, rtol=1e-9, atol=1e-12)
        assert_allclose(after.covariances, other.covariances_, rtol=1e-9, atol=1e-12)
        assert_allclose(after.responsibilities, other.predict_proba(blobs), rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("form", ["diag", "full"])
def test_likelihood_never_falls_and_rises_overall(blobs, form):
    fits = [ref.fit_gaussian_mixture(blobs, 3, n_iter=step, var_floor=1e-12, covariance=form) for step in range(12)]
    scores = np.array([log_likelihood(blobs, fit) for fit in fits])
    assert (np.diff(scores) > -1e-9).all()
    assert scores[-1] > scores[0] + 1


@pytest.mark.parametrize("form", ["diag", "full"])
def test_density_is_scipys(blobs, make_mixture, form):
    _, means, covariances, _ = make_mixture(2, 3, form)
    found = ref.mixture.component_log_density(blobs, means, covariances)
    for k in range(2):
        assert_allclose(found[:, k], multivariate_normal(means[k], dense(covariances[k])).logpdf(blobs), rtol=1e-10)


@pytest.mark.parametrize("form", ["diag", "full"])
def test_responsibilities_are_the_posteriors_of_the_final_parameters(blobs, form):
    fit = ref.fit_gaussian_mixture(blobs, 3, covariance=form)
    joint = np.stack(
        [
            weight * multivariate_normal(mean, dense(covariance)).pdf(blobs)
            for weight, mean, covariance in zip(fit.weights, fit.means, fit.covariances, strict=True)
        ],
        axis=1,
    )
    assert_allclose(fit.responsibilities, joint / joint.sum(axis=1, keepdims=True), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("n", "n_components", "rows"),
    [(4, 3, [0, 2, 3]), (6, 3, [0, 2, 5]), (5, 1, [0]), (3, 3, [0, 1, 2]), (2, 5, [0, 1, 0, 1, 0]), (1, 2, [0, 0])],
    ids=["1.5 to 2", "2.5 to 2", "one", "all", "repeat", "single"],
)
def test_start_rows(n, n_components, rows):
    x = np.arange(n, dtype=float)[:, None] ** 2
    start = ref.fit_gaussian_mixture(x, n_components, n_iter=0)
    assert_array_equal(start.means, x[rows])
    assert_array_equal(start.weights, np.full(n_components, 1 / n_components))
    assert_allclose(start.covariances, np.full((n_components, 1), max(x.var(), 1e-4)), rtol=1e-12)


def test_full_start_is_the_population_covariance_plus_the_floor(blobs):
    start = ref.fit_gaussian_mixture(blobs, 2, n_iter=0, var_floor=0.3, covariance="full")
    expected = np.cov(blobs.T, bias=True) + 0.3 * np.eye(3)
    assert_allclose(start.covariances, [expected, expected], rtol=1e-12)


def test_one_component_is_the_sample_itself(blobs):
    for form, expected in (("diag", blobs.var(axis=0)), ("full", np.cov(blobs.T, bias=True) + 1e-4 * np.eye(3))):
        fit = ref.fit_gaussian_mixture(blobs, 1, n_iter=3, covariance=form)
        assert_allclose(fit.covariances[0], expected, rtol=1e-12)
        assert_allclose(fit.means[0], blobs.mean(axis=0), rtol=1e-12)
        assert_array_equal(fit.responsibilities, np.ones((60, 1)))


def test_variances_do_not_cancel_far_from_the_origin(blobs):
    near = ref.fit_gaussian_mixture(blobs, 3)
    far = ref.fit_gaussian_mixture(blobs + 2.0**27, 3)  # E[x^2] - mean^2 has no digit left here
    assert_allclose(far.covariances, near.covariances, rtol=1e-6)
    assert_allclose(far.responsibilities, near.responsibilities, atol=1e-6)


def test_identical_samples_stop_at_the_variance_floor():
    same = ref.fit_gaussian_mixture(np.full((5, 2), 3.0), 3, var_floor=0.25)
    assert_array_equal(same.covariances, np.full((3, 2), 0.25))
    assert_allclose(same.responsibilities, np.full((5, 3), 1 / 3), rtol=1e-14)


def test_a_component_without_mass_divides_by_the_mass_floor(rng, monkeypatch):
    """EM hardly ever empties a component, so the first density is made to."""
    n = 200
    x = 0.01 * rng.normal(size=(n, 1)) + 0.02
    honest, calls = ref.mixture.component_log_density, []

    def empties_component_1_once(*arguments):
        calls.append(arguments)
        return honest(*arguments) - ([0.0, 1e5] if len(calls) == 1 else [0.0, 0.0])

    monkeypatch.setattr(ref.mixture, "component_log_density", empties_component_1_once)
    fit = ref.fit_gaussian_mixture(x, 2, n_iter=1)
    assert_allclose(fit.weights, [1.0, 1e-6 / n], rtol=1e-12)
    assert_allclose(fit.means[:, 0], [x.mean(), 0.0], rtol=1e-12)
    assert_allclose(fit.covariances[:, 0], [max(x.var(), 1e-4), 1e-4], rtol=1e-12)
    # The empty weight, 5e-9, counts as 1e-8 in the responsibilities.
    joint = np.stack([norm(x.mean(), np.sqrt(fit.covariances[0, 0])).pdf(x[:, 0]), 1e-8 * norm(0, 0.01).pdf(x[:, 0])])
    assert_allclose(fit.responsibilities, (joint / joint.sum(axis=0)).T, rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 2.0], 2), {}, "x must have 2 axes, got shape \\(2,\\)"),
        (([[]], 2), {}, "x must not be empty"),
        (([[np.nan]], 2), {}, "x must be finite"),
        (([[1.0]], 0), {}, "n_components must be a whole number of at least 1, got 0"),
        (([[1.0]], 1.5), {}, "n_components must be a whole number"),
        (([[1.0]], 1), {"n_iter": -1}, "n_iter must be a whole number of at least 0, got -1"),
        (([[1.0]], 1), {"var_floor": 0.0}, "var_floor must be a finite number above 0"),
        (([[1.0]], 1), {"covariance": "tied"}, "covariance must be one of \\['diag', 'full'\\], got 'tied'"),
    ],
)
def test_wrong_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ref.fit_gaussian_mixture(*arguments, **options)
