"""What every test may use: the real folds, the numbers of the authors' release, one comparison, a token encoder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def shared(variable: str, folder: str) -> Path:
    """Where material that is not part of the repository lies: the environment variable, else beside the checkout."""
    return Path(os.environ.get(variable, ROOT.parent / "shared" / folder))


def assert_same(actual: Any, expected: Any, tol: float, what: str = "") -> None:
    """Equal shapes, and values within `tol` absolutely plus `tol` relatively."""
    a = np.asarray(actual.detach() if isinstance(actual, torch.Tensor) else actual, dtype=np.float64)
    e = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected, dtype=np.float64)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    np.testing.assert_allclose(a, e, rtol=tol, atol=tol, err_msg=what)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, Any], Any]]:
    """(meta, arrays) of a file of the release's numbers; skips where they are absent."""

    def load(name: str) -> tuple[dict[str, Any], Any]:
        path = shared("MMSA_DECALIGN_GOLDEN", "golden") / name
        if not path.exists():
            pytest.skip(f"the release's numbers are absent: {path} (set MMSA_DECALIGN_GOLDEN)")
        with np.load(path) as file:
            arrays = dict(file)
        return json.loads(str(arrays["meta"])), arrays

    return load


@pytest.fixture(scope="session")
def real_fold() -> Callable[[int], Path]:
    """Path of a real CMU-MOSI fold; skips where the real data is absent."""

    def path(fold: int) -> Path:
        file = shared("MMSA_DECALIGN_REAL_DATA", "data") / "mosi31" / f"fold{fold}.pkl"
        if not file.exists():
            pytest.skip(f"real data absent: {file} (set MMSA_DECALIGN_REAL_DATA)")
        return file

    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 24 and 60 tokens, saved like a pretrained one: the real classes, no download."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=40,
    )
    BertModel(config).save_pretrained(folder)
    return folder
