"""Differentiable PyTorch operators of DecAlign: pure functions of tensors, on CPU or CUDA, torch alone.

Name for name the twins of `mmsa_decalign.reference`, which computes the same with NumPy, slowly and readably. They
answer in the type of their input and compute in float64 (see precision.py): TF32 and autocast do not reach them.
"""

from .decoupling import decoupling_loss
from .losses import HeteroLoss, HomoLoss, hetero_loss, homo_loss, prototype_loss
from .mixture import GaussianMixture, fit_gaussian_mixture
from .mmd import mmd
from .moments import Moments, batch_moments, moment_distance
from .transport import TransportResult, gaussian_cost, joint_cost, multimarginal_sinkhorn

__all__ = [
    "GaussianMixture",
    "HeteroLoss",
    "HomoLoss",
    "Moments",
    "TransportResult",
    "batch_moments",
    "decoupling_loss",
    "fit_gaussian_mixture",
    "gaussian_cost",
    "hetero_loss",
    "homo_loss",
    "joint_cost",
    "mmd",
    "moment_distance",
    "multimarginal_sinkhorn",
    "prototype_loss",
]
