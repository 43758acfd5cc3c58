"""The objective: each term against its formula, and absent terms absent."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmsa_decalign import AlignmentTerms, Settings, objective
from mmsa_decalign.objective import binary_loss, contrastive_loss, sentiment_class, task_loss
from tests.conftest import assert_same

TERMS = AlignmentTerms(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0), None, None)


def outputs(n=6, columns=1):
    rng = torch.Generator().manual_seed(0)
    return {"M": torch.randn(n, columns, generator=rng), "Feature_f": torch.randn(n, 4, generator=rng), "terms": TERMS}


LABELS = torch.tensor([[-3.0], [-0.2], [0.0], [0.3], [1.4], [2.6]])


def test_weighted_sum_of_its_terms():
    s = Settings(dec_loss_weight=7.0, alpha=11.0, beta=13.0, ct_weight=17.0, binary_task_weight=19.0)
    parts = objective(outputs(), LABELS, s)
    expected = parts.task + 7 * 2 + 11 * 3 + 13 * 5 + 17 * parts.contrastive + 19 * parts.binary
    assert_same(parts.total, expected, 1e-5)
    assert list(parts.numbers()) == ["loss", "task", "decoupling", "hetero", "homo", "contrastive", "binary"]


def test_absent_terms_are_absent():
    alone = outputs() | {"terms": AlignmentTerms(torch.tensor(2.0), None, None, None, None)}
    parts = objective(alone, LABELS, Settings(modalities=("text",), ct_weight=0.0))
    assert_same(parts.total, parts.task + 2, 1e-6)
    assert list(parts.numbers()) == ["loss", "task", "decoupling"]


@pytest.mark.parametrize(("name", "loss"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("smooth_l1", F.smooth_l1_loss)])
def test_regression_losses(name, loss):
    out = outputs()["M"]
    assert_same(task_loss(out, LABELS, Settings(task_loss=name)), loss(out[:, 0], LABELS[:, 0]), 0)


def test_class_losses_with_weights():
    out, labels = outputs(columns=3)["M"], torch.tensor([0.0, 0, 0, 0, 1, 2])
    s = Settings(train_mode="classification", num_classes=3)
    weights = torch.tensor([0.5, 2.0, 2.0])
    log_prob = out.log_softmax(dim=1)[range(6), labels.long()]
    expected = -(weights[labels.long()] * log_prob).sum() / weights[labels.long()].sum()
    assert_same(task_loss(out, labels, s, weights), expected, 1e-6)
    parts = objective(outputs(columns=3), labels, s.__class__(train_mode="classification", binary_task_weight=1.0))
    assert parts.binary is None


def test_binary_loss_leaves_neutral_labels_out():
    out = torch.tensor([[2.0], [-1.0], [5.0]])
    loss = binary_loss(out, torch.tensor([1.0, 3.0, 0.0]))
    assert_same(loss, (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2, 1e-6)
    assert binary_loss(out, torch.zeros(3)).item() == 0.0


def test_sentiment_classes_are_rounded_labels_within_three():
    labels = torch.tensor([-4.0, -2.6, -0.4, 0.4, 0.6, 3.4])
    assert sentiment_class(labels, Settings()).tolist() == [-3, -3, 0, 0, 1, 3]
    assert sentiment_class(torch.tensor([2.0]), Settings(train_mode="classification")).tolist() == [2]


def test_contrastive_loss_against_loops():
    rng = torch.Generator().manual_seed(0)
    x, classes, t = torch.randn(7, 3, generator=rng, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 1, 2, 3]), 0.3
    anchors = []
    for n in range(7):
        positives = [p for p in range(7) if p != n and classes[p] == classes[n]]
        if positives:
            s = [F.cosine_similarity(x[n], x[q], dim=0) / t for q in range(7)]
            bottom = sum(math.exp(s[q]) for q in range(7) if q != n)
            anchors.append(-sum(math.log(math.exp(s[p]) / bottom) for p in positives) / len(positives))
    assert_same(contrastive_loss(x, classes, t), sum(anchors) / len(anchors), 1e-9)
    assert contrastive_loss(x, torch.arange(7), t).item() == 0.0
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: contrastive_loss(v, classes, t), x)


def test_contrastive_gradient_is_finite_for_one_sample_and_for_equal_samples():
    for x in (torch.ones(1, 3), torch.ones(4, 3)):
        x.requires_grad_()
        contrastive_loss(x, torch.zeros(len(x)), 0.1).backward()
        assert bool(torch.isfinite(x.grad).all())
