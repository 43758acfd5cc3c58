"""Which parts of DecAlign an ablation switches off, one at a time, and which of them are off already.

What may change here: PARTS, a row each. Everything else of an ablation is a comparison (plan.py and what follows it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..harness.config import resolve
from ..settings import Settings
from . import plan
from .notes import ON_TEST

FULL = "full"  # the reference row
_BETWEEN = ("alpha", "beta", "transport_weight", "prototype_weight", "moments_weight", "mmd_weight")


@dataclass(frozen=True)
class Part:
    """One row: the settings that switch a part off, those that it needs to have been on, and what it is."""

    label: str
    off: Mapping[str, Any]
    needs: tuple[str, ...]
    about: str


PARTS = (
    Part("no decoupling", {"dec_loss_weight": 0.0}, ("dec_loss_weight",), "the decoupling loss"),
    Part("no heterogeneity", {"alpha": 0.0}, ("alpha",), "transport and prototype loss"),
    Part("no transport", {"transport_weight": 0.0}, ("alpha", "transport_weight"), "the transport value alone"),
    Part("no prototypes", {"prototype_weight": 0.0}, ("alpha", "prototype_weight"), "the prototype loss alone"),
    Part("no homogeneity", {"beta": 0.0}, ("beta",), "distance of moments and kernel distance"),
    Part("no moments", {"moments_weight": 0.0}, ("beta", "moments_weight"), "the distance of moments alone"),
    Part("no MMD", {"mmd_weight": 0.0}, ("beta", "mmd_weight"), "the kernel distance alone"),
    Part("no cross-modal attention", {"use_cross_modal_attention": False}, ("use_cross_modal_attention",),
         "each modality attends to itself"),
    Part("no contrastive", {"ct_weight": 0.0}, ("ct_weight",), "the supervised contrastive term"),
)
ALIGNMENT = "no alignment"
_ALIGNMENT = ("dec_loss_weight", "alpha", "beta")


@dataclass(frozen=True)
class Ablation:
    """Rows by label with the settings that make them, and why parts have no row."""

    rows: dict[str, dict[str, Any]]
    left_out: dict[str, str]


def ablation(dataset: str, *, config: str | None = None, overrides: Mapping[str, Any] | None = None) -> Ablation:
    """The rows of DecAlign's ablation on a data set, the full model first.

    A part has a row only if the settings use it; so no two rows are the same run. "no alignment" switches decoupling,
    heterogeneity and homogeneity off together. Raises InputError where the settings leave nothing to switch off.
    """
    settings = Settings.from_args(resolve("decalign", dataset, config=config, overrides=overrides).settings)
    rows: dict[str, dict[str, Any]] = {FULL: {}}
    left_out: dict[str, str] = {}
    for part in PARTS:
        reason = next((text for name in part.needs if (text := _why_off(settings, name))), None)
        if reason:
            left_out[part.label] = reason
        else:
            rows[part.label] = dict(part.off)
    for whole, both in (("alpha", ("no transport", "no prototypes")), ("beta", ("no moments", "no MMD"))):
        _drop_the_same(rows, left_out, f"no {'hetero' if whole == 'alpha' else 'homo'}geneity", both)
    on = [name for name in _ALIGNMENT if not _why_off(settings, name)]
    if len(on) > 1:
        rows[ALIGNMENT] = dict.fromkeys(on, 0.0)
    else:
        left_out[ALIGNMENT] = f"of {', '.join(_ALIGNMENT)} only {on[0]} is on" if on else "no alignment loss is on"
    if len(rows) == 1:
        raise InputError(f"decalign on {dataset}: its settings leave nothing to switch off")
    return Ablation(rows, left_out)


def make_plan(
    dataset: str,
    *,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    feature_files: Sequence[str] = (),
    seeds: Sequence[int] = (),
    data_root: str | None = None,
    device: str = "auto",
) -> plan.Plan:
    """The plan of an ablation, its reference the full model; it notes what has no row. Arguments as in plan.py."""
    chosen = ablation(dataset, config=config, overrides=overrides)
    made = plan.make_plan(
        [f"{label}=decalign" for label in chosen.rows], [dataset], configs=[config] if config else [],
        overrides={None: dict(overrides or {}), **chosen.rows}, reference=FULL, feature_files=feature_files,
        seeds=seeds, pretrained=pretrained, data_root=data_root, device=device, with_sanity=False)
    about = {part.label: part.about for part in PARTS}
    for row in made.rows:
        own = row.label.removesuffix(f" ({ON_TEST})")
        if chosen.rows.get(own):
            sets = ", ".join(f"{name}={json.dumps(value)}" for name, value in chosen.rows[own].items())
            for data in made.data:
                row.notes[data.label].append(f"{sets}" + (f" ({about[own]})" if own in about else ""))
    made.notes.extend(f"left out, {label}: {reason}" for label, reason in chosen.left_out.items())
    return made


def _why_off(settings: Settings, name: str) -> str | None:
    """Why a part has no effect in these settings, or None if it has."""
    if len(settings.modalities) < 2 and (name in _BETWEEN or name == "use_cross_modal_attention"):
        return f"there is one modality, {settings.modalities[0]}"
    value = getattr(settings, name)
    if not value:
        return f"{name} is {'false' if value is False else f'{value:g}'} in the settings"
    return None


def _drop_the_same(rows: dict[str, dict[str, Any]], left_out: dict[str, str], whole: str, both: tuple[str, str]
                   ) -> None:
    """Where one of two parts is off already, the other one's row is that of the whole."""
    there = [label for label in both if label in rows]
    if whole in rows and len(there) == 1:
        del rows[there[0]]
        left_out[there[0]] = f"the same as {whole!r}, since the other part is off"
