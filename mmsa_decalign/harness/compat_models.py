"""Crashes inside MMSA's models and trainers on today's libraries, as patches: compat.PATCHES ends with MODEL_PATCHES.

Here is what keeps a model from running at all, which is always mended. Faults that leave a model running, but not as
its paper says, are not touched here. Each patch changes names of MMSA's own modules and classes, and behaves as MMSA
does wherever MMSA works. Those that have to do with text encoders are in compat_encoders.py.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from .compat_encoders import ENCODER_PATCHES
from .patching import Patch, Undo, mmsa_module, replace, together
from .rewrite import rewritten, set_in_every_pass, source_text, squeezes, times_set, unbound_in_first_pass, with_squeeze


def _trainers() -> list[Any]:
    """The modules of all of MMSA's trainers."""
    mmsa_module("trains.ATIO")
    return [module for name, module in sorted(sys.modules.items()) if name.startswith("MMSA.trains.")]


# Schedulers


def _scheduler_takes_no_verbose() -> bool:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return "verbose" not in inspect.signature(ReduceLROnPlateau).parameters


def _scheduler_without_verbose() -> Undo:
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    def scheduler(*args: Any, verbose: bool = False, **kwargs: Any) -> ReduceLROnPlateau:
        return ReduceLROnPlateau(*args, **kwargs)

    return together([replace(module, "ReduceLROnPlateau", scheduler) for module in _trainers()
                     if hasattr(module, "ReduceLROnPlateau")])


# Local variables that are read before they are set

_MULTI_TASK = ("MTFN", "MLMF", "MLF_DNN")


def _unbound() -> list[Any]:
    owners = [getattr(mmsa_module(f"trains.multiTask.{name}"), name) for name in _MULTI_TASK]
    return [owner for owner in owners if unbound_in_first_pass(owner.do_train, "train_results")]


def _bind_in_every_epoch() -> Undo:
    edit = set_in_every_pass("train_results = {}")
    return together([replace(owner, "do_train", rewritten(owner.do_train, edit)) for owner in _unbound()])


def _mmim_logs_a_stage_it_skips() -> bool:
    return times_set(mmsa_module("trains.singleTask.MMIM").MMIM.do_train, "train_loss_mmilb") == 1


def _mmim_without_contrast() -> Undo:
    owner = mmsa_module("trains.singleTask.MMIM").MMIM
    return replace(owner, "do_train", rewritten(owner.do_train, set_in_every_pass("train_loss_mmilb = 0.0")))


# Trainers that can only test what they have trained


def _forgetful() -> list[Any]:
    """Trainer classes whose ``do_test`` uses the model of ``do_train`` instead of the one it is given."""
    owners = []
    for module in _trainers():
        owner = getattr(module, module.__name__.rpartition(".")[2], None)
        if hasattr(owner, "do_test") and "self.model." in source_text(owner.do_test).replace("(", "."):
            owners.append(owner)
    return owners


def _test_the_given_model() -> Undo:
    def given(original: Callable[..., Any]) -> Callable[..., Any]:
        def do_test(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            self.model = model
            return original(self, model, *args, **kwargs)

        do_test.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        return do_test

    return together([replace(owner, "do_test", given(owner.do_test)) for owner in _forgetful()])


# Batches of one sample

# Owner, function, and the axis that its squeeze() means: the layer of an LSTM, the column of the labels, or none.
_SQUEEZES = (
    ("models.singleTask.EF_LSTM", "EF_LSTM", "forward", None),
    *((f"models.multiTask.{name}", "TextSubNet", "forward", 0) for name in _MULTI_TASK),
    ("models.singleTask.MMIM", "RNNEncoder", "forward", 0),
    ("models.singleTask.MMIM", "MMILB", "forward", -1),
    ("trains.singleTask.MMIM", "MMIM", "train_others", -1),
    ("trains.singleTask.MFM", "MFM", "do_train", -1),
    ("trains.singleTask.MFM", "MFM", "do_test", -1),
)


def _squeezing() -> list[tuple[Any, str, int | None]]:
    found = [(getattr(mmsa_module(module), name), function, axis) for module, name, function, axis in _SQUEEZES]
    return [(owner, function, axis) for owner, function, axis in found
            if squeezes(getattr(owner, function))]


def _squeeze_one_axis() -> Undo:
    return together([replace(owner, function, rewritten(getattr(owner, function), with_squeeze(axis)))
                     for owner, function, axis in _squeezing()])


# tfr_net's positions


def _positions_are_written_over() -> bool:
    return "out=" in source_text(mmsa_module(_POSITIONS).make_positions)


def _positions_made_anew() -> Undo:
    import torch

    def make_positions(tensor: Any, padding_idx: int, left_pad: bool) -> Any:
        """padding_idx + 1, + 2, ... along the rows of ``tensor`` (N, T); padding_idx where it holds padding_idx."""
        steps = tensor.shape[1]
        counted = tensor != padding_idx
        positions = torch.arange(padding_idx + 1, padding_idx + 1 + steps, device=tensor.device).expand_as(tensor)
        if left_pad:
            positions = positions - steps + counted.sum(dim=1, keepdim=True)
        return torch.where(counted, positions, padding_idx)

    return replace(mmsa_module(_POSITIONS), "make_positions", make_positions)


_POSITIONS = "models.subNets.transformers_encoder.position_embedding"


# mctn


def _mctn_wants_cuda() -> bool:
    return "cuda" in mmsa_module("models.singleTask.MCTN").MCTN.__init__.__code__.co_consts


def _mctn_on_any_device() -> Undo:
    import torch.nn.functional as F

    module = mmsa_module("models.singleTask.MCTN")
    original, forward, decode = module.MCTN.__init__, module.MCTN.forward, module.Decoder.forward

    def __init__(self: Any, config: Any) -> None:
        original(self, config)
        self.seq2seq1.device = self.seq2seq2.device = config.device

    def padded(self: Any, text: Any, audio: Any, vision: Any, tar: Any, lengths: Any) -> Any:
        # audio and vision are padded to the widest modality by MMSA, text is not
        with_bert = self.use_bert
        if with_bert:
            text = self.bertmodel(text)
        self.use_bert = False
        try:
            text = F.pad(text, (0, max(x.shape[2] for x in (text, audio, vision)) - text.shape[2]))
            return forward(self, text, audio, vision, tar, lengths)
        finally:
            self.use_bert = with_bert

    def one_step(self: Any, *args: Any) -> Any:
        prediction, state = decode(self, *args)  # whose squeeze(0) takes away a state of one step
        return prediction, state.view(-1, state.shape[-1])

    return together([replace(module.MCTN, "__init__", __init__), replace(module.MCTN, "forward", padded),
                     replace(module.Decoder, "forward", one_step)])


MODEL_PATCHES = (
    Patch(
        "scheduler_verbose",
        _scheduler_takes_no_verbose,
        _scheduler_without_verbose,
        "MMSA/trains/singleTask/MULT.py, MMIM.py, missingTask/TFR_NET.py (2.2.1): ReduceLROnPlateau(verbose=True), an "
        "argument that torch 2.7 took away",
    ),
    Patch(
        "unbound_train_results",
        lambda: bool(_unbound()),
        _bind_in_every_epoch,
        "MMSA/trains/multiTask/MTFN.py, MLMF.py, MLF_DNN.py, do_train (2.2.1): the log line of the first epoch reads "
        "train_results, which is set below it",
    ),
    Patch(
        "mmim_without_contrast",
        _mmim_logs_a_stage_it_skips,
        _mmim_without_contrast,
        "MMSA/trains/singleTask/MMIM.py, do_train (2.2.1): with contrast=false the log line reads train_loss_mmilb, "
        "which is set only where contrast is on",
    ),
    Patch(
        "test_without_training",
        lambda: bool(_forgetful()),
        _test_the_given_model,
        "MMSA/trains/singleTask/MCTN.py, MMIM.py, do_test (2.2.1): uses self.model, set by do_train, instead of the "
        "model it is given, so that a new trainer cannot test a checkpoint",
    ),
    Patch(
        "batch_of_one",
        lambda: bool(_squeezing()),
        _squeeze_one_axis,
        "MMSA/models/singleTask/EF_LSTM.py, MMIM.py, multiTask/MTFN.py, MLMF.py, MLF_DNN.py, MMSA/trains/singleTask/"
        "MMIM.py, MFM.py (2.2.1): squeeze() without an axis takes away the batch where it is one sample",
    ),
    Patch(
        "positions_written_over",
        _positions_are_written_over,
        _positions_made_anew,
        "MMSA/models/subNets/transformers_encoder/position_embedding.py, make_positions (2.2.1): torch.arange(out=) "
        "into a tensor of another length, kept on the function between models: a warning of torch, to be an error",
    ),
    Patch(
        "mctn_device",
        _mctn_wants_cuda,
        _mctn_on_any_device,
        "MMSA/models/singleTask/MCTN.py (2.2.1): Seq2Seq(..., 'cuda') on every device; text narrower than audio or "
        "vision is not padded as they are; h.squeeze(0) drops the only step of a sequence",
    ),
    *ENCODER_PATCHES,
)
