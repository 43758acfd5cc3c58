"""What MMSA's metric names mean: MMSA computes them, this table says by which rule."""

from __future__ import annotations

from .catalogue import STANDS_FOR, catalogue, classes_of
from .classification import class_rules

_MOSI = {
    "Has0_acc_2": "accuracy of negative against non-negative; a label or prediction of 0 counts as non-negative",
    "Has0_F1_score": "weighted F1 by the rule of Has0_acc_2",
    "Non0_acc_2": "accuracy of negative against positive; samples with label 0 are left out, a prediction of 0 counts "
                  "as negative",
    "Non0_F1_score": "weighted F1 by the rule of Non0_acc_2",
    "Mult_acc_5": "accuracy of values clipped to [-2, 2] and rounded",
    "Mult_acc_7": "accuracy of values clipped to [-3, 3] and rounded",
    "MAE": "mean absolute error, lower is better",
    "Corr": "Pearson correlation",
}
_SIMS = {
    "Mult_acc_2": "accuracy of <= 0 against > 0, values clipped to [-1, 1]",
    "Mult_acc_3": "accuracy of three intervals with the borders -0.1 and 0.1",
    "Mult_acc_5": "accuracy of five intervals with the borders -0.7, -0.1, 0.1 and 0.7",
    "F1_score": "weighted F1 by the rule of Mult_acc_2",
    "MAE": "mean absolute error of values clipped to [-1, 1], lower is better",
    "Corr": "Pearson correlation of values clipped to [-1, 1]",
}
_LOSS = {"Loss": "the model's loss on the split, lower is better"}

LOWER_IS_BETTER = ("Loss", "MAE")


def direction(metric: str) -> str:
    """Whether the best epoch has the lowest ("min") or the highest ("max") value of this metric."""
    return "min" if metric in LOWER_IS_BETTER else "max"


def why_no_number(metric: str) -> str:
    """Why MMSA gives no number for a metric: the one case in which each of them has none."""
    if metric.startswith("Non0"):
        return "no label but 0"
    if metric.startswith("F1_") and metric != "F1_score":
        return "the split has no sample of the class, and it is never predicted"
    if metric == "Corr":
        return "all predictions or all labels are equal"
    return "not a number"


def metric_rules(dataset: str) -> dict[str, str]:
    """Metric name -> rule, for the metrics that MMSA reports on this data set, and the loss."""
    if classes := classes_of(catalogue().datasets.get(dataset, {})):
        return {**class_rules(classes), **_LOSS}
    family = _SIMS if STANDS_FOR.get(dataset, dataset).startswith("sims") else _MOSI
    return {**family, **_LOSS}
