"""MMSA's trainer contract for DecAlign: do_train, do_test.

Lives here: the optimisation loop, the choice of the checkpoint on the validation split, and evaluation. What a batch
costs is in `objective.py`; where batches come from and what becomes of the results is the harness's business. MMSA's
metrics function is handed in, so that this file does not know MMSA.
"""

from __future__ import annotations

import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

from .data.whole import whole
from .diagnosis import Advice, after, before, measured, note
from .encoder import TextEncoder
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
from .members import members_of, outputs_of
from .objective import Objective, mean_of, objective, task_loss, weights
from .ops.precision import NotFinite
from .preparation import inputs_of, prepare
from .settings import Settings
from .training_state import Training, generators_of

logger = logging.getLogger("MMSA")

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]


class DecAlignTrainer:
    """Trains one DecAlign, or several as members of one model, and keeps the account of it.

    Each member takes the steps that it would take alone, its gradient clipped by itself; learning rate, checkpoint and
    end of training go by validation of their average, and the account has the mean of their terms.

    Args:
        args: MMSA's argument dictionary; `device`, `model_save_path` and the settings are read from it.
        metrics: predictions (N, outputs) and labels (N, 1) to a dictionary of figures, as MMSA's MetricsTop gives it.

    After `do_train`: `history`, one entry an epoch (terms of the objective, validation figures, learning rate, seconds,
    whether the checkpoint was replaced, in some epochs the gradient norm of each term); `best_epoch`, counted from 1;
    `selection`, the rule and its value; `advice`, what looked wrong and what to try, which has gone to the log as well.

    A training can go on elsewhere: `state()` between two batches, and in a trainer with the same arguments `restore` of
    it before `do_train`. `after_epoch`, if somebody sets it, is called when an epoch is complete.
    """

    def __init__(self, args: Mapping[str, Any], metrics: Metrics) -> None:
        self.args, self.metrics = args, metrics
        self.settings = Settings.from_args(args)
        self.after_epoch: Callable[[], None] | None = None
        self.advice: list[Advice] = []
        self.selection: dict[str, Any] = {}
        self._training: Training | None = None
        self._earlier: Mapping[str, Any] | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [] if self._training is None else self._training.account.history

    @property
    def best_epoch(self) -> int:
        return 0 if self._training is None else self._training.account.best_epoch

    def do_train(
        self, model: nn.Module, dataloader: Mapping[str, Any], return_epoch_results: bool = False
    ) -> dict[str, list] | None:
        """Train on `dataloader["train"]`, choose on `dataloader["valid"]`, save the best state to `model_save_path`.

        return_epoch_results is MMSA's: then the metrics of every epoch on all three splits come back. It is the only
        way in which the test split is read here, and nothing is chosen by it.
        """
        self.advice = []
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
        s = self.settings
        class_weights = [prepare(member, dataloader, self.args["device"]) for member in members_of(model)][0]
        optimizer = _optimizer(model, s)
        scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=s.scheduler_patience, factor=s.factor)
        training = self._training = Training(model, optimizer, scheduler, generators_of(dataloader["train"]))
        if self._earlier is not None:
            training.restore(self._earlier)
            self._earlier = None
        account = training.account
        while account.epoch < s.num_epochs and account.epoch - account.best_epoch < s.early_stop:
            self._epoch(training, dataloader, class_weights)
            if return_epoch_results:
                for split in account.results:
                    account.results[split].append(self.do_test(model, dataloader[split], mode=split.upper()))
            if self.after_epoch is not None:
                self.after_epoch()
        if not account.best_epoch:
            raise RunError(f"validation {s.KeyEval} was never a number in {account.epoch} epochs: "
                           "lower learning_rate or clip")
        mode = "min" if _lower_is_better(s.KeyEval) else "max"
        self.selection = {"metric": s.KeyEval, "mode": mode, "split": "valid", "value": self._sign() * account.best}
        return account.results if return_epoch_results else None

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, between two batches or two epochs.

        `torch.save` writes it and `torch.load(weights_only=True)` reads it. It shares its tensors with the training.
        The checkpoint at `model_save_path` belongs to it: keep that, too.
        """
        training = self._training
        if training is None:
            raise RunError("no training has begun")
        return training.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the next `do_train` go on from `state`, with the checkpoint back at `model_save_path`."""
        self._earlier = state

    def _epoch(self, training: Training, dataloader: Mapping[str, Any], class_weights: Tensor | None) -> None:
        """One pass over the training split, validation, and what follows from it."""
        account, model, began = training.account, training.model, time.perf_counter()
        epoch = account.epoch + 1
        train = self._train_epoch(training, dataloader["train"], class_weights, epoch)
        valid = self.do_test(model, dataloader["valid"], mode="VAL")
        score = self._sign() * self._score(valid)
        rate = training.optimizer.param_groups[-1]["lr"]
        training.scheduler.step(score)
        selected = score < account.best
        if selected:
            account.best, account.best_epoch = score, epoch
            # On the CPU, so that MMSA's own functions load it on a machine without the GPU that trained it.
            _write({name: value.cpu() for name, value in model.state_dict().items()}, self.args["model_save_path"])
        training.complete(
            {"epoch": epoch, "train": train, "valid": valid, "learning_rate": rate, "selected": selected,
             "seconds": round(time.perf_counter() - began, 3), **account.notes}
        )
        terms = "  ".join(f"{name} {value:.4f}" for name, value in train.items())
        logger.info(
            "epoch %d/%d  train: %s  valid: %s %.4f%s", epoch, self.settings.num_epochs, terms, self.settings.KeyEval,
            self._score(valid), "  (best so far)" if selected else "",
        )

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

    def _train_epoch(
        self, training: Training, loader: Any, class_weights: Tensor | None, epoch: int
    ) -> dict[str, float]:
        """One pass, or what is left of it; the mean of every term of the objective over the samples."""
        model, optimizer, account, device = training.model, training.optimizer, training.account, self.args["device"]
        model.train()
        of_members = [[p for p in member.parameters() if p.requires_grad] for member in members_of(model)]
        parameters = sum(of_members, [])
        clip = math.inf if self.settings.clip is None else self.settings.clip
        for batch in training.batches(loader):
            number = account.batches + 1
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
                account.notes["gradient_norms"] = gradient_norms(parts, weights(self.settings), parameters)
            for output in outputs_of(outputs):
                note(account.notes, output["terms"])
            (len(of_members) * parts.total).backward()  # the mean's gradient is a part of each member's own
            norm = sum(float(nn.utils.clip_grad_norm_(own, clip)) for own in of_members)
            if not math.isfinite(norm):
                set_random_state(drawn, device)
                outputs, parts = self._step_forward(model, batch, class_weights)
                norms = gradient_norms(parts, weights(self.settings), parameters)
                terms = [name for name, value in norms.items() if not math.isfinite(value)]
                of = f"of the {' and '.join(terms)} loss" if terms else "of the sum of the losses"
                raise self._stopped(f"the gradient {of} is {kind(norm)}", epoch, number, loader, batch, outputs["M"])
            optimizer.step()
            account.add(numbers, len(batch["labels"]["M"]))
        return account.means()

    def _step_forward(
        self, model: nn.Module, batch: Mapping[str, Any], class_weights: Tensor | None
    ) -> tuple[dict[str, Any], Objective]:
        outputs = _outputs(model, batch, self.args["device"])
        labels = batch["labels"]["M"].to(self.args["device"])
        return outputs, mean_of([objective(one, labels, self.settings, class_weights) for one in outputs_of(outputs)])

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

    def _sign(self) -> float:
        return 1.0 if _lower_is_better(self.settings.KeyEval) else -1.0

    def _score(self, results: Mapping[str, float]) -> float:
        name = self.settings.KeyEval
        if name not in results:
            raise InputError(f"setting KeyEval={name!r} is no metric of this data set: {nearest(name, results)}")
        return results[name]


def _write(state: Mapping[str, Any], path: Any) -> None:
    """Write a checkpoint in one step: no reader ever sees half of one, nor a full disk a good one cut short."""
    content = io.BytesIO()  # not torch.save to the file: what it raises where a disk is full says nothing of disks
    torch.save(state, content)
    try:
        with whole(Path(path), make_folders=False) as temporary:
            temporary.write_bytes(content.getbuffer())
    except OSError as error:
        raise RunError(f"checkpoint {path} cannot be written ({error.strerror or error}): "
                       "free space there or choose another folder") from error


def _lower_is_better(metric: str) -> bool:
    return metric in ("Loss", "MAE")


def _outputs(model: nn.Module, batch: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """The model on a batch."""
    inputs, more = inputs_of(batch, device)
    return model(*inputs, **more)


def _optimizer(model: nn.Module, s: Settings) -> optim.Optimizer:
    encoders = [module for module in model.modules() if isinstance(module, TextEncoder)]  # each member has its own
    encoder = [p for one in encoders for p in one.parameters() if p.requires_grad]
    in_encoder = {id(p) for p in encoder}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in in_encoder]
    groups: list[dict[str, Any]] = [{"params": rest, "lr": s.learning_rate}]
    if encoder:
        rate = s.learning_rate if s.bert_learning_rate is None else s.bert_learning_rate
        groups.insert(0, {"params": encoder, "lr": rate})
    return optim.Adam(groups, weight_decay=s.weight_decay, fused=True)
