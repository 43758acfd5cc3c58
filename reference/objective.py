"""The training objective (paper: learning objectives): a weighted sum of named terms.

Lives here: task, binary and contrastive losses and the sum. The alignment terms come from the model.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax, logsumexp


class Objective(NamedTuple):
    """Total and unweighted terms of one batch; None for a term that the settings do not have."""
    total: float
    task: float
    decoupling: float
    hetero: float | None
    homo: float | None
    contrastive: float | None
    binary: float | None


def task_loss(prediction: np.ndarray, labels: np.ndarray, settings: Mapping, class_weights=None) -> float:
    """Mean over n of e^2 (mse), |e| (l1), or e^2 / 2 where |e| < 1 and |e| - 1/2 elsewhere (smooth_l1), e the error.

    Classification: sum_n w_n (-log softmax(prediction_n)[label_n]) / sum_n w_n, w_n = class_weights[label_n], or 1.
    """
    if settings["train_mode"] == "classification":
        classes = labels.astype(int)
        weights = np.ones(len(classes)) if class_weights is None else np.asarray(class_weights)[classes]
        return float(weights @ -log_softmax(prediction, axis=1)[np.arange(len(classes)), classes] / weights.sum())
    e = np.abs(prediction[:, 0] - labels)
    losses = {"mse": e**2, "l1": e, "smooth_l1": np.where(e < 1, e**2 / 2, e - 0.5)}
    return float(losses[settings["task_loss"]].mean())


def binary_loss(prediction: np.ndarray, labels: np.ndarray) -> float:
    """Mean of log(1 + exp(-sign(y_n) prediction_n)) over the labels y_n other than 0; 0 if there are none."""
    signed = labels != 0
    return float(np.logaddexp(0, -np.sign(labels) * prediction[:, 0])[signed].mean()) if signed.any() else 0.0


def contrastive_loss(features: np.ndarray, classes: np.ndarray, temperature: float) -> float:
    """Mean over n of -mean over p of log(exp(s_np) / sum over q != n of exp(s_nq)), s = cosine / temperature.

    p runs over the others in n's class. An n without any is left out; 0 if all are. features: (N, D). classes: (N,).
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    s, losses = unit @ unit.T / temperature, []
    for n in range(len(unit)):
        others = [q for q in range(len(unit)) if q != n]
        positives = [p for p in others if classes[p] == classes[n]]
        if positives:
            losses.append(np.mean(logsumexp(s[n, others]) - s[n, positives]))
    return float(np.mean(losses)) if losses else 0.0


def objective(outputs: Mapping[str, Any], labels, settings: Mapping, class_weights=None) -> Objective:
    """L = L_task + w_bin L_bin + w_dec L_dec + alpha L_hetero + beta L_homo + w_ct L_ct, over the terms there are.

    L_bin: regression with w_bin > 0. L_ct: w_ct > 0; classes are the labels, in regression rounded within [-3, 3].
    outputs: of decalign in training. labels: (N,) or (N, 1), finite. class_weights: one for each class, or None.
    """
    labels, terms, classify = np.ravel(labels), outputs["terms"], settings["train_mode"] == "classification"
    task, binary, contrastive = task_loss(outputs["M"], labels, settings, class_weights), None, None
    if settings["binary_task_weight"] > 0 and not classify:
        binary = binary_loss(outputs["M"], labels)
    if settings["ct_weight"] > 0:
        classes = labels if classify else np.rint(np.clip(labels, -3, 3))
        contrastive = contrastive_loss(outputs["Feature_f"], classes, settings["ct_temperature"])
    names = ("dec_loss_weight", "alpha", "beta", "ct_weight", "binary_task_weight")
    others = (terms.decoupling, terms.hetero, terms.homo, contrastive, binary)
    total = task + sum(settings[name] * term for name, term in zip(names, others, strict=True) if term is not None)
    return Objective(total, task, *others)
