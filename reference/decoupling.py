"""The decoupling loss: unique and common features of a modality should be orthogonal (paper: decoupling).

Lives here: the cosine and its two means. The square is the default, the signed cosine the paper's text.
"""

from collections.abc import Sequence

import numpy as np

from . import _checks as check


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    """<u, v> / (|u| |v|), and 0 if either is the zero vector."""
    norms = np.linalg.norm(u), np.linalg.norm(v)
    return float((u / norms[0]) @ (v / norms[1])) if min(norms) > 0 else 0.0


def decoupling_loss(unique: Sequence, common: Sequence, *, power: int = 2) -> float:
    """Cosine of unique and common features, flattened per sample.

    power=2 (release): mean over modalities of mean over samples of cos^2, in [0, 1].
    power=1 (paper): sum over modalities of mean over samples of cos, in [-M, M].

    unique, common: one array (N, d, T) per modality, M >= 1; T and d may differ between modalities, not within a pair.
    Raises ValueError for a wrong shape, a differing number of modalities, or another power.
    >>> round(decoupling_loss([[[[1.0, 1.0]]]], [[[[1.0, 0.0]]]]), 9)
    0.5
    """
    check.require("power", power, power in (1, 2), "one of [1, 2]")
    if len(unique) != len(common) or len(unique) == 0:
        raise ValueError(f"unique and common must pair up, got {len(unique)} and {len(common)}: pass one per modality")
    per_modality = []
    for m, (s, c) in enumerate(zip(unique, common, strict=True)):
        s, c = check.finite(f"unique[{m}]", s, ndim=3), check.finite(f"common[{m}]", c, ndim=3)
        if s.shape != c.shape:
            raise ValueError(f"unique[{m}] and common[{m}] must have one shape, got {s.shape} and {c.shape}: pair them")
        per_modality.append(np.mean([cosine(s_n.ravel(), c_n.ravel()) ** power for s_n, c_n in zip(s, c, strict=True)]))
    return float(np.mean(per_modality) if power == 2 else np.sum(per_modality))
