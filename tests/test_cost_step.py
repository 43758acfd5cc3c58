"""What a training step costs, without a clock: calls, nodes of the graph, and bytes kept for the backward pass.

The alignment losses are left out here; their operators have bounds of their own. The bounds leave a twentieth to other
versions of torch: an optimisation that is lost shows as much more.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmsa_decalign import DecAlign, Settings
from mmsa_decalign import fusion as fusion_module

MOSI = {"attn_dropout": (0.1, 0.0, 0.0), "relu_dropout": 0.1, "embed_dropout": 0.1, "res_dropout": 0.05}
IEMOCAP = {
    "feature_dims": (1024, 512, 1024), "d_model": 48, "num_heads": 4, "nlevels": 4, "train_mode": "classification",
    "num_classes": 6, "attn_dropout": (0.2, 0.2, 0.2), "relu_dropout": 0.2, "embed_dropout": 0.2, "res_dropout": 0.2,
    "output_dropout": 0.2, "text_dropout": 0.2,
}  # fmt: skip
# Settings, steps, and bounds: calls of the dispatcher, nodes of the graph, megabytes kept
CASES = {
    "MOSI": (MOSI, 50, 8900, 590, 126.0),
    "IEMOCAP": (IEMOCAP, 1, 1520, 350, 3.4),
    "MOSI, utterances": (MOSI, 1, 1840, 412, 6.0),
}


class Calls(TorchDispatchMode):
    """Counts what reaches torch's dispatcher; on a GPU each that computes would be a kernel or more."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def nodes(of):
    seen, todo = set(), [of.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [other for other, _ in node.next_functions]
    return len(seen)


def cost(settings, steps):
    """Calls, nodes and megabytes of one forward and backward pass of 32 samples."""
    torch.manual_seed(0)
    model = DecAlign(Settings(**settings)).train()
    model._align = lambda *_: None
    inputs = [torch.randn(32, steps, width) for width in model.settings.feature_dims]
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), *inputs]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with Calls() as calls:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(*inputs)["M"].square().mean()
        count = nodes(loss)
        loss.backward()
    return calls.count, count, sum(kept.values()) / 1e6


@pytest.mark.parametrize("case", CASES)
def test_calls_nodes_and_memory_of_a_step(case):
    settings, steps, *bounds = CASES[case]
    found = cost(settings, steps)
    for what, number, bound in zip(("calls", "nodes", "megabytes"), found, bounds, strict=True):
        assert number <= bound, (what, found)
        assert number > 0.8 * bound, (what, found, "the bound can be lowered")


def test_three_transformers_in_one_need_far_fewer_calls(monkeypatch):
    settings, steps = CASES["IEMOCAP"][:2]
    together = cost(settings, steps)[0]
    monkeypatch.setattr(fusion_module, "_SMALL", 0)
    assert together < 0.6 * cost(settings, steps)[0]


def test_inference_keeps_nothing_and_computes_no_alignment():
    torch.manual_seed(0)
    model = DecAlign(Settings(**MOSI)).eval()
    model._align = None
    with torch.no_grad():
        out = model(*[torch.randn(4, 3, width) for width in model.settings.feature_dims])
    assert out["M"].grad_fn is None
    assert "terms" not in out
