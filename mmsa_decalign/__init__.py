"""DecAlign for MMSA: the model, its operators, and the plugin. The public names, nothing else."""

from . import ops
from .errors import InputError, RunError
from .harness.registry import register, unregister
from .model import AlignmentTerms, DecAlign
from .objective import Objective, objective
from .release import from_release
from .settings import Settings

__all__ = [
    "AlignmentTerms",
    "DecAlign",
    "InputError",
    "Objective",
    "RunError",
    "Settings",
    "from_release",
    "objective",
    "ops",
    "register",
    "unregister",
]
