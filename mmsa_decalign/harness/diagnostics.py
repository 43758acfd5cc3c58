"""Measures of features: what they hold of factors that are known, how far modalities are apart, which prototypes idle.

Pure functions of arrays: rows are samples, columns features. None depends on the scale of all features together, so
that modalities do not come nearer by shrinking. What may change here: further measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

import numpy as np
from scipy.spatial.distance import cdist

PENALTIES = tuple(10.0**power for power in range(-4, 5))  # of ridge regression on standardised columns
_FOLDS = 5
_TINY = 1e-12


def recovered(seen: np.ndarray, truth: np.ndarray, unseen: np.ndarray, unseen_truth: np.ndarray) -> float:
    """R2 of ridge regression from features to factors, fitted on (N, d) and (N, k), scored on rows that it never saw.

    1: the factors can be read off; about 0, or below: they cannot. The mean over the k factors. Columns are only
    centred: a direction of little variance is harder to read with few rows. The penalty is chosen by leave-one-out
    inside the N rows, relative to the mean variance of a column.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score

    centre = seen.mean(axis=0)
    scale = max(float(np.sqrt((seen - centre).var(axis=0).mean())), _TINY)
    probe = RidgeCV(PENALTIES).fit((seen - centre) / scale, truth)
    return float(r2_score(unseen_truth, probe.predict((unseen - centre) / scale).reshape(unseen_truth.shape)))


def held(features: np.ndarray, factors: np.ndarray) -> float:
    """Share, in [0, 1], of the features' variance (N, d) that linear functions of the factors (N, k) explain.

    Other than `recovered` it asks what fills the features rather than what could be read off them. Adjusted for the
    factors' number: about 0, perhaps a little below, for factors that the features have nothing of. Features without
    variance hold nothing.
    """
    centred, known = features - features.mean(axis=0), factors - factors.mean(axis=0)
    rest = centred - known @ np.linalg.lstsq(known, centred, rcond=None)[0]
    left, all_of_it = float(np.square(rest).sum()), float(np.square(centred).sum())
    n, k = factors.shape
    constant = all_of_it <= _TINY * float(np.square(features).sum())  # but for rounding
    return 0.0 if constant else 1 - left / all_of_it * (n - 1) / (n - 1 - k)


def canonical_correlation(
    a: np.ndarray, b: np.ndarray, unseen_a: np.ndarray, unseen_b: np.ndarray, k: int
) -> float:
    """Mean correlation of the first k pairs of canonical variates, on rows that they were not fitted to.

    1: k directions of the one are linear functions of the other; about 0: there is nothing that the two share.
    Fitted on (N, d_a) and (N, d_b), rows of the same samples, with a ridge of 1e-4 of the mean variance that keeps
    directions without variance out. The two unseen sets have (n, d_a) and (n, d_b); k is at most the smaller width.
    """
    (to_a, centre_a), (to_b, centre_b) = _whitening(a), _whitening(b)
    left, _, right = np.linalg.svd(((a - centre_a) @ to_a).T @ ((b - centre_b) @ to_b))
    one, other = (unseen_a - centre_a) @ to_a @ left[:, :k], (unseen_b - centre_b) @ to_b @ right[:k].T
    return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(one.T, other.T, strict=True)]))


def _whitening(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre = rows.mean(axis=0)
    covariance = np.atleast_2d(np.cov((rows - centre).astype(np.float64), rowvar=False))
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(np.maximum(values, 0) + 1e-4 * max(values.mean(), _TINY)), centre


def told_apart(groups: Sequence[np.ndarray]) -> float:
    """Accuracy, on samples that it was not fitted to, of logistic regression at telling which group a row is of.

    Groups (N, d), the i-th row of each belonging to one sample. 1 / number of groups: chance. The proxy A-distance of
    two groups is 2 (2 accuracy - 1).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, n = np.concatenate(groups).astype(np.float64), len(groups[0])
    group, sample = np.repeat(np.arange(len(groups)), n), np.tile(np.arange(n), len(groups))
    guess = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    return float(cross_val_score(guess, rows, group, groups=sample, cv=GroupKFold(_FOLDS)).mean())


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """(2 E|a - b| - E|a - a'| - E|b - b'|) / (2 E|a - b|) of two clouds (N, d), (n, d): the energy coefficient.

    In [0, 1]; 0 for two equal clouds, 1 for two points apart. Whether rows belong together does not matter.
    """
    across = 2 * float(cdist(a, b).mean())
    return (across - float(cdist(a, a).mean()) - float(cdist(b, b).mean())) / across if across > _TINY else 0.0


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """|mean a - mean b| over the root of the mean of the two total variances: distance of two clouds in units of their
    spread. Rows (N, d)."""
    spread = np.sqrt((a.var(axis=0).sum() + b.var(axis=0).sum()) / 2)
    return float(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)) / max(float(spread), _TINY))


def retrieved(a: np.ndarray, b: np.ndarray) -> float:
    """How near a sample's row of b is to its row of a, among all rows of b: the mean share of rows further away.

    1: the nearest always; 0.5: chance. Rows (N, d) of the same samples.
    """
    distances = cdist(a, b)
    own = np.diag(distances)[:, None]
    n = len(a)
    further = (distances > own).sum(axis=1) + ((distances == own).sum(axis=1) - 1) / 2
    return float(further.mean() / (n - 1))


def mean_over_pairs(measure: Callable[[np.ndarray, np.ndarray], float], groups: Iterable[np.ndarray]) -> float:
    """Mean of a measure of two clouds over the unordered pairs of two groups or more."""
    return float(np.mean([measure(a, b) for a, b in combinations(groups, 2)]))


def idle(weights: np.ndarray, samples: int) -> int:
    """How many of a mixture's prototypes hold less than one of the samples, by their shares (K,)."""
    return int((np.asarray(weights) * samples < 1).sum())
