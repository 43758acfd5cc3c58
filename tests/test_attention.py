"""Attention against torch's own, in values and gradients: in one piece, in pieces, and where neither is used."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmsa_decalign import attention as module
from mmsa_decalign.attention import attention
from tests.conftest import assert_same

DOUBLE = torch.float64
G, H, E, N, T, S = 2, 3, 4, 5, 6, 7


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def operands(size=1.0):
    return (size * draw(G, H, E, N, T)).requires_grad_(), draw(G, 2, H, E, N, S, seed=1).requires_grad_()


def in_full(q, kv, mask=None, noise=1.0):
    """The definition, with `noise` (G, H, N, T, S) on the weights."""
    q, k, v = (x.movedim(-3, -1) for x in (q, *kv.unbind(1)))
    scores = q @ k.mT / E**0.5
    weights = torch.softmax(scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -torch.inf), dim=-1)
    return (weights * noise @ v).movedim(-1, -3)


def assert_same_gradients(ours, theirs, inputs, tol):
    assert_same(ours, theirs, tol)
    weight = draw(*ours.shape, seed=9)
    for mine, other in zip(*(torch.autograd.grad(one, inputs, weight) for one in (ours, theirs)), strict=True):
        assert_same(mine, other, tol)


def masks():
    some = torch.rand(G, N, 1, S, generator=torch.Generator().manual_seed(2)) < 0.5
    some[..., 2] = True
    yield pytest.param(None, id="everything")
    yield pytest.param(some, id="valid steps")
    yield pytest.param(some[:1], id="one mask for all")
    yield pytest.param(torch.ones(T, S, dtype=torch.bool).tril()[None, None], id="causal")


PIECES = pytest.mark.parametrize(
    "piece", [pytest.param(None, id="few"), pytest.param(1 << 18, id="all samples"),
              pytest.param(2 * T * S, id="some samples"), pytest.param(1, id="a sample")]
)  # fmt: skip


def set_sizes(monkeypatch, piece):
    if piece is not None:
        monkeypatch.setattr(module, "_FEW", 0)
        monkeypatch.setattr(module, "_PIECE", piece)


@PIECES
@pytest.mark.parametrize("mask", list(masks()))
@pytest.mark.parametrize("size", [1.0, 400.0])
def test_attention_is_its_definition(monkeypatch, piece, mask, size):
    """Large scores: where only subtracting the largest keeps the exponentials finite."""
    set_sizes(monkeypatch, piece)
    q, kv = operands(size)
    assert_same_gradients(attention(q, kv, mask, 0.0), in_full(q, kv, mask), [q, kv], 1e-9)


@PIECES
@pytest.mark.parametrize("rates", [0.4, torch.tensor([0.0, 0.4], dtype=DOUBLE)])
def test_dropout_multiplies_the_weights_and_is_the_same_in_the_backward_pass(monkeypatch, piece, rates):
    """What it multiplied by is read off an output whose values are one step each."""
    set_sizes(monkeypatch, piece)
    q, k = operands()[0].detach(), draw(G, H, S, N, S, seed=1)
    q = torch.cat([q, q.new_zeros(G, H, S - E, N, T)], dim=2) * (S / E) ** 0.5  # as wide as there are steps
    read_off = torch.eye(S, dtype=DOUBLE).view(1, 1, S, 1, S).expand(G, H, S, N, S)
    q, kv = q.requires_grad_(), torch.stack([k, read_off], dim=1).requires_grad_()
    torch.manual_seed(3)
    found = attention(q, kv, None, rates)
    kept = (found.detach() != 0).movedim(2, -1)  # (G, H, N, T, S)
    rate = torch.as_tensor(rates, dtype=DOUBLE).expand(G).view(G, 1, 1, 1, 1)
    levels = (rate * 65536).round() / 65536
    q2, k2, v2 = (x.movedim(-3, -1) for x in (q, *kv.unbind(1)))
    weights = torch.softmax(q2 @ k2.mT / S**0.5, dim=-1) * (kept / (1 - levels))
    assert_same_gradients(found, (weights @ v2).movedim(-1, -3), [q, kv], 1e-9)
    share = kept.double().mean(dim=(1, 2, 3, 4))
    assert_same(share, 1 - rate.flatten(), 0.06)


def test_pieces_do_not_change_what_comes_out(monkeypatch):
    q, kv = operands()
    one = attention(q, kv, None, 0.0)
    set_sizes(monkeypatch, 100)
    assert_same(attention(q, kv, None, 0.0), one, 1e-12)


def test_memory_does_not_grow_with_the_number_of_weights():
    """What is kept for the backward pass: without dropout no weight of many, with dropout two bytes for each."""
    q, kv = torch.randn(1, 4, 8, 4, 400).requires_grad_(), torch.randn(1, 2, 4, 8, 4, 400)
    weights, bytes_kept = 4 * 4 * 400 * 400, []
    for rate in (0.0, 0.1):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=saved: to.append(x) or x, lambda x: x):
            attention(q, kv, None, rate)
        bytes_kept.append(sum(x.numel() * x.element_size() for x in saved if x is not None))
    assert bytes_kept[0] < weights / 2
    assert bytes_kept[1] - bytes_kept[0] == 2 * weights


@pytest.mark.parametrize("mask", list(masks()))
@pytest.mark.parametrize("rates", [0.0, torch.zeros(G, dtype=DOUBLE)])
def test_elsewhere_it_is_the_same(monkeypatch, mask, rates):
    q, kv = operands()
    monkeypatch.setattr(module, "plain_cpu", lambda x: False)
    assert_same_gradients(attention(q, kv, mask, rates), in_full(q, kv, mask), [q, kv], 1e-9)


@pytest.mark.parametrize("masked", [True, False])
def test_rates_of_several_elsewhere_are_dropout_of_the_weights(monkeypatch, masked):
    """Where the fast way is not taken: shares of what is dropped, the factor of what is kept, and the mask."""
    monkeypatch.setattr(module, "plain_cpu", lambda x: False)
    torch.manual_seed(0)
    rate = torch.tensor([0.0, 0.5, 0.9], dtype=DOUBLE)
    q, k = draw(3, 1, 5, 1, 2000), draw(3, 1, 5, 1, 5, seed=1)
    mask = torch.tensor([True, True, False, True, True]).view(1, 1, 1, 5) if masked else None
    read_off = torch.eye(5, dtype=DOUBLE).view(1, 1, 5, 1, 5).expand(3, 1, 5, 1, 5)
    found = attention(q, torch.stack([k, read_off], dim=1), mask, rate)[:, 0, :, 0].mT  # the dropped weights (3, T, S)
    scores = q[:, 0, :, 0].mT @ k[:, 0, :, 0] / 5**0.5
    weights = (scores if mask is None else scores.masked_fill(~mask[0, 0, 0], -torch.inf)).softmax(dim=-1)
    kept = found != 0
    assert_same(found, weights / (1 - rate.view(3, 1, 1)) * kept, 1e-12)
    share = kept[..., :2].double().mean(dim=(1, 2))
    assert_same(share, torch.tensor([1.0, 0.5, 0.1]), 0.03)
    assert bool(kept[..., 2].any()) is not masked


def test_against_torchs_own():
    q, kv = operands()
    theirs = F.scaled_dot_product_attention(*(x.movedim(-3, -1) for x in (q, *kv.unbind(1)))).movedim(-1, -3)
    assert_same_gradients(attention(q, kv, None, 0.0), theirs, [q, kv], 1e-9)
