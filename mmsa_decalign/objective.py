"""The training objective: a weighted sum, kept as a record of its named terms.

L = L_task + w_bin L_binary + w_dec L_decoupling + alpha L_hetero + beta L_homo + w_ct L_contrastive, where
L_hetero = w_transport L_transport + w_prototype L_prototype and L_homo = w_moments L_moments + w_mmd L_mmd.
A term that does not exist for the settings and the batch at hand is None, never a silent zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .settings import Settings


class Objective(NamedTuple):
    """Total and terms of one batch, without their weights in the total."""

    total: Tensor
    task: Tensor
    decoupling: Tensor | None
    hetero: Tensor | None
    homo: Tensor | None
    contrastive: Tensor | None
    binary: Tensor | None

    def numbers(self) -> dict[str, float]:
        """The terms that exist, as plain numbers for logs and records; "loss" is the total."""
        named = {"loss" if name == "total" else name: term for name, term in self._asdict().items() if term is not None}
        return dict(zip(named, torch.stack([term.detach() for term in named.values()]).tolist(), strict=True))


def objective(
    outputs: dict[str, Any], labels: Tensor, settings: Settings, class_weights: Tensor | None = None
) -> Objective:
    """The record for a batch: `outputs` of a DecAlign in training mode, labels (N,) or (N, 1)."""
    s, terms = settings, outputs["terms"]
    labels = labels.flatten()
    task = task_loss(outputs["M"], labels, s, class_weights)
    binary = binary_loss(outputs["M"], labels) if s.binary_task_weight > 0 and s.train_mode == "regression" else None
    contrastive = None
    if s.ct_weight > 0:
        contrastive = contrastive_loss(outputs["Feature_f"], sentiment_class(labels, s), s.ct_temperature)
    hetero, homo = terms.hetero, terms.homo
    if hetero is not None and (s.transport_weight, s.prototype_weight) != (1.0, 1.0):
        hetero = s.transport_weight * terms.hetero_parts.transport + s.prototype_weight * terms.hetero_parts.prototype
    if homo is not None and (s.moments_weight, s.mmd_weight) != (1.0, 1.0):
        homo = s.moments_weight * terms.homo_parts.semantic + s.mmd_weight * terms.homo_parts.mmd
    found = {"task": task, "binary": binary, "decoupling": terms.decoupling, "hetero": hetero, "homo": homo,
             "contrastive": contrastive}
    total = sum(weight * found[name] for name, weight in weights(s).items() if found[name] is not None)
    return Objective(total, task, terms.decoupling, hetero, homo, contrastive, binary)


def mean_of(parts: Sequence[Objective]) -> Objective:
    """Term by term over several models of the same batch; a term that one of them lacks is the mean of the others."""
    if len(parts) == 1:
        return parts[0]
    found = [[term for term in terms if term is not None] for terms in zip(*parts, strict=True)]
    return Objective(*(torch.stack(terms).mean(dim=0) if terms else None for terms in found))


def weights(settings: Settings) -> dict[str, float]:
    """Weight of each term in the total, by its field in `Objective`, in the order in which they are summed."""
    s = settings
    return {"task": 1.0, "binary": s.binary_task_weight, "decoupling": s.dec_loss_weight, "hetero": s.alpha,
            "homo": s.beta, "contrastive": s.ct_weight}


def task_loss(prediction: Tensor, labels: Tensor, settings: Settings, class_weights: Tensor | None = None) -> Tensor:
    """Mean loss of predictions (N, outputs) against labels (N,): cross entropy, or MSE, L1 or smooth L1."""
    if settings.train_mode == "classification":
        return F.cross_entropy(prediction, labels.flatten().long(), weight=class_weights)
    losses = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
    return losses[settings.task_loss](prediction.flatten(), labels.flatten())


def binary_loss(prediction: Tensor, labels: Tensor) -> Tensor:
    """Logistic loss of the prediction against the sign of the non-zero labels; 0 when all labels are neutral."""
    signed = labels != 0
    if not bool(signed.any()):
        return prediction.sum() * 0.0
    return F.binary_cross_entropy_with_logits(prediction.flatten()[signed], (labels[signed] > 0).to(prediction.dtype))


def contrastive_loss(features: Tensor, classes: Tensor, temperature: float) -> Tensor:
    r"""Supervised contrastive loss over a batch.

    Mean over anchors n that have a positive of  -mean_{p in P(n)} log( exp(s_np / t) / sum_{q != n} exp(s_nq / t) ),
    s the cosine similarity, P(n) the other samples of the same class. 0 when no anchor has a positive.

    Args:
        features: (N, D); classes: (N,) integers; temperature: t > 0.

    Source: Khosla et al., NeurIPS 2020, equation 2.
    """
    unit = F.normalize(features, dim=1)
    n = len(unit)
    itself = torch.eye(n, dtype=torch.bool, device=unit.device)
    positive = (classes.unsqueeze(0) == classes.unsqueeze(1)) & ~itself
    anchors = positive.any(dim=1)
    if not bool(anchors.any()):
        return features.sum() * 0.0
    similarity = (unit @ unit.mT / temperature).masked_fill(itself, -torch.inf)
    log_prob = (similarity - similarity.logsumexp(dim=1, keepdim=True)).masked_fill(itself, 0.0)
    per_anchor = (log_prob * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)
    return -per_anchor[anchors].mean()


def sentiment_class(labels: Tensor, settings: Settings) -> Tensor:
    """Class of a label: itself for classification, the sentiment rounded within [-3, 3] for regression."""
    if settings.train_mode == "classification":
        return labels.long()
    return labels.clamp(-3, 3).round().long()
