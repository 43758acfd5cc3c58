"""``--mended``: repairs of the faults inside MMSA's models, in force for one run and undone after it.

``MENDS`` has an entry for every fault of faults.py with ``mended=True``, and tests hold the two together. Each repair
changes as little as it can: a name that MMSA's own class or module looks up, around the function that is at fault.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .catalogue import Model
from .faults import FAULTS, faults_of
from .patching import Undo, View, mmsa_module, replace, together
from .rewrite import rewritten


@contextmanager
def repaired(model: Model, wanted: bool = True) -> Iterator[list[str]]:
    """Inside the block the model is free of its mendable faults, if that is wanted; yields the names of those."""
    names = [fault.name for fault in faults_of(model) if fault.mended and wanted]
    undos: list[Undo] = []
    try:
        for name in names:
            undos.append(MENDS[name](model.name))
        yield names
    finally:
        together(undos)()


def mendable(model: Model) -> bool:
    """Whether ``--mended`` repairs anything in this model."""
    return any(fault.mended for fault in faults_of(model))


def _class(file: str, name: str) -> Any:
    return getattr(_module(file), name)


def _module(file: str) -> Any:
    """A module of MMSA, by its file."""
    return mmsa_module(file.removesuffix(".py").replace("/", "."))


def _sign(fault: str, model: str) -> str:
    """The file of MMSA that has the fault."""
    return next(each for each in FAULTS if each.name == fault).signs[model][0]


# Optimisers: what MMSA's trainers forget to hand over is added where they make their Adam

Change = Callable[[Mapping[str, Any], Any, Any, dict[str, Any]], Any]


def _adam(file: str, change: Change) -> Undo:
    """``change`` the parameters and options, (args, model, parameters, options) -> parameters, of a trainer's Adam."""
    module = _module(file)
    owner = getattr(module, file.rpartition("/")[2].removesuffix(".py"))
    original = owner.do_train

    @functools.wraps(original)
    def do_train(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        before = module.optim

        def adam(parameters: Any, **options: Any) -> Any:
            return before.Adam(change(self.args, model, parameters, options), **options)

        undo = replace(module, "optim", View(before, Adam=adam))
        try:
            return original(self, model, *args, **kwargs)
        finally:
            undo()

    return replace(owner, "do_train", do_train)


def _setting(option: str, setting: str) -> Change:
    def change(args: Mapping[str, Any], model: Any, parameters: Any, options: dict[str, Any]) -> Any:
        options.setdefault(option, args[setting])
        return parameters

    return change


def _learning_rate(model: str) -> Undo:
    return _adam(_sign("ignored_learning_rate", model), _setting("lr", "learning_rate"))


def _weight_decay(model: str) -> Undo:
    return _adam(_sign("ignored_weight_decay", model), _setting("weight_decay", "weight_decay"))


def _rank_weights(model: str) -> Undo:
    def change(args: Mapping[str, Any], model: Any, groups: Any, options: dict[str, Any]) -> Any:
        # with the factors that they sum up; mlmf has a group for them, with learning rate 0
        weights = [model.Model.fusion_weights, model.Model.fusion_bias]
        others = [group for group in groups if not any(one is weights[0] for one in group["params"])]
        return [*others, {"params": weights, "lr": args["factor_lr"]}]

    return _adam(_sign("untrained_rank_weights", model), change)


def _one_step_per_window(model: str) -> Undo:
    owner = _class("trains/missingTask/TFR_NET.py", "TFR_NET")

    def edit(tree: ast.FunctionDef) -> None:
        for loop in ast.walk(tree):
            if isinstance(loop, ast.For):
                loop.body = [one for one in loop.body if ast.unparse(one) != "optimizer.step()"]

    return replace(owner, "do_train", rewritten(owner.do_train, edit))


# Models


def _graph_networks(model: str) -> Undo:
    owner = _class(_sign("untrained_graph_networks", model), "DynamicFusionGraph")
    original = owner.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for nodes, network in self.networks.items():
            self.add_module("network_" + "_".join(map(str, nodes)), network)

    return replace(owner, "__init__", __init__)


def _text_dropout(model: str) -> Undo:
    owner = _class(_sign("ignored_text_dropout", model), "TextSubNet")
    original = owner.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, dropout: float = 0.2, **kwargs: Any) -> None:
        original(self, *args, dropout=dropout, **kwargs)
        self.dropout.p = dropout

    return replace(owner, "__init__", __init__)


def _neighbours_averaged(model: str) -> Undo:
    owner = _class(_sign("scrambled_alignment", model), "AlignSubNet")

    def average(self: Any, *modalities: Any) -> tuple[Any, ...]:
        return tuple(windows(x, self.dst_len) for x in modalities)

    return replace(owner, "_AlignSubNet__avg_pool", average)


def windows(x: Any, count: int) -> Any:
    """Means over ``count`` windows of neighbouring steps, (N, T, D) -> (N, count, D).

    Each window has ceil(T / count) steps; where T is no multiple of that, the last step is repeated.
    """
    size = -(-x.shape[1] // count)
    missing = size * count - x.shape[1]
    padded = x.new_empty(len(x), size * count, x.shape[2])
    padded[:, : x.shape[1]] = x
    padded[:, x.shape[1]:] = x[:, -1:].expand(-1, missing, -1)
    return padded.view(len(x), count, size, -1).mean(dim=2)


def _own_lengths(model: str) -> Undo:
    owner = _class(_sign("audio_cut_at_text_length", model), "MISA")
    original = owner.extract_features

    @functools.wraps(original)
    def extract_features(self: Any, sequence: Any, lengths: Any, *args: Any) -> Any:
        return original(self, sequence, steps_before_padding(sequence), *args)

    return replace(owner, "extract_features", extract_features)


def steps_before_padding(sequence: Any) -> Any:
    """(N, T, D) -> (N,), on the CPU: number of the last step that is not all zero, at least 1."""
    import torch

    filled = (sequence != 0).any(dim=2)
    numbers = torch.arange(1, sequence.shape[1] + 1, device=sequence.device)
    return (filled * numbers).amax(dim=1).clamp(min=1).cpu()


def _steps_as_time(model: str) -> Undo:
    module = _module(_sign("batch_as_time", model))
    translate, start = module.Seq2Seq.forward, module.Regression.__init__

    @functools.wraps(translate)
    def forward(self: Any, src: Any, trg: Any, *args: Any, **kwargs: Any) -> Any:
        # all inside takes and gives (steps, samples, width); MCTN.forward has samples first
        encoded, outputs = translate(self, src.transpose(0, 1), trg.transpose(0, 1), *args, **kwargs)
        return encoded.transpose(0, 1), outputs.transpose(0, 1)

    @functools.wraps(start)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self.rnn.batch_first = True

    return together([replace(module.Seq2Seq, "forward", forward), replace(module.Regression, "__init__", __init__)])


class _Loaders(dict):
    """MMSA's dictionary of loaders, as long as the one for training."""

    def __len__(self) -> int:
        return len(self["train"])


def _half_of_mosei(model: str) -> Undo:
    owner = _class(_sign("two_batches_of_mosei", model), "MCTN")
    original = owner.do_train

    @functools.wraps(original)
    def do_train(self: Any, model: Any, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, model, _Loaders(dataloader), *args, **kwargs)

    return replace(owner, "do_train", do_train)


def _reconstruction_per_sample(model: str) -> Undo:
    owner = _class(_sign("reconstruction_across_samples", model), "CM_ATTN")
    original = owner.__init__

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for final in (self.trans_l_final, self.trans_a_final, self.trans_v_final):
            # the encoder attends over its first axis: features, with samples as the second
            final.register_forward_pre_hook(lambda module, inputs: (inputs[0].transpose(0, 1),))
            final.register_forward_hook(lambda module, inputs, output: output.transpose(0, 1))

    return replace(owner, "__init__", __init__)


MENDS: dict[str, Callable[[str], Undo]] = {
    "untrained_graph_networks": _graph_networks,
    "untrained_rank_weights": _rank_weights,
    "batch_as_time": _steps_as_time,
    "two_batches_of_mosei": _half_of_mosei,
    "ignored_learning_rate": _learning_rate,
    "ignored_weight_decay": _weight_decay,
    "ignored_text_dropout": _text_dropout,
    "scrambled_alignment": _neighbours_averaged,
    "audio_cut_at_text_length": _own_lengths,
    "repeated_steps": _one_step_per_window,
    "reconstruction_across_samples": _reconstruction_per_sample,
}
