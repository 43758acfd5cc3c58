"""Ridge regression on the averaged features of a file, which every model of the benchmarks should beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mmsa_decalign.compare.sanity import averages
from mmsa_decalign.data.reading import read_features


def ridge(path: Path, modalities: tuple[str, ...]) -> dict[str, float]:
    """Test figures of ridge regression on the standardised averages over valid steps of some modalities."""
    splits = read_features(path).splits

    def vectors(split: str) -> np.ndarray:
        return averages(splits[split], modalities)

    scale = StandardScaler().fit(vectors("train"))
    penalties, train = np.logspace(0, 5, 21), scale.transform(vectors("train"))
    fits = [Ridge(penalty).fit(train, splits["train"].labels) for penalty in penalties]
    errors = [np.abs(f.predict(scale.transform(vectors("valid"))) - splits["valid"].labels).mean() for f in fits]
    predicted = fits[int(np.argmin(errors))].predict(scale.transform(vectors("test")))

    from MMSA.utils import MetricsTop

    as_tensor = [torch.as_tensor(x, dtype=torch.float32) for x in (predicted, splits["test"].labels)]
    return {name: float(value) for name, value in MetricsTop("regression").getMetics("mosi")(*as_tensor).items()}
