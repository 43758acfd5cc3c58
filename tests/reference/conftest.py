"""Inputs shared by the tests of the reference. Answers live in the tests, from hand, theory or other libraries."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mmsa_decalign import reference as ref

MODALITIES = ("text", "audio", "vision")


@pytest.fixture
def rng():
    return np.random.default_rng(20240)


@pytest.fixture
def blobs(rng):
    """(60, 3) samples around three centres in random order: no component dies, no variance reaches a floor."""
    centres = np.array([[0.0, 0.0, 3.0], [2.0, -1.0, 0.0], [-2.0, 1.0, 1.0]])
    return centres[rng.integers(0, 3, size=60)] + rng.normal(size=(60, 3)) * [1.0, 0.5, 2.0]


@pytest.fixture
def make_mixture(rng):
    """make(K, d, form, n): a mixture with unrelated means and covariances, and n rows of responsibilities."""

    def make(n_components, width, form="diag", n=9):
        roots = rng.normal(size=(n_components, width, width))
        full = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(width)
        covariances = full if form == "full" else rng.uniform(0.2, 3.0, size=(n_components, width))
        return ref.GaussianMixture(
            rng.dirichlet(np.ones(n_components)),
            rng.normal(size=(n_components, width)),
            covariances,
            rng.dirichlet(np.ones(n_components), size=n),
        )

    return make


@pytest.fixture
def make_problem(rng):
    """make(sizes): a random cost tensor in [0, 1] and one random marginal for each axis."""

    def make(*sizes):
        return rng.random(sizes), [rng.dirichlet(np.ones(size)) for size in sizes]

    return make


class GoldenCase:
    """One case of the release's numbers: arrays by name, settings, and the three inputs as (N, d)."""

    def __init__(self, arrays, name):
        self._arrays, self._name = arrays, name
        self.settings = json.loads(str(arrays["meta"]))[name]
        self.inputs = [self[modality][:, :, 0] for modality in MODALITIES]
        self.reduction = self.settings.get("hetero_cost_reduction", "mean")
        self.options = {
            "n_components": self.settings["K"],
            "reg": self.settings["lambda_ot"],
            "n_iter": self.settings["gmm_em_iters"],
            "var_floor": self.settings["gmm_var_floor"],
            "reduction": self.reduction,
            "mahalanobis": self.settings.get("local_proto_mahalanobis", False),
        }

    def __getitem__(self, key):
        return self._arrays[f"{self._name}/{key}"]


@pytest.fixture(params=[f"case{number}" for number in range(6)])
def golden(request):
    default = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
    path = Path(os.environ.get("MMSA_DECALIGN_GOLDEN", default)) / "losses.npz"
    if not path.exists():
        pytest.skip(f"the release's numbers are not at {path}: set MMSA_DECALIGN_GOLDEN to their folder")
    with np.load(path, allow_pickle=False) as arrays:
        return GoldenCase(dict(arrays), request.param)
