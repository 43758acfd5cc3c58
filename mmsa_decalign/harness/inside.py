"""Inside a trained DecAlign: its features, prototypes and transport plan on a split, before and after training.

"Before" is the very state that the run began with: the model built from the run's seed, with the input statistics that
training measures before its first step. "After" is the checkpoint. What may change here: further things to look at.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .job import Job
from .safe_reading import read_checkpoint


@dataclass(frozen=True)
class State:
    """A DecAlign on the N samples of a split, all taken as one batch, in evaluation mode; of several members the first.

    unique, common: averages over valid steps (N, d) by modality; prototypes: means (K, d) of the mixture fitted to each
    modality's unique features, weights: its (K,) shares; plan: (K, ..., K), an axis a modality in the order of
    ``unique``; terms: the alignment terms on the split, "decoupling" being the mean squared cosine whatever the
    objective takes; converged: whether the plan has its marginals; marginal_error: the largest L1 distance to one;
    compared: the common features (N, p) after the perceptrons, where moments and MMD are taken. Without a second
    modality there are neither prototypes nor a plan.
    """

    unique: dict[str, np.ndarray]
    common: dict[str, np.ndarray]
    prototypes: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    plan: np.ndarray | None
    terms: dict[str, float]
    converged: bool = True
    marginal_error: float = 0.0
    compared: dict[str, np.ndarray] = field(default_factory=dict)


def look_inside(job: Job, seed: int, checkpoint: Path, sha256: str, split: str = "valid") -> dict[str, State]:
    """{"before": ..., "after": ...} of one run, from its job, seed and checkpoint; computed on the CPU.

    Raises InputError for a feature file or a checkpoint that is not the run's.
    """
    import MMSA.run
    import torch
    from easydict import EasyDict

    from .datasets import load_features, make_loaders, make_splits
    from .progress import quiet_mmsa
    from .registry import active

    features = load_features(job.feature_file, job.files)
    if features.sha256 != sha256:
        raise InputError(f"{job.feature_file} is not the file of the run any more: SHA-256 {features.sha256[:12]}..., "
                         f"expected {sha256[:12]}...")
    settings = dict(job.resolved.settings)
    args = EasyDict({**settings, "device": torch.device("cpu"), "train_mode": settings.get("train_mode", "regression")})
    loaders = make_loaders(args, make_splits(settings, features), seed=seed)
    trained = read_checkpoint(checkpoint)
    with _seeded(seed), active(), quiet_mmsa():
        model = MMSA.run.AMIO(args)
    try:
        model.load_state_dict({**model.state_dict(), **{name: value for name, value in trained.items()
                                                        if ".standardise." in f".{name}"}})
        found = {"before": _state(model, loaders[split])}
        model.load_state_dict(trained)
    except RuntimeError as error:
        raise InputError(f"checkpoint {checkpoint}: its weights do not fit the run's settings") from error
    return {**found, "after": _state(model, loaders[split])}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Every generator as a training with this seed finds it; put back afterwards."""
    import torch
    from MMSA.utils import setup_seed

    states, cudnn = (random.getstate(), np.random.get_state()), torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic
    try:
        with torch.random.fork_rng(devices=[]):
            setup_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        cudnn.benchmark, cudnn.deterministic = flags


def _state(wrapper: Any, loader: Iterable[Mapping[str, Any]]) -> State:
    import torch

    from ..members import members_of

    model = members_of(wrapper)[0].eval()
    with torch.no_grad():
        parts = [_features(model, batch) for batch in loader]
        unique, common, cosines = (
            {m: torch.cat([part[number][m] for part in parts]) for m in model.settings.modalities}
            for number in range(3))
        return _measured(model, unique, common, cosines)


def _features(model: Any, batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Unique and common features averaged over valid steps, and the cosine between the two, of each sample."""
    import torch
    from torch.nn.functional import cosine_similarity

    from ..masking import masked_mean
    from ..settings import MODALITIES

    lengths = {m: torch.as_tensor(batch[f"{m}_lengths"]) for m in MODALITIES if f"{m}_lengths" in batch}
    unique, common, valid, _ = model.decouple({m: batch[m] for m in MODALITIES}, lengths)
    cosines = {m: cosine_similarity(unique[m].flatten(1), common[m].flatten(1), dim=1) for m in unique}
    return ({m: masked_mean(x, valid[m]) for m, x in unique.items()},
            {m: masked_mean(x, valid[m]) for m, x in common.items()}, cosines)


def _measured(model: Any, unique: dict[str, Any], common: dict[str, Any], cosines: dict[str, Any]) -> State:
    from ..ops import hetero_loss, homo_loss

    s, as_arrays = model.settings, _arrays
    terms = {"decoupling": float(np.mean([float(cosine.square().mean()) for cosine in cosines.values()]))}
    if len(unique) < 2:
        return State(as_arrays(unique), as_arrays(common), {}, {}, None, terms)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a plan short of its marginals: `converged` says so
        hetero = hetero_loss(
            list(unique.values()), n_components=s.num_prototypes, reg=s.ot_reg, n_iter=s.gmm_em_iters,
            var_floor=s.gmm_var_floor, covariance=s.gmm_covariance, reduction=s.cost_reduction,
            mahalanobis=s.prototype_mahalanobis, solver=s.ot_solver, tol=s.ot_tol, max_iter=s.ot_max_iter)
    compared = {m: model.distribution[m](x) for m, x in common.items()}
    homo = homo_loss(list(compared.values()), bandwidth=s.mmd_bandwidth)
    terms |= {"transport": float(hetero.transport), "prototype": float(hetero.prototype),
              "semantic": float(homo.semantic), "mmd": float(homo.mmd)}
    mixtures = dict(zip(unique, hetero.mixtures, strict=True))
    return State(as_arrays(unique), as_arrays(common), as_arrays({m: one.means for m, one in mixtures.items()}),
                 as_arrays({m: one.weights for m, one in mixtures.items()}), hetero.result.plan.numpy(), terms,
                 hetero.result.converged, hetero.result.marginal_error, as_arrays(compared))


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
