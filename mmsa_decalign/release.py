"""Checkpoints and arithmetic of the authors' public release (github.com/taco-group/DecAlign).

Lives here: the translation of its configuration keys and of its parameter names into ours, nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .errors import InputError, nearest
from .model import DecAlign
from .settings import MODALITIES, Settings

SUFFIX = {"l": "text", "a": "audio", "v": "vision"}  # the release's letter for each modality

# The release's key for a setting that has another name here; keys of the same name pass as they are.
RENAMED = {
    "lambda_ot": "ot_reg",
    "ot_num_iters": "ot_max_iter",
    "hetero_cost_reduction": "cost_reduction",
    "local_proto_mahalanobis": "prototype_mahalanobis",
    "early_stop_patience": "early_stop",
}
IGNORED = frozenset(
    "model_name dataset_name transformers need_data_aligned seq_lens patience when scheduler_metric scheduler_mode "
    "selection_metric selection_mode class_weight iemocap_protocol featurePath feature_T feature_A feature_V alpha1 "
    "alpha2 smooth_l1_beta model_save_path seed cur_seed".split()
)


def from_release(state_dict: Mapping[str, Tensor], **config: Any) -> DecAlign:
    """A DecAlign with the weights of the authors' release, in evaluation mode and in the weights' own dtype.

    Args:
        state_dict: as saved by the release (parameters `proj_l.weight`, `trans_a.layers.0...`).
        config: the release's own keys (`dst_feature_dim_nheads`, `lambda_ot`, `conv1d_kernel_size_l`, ...) and
            `solver`: "release" (default: its transport arithmetic) or "log" (the stable solver). Keys that neither
            the release's model reads nor ours are refused.

    Raises:
        InputError: for an unknown key, and for parameters that are missing, left over or of another shape.
    """
    settings = release_settings(config)
    model = DecAlign(settings)
    renamed = {_our_name(name): value for name, value in state_dict.items()}
    renamed = _drop_unused(renamed, settings, model)
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith("standardise.")}
    for name in sorted(set(wanted) ^ set(renamed)):
        where = "lacks" if name in wanted else "has no use for"
        raise InputError(f"the state dict does not fit: the model {where} {name!r}; check nlevels and the widths")
    for name, value in renamed.items():
        if wanted[name].shape != value.shape:
            raise InputError(
                f"{name} has shape {tuple(value.shape)}, expected {tuple(wanted[name].shape)}: check feature_dims, "
                "dst_feature_dim_nheads and the kernel sizes"
            )
    model = model.to(next(iter(renamed.values())).dtype)
    model.load_state_dict(renamed, strict=False)
    return model.eval()


def release_settings(config: Mapping[str, Any]) -> Settings:
    """Our settings for a configuration in the release's keys, with the release's own defaults and conventions."""
    config = dict(config)
    ours: dict[str, Any] = {
        "skip_equal_projection": True,
        "use_sequence_mask": False,
        "ot_solver": config.pop("solver", "release"),
    }
    valid = set(Settings.names()) | set(RENAMED) | IGNORED | {f"conv1d_kernel_size_{letter}" for letter in SUFFIX}
    valid |= {"dst_feature_dim_nheads", "attn_dropout_a", "attn_dropout_v", "active_modalities", "solver"}
    for key in config:
        if key not in valid:
            raise InputError(f"unknown key {key!r} of the release's configuration: {nearest(key, valid)}")
    if "dst_feature_dim_nheads" in config:
        ours["d_model"], ours["num_heads"] = config.pop("dst_feature_dim_nheads")
    ours["attn_dropout"] = tuple(config.pop(k, 0.0) for k in ("attn_dropout", "attn_dropout_a", "attn_dropout_v"))
    ours["conv_kernel_sizes"] = tuple(config.pop(f"conv1d_kernel_size_{letter}", 1) for letter in SUFFIX)
    if "active_modalities" in config:
        chosen = {SUFFIX.get(m, {"t": "text"}.get(m, m)) for m in config.pop("active_modalities")}
        ours["modalities"] = tuple(m for m in MODALITIES if m in chosen)
    if config.get("task_loss") in ("mae", "huber"):
        ours["task_loss"] = {"mae": "l1", "huber": "smooth_l1"}[config.pop("task_loss")]
    for key, value in config.items():
        if key not in IGNORED:
            ours[RENAMED.get(key, key)] = value
    if ours["ot_solver"] == "log":
        ours.pop("ot_max_iter", None)  # 50 rounds are the release's arithmetic, not a budget for the stable solver
    return Settings.from_args(ours)


_RULES = (
    (r"proj_([lav])\.", "project.{m}."),
    (r"encoder_uni_([lav])\.", "unique.{m}."),
    (r"encoder_com\.", "common."),
    (r"trans_([lav])\.layers\.(\d+)\.", "fuse.{m}.layers.{n}."),
    (r"pde_([lav])\.net\.", "distribution.{m}."),
    (r"out_layer\.", "head."),
    (r"text_model\.", "text_encoder."),
)
_LAYER = {
    "self_attn.": "attention.",
    "attn_layer_norm.": "attention_norm.",
    "fc1.": "up.",
    "fc2.": "down.",
    "final_layer_norm.": "final_norm.",
}


def _our_name(name: str) -> str:
    for pattern, target in _RULES:
        match = re.match(pattern, name)
        if match:
            groups = match.groups()
            head = target.format(m=SUFFIX[groups[0]] if groups else "", n=groups[1] if len(groups) > 1 else "")
            tail = name[match.end() :]
            if target.startswith("fuse"):
                for theirs, here in _LAYER.items():
                    tail = here + tail[len(theirs) :] if tail.startswith(theirs) else tail
            return head + tail
    raise InputError(f"{name!r} is no parameter of the authors' release: expected names such as proj_l.weight")


def _drop_unused(state: dict[str, Tensor], s: Settings, model: DecAlign) -> dict[str, Tensor]:
    """Leave out what the release keeps but never uses: skipped projections, modalities that are switched off."""
    out = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        modality = rest.split(".")[0]
        if modality in MODALITIES and modality not in s.modalities:
            continue
        if part == "project" and modality not in model.project:
            continue
        if part in ("unique", "common") and value.dim() == 3:
            value = value.squeeze(2)  # a pointwise convolution there, a linear layer here
        out[name] = value
    if "head.weight" in out and len(s.modalities) < 3:  # the release feeds zeros for absent modalities
        columns = [i for i, m in enumerate(MODALITIES * 2) if m in s.modalities]
        blocks = out["head.weight"].split(s.d_model, dim=1)
        out["head.weight"] = torch.cat([blocks[i] for i in columns], dim=1)
    return out
