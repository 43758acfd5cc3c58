"""What has to be known of the data before the first step: input statistics, ridge regression, class weights.

Lives here: whatever is computed once from the training split (and, for a penalty, the validation split) before
DecAlign's trainer takes a step; and how a loader's batch becomes the model's arguments. May change: further
preparations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .masking import steps_mask, trailing_lengths
from .model import DecAlign
from .settings import MODALITIES
from .skip import start_as_ridge


def prepare(model: DecAlign, loaders: Mapping[str, Any], device: Any) -> Tensor | None:
    """Fit the model's input statistics and the start of its skip; returns the weights (classes,) of classes, or None.

    loaders: "train", and "valid" where the settings ask for a ridge regression.
    """
    s = model.settings
    if s.need_feature_standardized:
        _fit_standardisers(model, loaders["train"])
    if s.skipping and _ridge_first(model, loaders["train"]):
        splits = [_pooled(model, loaders[split], device) for split in ("train", "valid")]
        start_as_ridge(model.skip, model.head, *splits)
    if s.train_mode != "classification" or s.class_weights is None:
        return None
    if isinstance(s.class_weights, tuple):
        return torch.tensor(s.class_weights, dtype=torch.float32, device=device)
    labels = torch.cat([batch["labels"]["M"].flatten() for batch in _in_order(loaders["train"])]).long()
    count = torch.bincount(labels, minlength=s.num_classes).clamp_min(1)
    return (len(labels) / (s.num_classes * count)).to(device)


def inputs_of(batch: Mapping[str, Any], device: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """What the model gets of a batch: valid steps by modality for those that the loader knows (MMSA's own knows fewer
    than ours), and who has which modality, where the loader says so."""

    def known(key: str) -> dict[str, Tensor]:
        return {m: torch.as_tensor(batch[key.format(m)]).to(device) for m in MODALITIES if key.format(m) in batch}

    present = known("{}_present")
    more = {"present": present} if present else {}
    return [batch[m].to(device) for m in MODALITIES], {"lengths": known("{}_lengths"), **more}


def _in_order(loader: Any) -> DataLoader:
    """The samples of a loader, without drawing from its random state or moving its progress bar."""
    return DataLoader(loader.dataset, batch_size=256)


def _ridge_first(model: DecAlign, loader: Any) -> bool:
    """Whether the skip starts as ridge regression. With "auto" only where it averages over steps: among a few hundred
    single vectors ridge regression leaves too little of the training labels for the rest to learn from."""
    s = model.settings
    if s.skip_start != "auto" or s.train_mode != "regression":
        return s.skip_start == "ridge"
    return any(loader.dataset[0][m].shape[0] > 1 for m in s.skipping)


def _pooled(model: DecAlign, loader: Any, device: Any) -> tuple[Tensor, Tensor]:
    """What the skip sees of a split (N, width), and its labels (N,)."""
    model.eval()
    inputs, labels = [], []
    with torch.no_grad():
        for batch in _in_order(loader):
            features, more = inputs_of(batch, device)
            inputs.append(model.pooled_inputs(*features, **more))
            labels.append(batch["labels"]["M"].flatten())
    return torch.cat(inputs), torch.cat(labels)


def _fit_standardisers(model: DecAlign, loader: Any) -> None:
    s = model.settings
    for m in s.feature_standardize_modalities:
        if m not in s.modalities or (m == "text" and model.text_encoder is not None):
            continue
        rows = []
        for batch in _in_order(loader):
            x, steps = batch[m], batch.get(f"{m}_lengths")
            valid = trailing_lengths(x) if steps is None else torch.as_tensor(steps)
            mask = steps_mask(valid, x.shape[1]) if s.use_sequence_mask else torch.ones(x.shape[:2], dtype=torch.bool)
            if f"{m}_present" in batch:
                mask = mask & batch[f"{m}_present"].unsqueeze(1)
            rows.append(x[mask])
        if not sum(map(len, rows)):
            continue  # no sample of the training split has this modality
        model.standardise[m].fit(rows, s.feature_clip_percentiles)
