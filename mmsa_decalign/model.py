"""DecAlign: encode, decouple, align, fuse, predict.

Lives here: the model and nothing else; each step's mathematics is in `ops`, the transformer in `fusion.py`.
Shapes: N samples, T steps, d = d_model; everything is (N, T, d), modalities in the order text, audio, vision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .encoder import TextEncoder
from .errors import InputError
from .fusion import CrossModalTransformer, fuse
from .kernels import dropout, linear, window_sum
from .masking import masked_mean, present_steps, shorten, steps_mask, trailing_lengths
from .ops import HeteroLoss, HomoLoss, decoupling_loss, hetero_loss, homo_loss
from .presence import StandIn, by_modality, drop_modalities, presence, without_absent
from .settings import MODALITIES, Settings
from .standardise import Standardiser

_ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "tanh": torch.tanh}  # each takes 0 to 0: padding stays zero


class AlignmentTerms(NamedTuple):
    """The alignment losses of one training batch; None where a term does not exist, as for fewer than two modalities.

    Samples that lack a modality are left out of its part; a modality that no sample of the batch has, of the averages.
    """

    decoupling: Tensor | None
    hetero: Tensor | None
    homo: Tensor | None
    hetero_parts: HeteroLoss | None  # transport, prototype, mixtures, solver record
    homo_parts: HomoLoss | None  # semantic, mmd


class Decoupled(NamedTuple):
    """Features by modality before they are fused."""

    unique: dict[str, Tensor]  # (N, T, d), zeros at padded steps
    common: dict[str, Tensor]  # likewise
    valid: dict[str, Tensor | None]  # (N, T), True for steps that are no padding; None: all of them
    pooled: Tensor | None  # (N, width): inputs of `pooled_skip` averaged over the valid steps, side by side


class DecAlign(nn.Module):
    """Hierarchical cross-modal alignment by decoupled features (arXiv 2503.11892).

    Args:
        settings: see `Settings`; its `feature_dims` are the raw widths (the text width comes from the encoder when
            `use_bert` is set). One member alone: for several see `members.build`.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        s = self.settings = settings
        if s.members != 1:
            raise InputError(f"members={s.members}: one DecAlign is one; mmsa_decalign.members.build makes several")
        self.text_encoder = None
        if s.use_bert and "text" in s.modalities:
            self.text_encoder = TextEncoder(
                s.pretrained, s.use_finetune, freeze_layers=s.freeze_layers, checkpointing=s.gradient_checkpointing
            )
        widths = dict(zip(MODALITIES, s.feature_dims, strict=True))
        if self.text_encoder is not None:
            widths["text"] = self.text_encoder.width
        self.kernels = dict(zip(MODALITIES, s.conv_kernel_sizes, strict=True))

        def per_modality(make: Any) -> nn.ModuleDict:
            return nn.ModuleDict({m: make(m) for m in s.modalities})

        self.input_dropout = {"text": s.text_dropout, "audio": s.audio_dropout, "vision": s.vision_dropout}
        d, p = s.d_model, s.pde_width
        self.standardise = per_modality(lambda m: Standardiser(widths[m]))
        self.project = nn.ModuleDict(
            {
                m: nn.Conv1d(widths[m], d, self.kernels[m], bias=False)
                for m in s.modalities
                if not (s.skip_equal_projection and widths[m] == d)
            }
        )
        self.unique = per_modality(lambda m: nn.Linear(d, d, bias=False))
        self.common = nn.Linear(d, d, bias=False)
        attn_dropout = dict(zip(MODALITIES, s.attn_dropout, strict=True))
        self.fuse = per_modality(
            lambda m: CrossModalTransformer(
                d, s.num_heads, s.nlevels, attn_dropout=attn_dropout[m], relu_dropout=s.relu_dropout,
                res_dropout=s.res_dropout, embed_dropout=s.embed_dropout, causal=s.attn_mask,
            )
        )
        self.distribution = per_modality(
            lambda m: nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Dropout(s.output_dropout), nn.Linear(d, p))
        )
        self.output_dropout = nn.Dropout(s.output_dropout)
        width = 2 * len(s.modalities) * d
        if s.head_width is None:
            self.head = nn.Linear(width, s.outputs)
        else:
            self.head = nn.Sequential(nn.Linear(width, s.head_width), nn.ReLU(), nn.Linear(s.head_width, s.outputs))
        self.stand_in = StandIn(len(s.modalities), d)
        rates = dict(zip(MODALITIES, s.modality_dropout, strict=True))
        self.modality_dropout = [rates[m] for m in s.modalities]
        if s.skipping:
            self.skip = nn.Linear(sum(widths[m] for m in s.skipping), s.outputs)
            nn.init.zeros_(self.skip.weight), nn.init.zeros_(self.skip.bias)

    def forward(
        self,
        text: Tensor | None,
        audio: Tensor | None,
        vision: Tensor | None,
        *,
        lengths: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None,
        present: Mapping[str, Tensor] | Sequence[Tensor | None] | None = None,
    ) -> dict[str, Any]:
        """Predict, and in training mode compute the alignment losses too.

        Args:
            text: (N, T_t, D_t), or token ids (N, 3, L) with `use_bert`; audio: (N, T_a, D_a); vision: (N, T_v, D_v).
                A modality that the settings leave out may be None. Any T >= 1; the three may differ.
            lengths: valid steps (N,) of each modality, by name or in the order text, audio, vision (None for one that
                is not known). Without them all-zero steps at the end count as padding. For token ids the attention
                mask counts.
            present: which samples have a modality, (N,) bool each, given as lengths are; None, or nothing said of it:
                all have it. What the tensors hold of an absent modality has no influence, be it NaN: no step of it is
                attended to, it has no part in the alignment losses, and the head sees the mean of those training
                samples that have it.

        Returns:
            `M` (N, outputs), the prediction; `Feature_t`, `Feature_a`, `Feature_v` (N, d), the fused unique features of
            the modalities in use; `Feature_f` (N, 2 M d), what the head sees; in training mode `terms`, an
            `AlignmentTerms`. Evaluation mode computes no alignment loss.
        """
        names = self.settings.modalities
        raw = dict(zip(MODALITIES, (text, audio, vision), strict=True))
        here = self._presence(raw, present)
        unique, common, valid, pooled = self.decouple(raw, by_modality(lengths, "lengths"), here)
        fused = {m: masked_mean(steps, valid[m]) for m, steps in self._fuse(unique, valid, here).items()}
        common_mean = {m: masked_mean(common[m], valid[m]) for m in names}
        representation = torch.cat([*fused.values(), *common_mean.values()], dim=1)
        features = representation.unflatten(1, (2, len(names), -1))  # fused, common; by modality
        if self.training:
            self.stand_in.update(features, here)
        if here is not None:
            features = self.stand_in(features, here)
            representation, fused = features.flatten(1), dict(zip(names, features[:, 0].unbind(dim=1), strict=True))
        prediction = self.head(self.output_dropout(representation))
        if pooled is not None:
            prediction = prediction + self.skip(pooled)
        out: dict[str, Any] = {"M": prediction, "Feature_f": representation}
        out |= {f"Feature_{m[0]}": fused[m] for m in names}
        if self.training:
            out["terms"] = self._align(unique, common, common_mean, valid, here)
        return out

    def pooled_inputs(
        self, text: Tensor | None, audio: Tensor | None, vision: Tensor | None, *, lengths: Any = None,
        present: Any = None,
    ) -> Tensor | None:
        """What `pooled_skip` takes to the output, (N, width), of inputs as in `forward`; None where it is empty."""
        raw = dict(zip(MODALITIES, (text, audio, vision), strict=True))
        return self._encode(raw, by_modality(lengths, "lengths"), self._presence(raw, present))[2]

    def decouple(
        self, raw: Mapping[str, Tensor | None], lengths: Mapping[str, Tensor | None], here: Tensor | None = None
    ) -> Decoupled:
        """Unique and common features of the modalities in use, as `forward` goes on with them.

        Args:
            raw, lengths: the inputs and their valid steps by name, as in `forward`.
            here: who has what (N, modalities in use) bool, as `presence.presence` makes it; None: everybody everything.
        """
        x, valid, pooled = self._encode(raw, lengths, here)
        unique = {m: linear(one, self.unique[m].weight) for m, one in x.items()}
        common = {m: linear(one, self.common.weight) for m, one in x.items()}
        return Decoupled(unique, common, valid, pooled)

    def _presence(self, raw: dict[str, Tensor | None], present: Any) -> Tensor | None:
        """Who has what (N, M), after what modality dropout hides in training; None: everybody everything."""
        names = self.settings.modalities
        given = [raw[m] for m in names if raw[m] is not None]
        if not given:
            return None  # refused in _encode
        here = presence(present, names, given[0])
        if self.training and any(self.modality_dropout):
            here = drop_modalities(here, self.modality_dropout, given[0])
        return here

    def _encode(
        self, raw: Mapping[str, Tensor | None], lengths: Mapping[str, Tensor | None], here: Tensor | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None], Tensor | None]:
        """Raw inputs to (N, T, d) with zeros at padded steps, which steps are valid (None: all), and `pooled_skip`'s.

        What an absent modality has in the first two depends on no input, and is looked at by nobody; pooled it is zero,
        which is the training split's mean where inputs are standardised.
        """
        x, valid, pooled = {}, {}, []
        for i, m in enumerate(self.settings.modalities):
            features, mask = raw[m], None
            if features is None:
                raise InputError(f"{m} is missing, but the settings' modalities name it")
            if here is not None:
                features = without_absent(features, here[:, i], m == "text" and self.text_encoder is not None)
            if m == "text" and self.text_encoder is not None:
                features, mask = self.text_encoder(features)
            if features.dim() != 3 or 0 in features.shape:
                raise InputError(f"{m} has shape {tuple(features.shape)}, expected (N, T, features) with N, T >= 1")
            steps = lengths.get(m)
            if not self.settings.use_sequence_mask or features.shape[1] == 1:
                mask = None  # one step is always valid
            elif mask is None:
                steps = trailing_lengths(features) if steps is None else steps.to(features.device)
                mask = steps_mask(steps, features.shape[1])
            features = self.standardise[m](features)
            if mask is not None:
                features = features * mask.unsqueeze(2)  # standardising moved the zeros
            if m in self.settings.skipping:
                mean = masked_mean(features, mask)
                pooled.append(mean if here is None else mean * here[:, i : i + 1])
            x[m], valid[m] = self._project(m, features, mask)
        return x, valid, torch.cat(pooled, dim=1) if pooled else None

    def _project(self, m: str, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Standardised features (N, T, D_m), zeros at padded steps, to (N, T, d)."""
        features = dropout(features, self.input_dropout[m] if self.training else 0.0)
        if m not in self.project:
            return features, mask
        kernel = self.kernels[m]
        if features.shape[1] < kernel:
            features = F.pad(features, (0, 0, 0, kernel - features.shape[1]))
        features = window_sum(features, self.project[m].weight)
        features = _ACTIVATIONS[self.settings.projection_activation](features)
        if mask is None:
            return features, None
        mask = shorten(mask, kernel)
        return features * mask.unsqueeze(2), mask

    def _fuse(
        self, unique: dict[str, Tensor], valid: dict[str, Tensor | None], here: Tensor | None
    ) -> dict[str, Tensor]:
        """Each modality's unique features (N, T, d) after its transformer."""
        contexts = [self._context(m, unique, valid, here) for m in unique]
        fused = fuse(list(self.fuse.values()), list(unique.values()), *zip(*contexts, strict=True))
        return dict(zip(unique, fused, strict=True))

    def _context(
        self, m: str, unique: dict[str, Tensor], valid: dict[str, Tensor | None], here: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What modality m attends to (N, S, d), None for itself, and which steps of that are valid (None: all)."""
        others = [n for n in unique if n != m] if self.settings.use_cross_modal_attention else []
        if not others:
            return None, valid[m]
        context = torch.cat([unique[n] for n in others], dim=1)
        if here is None:
            if all(valid[n] is None for n in others):
                return context, None
            everybody = torch.ones(len(context), dtype=torch.bool, device=context.device)
            return context, torch.cat([present_steps(unique[n], valid[n], everybody) for n in others], dim=1)
        present = dict(zip(unique, here.unbind(dim=1), strict=True))
        mask = torch.cat([present_steps(unique[n], valid[n], present[n]) for n in others], dim=1)
        # A sample without any of the others attends to one step of zeros: attention needs something to look at.
        context = torch.cat([context, torch.zeros_like(context[:, :1])], dim=1)
        return context, torch.cat([mask, ~mask.any(dim=1, keepdim=True)], dim=1)

    def _align(
        self,
        unique: dict[str, Tensor],
        common: dict[str, Tensor],
        common_mean: dict[str, Tensor],
        valid: dict[str, Tensor | None],
        here: Tensor | None,
    ) -> AlignmentTerms:
        s = self.settings
        if here is not None:
            unique, common, common_mean, valid = (_those_present(x, here) for x in (unique, common, common_mean, valid))
        if not unique:
            return AlignmentTerms(None, None, None, None, None)
        decoupling = decoupling_loss(list(unique.values()), list(common.values()), power=s.decoupling_power)
        if len(unique) < 2:
            return AlignmentTerms(decoupling, None, None, None, None)
        hetero = hetero_loss(
            [masked_mean(x, valid[m]) for m, x in unique.items()],
            n_components=s.num_prototypes, reg=s.ot_reg, n_iter=s.gmm_em_iters, var_floor=s.gmm_var_floor,
            covariance=s.gmm_covariance, reduction=s.cost_reduction, mahalanobis=s.prototype_mahalanobis,
            solver=s.ot_solver, tol=s.ot_tol, max_iter=s.ot_max_iter,
        )
        homo = homo_loss([self.distribution[m](z) for m, z in common_mean.items()], bandwidth=s.mmd_bandwidth)
        return AlignmentTerms(decoupling, hetero.value, homo.value, hetero, homo)


def _those_present(values: dict[str, Any], here: Tensor) -> dict[str, Any]:
    """Of each modality the rows of the samples that have it; a modality that no sample has is left out."""
    masks = {m: mask for m, mask in zip(values, here.unbind(dim=1), strict=True) if bool(mask.any())}
    return {m: None if values[m] is None else values[m][mask] for m, mask in masks.items()}
