"""Linear layers, dropout and layer norm of our own against torch's, in values and gradients; dropout's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mmsa_decalign import kernels
from mmsa_decalign.fusion import CrossModalTransformer, fuse
from mmsa_decalign.kernels import dropout, dropped_relu, linear, linear_first, normed_sum, window_sum
from tests.conftest import assert_same

DOUBLE = torch.float64


def draw(*shape, seed=0, dtype=DOUBLE):
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return numbers.to(dtype).requires_grad_()


def assert_same_gradients(ours, theirs, inputs, tol):
    """Values and the gradients of a random functional of them."""
    assert_same(ours, theirs, tol)
    weight = draw(*ours.shape, seed=9, dtype=ours.dtype).detach()
    grads = (torch.autograd.grad(one, inputs, weight, retain_graph=True) for one in (ours, theirs))
    for mine, other in zip(*grads, strict=True):
        assert_same(mine, other, tol)


# Linear layer


@pytest.fixture
def any_size(monkeypatch):
    """oneDNN for products of any size, and how often it was called."""
    if kernels._ONEDNN is None:
        pytest.skip("torch without oneDNN")
    calls = []

    def counted(*args):
        calls.append(args)
        return original(*args)

    original = kernels._ONEDNN
    monkeypatch.setattr(kernels, "_ONEDNN", counted)
    monkeypatch.setattr(kernels, "_ONEDNN_FROM", 0)
    return calls


@pytest.mark.parametrize("shape", [(7, 5, 12), (7, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("outputs", [5, 30])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_by_onednn_is_torchs(any_size, shape, outputs, with_bias):
    x, w = draw(*shape, dtype=torch.float32), draw(outputs, 12, seed=1, dtype=torch.float32)
    inputs = [x, w, draw(outputs, seed=2, dtype=torch.float32)] if with_bias else [x, w]
    assert_same_gradients(linear(*inputs), F.linear(*inputs), inputs, 1e-5)
    assert len(any_size) == 3  # the result and two gradients


def test_onednn_is_only_for_large_float32_on_a_cpu_left_alone(any_size, monkeypatch):
    x, w = draw(8, 6, dtype=torch.float32), draw(5, 6, seed=1, dtype=torch.float32)
    linear(x.double(), w.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, w).dtype == torch.bfloat16
    before = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        linear(x, w)
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])
    monkeypatch.setattr(kernels, "_ONEDNN_FROM", 8 * 6 * 5 + 1)
    linear(x, w)
    assert not any_size


@pytest.mark.parametrize("outputs", [5, 30])
def test_linear_first_by_onednn_is_torchs(any_size, outputs):
    w, x = draw(outputs, 12, seed=1, dtype=torch.float32), draw(12, 35, dtype=torch.float32)
    inputs = [w, x, draw(outputs, seed=2, dtype=torch.float32)]
    assert_same_gradients(linear_first(*inputs), F.linear(x.mT, w, inputs[2]).mT, inputs, 1e-5)
    assert len(any_size) == 3  # the result and two gradients


def test_linear_first_of_several_at_once():
    w, x, b = draw(3, 5, 6, seed=1), draw(3, 6, 8), draw(3, 5, seed=2)
    one_by_one = torch.stack([F.linear(one.mT, *parts).mT for one, *parts in zip(x, w, b, strict=True)])
    assert_same_gradients(linear_first(w, x, b), one_by_one, [w, x, b], 1e-12)
    assert_same(linear_first(w[0], x[0], b[0]), one_by_one[0], 1e-12)


@pytest.mark.parametrize("window", [1, 2, 5])
def test_window_sum_is_a_convolution(window):
    x, w = draw(3, 7, 4), draw(6, 4, window, seed=1)
    assert_same_gradients(window_sum(x, w), F.conv1d(x.mT, w).mT, [x, w], 1e-12)


# Dropout


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.875])
def test_dropout_drops_independently_at_its_rate(rate):
    """Counts of elements, of neighbours and of elements 4 apart (one draw of 64 bits) within 5 standard deviations."""
    torch.manual_seed(3)
    n = 1 << 20
    kept = dropout(torch.ones(n), rate)
    assert_same(kept.unique(), torch.tensor([0.0, 1 / (1 - rate)]), 1e-4)
    dropped = kept == 0
    for what, expected in (
        (dropped, rate), (dropped[1:] & dropped[:-1], rate**2), (dropped[4:] & dropped[:-4], rate**2),
        *((dropped[place::4], rate) for place in range(4)),
    ):  # fmt: skip
        count, mean = int(what.sum()), len(what) * expected
        assert abs(count - mean) < 5 * math.sqrt(3 * mean * (1 - expected)), (rate, count, mean)


@pytest.mark.parametrize("rate", [1e-9, 0.3, 1 - 1e-9])
def test_dropout_keeps_the_mean(rate):
    """Exactly so for each of the 65536 levels: the factor belongs to the rate in use, however it is rounded."""
    dropped = kernels._dropped(rate)
    assert 0 <= dropped < 65536
    assert (65536 - dropped) * kernels._factor(dropped) == pytest.approx(65536, abs=0)
    assert abs(dropped / 65536 - rate) <= 1 / 65536


def layer_norm(x, gain, shift):
    return F.layer_norm(x.mT, gain.shape, gain, shift).mT


def test_dropout_off_draws_nothing():
    x = draw(5, 4)
    before = torch.get_rng_state()
    assert dropout(x, 0.0) is x
    gain, shift = draw(5, seed=1), draw(5, seed=2)
    assert_same_gradients(normed_sum(x, x, 0.0, gain, shift), layer_norm(2 * x, gain, shift), [x, gain, shift], 1e-12)
    assert_same_gradients(dropped_relu(x, 0.0), F.relu(x), [x], 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_normed_sum_and_dropped_relu_multiply_by_the_same_noise_forward_and_backward():
    x, y, gain, shift = draw(50, 40), draw(50, 40, seed=1), draw(50, seed=2), draw(50, seed=3)
    torch.manual_seed(5)
    noise = kernels.noise(x.shape, 0.25, x)
    for ours, theirs, inputs in (
        (lambda: dropout(x, 0.25), x * noise, [x]),
        (lambda: normed_sum(x, y, 0.25, gain, shift), layer_norm(x + y * noise, gain, shift), [x, y, gain, shift]),
        (lambda: dropped_relu(x, 0.25), F.relu(x) * noise, [x]),
    ):
        torch.manual_seed(5)
        assert_same_gradients(ours(), theirs, inputs, 1e-12)


def test_normed_sum_of_several_at_once_and_elsewhere(monkeypatch):
    x, y, gain, shift = draw(3, 6, 8), draw(3, 6, 8, seed=1), draw(3, 6, seed=2), draw(3, 6, seed=3)
    parts = zip(x + y, gain, shift, strict=True)
    one_by_one = torch.stack([layer_norm(*part) for part in parts])
    assert_same_gradients(normed_sum(x, y, 0.0, gain, shift), one_by_one, [x, y, gain, shift], 1e-12)
    monkeypatch.setattr(kernels, "plain_cpu", lambda x: False)
    assert_same(normed_sum(x, y, 0.0, gain, shift), one_by_one, 1e-12)


def test_the_same_draws_are_the_same_noise():
    drawn, scratch = kernels.draws(30, torch.device("cpu")), torch.full((7, 5), torch.nan)
    like = torch.zeros(1)
    again = kernels.noise((6, 5), 0.3, like, drawn, scratch)
    assert torch.equal(kernels.noise((6, 5), 0.3, like, drawn), again)
    assert again.data_ptr() == scratch.data_ptr()


def test_rates_of_several_at_once():
    torch.manual_seed(1)
    rates = torch.tensor([0.0, 0.5, 0.9]).view(3, 1, 1)
    noise = kernels.noise((3, 100, 1000), rates, rates)
    share = (noise == 0).double().mean(dim=(1, 2))
    assert_same(share, torch.tensor([0.0, 0.5, 0.9]), 0.01)
    assert_same(noise.mean(dim=(1, 2)), torch.ones(3), 0.02)


# Transformers of several modalities together


def three(dropout_of_attention=(0.0, 0.0, 0.0), other=0.0):
    torch.manual_seed(0)
    return [
        CrossModalTransformer(
            8, 2, 3, attn_dropout=rate, relu_dropout=other, res_dropout=other, embed_dropout=other, causal=True
        ).to(DOUBLE)
        for rate in dropout_of_attention
    ]


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_together_is_one_by_one(with_context, masked):
    transformers = three()
    x = [draw(4, 3, 8, seed=i) for i in range(3)]
    context = [draw(4, 6, 8, seed=10 + i) if with_context else None for i in range(3)]
    valid = torch.arange(6 if with_context else 3) < torch.tensor([[1], [2], [3], [3]])
    masks = [valid if masked else None] * 3
    together = torch.stack(fuse(transformers, x, context, masks))
    alone = torch.stack([t(*own) for t, own in zip(transformers, zip(x, context, masks, strict=True), strict=True)])
    parameters = [p for t in transformers for p in t.parameters()]
    assert_same_gradients(together, alone, [*x, *parameters], 1e-10)


def test_together_keeps_each_ones_rate_of_attention_dropout():
    """With rate 0 for one of them its output does not change from draw to draw; the others' do."""
    transformers = three((0.0, 0.4, 0.4))
    x, context = [draw(4, 1, 8, seed=i) for i in range(3)], [draw(4, 2, 8, seed=10 + i) for i in range(3)]
    first, second = (fuse(transformers, x, context, [None] * 3) for _ in range(2))
    assert_same(first[0], second[0], 0.0)
    assert all(float((first[i] - second[i]).detach().abs().max()) > 1e-3 for i in (1, 2))
    for t in transformers:
        t.eval()
    first, second = (fuse(transformers, x, context, [None] * 3) for _ in range(2))
    assert_same(torch.stack(first), torch.stack(second), 0.0)


def in_half(transformers):
    return [t.half() for t in transformers], torch.float16, torch.autocast("cpu", enabled=False)


def under_autocast(transformers):
    return [t.float() for t in transformers], torch.float32, torch.autocast("cpu", dtype=torch.float16)


@pytest.mark.parametrize("how", [in_half, under_autocast])
def test_rates_of_several_in_half_precision(how):
    """Each keeps its own: the one without dropout is as it is alone. What comes back is finite."""
    transformers, dtype, place = how(three((0.0, 0.4, 0.8)))
    x, context = ([draw(200, 1, 8, seed=i + j, dtype=dtype) for i in range(3)] for j in (0, 10))
    with place:
        together = fuse(transformers, x, context, [None] * 3)
        alone = transformers[0](x[0], context[0], None)
    assert_same(together[0], alone, 0.02)
    torch.autograd.backward(together, [torch.ones_like(one) for one in together])
    assert all(bool(torch.isfinite(p.grad).all()) for t in transformers for p in t.parameters())
