"""MMSA's trainer contract for DecAlign: do_train, do_test.

Lives here: the optimisation loop, the choice of the checkpoint on the validation split, and evaluation. What a batch
costs is in `objective.py`; where batches come from and what becomes of the results is the harness's business. MMSA's
metrics function is handed in, so that this file does not know MMSA.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from .diagnosis import Advice, Notes, after, before, measured
from .errors import InputError, RunError, nearest
from .finite import (
    bad_losses,
    gradient_norms,
    in_words,
    kind,
    place,
    random_state,
    set_random_state,
    suspects,
)
from .masking import steps_mask, trailing_lengths
from .model import DecAlign
from .objective import Objective, objective, task_loss, weights
from .ops.precision import NotFinite
from .settings import MODALITIES, Settings
from .skip import start_as_ridge

logger = logging.getLogger("MMSA")

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]


class DecAlignTrainer:
    """Trains one DecAlign and keeps the account of it.

    Args:
        args: MMSA's argument dictionary; `device`, `model_save_path` and the settings are read from it.
        metrics: predictions (N, outputs) and labels (N, 1) to a dictionary of figures, as MMSA's MetricsTop gives it.

    After `do_train`: `history`, one entry an epoch (terms of the objective, validation figures, learning rate, seconds,
    whether the checkpoint was replaced, in some epochs the gradient norm of each term); `best_epoch`, counted from 1;
    `selection`, the rule and its value; `advice`, what looked wrong and what to try, which has gone to the log as well.
    """

    def __init__(self, args: Mapping[str, Any], metrics: Metrics) -> None:
        self.args, self.metrics = args, metrics
        self.settings = Settings.from_args(args)
        self.history: list[dict[str, Any]] = []
        self.advice: list[Advice] = []
        self.best_epoch = 0
        self.selection: dict[str, Any] = {}

    def do_train(
        self, model: nn.Module, dataloader: Mapping[str, Any], return_epoch_results: bool = False
    ) -> dict[str, list] | None:
        """Train on `dataloader["train"]`, choose on `dataloader["valid"]`, save the best state to `model_save_path`.

        return_epoch_results is MMSA's: then the metrics of every epoch on all three splits come back. It is the only
        way in which the test split is read here, and nothing is chosen by it.
        """
        self.history, self.advice = [], []
        self._say(before(self.settings, len(dataloader["train"].dataset)))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "transport stopped at", RuntimeWarning)  # said once, below
                return self._optimise(model, dataloader, return_epoch_results)
        finally:
            self._say(after(self.settings, self.history))

    def _say(self, advice: list[Advice]) -> None:
        self.advice += advice
        for one in advice:
            logger.warning("%s; try %s", one["what"], one["try"])

    def _optimise(
        self, model: nn.Module, dataloader: Mapping[str, Any], return_epoch_results: bool
    ) -> dict[str, list] | None:
        s, device = self.settings, self.args["device"]
        decalign = _inner(model)
        self.best_epoch = 0
        class_weights = self._prepare(decalign, dataloader["train"], device)
        if s.skip_start == "ridge" and s.skipping:
            self._start_skip(decalign, dataloader)
        optimizer = _optimizer(decalign, s)
        sign = 1.0 if _lower_is_better(s.KeyEval) else -1.0
        scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=s.scheduler_patience, factor=s.factor)
        best = math.inf
        epoch_results: dict[str, list] = {"train": [], "valid": [], "test": []}
        for epoch in range(1, s.num_epochs + 1):
            began = time.perf_counter()
            train, notes = self._train_epoch(model, dataloader["train"], optimizer, class_weights, epoch)
            valid = self.do_test(model, dataloader["valid"], mode="VAL")
            score = sign * self._score(valid)
            rate = optimizer.param_groups[-1]["lr"]
            scheduler.step(score)
            selected = score < best
            if selected:
                best, self.best_epoch = score, epoch
                # On the CPU, so that MMSA's own functions load it on a machine without the GPU that trained it.
                state = {name: value.cpu() for name, value in model.state_dict().items()}
                torch.save(state, self.args["model_save_path"])
            self.history.append(
                {"epoch": epoch, "train": train, "valid": valid, "learning_rate": rate, "selected": selected,
                 "seconds": round(time.perf_counter() - began, 3), **notes}
            )
            terms = "  ".join(f"{name} {value:.4f}" for name, value in train.items())
            logger.info(
                "epoch %d/%d  train: %s  valid: %s %.4f%s", epoch, s.num_epochs, terms, s.KeyEval, self._score(valid),
                "  (best so far)" if selected else "",
            )
            if return_epoch_results:
                for split in epoch_results:
                    epoch_results[split].append(self.do_test(model, dataloader[split], mode=split.upper()))
            if epoch - self.best_epoch >= s.early_stop:
                break
        if not self.best_epoch:
            raise RunError(f"validation {s.KeyEval} was never a number in {epoch} epochs: lower learning_rate or clip")
        mode = "min" if sign > 0 else "max"
        self.selection = {"metric": s.KeyEval, "mode": mode, "split": "valid", "value": sign * best}
        return epoch_results if return_epoch_results else None

    def do_test(
        self, model: nn.Module, dataloader: Iterable, mode: str = "VAL", return_sample_results: bool = False
    ) -> dict[str, Any]:
        """MMSA's metrics and the sample-weighted task loss ("Loss") of `model` on a split."""
        model.eval()
        predictions, labels, ids, features = [], [], [], []
        with torch.no_grad():
            for batch in dataloader:
                outputs = _outputs(model, batch, self.args["device"])
                predictions.append(outputs["M"].cpu())
                labels.append(batch["labels"]["M"].view(-1, 1))
                if return_sample_results:
                    ids.extend(batch["id"])
                    features.append({k: v.cpu().numpy() for k, v in outputs.items() if k.startswith("Feature_")})
        prediction, label = torch.cat(predictions), torch.cat(labels)
        target = label.flatten().long() if self.settings.train_mode == "classification" else label
        results: dict[str, Any] = {k: float(v) for k, v in self.metrics(prediction, target).items()}
        results["Loss"] = round(float(task_loss(prediction, label, self.settings)), 4)
        if mode == "TEST":
            logger.info("TEST-(%s) >> %s", "decalign", "  ".join(f"{k}: {v:.4f}" for k, v in results.items()))
        if return_sample_results:
            results |= {
                "Ids": ids,
                "SResults": list((prediction.squeeze(1) if prediction.shape[1] == 1 else prediction).numpy()),
                "Features": {k: np.concatenate([f[k] for f in features]) for k in features[0]},
                "Labels": label.tolist(),
            }
        return results

    def _prepare(self, model: DecAlign, loader: Any, device: Any) -> Tensor | None:
        """What has to be known of the training split before the first step: input statistics, class weights."""
        s = self.settings
        if s.need_feature_standardized:
            _fit_standardisers(model, loader, s)
        if s.train_mode != "classification" or s.class_weights is None:
            return None
        if isinstance(s.class_weights, tuple):
            return torch.tensor(s.class_weights, dtype=torch.float32, device=device)
        labels = torch.cat([batch["labels"]["M"].flatten() for batch in _in_order(loader)]).long()
        count = torch.bincount(labels, minlength=s.num_classes).clamp_min(1)
        return (len(labels) / (s.num_classes * count)).to(device)

    def _start_skip(self, model: DecAlign, loaders: Mapping[str, Any]) -> None:
        """Ridge regression of the training split's labels on its pooled inputs, with a penalty for the validation's."""
        model.eval()

        def pooled(split: str) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                batches = [(*_inputs(batch, self.args["device"]), batch["labels"]["M"].flatten())
                           for batch in _in_order(loaders[split])]
                inputs = [model.pooled_inputs(*features, **more) for features, more, _ in batches]
            return torch.cat(inputs), torch.cat([labels for _, _, labels in batches])

        start_as_ridge(model.skip, model.head, pooled("train"), pooled("valid"))

    def _train_epoch(
        self, model: nn.Module, loader: Any, optimizer: optim.Optimizer, class_weights: Tensor | None, epoch: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """One pass; the mean of every term of the objective over the samples, and what else is to be noted."""
        model.train()
        device = self.args["device"]
        parameters = [p for p in model.parameters() if p.requires_grad]
        clip = math.inf if self.settings.clip is None else self.settings.clip
        sums: dict[str, float] = {}
        samples: dict[str, int] = {}  # a term may not exist in a batch where modalities are absent
        notes, more = Notes(), {}
        for number, batch in enumerate(loader, start=1):
            optimizer.zero_grad()
            drawn = random_state(device)
            try:
                outputs, parts = self._step_forward(model, batch, class_weights)
            except NotFinite:
                bad = "the features under the hetero and homo losses are not finite"
                raise self._stopped(bad, epoch, number, loader, batch, self._predicted(model, batch)) from None
            numbers = parts.numbers()
            if (bad := bad_losses(numbers)) is not None:
                raise self._stopped(bad, epoch, number, loader, batch, outputs["M"])
            if number == 1 and measured(epoch):
                more["gradient_norms"] = gradient_norms(parts, weights(self.settings), parameters)
            notes.add(outputs["terms"])
            parts.total.backward()
            if not math.isfinite(norm := float(nn.utils.clip_grad_norm_(parameters, clip))):
                set_random_state(drawn, device)
                outputs, parts = self._step_forward(model, batch, class_weights)
                norms = gradient_norms(parts, weights(self.settings), parameters)
                terms = [name for name, value in norms.items() if not math.isfinite(value)]
                of = f"of the {' and '.join(terms)} loss" if terms else "of the sum of the losses"
                raise self._stopped(f"the gradient {of} is {kind(norm)}", epoch, number, loader, batch, outputs["M"])
            optimizer.step()
            size = len(batch["labels"]["M"])
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value * size
                samples[name] = samples.get(name, 0) + size
        return {name: value / samples[name] for name, value in sums.items()}, {**more, **notes.entry()}

    def _step_forward(
        self, model: nn.Module, batch: Mapping[str, Any], class_weights: Tensor | None
    ) -> tuple[dict[str, Any], Objective]:
        outputs = _outputs(model, batch, self.args["device"])
        return outputs, objective(outputs, batch["labels"]["M"].to(self.args["device"]), self.settings, class_weights)

    def _predicted(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        model.eval()  # no alignment loss is computed then
        with torch.no_grad():
            return _outputs(model, batch, self.args["device"])["M"]

    def _stopped(
        self, what: str, epoch: int, number: int, loader: Any, batch: Mapping[str, Any], predictions: Tensor
    ) -> RunError:
        """The error for a batch whose numbers are none; nothing of it has reached the parameters."""
        samples = in_words(suspects(batch["id"], predictions))
        return RunError(f"{place(epoch, number, len(loader))}: {what} ({samples}): lower learning_rate or clip, or "
                        "look at these samples")

    def _score(self, results: Mapping[str, float]) -> float:
        name = self.settings.KeyEval
        if name not in results:
            raise InputError(f"setting KeyEval={name!r} is no metric of this data set: {nearest(name, results)}")
        return results[name]


def _inner(model: nn.Module) -> DecAlign:
    """The DecAlign itself, also when MMSA's wrapper holds it."""
    return model if isinstance(model, DecAlign) else next(m for m in model.modules() if isinstance(m, DecAlign))


def _lower_is_better(metric: str) -> bool:
    return metric in ("Loss", "MAE")


def _outputs(model: nn.Module, batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The model on a batch."""
    inputs, more = _inputs(batch, device)
    return model(*inputs, **more)


def _inputs(batch: Mapping[str, Any], device: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """What the model gets of a batch: valid steps by modality for those that the loader knows (MMSA's own knows fewer
    than ours), and who has which modality, where the loader says so."""

    def known(key: str) -> dict[str, Tensor]:
        return {m: torch.as_tensor(batch[key.format(m)]).to(device) for m in MODALITIES if key.format(m) in batch}

    present = known("{}_present")
    more = {"present": present} if present else {}
    return [batch[m].to(device) for m in MODALITIES], {"lengths": known("{}_lengths"), **more}


def _optimizer(model: DecAlign, s: Settings) -> optim.Optimizer:
    encoder = [] if model.text_encoder is None else [p for p in model.text_encoder.parameters() if p.requires_grad]
    in_encoder = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in in_encoder]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": s.learning_rate}]
    if encoder:
        rate = s.learning_rate if s.bert_learning_rate is None else s.bert_learning_rate
        groups.insert(0, {"params": encoder, "lr": rate})
    return optim.Adam(groups, weight_decay=s.weight_decay, fused=True)


def _in_order(loader: Any) -> DataLoader:
    """The samples of a loader, without drawing from its random state or moving its progress bar."""
    return DataLoader(loader.dataset, batch_size=256)


def _fit_standardisers(model: DecAlign, loader: Any, s: Settings) -> None:
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
