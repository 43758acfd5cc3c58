"""The objective against scikit-learn's losses where it is there, SciPy, and loops over pairs of samples."""

import numpy as np
import pytest
from mmsa_decalign.reference.objective import binary_loss, contrastive_loss, task_loss
from numpy.testing import assert_allclose
from scipy.special import expit, huber, softmax

from mmsa_decalign import reference as ref

LABELS = np.array([-3.0, -0.2, 0.0, 0.4, 1.4, 2.6])


@pytest.fixture
def outputs(rng):
    """outputs(columns): what a model of three modalities would give in training for six samples."""

    def make(columns=1):
        terms = ref.AlignmentTerms(2.0, 3.0, 5.0, None, None)
        return {"M": 2 * rng.normal(size=(6, columns)), "Feature_f": rng.normal(size=(6, 4)), "terms": terms}

    return make


def test_regression_losses(outputs, settings):
    prediction = outputs()["M"]
    error = prediction[:, 0] - LABELS
    assert (np.abs(error) < 1).any()
    assert (np.abs(error) > 1).any()
    for name, losses in {"mse": error * error, "l1": np.hypot(error, 0), "smooth_l1": huber(1.0, error)}.items():
        assert_allclose(task_loss(prediction, LABELS, settings | {"task_loss": name}), losses.mean(), rtol=1e-13)
    # at an error of exactly 1 both branches of the smooth loss give 1/2
    assert task_loss(np.ones((1, 1)), np.zeros(1), settings | {"task_loss": "smooth_l1"}) == 0.5


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0], [0.0, 1.0, 3.0]])
def test_cross_entropy_by_hand(outputs, settings, weights):
    prediction, classes = outputs(3)["M"], np.array([0, 2, 1, 1, 0, 2])
    total, mass = 0.0, 0.0
    for n in range(6):
        weight = 1.0 if weights is None else weights[classes[n]]
        total -= weight * np.log(np.exp(prediction[n, classes[n]]) / sum(np.exp(prediction[n, k]) for k in range(3)))
        mass += weight
    found = task_loss(prediction, classes.astype(float), settings | {"train_mode": "classification"}, weights)
    assert_allclose(found, total / mass, rtol=1e-13)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_cross_entropy_is_scikit_learns_log_loss(outputs, settings, weights):
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, classes = outputs(3)["M"], np.array([0, 2, 1, 1, 0, 2])
    sample_weight = None if weights is None else np.array(weights)[classes]
    expected = metrics.log_loss(classes, softmax(prediction, axis=1), sample_weight=sample_weight)
    found = task_loss(prediction, classes.astype(float), settings | {"train_mode": "classification"}, weights)
    assert_allclose(found, expected, rtol=1e-12)


def test_binary_loss_leaves_neutral_labels_out(outputs):
    prediction = outputs()["M"]
    signed = np.array([0, 1, 3, 4, 5])  # LABELS[2] is 0
    probability = expit(prediction[signed, 0])
    losses = [-np.log(p) if y > 0 else -np.log(1 - p) for p, y in zip(probability, LABELS[signed], strict=True)]
    assert_allclose(binary_loss(prediction, LABELS), np.mean(losses), rtol=1e-12)
    assert binary_loss(prediction, np.zeros(6)) == 0.0
    assert_allclose(binary_loss(np.array([[-800.0]]), np.array([0.1])), 800.0, rtol=1e-14)  # no overflow


def test_binary_loss_is_scikit_learns_log_loss(outputs):
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, labels = outputs()["M"], np.where(LABELS == 0, 1.0, LABELS)
    assert_allclose(binary_loss(prediction, labels), metrics.log_loss(labels > 0, expit(prediction[:, 0])), rtol=1e-12)


def test_contrastive_loss_is_the_loop_over_pairs(rng):
    features, classes, temperature = rng.normal(size=(7, 3)), np.array([0, 0, 1, 1, 1, 2, 3]), 0.3

    def similarity(n, q):
        return features[n] @ features[q] / (np.linalg.norm(features[n]) * np.linalg.norm(features[q])) / temperature

    anchors = []
    for n in range(5):  # the last two have nobody of their class
        positives = [p for p in range(7) if p != n and classes[p] == classes[n]]
        bottom = sum(np.exp(similarity(n, q)) for q in range(7) if q != n)
        anchors.append(-np.mean([np.log(np.exp(similarity(n, p)) / bottom) for p in positives]))
    assert_allclose(contrastive_loss(features, classes, temperature), np.mean(anchors), rtol=1e-12)
    assert_allclose(contrastive_loss(9 * features, classes, temperature), np.mean(anchors), rtol=1e-12)
    assert contrastive_loss(features, np.arange(7), temperature) == 0.0


def test_contrastive_loss_of_special_batches():
    assert contrastive_loss(np.ones((1, 2)), np.zeros(1), 0.1) == 0.0
    assert_allclose(contrastive_loss(np.ones((5, 2)), np.zeros(5), 0.1), np.log(4), rtol=1e-12)
    zero_and_ones = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # the zero vector has cosine 0 with all
    expected = (np.log(2) + 2 * (np.log(1 + np.exp(2.0)) - 1)) / 3
    assert_allclose(contrastive_loss(zero_and_ones, np.zeros(3), 0.5), expected, rtol=1e-12)


def test_total_is_the_weighted_sum(outputs, settings):
    weights = {"dec_loss_weight": 7.0, "alpha": 11.0, "beta": 13.0, "ct_weight": 17.0, "binary_task_weight": 19.0}
    found = outputs()
    parts = ref.objective(found, LABELS[:, None], settings | weights)
    assert parts.task == task_loss(found["M"], LABELS, settings)
    assert parts.binary == binary_loss(found["M"], LABELS)
    assert parts.contrastive == contrastive_loss(found["Feature_f"], np.array([-3, 0, 0, 0, 1, 3]), 0.1)
    expected = parts.task + 7 * 2 + 11 * 3 + 13 * 5 + 17 * parts.contrastive + 19 * parts.binary
    assert_allclose(parts.total, expected, rtol=1e-14)
    assert parts[2:5] == (2.0, 3.0, 5.0)
    half = ref.objective(found, LABELS, settings | {"binary_task_weight": 0.5, "ct_weight": 0.25})
    alignment = 2.0 + 0.05 * 3 + 0.07 * 5
    assert_allclose(half.total, parts.task + alignment + 0.25 * parts.contrastive + 0.5 * parts.binary, rtol=1e-14)


def test_absent_terms_are_absent(outputs, settings):
    found = outputs() | {"terms": ref.AlignmentTerms(2.0, None, None, None, None)}
    parts = ref.objective(found, LABELS, settings | {"ct_weight": 0.0, "dec_loss_weight": 7.0})
    assert parts[3:] == (None, None, None, None)
    assert_allclose(parts.total, parts.task + 14.0, rtol=1e-14)


def test_classes_of_the_contrastive_term(outputs, settings):
    """In regression the labels rounded to even within [-3, 3]; in classification the labels as they are."""
    for labels, rounded in [
        ([-4.0, -3.4, 0.5, 0.2, 1.5, 2.5], [-3, -3, 0, 0, 2, 2]),
        ([3.0, 4.0, 9.0, -4.0, -9.0, 0.0], [3, 3, 3, -3, -3, 0]),
    ]:
        found = outputs()
        parts = ref.objective(found, np.array(labels, dtype=float), settings)
        assert parts.contrastive == contrastive_loss(found["Feature_f"], np.array(rounded), 0.1)
    found, classes = outputs(6), np.array([5.0, 3.0, 4.0, 5.0, 0.0, 3.0])
    parts = ref.objective(found, classes, settings | {"train_mode": "classification", "binary_task_weight": 1.0})
    assert parts.contrastive == contrastive_loss(found["Feature_f"], classes, 0.1)
    assert parts.binary is None  # there is no sign in a class


def test_class_weights_are_passed_on(outputs, settings):
    found, classes = outputs(3), np.array([0.0, 2.0, 1.0, 1.0, 0.0, 2.0])
    settings = settings | {"train_mode": "classification"}
    weighted = ref.objective(found, classes, settings, [1.0, 5.0, 2.0]).task
    assert weighted == task_loss(found["M"], classes, settings, [1.0, 5.0, 2.0])
    assert abs(weighted - ref.objective(found, classes, settings).task) > 1e-3
