"""Does a feature file give its own answers away? Samples that splits share, and features that know the labels.

A feature extractor that was trained with the labels of the training split writes them into the features of that split:
a model on top looks superb in training and is mediocre on anything else. `probe` looks for this with the simplest
model there is. What may change here: the thresholds, with the measurements that justify them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

GAP = 0.2  # correlation inside train minus that on validation: less is within what honest features show
SPREADS = 3.0  # and as many standard errors of that difference
ITSELF = 0.98  # on validation: better than the labels' own annotators agree, so the label is among the features
_FOLDS = 5
_SAMPLES = 4000  # enough for the probe; larger splits are thinned evenly
_DRAWS = 200
_PENALTIES = np.logspace(0, 5, 11)  # of ridge regression, on standardised features


def video_of(sample_id: str) -> str | None:
    """The video of an id in the notations of the published files: v$_$3 (MMSA), v[3] (MulT), Ses01F_impro01_F003."""
    for pattern in (r"(.+)\$_\$[^$]*", r"(.+)\[\d+\]", r"(Ses\d\d[FM]_.+)_[FM]\d+"):
        if match := re.fullmatch(pattern, sample_id):
            return match[1]
    return None


def shared(values: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Pairs of splits with values in common: {"train/valid": [...]}, sorted; None never counts."""
    names, found = list(values), {}
    for i, one in enumerate(names):
        for other in names[i + 1:]:
            if both := (set(values[one]) & set(values[other])) - {None}:
                found[f"{one}/{other}"] = sorted(both)
    return found


def probe(
    train: np.ndarray, train_labels: np.ndarray, train_videos: Sequence[str] | None,
    valid: np.ndarray, valid_labels: np.ndarray, valid_videos: Sequence[str] | None,
    *, seed: int = 0,
) -> dict[str, Any]:
    """A linear probe of one modality: ridge regression from the mean feature of a sample to its label.

    The score is Pearson's correlation of prediction and label (0 for a constant prediction):

        by_sample   5-fold cross-validation inside train, folds drawn by sample
        by_video    the same with whole videos in a fold; None without videos
        valid       trained on train, measured on validation
        gap         min(by_sample, by_video) - valid
        spread      standard error of the gap: bootstrap over videos (over samples if that is larger), both sides

    `alarm` is "train" where gap > GAP and gap > SPREADS * spread, "label" where valid > ITSELF, else None. Honest
    features can be far better by sample than on validation, since the probe recognises a speaker by the voice and
    with it the mood of a video, so that by_sample alone would be weak evidence. Measured on 60 random splits of 31
    CMU-MOSI videos, 20 for training and 3, 4 or 6 for validation, standardised features, share of splits with alarm:

                                                                        text    audio   vision
        as published                                                    0 %     2 %     2 %
        the same with by_sample in place of the minimum                 0 %     12 %    2 %
        train's labels mixed in, s = 0.5                                85 %    95 %    30 %
        train's labels mixed in, s = 1                                  97 %    97 %    68 %

    where s (z + noise / 2) u is added to the features: z the standardised label (0 outside train), u one random
    direction of length 1. More videos make the spread smaller and both rows better. Arguments: features (N, D), labels
    (N,), one video per sample. Values that are not finite count as 0; fewer than 10 samples on a side: all is None.
    """  # fmt: skip
    rng = np.random.default_rng(seed)
    x, y, videos = _thinned(train, train_labels, train_videos)
    xv, yv, valid_groups = _thinned(valid, valid_labels, valid_videos)
    result: dict[str, Any] = dict.fromkeys(("by_sample", "by_video", "valid", "gap", "spread", "alarm"))
    if min(len(y), len(yv)) < 10:
        return result

    from sklearn.dummy import DummyRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=_PENALTIES))

    def cross_validated(cv: Any, groups: np.ndarray | None = None) -> np.ndarray:
        # Less the mean of the other folds, which is low where a fold is high: useless features would score below 0.
        both = (cross_val_predict(one, x, y, cv=cv, groups=groups) for one in (model, DummyRegressor()))
        return np.subtract(*both)

    inside = cross_validated(KFold(_FOLDS, shuffle=True, random_state=seed))
    result["by_sample"] = score = _correlation(inside, y)
    if videos is not None and len(np.unique(videos)) >= _FOLDS:
        by_video = cross_validated(GroupKFold(_FOLDS), videos)
        result["by_video"] = _correlation(by_video, y)
        if result["by_video"] < score:
            inside, score = by_video, result["by_video"]
    outside = model.fit(x, y).predict(xv)
    result["valid"] = _correlation(outside, yv)
    result["gap"] = score - result["valid"]
    result["spread"] = float(np.hypot(_spread(inside, y, videos, rng), _spread(outside, yv, valid_groups, rng)))
    if result["gap"] > max(GAP, SPREADS * result["spread"]):
        result["alarm"] = "train"
    elif result["valid"] > ITSELF:
        result["alarm"] = "label"
    return result


def _thinned(
    features: np.ndarray, labels: np.ndarray, videos: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """At most _SAMPLES rows with a finite label; a video that is not known counts as none at all."""
    rows = np.flatnonzero(np.isfinite(labels))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLES)).astype(int)] if len(rows) else rows
    groups = None if videos is None or any(video is None for video in videos) else np.asarray(videos)[rows]
    x = np.nan_to_num(features[rows].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    return np.clip(x, -1e100, 1e100), labels[rows].astype(np.float64), groups


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale > 0 else 0.0


def _spread(predicted: np.ndarray, labels: np.ndarray, videos: np.ndarray | None, rng: np.random.Generator) -> float:
    """Standard error of the correlation: the larger of the bootstraps over samples and over videos."""

    def over(draw: Callable[[], np.ndarray]) -> float:
        return float(np.std([_correlation(predicted[rows], labels[rows]) for rows in (draw() for _ in range(_DRAWS))]))

    by_sample = over(lambda: rng.integers(0, len(labels), len(labels)))
    if videos is None:
        return by_sample
    members = [np.flatnonzero(videos == video) for video in np.unique(videos)]
    by_video = over(lambda: np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))]))
    return max(by_sample, by_video)
