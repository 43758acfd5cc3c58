"""Small feature files in MMSA's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

Layout = dict[str, dict[str, Any]]


@pytest.fixture
def layout() -> Layout:
    """A valid file: 4 steps everywhere, float32, lengths 1..4, tokens as long as text."""
    rng = np.random.default_rng(0)
    data = {}
    for split, rows in (("train", 5), ("valid", 3), ("test", 4)):
        lengths = rng.integers(1, 5, rows)
        valid = np.arange(4) < lengths[:, None]
        data[split] = {
            "raw_text": [f"sentence {i}" for i in range(rows)],
            "id": [f"{split}$_${i}" for i in range(rows)],
            "text_bert": np.stack([valid * 7, valid, valid * 0], axis=1).astype(np.int64),
            "regression_labels": rng.uniform(-3, 3, rows).astype(np.float32),
            "audio_lengths": lengths.tolist(),
            "vision_lengths": lengths.tolist(),
        }
        for key, width in (("text", 6), ("audio", 3), ("vision", 2)):
            x = rng.normal(size=(rows, 4, width)) + 10
            data[split][key] = (x * valid[:, :, None]).astype(np.float32)
    return data
