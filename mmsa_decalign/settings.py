"""Every setting of DecAlign, typed, frozen and checked; unknown names are refused with the nearest valid one.

Lives here: one flat record, since MMSA's configuration files, `--set key=value` and run records are flat too.
May change: add a setting with its default, what it means, and its check.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import InputError, nearest

MODALITIES = ("text", "audio", "vision")

# Keys of MMSA's configurations and of its run loop that say something about data or bookkeeping, not about DecAlign.
MMSA_KEYS = frozenset(
    "model_name dataset_name featurePath seq_lens train_samples language missing_rate missing_seed need_data_aligned "
    "need_model_aligned need_normalized data_missing model_save_path res_save_dir device custom_feature feature_T "
    "feature_A feature_V cur_seed seed d_paras transformers tune_times protocol label_names".split()
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a DecAlign is and how it is trained. Widths in features, rates and weights without unit."""

    # Input
    feature_dims: tuple[int, int, int] = (768, 5, 20)  # raw widths of text, audio, vision; the loader overwrites them
    modalities: tuple[str, ...] = MODALITIES  # any non-empty subset, in this order
    use_sequence_mask: bool = True  # leave padded steps out of averages and of attention
    need_feature_standardized: bool = False  # clip and standardise inputs with the training split's statistics
    feature_standardize_modalities: tuple[str, ...] = ("audio", "vision")
    feature_clip_percentiles: tuple[float, float] = (0.0, 100.0)  # 0 and 100: no clipping
    # Text encoder: token ids (MMSA's text_bert) instead of precomputed features
    use_bert: bool = False
    use_finetune: bool = True  # False: frozen
    pretrained: str = "bert-base-uncased"  # name on the Hugging Face hub, or a local directory
    freeze_layers: int | None = None  # its embeddings and so many first layers do not learn; None: everything does
    gradient_checkpointing: bool = False  # compute its activations again in the backward pass instead of keeping them
    # Encoding and fusion
    d_model: int = 64  # common width d
    num_heads: int = 8  # of attention; divides d_model
    nlevels: int = 5  # transformer layers
    conv_kernel_sizes: tuple[int, int, int] = (1, 1, 1)  # steps that the convolution of each modality looks at
    projection_activation: str = "none"  # after the convolution: "none" as published, "relu" or "tanh"
    skip_equal_projection: bool = False  # the release has no projection where the raw width is d_model already
    use_cross_modal_attention: bool = True  # False: each modality attends to itself
    attn_mask: bool = True  # causal mask of the self-attention that takes over without cross-modal attention
    attn_dropout: tuple[float, float, float] = (0.1, 0.0, 0.0)  # of attention weights, by modality
    relu_dropout: float = 0.1  # inside the feed-forward layers
    embed_dropout: float = 0.1  # of the transformer's input and context
    res_dropout: float = 0.05  # of what is added to the residual stream
    output_dropout: float = 0.0  # before the head and inside the perceptrons of the common features
    text_dropout: float = 0.0  # of the input features; the release has it for text alone
    audio_dropout: float = 0.0
    vision_dropout: float = 0.0
    modality_dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)  # share of training samples that lack a modality
    # Heterogeneity
    num_prototypes: int = 7  # components K of each mixture; transport handles K^M of their combinations
    gmm_em_iters: int = 5  # EM steps
    gmm_var_floor: float = 1e-4  # smallest variance
    gmm_covariance: str = "diag"  # or "full", as the paper writes
    cost_reduction: str = "mean"  # of squared distances over the d dimensions, or "sum"
    prototype_mahalanobis: bool = False  # distances to prototypes in units of their covariance
    ot_reg: float = 0.1  # entropic weight lambda, in units of the cost
    ot_solver: str = "log"  # stable; "release": the authors' arithmetic
    ot_tol: float = 1e-6  # accepted error of the plan's marginals
    ot_max_iter: int | None = None  # rounds; None: the solver's own limit
    # Homogeneity
    pde_dim: int | None = None  # None: d_model
    mmd_bandwidth: float | str | tuple[float, ...] = 1.0  # a squared length, "median", or several to sum over
    # Decoupling
    decoupling_power: int = 2  # 2: squared cosine; 1: the paper's signed cosine
    # Head and objective
    head_width: int | None = None  # None: one linear layer, as published; else a hidden layer of that width before it
    pooled_skip: tuple[str, ...] = ()  # modalities whose average over the steps goes straight to the output, linearly
    # Of that path: "zero"; "ridge": the ridge regression of the training split; "auto": that for sequences, zero for
    # modalities of one step
    skip_start: str = "zero"
    train_mode: str = "regression"  # or "classification"
    num_classes: int = 3  # read only when train_mode is "classification"
    class_weights: str | tuple[float, ...] | None = None  # None, "balanced", or one weight a class
    task_loss: str = "mse"  # of regression; or "l1", "smooth_l1"
    dec_loss_weight: float = 1.0  # of the decoupling loss
    alpha: float = 0.05  # of the heterogeneity loss
    beta: float = 0.07  # of the homogeneity loss
    # What the two losses are made of, inside alpha and beta; 1 as published, 0 switches a part off
    transport_weight: float = 1.0  # of the transport value in the heterogeneity loss
    prototype_weight: float = 1.0  # of the prototype loss beside it
    moments_weight: float = 1.0  # of the distance of moments in the homogeneity loss
    mmd_weight: float = 1.0  # of the kernel distance beside it
    ct_weight: float = 0.003  # of the supervised contrastive term
    ct_temperature: float = 0.1  # of its cosine similarities
    binary_task_weight: float = 0.0  # of a logistic loss on the sign of non-zero labels
    # Training
    members: int = 1  # independent models, trained side by side on the same batches, whose predictions are averaged
    batch_size: int = 32
    learning_rate: float = 6e-5  # of Adam
    bert_learning_rate: float | None = None  # None: learning_rate
    weight_decay: float = 0.005  # Adam's, added to the gradient
    clip: float | None = 0.6  # norm of all gradients together; None: no clipping
    num_epochs: int = 18  # at most
    early_stop: int = 6  # epochs without improvement
    scheduler_patience: int = 5  # epochs without improvement until the learning rate is multiplied by `factor`
    factor: float = 0.1
    KeyEval: str = "Loss"  # MMSA's name: the validation metric that chooses the checkpoint

    def __post_init__(self) -> None:
        for field in fields(self):  # JSON has lists where a frozen record wants tuples
            value = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), hints[field.name])
        _check_values(self)

    @property
    def pde_width(self) -> int:
        """Width of the common features in which the homogeneity loss is computed."""
        return self.d_model if self.pde_dim is None else self.pde_dim

    @property
    def skipping(self) -> tuple[str, ...]:
        """The modalities in use that have the path of `pooled_skip`."""
        return tuple(m for m in self.modalities if m in self.pooled_skip)

    @property
    def outputs(self) -> int:
        """Columns of the head: one for regression, one a class otherwise."""
        return self.num_classes if self.train_mode == "classification" else 1

    @classmethod
    def names(cls) -> list[str]:
        """All setting names."""
        return [field.name for field in fields(cls)]

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> Settings:
        """From MMSA's argument dictionary: its bookkeeping keys are left aside, other unknown keys refused."""
        names = set(cls.names())
        chosen = {key: value for key, value in args.items() if key in names}
        unknown = sorted(key for key in args if key not in names and key not in MMSA_KEYS)
        if unknown:
            raise InputError(f"unknown DecAlign setting {unknown[0]!r}: {nearest(unknown[0], names)}")
        if "num_classes" in chosen and chosen.get("train_mode", "regression") == "regression":
            del chosen["num_classes"]  # MMSA's data set tables carry it for regression too
        return cls(**chosen)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        shown = json.dumps(value, default=str)
        raise InputError(f"setting {name}={shown} has the wrong type: expected {_in_words(hint)}")


def _in_words(hint: Any) -> str:
    """A type as the user of a JSON file knows it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_in_words(one) for one in args)
    if origin is tuple:
        several = {int: "whole numbers", float: "numbers", str: "texts"}[args[0]]
        return f"a list of {several}" if args[1] is Ellipsis else f"a list of {len(args)} {several}"
    return {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}.get(hint, "null")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


_CHOICES = {
    "gmm_covariance": ("diag", "full"),
    "projection_activation": ("none", "relu", "tanh"),
    "cost_reduction": ("mean", "sum"),
    "ot_solver": ("log", "release"),
    "decoupling_power": (1, 2),
    "train_mode": ("regression", "classification"),
    "task_loss": ("mse", "l1", "smooth_l1"),
    "skip_start": ("zero", "ridge", "auto"),
}
_POSITIVE = (
    "d_model num_heads nlevels num_prototypes gmm_var_floor ot_reg ot_tol ct_temperature batch_size learning_rate "
    "num_epochs early_stop num_classes members".split()
)
_NOT_NEGATIVE = (
    "gmm_em_iters dec_loss_weight alpha beta transport_weight prototype_weight moments_weight mmd_weight ct_weight "
    "binary_task_weight weight_decay scheduler_patience".split()
)
_RATES = "relu_dropout embed_dropout res_dropout output_dropout text_dropout audio_dropout vision_dropout".split()


def _check_values(s: Settings) -> None:
    for name, choices in _CHOICES.items():
        if getattr(s, name) not in choices:
            raise InputError(f"setting {name}={getattr(s, name)!r}: expected one of {', '.join(map(str, choices))}")
    for name in _POSITIVE:
        if not getattr(s, name) > 0:
            raise InputError(f"setting {name}={getattr(s, name)}: expected a number above 0")
    for name in _NOT_NEGATIVE:
        if not getattr(s, name) >= 0:
            raise InputError(f"setting {name}={getattr(s, name)}: expected 0 or more")
    rates = [(name, getattr(s, name)) for name in _RATES] + [("attn_dropout", rate) for rate in s.attn_dropout]
    rates += [("modality_dropout", rate) for rate in s.modality_dropout]
    for name, rate in rates:
        if not 0 <= rate < 1:
            raise InputError(f"setting {name}={rate}: expected a rate in [0, 1)")
    for name in ("modalities", "feature_standardize_modalities", "pooled_skip"):
        for one in getattr(s, name):
            if one not in MODALITIES:
                raise InputError(f"setting {name} names {one!r}: {nearest(one, MODALITIES)}")
    if not s.modalities or list(s.modalities) != [m for m in MODALITIES if m in s.modalities]:
        raise InputError(f"setting modalities={list(s.modalities)}: expected some of text, audio, vision in order")
    if s.skip_start == "ridge" and (not s.pooled_skip or s.train_mode != "regression"):
        raise InputError("setting skip_start='ridge' is about the path of pooled_skip in regression: name modalities "
                         "there, or leave skip_start out")
    if s.d_model % s.num_heads:
        divisors = [h for h in range(1, s.d_model + 1) if s.d_model % h == 0]
        raise InputError(
            f"num_heads={s.num_heads} does not divide d_model={s.d_model}: choose from {', '.join(map(str, divisors))}"
        )
    if min(s.feature_dims) < 1 or min(s.conv_kernel_sizes) < 1 or s.pde_width < 1:
        raise InputError("feature_dims, conv_kernel_sizes and pde_dim: expected whole numbers above 0")
    low, high = s.feature_clip_percentiles
    if not 0 <= low < high <= 100:
        raise InputError(f"feature_clip_percentiles={[low, high]}: expected 0 <= low < high <= 100")
    if (low, high) != (0.0, 100.0) and not s.need_feature_standardized:
        raise InputError(f"feature_clip_percentiles={[low, high]} has no effect without need_feature_standardized: set "
                         "that to true, or these to [0, 100]")
    widths = s.mmd_bandwidth if isinstance(s.mmd_bandwidth, tuple) else (s.mmd_bandwidth,)
    if not widths or any(w != "median" if isinstance(w, str) else w <= 0 for w in widths):
        raise InputError(f"mmd_bandwidth={s.mmd_bandwidth!r}: expected a positive number, several, or 'median'")
    for name in ("clip", "bert_learning_rate", "ot_max_iter", "head_width"):
        if getattr(s, name) is not None and not getattr(s, name) > 0:
            raise InputError(f"setting {name}={getattr(s, name)}: expected null or a number above 0")
    if s.freeze_layers is not None and s.freeze_layers < 0:
        raise InputError(f"setting freeze_layers={s.freeze_layers}: expected null or 0 or more")
    for name, off in (("freeze_layers", None), ("gradient_checkpointing", False)):
        if getattr(s, name) != off and not (s.use_bert and s.use_finetune):
            raise InputError(f"setting {name} is about an encoder that learns: set use_bert and use_finetune, too, "
                             f"or leave {name} out")
    if not 0 < s.factor < 1:
        raise InputError(f"setting factor={s.factor}: expected a number between 0 and 1")
    if isinstance(s.class_weights, str) and s.class_weights != "balanced":
        raise InputError(f"class_weights={s.class_weights!r}: expected null, 'balanced' or one weight a class")
    if isinstance(s.class_weights, tuple) and min(s.class_weights, default=0.0) < 0:
        raise InputError(f"class_weights={list(s.class_weights)}: expected no negative weight")
    if isinstance(s.class_weights, tuple) and len(s.class_weights) != s.num_classes:
        raise InputError(f"class_weights has {len(s.class_weights)} numbers for num_classes={s.num_classes}")
