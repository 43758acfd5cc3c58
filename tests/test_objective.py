"""The objective: each term against its formula, and absent terms absent."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from mmsa_decalign import AlignmentTerms, DecAlign, Settings, objective
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


PARTS = AlignmentTerms(
    torch.tensor(2.0), torch.tensor(3.1), torch.tensor(5.2),
    SimpleNamespace(transport=torch.tensor(1.0), prototype=torch.tensor(2.0)),
    SimpleNamespace(semantic=torch.tensor(1.5), mmd=torch.tensor(3.5)),
)


def test_at_weight_one_the_parts_are_not_even_looked_at():
    """The sums above are not those of the parts: at 1 the loss is the operators' own number, bit for bit."""
    parts = objective(outputs() | {"terms": PARTS}, LABELS, Settings())
    assert parts.hetero is PARTS.hetero
    assert parts.homo is PARTS.homo


@pytest.mark.parametrize(
    ("weights", "hetero", "homo"),
    [
        ({"transport_weight": 0.0}, 2.0, 5.2),
        ({"prototype_weight": 0.0}, 1.0, 5.2),
        ({"transport_weight": 3.0, "prototype_weight": 0.5}, 4.0, 5.2),
        ({"moments_weight": 0.0}, 3.1, 3.5),
        ({"mmd_weight": 0.0}, 3.1, 1.5),
        ({"moments_weight": 2.0, "mmd_weight": 4.0}, 3.1, 17.0),
    ],
)
def test_the_weights_of_the_parts(weights, hetero, homo):
    parts = objective(outputs() | {"terms": PARTS}, LABELS, Settings(alpha=0.3, beta=0.7, ct_weight=0.0, **weights))
    assert_same(parts.hetero, hetero, 1e-6)
    assert_same(parts.homo, homo, 1e-6)
    assert_same(parts.total, parts.task + 2.0 + 0.3 * hetero + 0.7 * homo, 1e-6)


def test_a_part_that_is_off_has_no_gradient_and_the_other_one_keeps_its_own():
    """On a real model: without transport the gradient is that of the prototype loss alone, and so on."""
    torch.manual_seed(0)
    model = DecAlign(Settings(d_model=8, num_heads=2, nlevels=1, num_prototypes=2, feature_dims=(4, 4, 4)))
    out = model(*(torch.randn(5, 3, 4) for _ in range(3)))
    terms, weight = out["terms"], model.unique["text"].weight
    whole = {"transport_weight": terms.hetero_parts.prototype, "prototype_weight": terms.hetero_parts.transport}
    for name, other in whole.items():
        s = Settings(**{name: 0.0}, alpha=1.0, beta=0.0, ct_weight=0.0, dec_loss_weight=0.0)
        parts = objective(out, torch.zeros(5), s)
        (got,) = torch.autograd.grad(parts.total - parts.task, weight, retain_graph=True)
        (expected,) = torch.autograd.grad(other, weight, retain_graph=True)
        assert_same(got, expected, 1e-6)
        assert float(expected.abs().max()) > 0


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
