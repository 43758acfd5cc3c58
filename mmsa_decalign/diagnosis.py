"""What a training of DecAlign says about itself: notes on its batches, and advice where something looks wrong.

Lives here: what is noted of mixtures and transport, and the rules by which a user is warned; each with what to try.
May change: thresholds and further rules. An advice is {"what": ..., "try": ...}; it says what was seen, with numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .model import AlignmentTerms
from .settings import Settings

Advice = dict[str, str]

EMPTY = 0.01  # samples: a component that is responsible for less than this is empty
OFTEN = 0.1  # share of the batches in which a component may be empty: the last one of an epoch can be small
SAMPLES_EACH = 2  # that a component needs of a batch, at least, to have a spread
DROWNS = 10.0  # times the gradient of the task, for another loss
NO_SAY = 1000.0  # times the largest of the others, for the task
_WEIGHT_OF = {"decoupling": "dec_loss_weight", "hetero": "alpha", "homo": "beta", "contrastive": "ct_weight",
              "binary": "binary_task_weight"}


def measured(epoch: int) -> bool:
    """Whether the gradients of the terms are measured in this epoch, from 1: the first, second, fourth, eighth, ..."""
    return epoch & (epoch - 1) == 0


def note(notes: dict[str, Any], terms: AlignmentTerms) -> None:
    """Add a batch to the notes of its epoch: `notes["alignment"]` counts those in which a mixture had an empty
    component, and those in which transport did not converge. Nothing where fewer than two modalities are aligned."""
    hetero = terms.hetero_parts
    if hetero is None:
        return
    found = notes.setdefault("alignment",
                             {"batches": 0, "empty_component": 0, "not_converged": 0, "marginal_error": 0.0})
    with torch.no_grad():
        masses = torch.stack([one.weights.min() * len(one.responsibilities) for one in hetero.mixtures])
        found["empty_component"] += int(masses.min() < EMPTY)
    found["batches"] += 1
    found["not_converged"] += int(not hetero.result.converged)
    found["marginal_error"] = max(found["marginal_error"], float(hetero.result.marginal_error))


def before(settings: Settings, samples: int) -> list[Advice]:
    """What can be known before the first step, from the size of the training split."""
    size, k = min(settings.batch_size, samples), settings.num_prototypes
    if not _aligns(settings) or size >= SAMPLES_EACH * k:
        return []
    return [{"what": f"batches of {size} samples for num_prototypes={k}: fewer than {SAMPLES_EACH} samples a prototype",
             "try": f"num_prototypes={max(1, size // SAMPLES_EACH)} or less, or a larger batch_size"}]


def after(settings: Settings, history: Sequence[Mapping[str, Any]]) -> list[Advice]:
    """What the account of a training shows."""
    alignment = [*_mixtures(history), *_transport(settings, history)] if _aligns(settings) else []
    return [*alignment, *_gradients(history)]


def _aligns(settings: Settings) -> bool:
    """Whether mixtures have a part in what is learned."""
    return settings.alpha > 0 and len(settings.modalities) > 1


def _total(history: Sequence[Mapping[str, Any]], name: str) -> Any:
    return sum(entry["alignment"][name] for entry in history if "alignment" in entry)


def _mixtures(history: Sequence[Mapping[str, Any]]) -> list[Advice]:
    batches, empty = _total(history, "batches"), _total(history, "empty_component")
    if not batches or empty <= OFTEN * batches:
        return []
    return [{"what": f"in {empty} of {batches} batches a prototype stood for no sample (less than {EMPTY:g})",
             "try": "fewer num_prototypes, or a larger batch_size"}]


def _transport(settings: Settings, history: Sequence[Mapping[str, Any]]) -> list[Advice]:
    batches, missed = _total(history, "batches"), _total(history, "not_converged")
    if not missed:
        return []
    worst = max(entry["alignment"]["marginal_error"] for entry in history if "alignment" in entry)
    remedy = ("ot_solver=log, which converges" if settings.ot_solver == "release"
              else "a larger ot_reg, or a larger ot_max_iter or ot_tol where one is set")
    return [{"what": f"transport did not converge in {missed} of {batches} batches: marginal error up to {worst:.1e}, "
                     f"ot_tol {settings.ot_tol:.0e}", "try": remedy}]


def _gradients(history: Sequence[Mapping[str, Any]]) -> list[Advice]:
    """A term whose gradient is many times that of the task, or the task where it is very many times all others.

    By the median over the epochs where gradients were measured: single batches differ a lot.
    """
    seen = [entry["gradient_norms"] for entry in history if "gradient_norms" in entry]
    names = sorted({name for norms in seen for name in norms})
    typical = {name: statistics.median(norms.get(name, 0.0) for norms in seen) for name in names}
    task, others = typical.pop("task", 0.0), typical
    if not others or not all(map(math.isfinite, [task, *others.values()])):
        return []
    first = max(others, key=others.__getitem__)
    where = f"median over {len(seen)} epochs where it was measured, weights included"
    if others[first] > DROWNS * task:
        return [{"what": f"the {first} loss drowns the task: the norm of its gradient is {others[first]:.3g}, that of "
                         f"the task {task:.3g} ({where})", "try": f"a smaller {_WEIGHT_OF[first]}"}]
    if task > NO_SAY * others[first]:
        return [{"what": f"the task drowns every other loss: the norm of its gradient is {task:.3g}, the next is "
                         f"{first} with {others[first]:.3g} ({where})",
                 "try": f"a larger {_WEIGHT_OF[first]}, or take the other losses as switched off"}]
    return []
