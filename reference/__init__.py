"""The reference: DecAlign (arXiv 2503.11892) in NumPy and SciPy, float64, to be read beside the paper.

Names, argument order and result fields are those of the differentiable operators; the code shares nothing with them.
The whole model is here too, as a function of its parameters. Only the public names belong in this file.
"""

from .decoupling import decoupling_loss
from .losses import HeteroLoss, HomoLoss, hetero_loss, homo_loss, prototype_loss
from .mixture import GaussianMixture, fit_gaussian_mixture
from .mmd import mmd
from .model import AlignmentTerms, decalign
from .moments import Moments, batch_moments, moment_distance
from .objective import Objective, objective
from .transport import TransportResult, exact_transport, gaussian_cost, joint_cost, multimarginal_sinkhorn

__all__ = [  # records, then operators, then the model
    "GaussianMixture", "TransportResult", "HeteroLoss", "Moments", "HomoLoss", "AlignmentTerms", "Objective",
    "fit_gaussian_mixture", "gaussian_cost", "joint_cost", "multimarginal_sinkhorn", "exact_transport",
    "prototype_loss", "hetero_loss", "batch_moments", "moment_distance", "mmd", "homo_loss", "decoupling_loss",
    "decalign", "objective",
]  # fmt: skip
