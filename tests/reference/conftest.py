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


@pytest.fixture(scope="session")
def release_numbers():
    """load(name): the arrays of a file of the release's numbers; skips where it is absent."""

    def load(name):
        default = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
        path = Path(os.environ.get("MMSA_DECALIGN_GOLDEN", default)) / name
        if not path.exists():
            pytest.skip(f"the release's numbers are not at {path}: set MMSA_DECALIGN_GOLDEN to their folder")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(params=[f"case{number}" for number in range(6)])
def golden(request, release_numbers):
    return GoldenCase(release_numbers("losses.npz"), request.param)


@pytest.fixture
def settings():
    """What the whole model and its objective read, for a small model."""
    return {
        "modalities": MODALITIES, "use_sequence_mask": True, "projection_activation": "none", "num_heads": 2,
        "nlevels": 2, "use_cross_modal_attention": True, "attn_mask": True, "decoupling_power": 2,
        "num_prototypes": 3, "gmm_em_iters": 3, "gmm_var_floor": 1e-3, "gmm_covariance": "diag",
        "cost_reduction": "mean", "prototype_mahalanobis": False, "ot_reg": 0.2, "ot_solver": "log",
        "ot_tol": 1e-11, "ot_max_iter": None, "mmd_bandwidth": 1.0, "train_mode": "regression", "task_loss": "mse",
        "dec_loss_weight": 1.0, "alpha": 0.05, "beta": 0.07, "ct_weight": 0.003, "ct_temperature": 0.1,
        "binary_task_weight": 0.0,
    }  # fmt: skip


@pytest.fixture
def make_parameters(rng):
    """make(widths, d, kernels, outputs): random parameters of a model with two layers, by the state dict's names."""

    def make(widths=(5, 3, 4), d=4, kernels=(1, 1, 1), outputs=1, pde_dim=3):
        def random(*shape):
            return rng.normal(size=shape) / np.sqrt(shape[-1])

        p = {"common.weight": random(d, d), "head.weight": random(outputs, 6 * d), "head.bias": random(outputs)}
        for m, width, kernel in zip(MODALITIES, widths, kernels, strict=True):
            bounds = {"low": -np.inf, "high": np.inf, "mean": 0.0, "std": 1.0}
            p |= {f"standardise.{m}.{name}": np.full(width, value) for name, value in bounds.items()}
            p |= {f"project.{m}.weight": random(d, width, kernel), f"unique.{m}.weight": random(d, d)}
            for name, rows, columns in (("0", d, d), ("3", pde_dim, d)):
                p |= {f"distribution.{m}.{name}.weight": random(rows, columns)}
                p |= {f"distribution.{m}.{name}.bias": random(rows)}
            for layer in (f"fuse.{m}.layers.0", f"fuse.{m}.layers.1"):
                p |= {f"{layer}.attention.in_proj_weight": random(3 * d, d)}
                p |= {f"{layer}.attention.in_proj_bias": random(3 * d)}
                for name, rows, columns in (("attention.out_proj", d, d), ("up", 4 * d, d), ("down", d, 4 * d)):
                    p |= {f"{layer}.{name}.weight": random(rows, columns), f"{layer}.{name}.bias": random(rows)}
                for name in ("attention_norm", "final_norm"):
                    p |= {f"{layer}.{name}.weight": 1 + random(d) / 4, f"{layer}.{name}.bias": random(d)}
        return p

    return make


@pytest.fixture
def make_inputs(rng):
    """make(n, steps, widths): text, audio and vision."""

    def make(n=6, steps=(5, 7, 4), widths=(5, 3, 4)):
        return [rng.normal(size=(n, t, width)) for t, width in zip(steps, widths, strict=True)]

    return make
