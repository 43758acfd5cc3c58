"""The reference: DecAlign's operators (arXiv 2503.11892) in NumPy and SciPy, float64, to be read beside the paper.

Names, argument order and result fields are those of the differentiable operators; the code shares nothing with them.
Only the public names belong here.
"""

from .decoupling import decoupling_loss
from .losses import HeteroLoss, HomoLoss, hetero_loss, homo_loss, prototype_loss
from .mixture import GaussianMixture, fit_gaussian_mixture
from .mmd import mmd
from .moments import Moments, batch_moments, moment_distance
from .transport import TransportResult, exact_transport, gaussian_cost, joint_cost, multimarginal_sinkhorn

__all__ = [  # records, then operators
    "GaussianMixture", "TransportResult", "HeteroLoss", "Moments", "HomoLoss",
    "fit_gaussian_mixture", "gaussian_cost", "joint_cost", "multimarginal_sinkhorn", "exact_transport",
    "prototype_loss", "hetero_loss", "batch_moments", "moment_distance", "mmd", "homo_loss", "decoupling_loss",
]  # fmt: skip
