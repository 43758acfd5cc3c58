"""The model: shapes, masks, lengths, subsets of modalities, text encoders, and that padding has no influence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mmsa_decalign import DecAlign, InputError, Settings, ops
from mmsa_decalign.fusion import attend, keys_and_values, unpack
from mmsa_decalign.masking import masked_mean, shorten, steps_mask, trailing_lengths
from mmsa_decalign.standardise import Standardiser
from tests.conftest import assert_same

OFF = {"attn_dropout": (0.0,) * 3, "relu_dropout": 0.0, "embed_dropout": 0.0, "res_dropout": 0.0}
SMALL = {"feature_dims": (6, 4, 5), "d_model": 8, "num_heads": 2, "nlevels": 2, "num_prototypes": 3, **OFF}


def build(**change):
    torch.manual_seed(0)
    return DecAlign(Settings(**(SMALL | change))).double()


def batch(n=6, steps=(5, 7, 4), dims=(6, 4, 5)):
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(n, t, d, generator=rng, dtype=torch.float64) for t, d in zip(steps, dims, strict=True)]


@pytest.mark.parametrize("steps", [(1, 1, 1), (5, 7, 4), (2, 30, 1)])
@pytest.mark.parametrize("kernels", [(1, 1, 1), (3, 5, 2)])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_any_lengths_and_batch_sizes(steps, kernels, n):
    model = build(conv_kernel_sizes=kernels).train()
    out = model(*batch(n, steps))
    assert out["M"].shape == (n, 1)
    assert [out[f"Feature_{m}"].shape for m in "tavf"] == [(n, 8)] * 3 + [(n, 48)]
    total = out["M"].sum() + out["terms"].decoupling + out["terms"].hetero + out["terms"].homo
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name


@pytest.mark.parametrize("kernels", [(1, 1, 1), (3, 2, 3), (5, 6, 4)])
def test_padding_has_no_influence(kernels):
    """The same sequences, longer with padding of anything at all, given their lengths: same outputs, same losses.

    The last kernels are longer than some sequences, whose first window reaches into the padding.
    """
    model = build(conv_kernel_sizes=kernels).train()
    inputs = batch()
    lengths = {"text": torch.tensor([5, 3, 4, 5, 3, 4]), "audio": torch.tensor([7, 3, 5, 4, 6, 7]),
               "vision": torch.tensor([4, 4, 3, 3, 4, 3])}  # fmt: skip
    plain = model(*inputs, lengths=lengths)
    padded = [torch.cat([x, torch.full((6, 9, x.shape[2]), 99.0, dtype=x.dtype)], dim=1) for x in inputs]
    for x, steps in zip(padded, lengths.values(), strict=True):
        for row, count in zip(x, steps, strict=True):
            row[count:] = 99.0
    longer = model(*padded, lengths=tuple(lengths.values()))
    for key in ("M", "Feature_t", "Feature_a", "Feature_v", "Feature_f"):
        assert_same(longer[key], plain[key], 1e-9, key)
    for key in ("decoupling", "hetero", "homo"):
        assert_same(getattr(longer["terms"], key), getattr(plain["terms"], key), 1e-8, key)


def test_a_padded_sample_predicts_like_the_sample_alone():
    model = build(conv_kernel_sizes=(2, 2, 2)).eval()
    inputs = batch(2)
    lengths = [torch.tensor([3, 5]), torch.tensor([4, 7]), torch.tensor([2, 4])]
    together = model(*inputs, lengths=lengths)["M"][:1]
    alone = model(*[x[:1, : int(steps[0])] for x, steps in zip(inputs, lengths, strict=True)])["M"]
    assert_same(together, alone, 1e-9)


def test_zeros_at_the_end_are_padding_unless_masks_are_off():
    inputs = batch()
    padded = [torch.cat([x, torch.zeros(6, 3, x.shape[2], dtype=x.dtype)], dim=1) for x in inputs]
    model = build().eval()
    assert_same(model(*padded)["M"], model(*inputs)["M"], 1e-9)
    unmasked = build(use_sequence_mask=False).eval()
    assert (unmasked(*padded)["M"] - unmasked(*inputs)["M"]).abs().max() > 1e-3


def test_attention_without_masks_equals_torchs_own():
    """Our attention against nn.MultiheadAttention with the same packed weights."""
    model = build()
    ours = model.fuse["text"].layers[0]
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.load_state_dict(ours.attention.state_dict())
    query, context = batch(3, (4, 6, 1), (8, 8, 1))[:2]
    valid = steps_mask(torch.tensor([6, 2, 4]), 6)
    expected, _ = theirs(query, context, context, key_padding_mask=~valid, need_weights=False)
    weights = unpack(*ours.tensors())
    kv = keys_and_values(context.flatten(0, 1).mT, [weights], 2, len(context))[0]
    found = attend(query.flatten(0, 1).mT, kv, valid[None, :, None, :], weights).mT.view(query.shape)
    assert_same(found, expected, 1e-12)


def test_self_attention_is_causal_when_asked():
    model = build(use_cross_modal_attention=False, attn_mask=True).eval()
    x = batch(2, (5, 1, 1), (8, 1, 1))[0]
    changed = x.clone()
    changed[:, 3:] += 1.0
    before, after = (model.fuse["text"](v, None, None) for v in (x, changed))
    assert_same(after[:, :3], before[:, :3], 1e-12)
    assert (after[:, 3:] - before[:, 3:]).abs().max() > 1e-3


@pytest.mark.parametrize("modalities", [("text",), ("audio", "vision"), ("text", "vision")])
def test_subsets_of_modalities(modalities):
    model = build(modalities=modalities).train()
    given = [x if m in modalities else None for x, m in zip(batch(), ("text", "audio", "vision"), strict=True)]
    out = model(*given)
    assert out["Feature_f"].shape == (6, 2 * len(modalities) * 8)
    assert sorted(k for k in out if k.startswith("Feature_") and k != "Feature_f") == sorted(
        f"Feature_{m[0]}" for m in modalities
    )
    terms = out["terms"]
    if len(modalities) == 1:
        assert terms.hetero is None
        assert terms.homo is None
    else:
        assert len(terms.hetero_parts.mixtures) == 2
    absent = {"text", "audio", "vision"} - set(modalities)
    assert not [name for name, _ in model.named_parameters() if any(m in name for m in absent)]


def test_a_modality_in_use_must_be_there():
    with pytest.raises(InputError, match="audio is missing"):
        build()(batch()[0], None, batch()[2])
    with pytest.raises(InputError, match="expected \\(N, T, features\\)"):
        build()(batch()[0][:, 0], *batch()[1:])


def test_evaluation_computes_no_alignment(monkeypatch):
    monkeypatch.setattr("mmsa_decalign.model.hetero_loss", None)
    out = build().eval()(*batch())
    assert "terms" not in out


@pytest.mark.parametrize("lengths", [{}, {"audio": torch.tensor([7, 3, 5, 4, 6, 7])}], ids=["guessed", "given"])
@pytest.mark.parametrize("chosen", [("text", "audio", "vision"), ("audio", "vision")])
def test_decoupled_features_are_those_that_the_forward_pass_goes_on_with(lengths, chosen):
    """Two linear maps of the projected valid steps; their loss is the training step's, the head sees their average."""
    model = build(modalities=chosen).train()
    inputs = dict(zip(("text", "audio", "vision"), batch(), strict=True))
    unique, common, valid, _ = model.decouple(inputs, lengths)
    out = model(*inputs.values(), lengths=lengths)
    assert list(unique) == list(common) == list(valid) == list(chosen)
    for m in chosen:
        count = lengths.get(m, torch.full((6,), inputs[m].shape[1]))
        mask = steps_mask(count, inputs[m].shape[1])
        x = model.project[m](inputs[m].mT).mT * mask.unsqueeze(2)
        assert torch.equal(valid[m], mask)
        assert_same(unique[m], model.unique[m](x), 1e-12, m)
        assert_same(common[m], model.common(x), 1e-12, m)
    expected = ops.decoupling_loss([x.mT for x in unique.values()], [x.mT for x in common.values()])
    assert_same(out["terms"].decoupling, expected, 1e-12)
    averages = torch.cat([masked_mean(x, valid[m]) for m, x in common.items()], dim=1)
    assert_same(out["Feature_f"][:, averages.shape[1]:], averages, 1e-12)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_activation_of_the_projection_and_hidden_layer_of_the_head(activation):
    """Where they act: the encoded features are in the activation's range, and the head is linear, ReLU, linear."""
    model = build(projection_activation=activation, head_width=7, conv_kernel_sizes=(3, 1, 2)).train()
    x, *_ = model._encode(dict(zip(("text", "audio", "vision"), batch(), strict=True)), {})
    plain = build(conv_kernel_sizes=(3, 1, 2))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head")}, strict=False)
    linear, *_ = plain._encode(dict(zip(("text", "audio", "vision"), batch(), strict=True)), {})
    for m in x:
        assert_same(x[m], getattr(torch, activation)(linear[m]), 1e-12)
    out = model.eval()(*batch())
    hidden = torch.relu(out["Feature_f"] @ model.head[0].weight.T + model.head[0].bias)
    assert_same(out["M"], hidden @ model.head[2].weight.T + model.head[2].bias, 1e-12)
    assert hidden.shape == (6, 7)


def test_classification_head():
    assert build(train_mode="classification", num_classes=6)(*batch())["M"].shape == (6, 6)


def test_settings_reach_the_operators(monkeypatch):
    seen = {}
    from mmsa_decalign import model as module

    original = module.hetero_loss
    monkeypatch.setattr(module, "hetero_loss", lambda x, **k: seen.update(k) or original(x, **k))
    options = {"num_prototypes": 2, "ot_reg": 0.7, "gmm_em_iters": 1, "gmm_var_floor": 0.01, "gmm_covariance": "full",
               "cost_reduction": "sum", "prototype_mahalanobis": True, "ot_tol": 1e-4, "ot_max_iter": 77}  # fmt: skip
    build(**options).train()(*batch())
    assert seen == {"n_components": 2, "reg": 0.7, "n_iter": 1, "var_floor": 0.01, "covariance": "full",
                    "reduction": "sum", "mahalanobis": True, "solver": "log", "tol": 1e-4, "max_iter": 77}  # fmt: skip


def test_masks():
    x = torch.tensor([[[1.0], [0.0], [2.0], [0.0]], [[0.0], [0.0], [0.0], [0.0]]])
    assert trailing_lengths(x).tolist() == [3, 1]
    mask = steps_mask(torch.tensor([3, 9]), 4)
    assert mask.tolist() == [[True, True, True, False], [True] * 4]
    assert shorten(mask, 3).tolist() == [[True, False], [True, True]]
    assert shorten(mask, 9).tolist() == [[True], [True]]
    assert masked_mean(x, mask)[:, 0].tolist() == [1.0, 0.0]


def test_standardised_inputs_are_part_of_the_state_and_leave_padding_alone():
    model = build()
    rows = torch.randn(50, 4, dtype=torch.float64) * 7 + 3
    model.standardise["audio"].fit(rows, (0.0, 100.0))
    z = model.standardise["audio"](rows)
    assert_same(z.mean(dim=0), torch.zeros(4), 1e-9)
    assert_same(z.std(dim=0, correction=0), torch.ones(4), 1e-9)
    fresh = build()
    fresh.load_state_dict(model.state_dict())
    assert_same(fresh.eval()(*batch())["M"], model.eval()(*batch())["M"], 0.0)
    padded = [torch.cat([x, torch.zeros(6, 3, x.shape[2], dtype=x.dtype)], dim=1) for x in batch()]
    assert_same(model(*padded)["M"], model(*batch())["M"], 1e-9)


def test_clipping_by_percentiles():
    model = build()
    rows = torch.arange(101.0, dtype=torch.float64).unsqueeze(1).repeat(1, 4)
    model.standardise["audio"].fit(rows, (10.0, 90.0))
    probe = torch.tensor([[-5.0], [50.0], [1e9]], dtype=torch.float64).repeat(1, 4)
    low, middle, high = model.standardise["audio"](probe)[:, 0]
    assert_same(low, -high, 1e-6)
    assert_same(middle, 0.0, 1e-6)
    constant = build().standardise["audio"]
    constant.fit(torch.full((5, 4), 2.0), (0.0, 100.0))
    assert constant(torch.full((1, 4), 2.0)).abs().max() == 0


@pytest.mark.parametrize("percentiles", [(0.0, 100.0), (5.0, 80.0)])
def test_statistics_of_pieces_are_those_of_the_whole(percentiles: tuple[float, float]):
    rows = torch.randn(40_000, 19) * torch.arange(19) + 100  # several blocks of rows and of columns
    whole, pieces = Standardiser(19), Standardiser(19)
    whole.fit(rows, percentiles)
    pieces.fit([rows[:7], rows[7:30_000], rows[30_000:]], percentiles)
    x = rows.double().numpy()
    if percentiles != (0.0, 100.0):
        low, high = np.percentile(rows.numpy(), percentiles, axis=0)
        assert_same(pieces.low, low, 1e-5)
        assert_same(pieces.high, high, 1e-5)
        x = x.clip(low, high)
    assert_same(pieces.mean, x.mean(axis=0), 1e-6)
    assert_same(pieces.std[1:], x.std(axis=0)[1:], 1e-6)
    assert pieces.std[0] == 1  # a constant column
    for name, value in whole.state_dict().items():
        assert_same(pieces.state_dict()[name], value, 1e-7)


def test_input_dropout_reaches_its_own_modality():
    """A rate close to 1 silences one modality's unique features, and leaves the others' alone."""
    for m in ("text", "audio", "vision"):
        torch.manual_seed(0)
        model = build(**{f"{m}_dropout": 0.999999}).train()
        x, *_ = model._encode(dict(zip(("text", "audio", "vision"), batch(), strict=True)), {})
        assert {name: bool((v == 0).all()) for name, v in x.items()} == {name: name == m for name in x}


def token_batch(n=4, steps=7, vocabulary=60):
    rng = torch.Generator().manual_seed(2)
    mask = steps_mask(torch.tensor([7, 3, 5, 4])[:n], steps)
    ids = torch.randint(1, vocabulary, (n, steps), generator=rng) * mask
    return torch.stack([ids, mask.long(), torch.zeros_like(ids)], dim=1)


@pytest.mark.parametrize("finetune", [True, False])
def test_token_ids_through_a_text_encoder(tiny_bert, finetune):
    torch.manual_seed(0)
    model = DecAlign(Settings(**(SMALL | {"use_bert": True, "use_finetune": finetune, "pretrained": str(tiny_bert)})))
    assert model.project["text"].in_channels == 24  # the width of the encoder's config, whatever feature_dims says
    tokens, (_, audio, vision) = token_batch(), [x.float() for x in batch(4)]
    model.train()
    out = model(tokens.float(), audio, vision)  # MMSA hands token ids over as floats
    (out["M"].sum() + out["terms"].hetero).backward()
    grads = [p.grad for p in model.text_encoder.parameters()]
    assert any(g is not None and float(g.abs().sum()) > 0 for g in grads) == finetune
    assert model.text_encoder.model.training == finetune
    model.eval()
    longer = torch.cat([tokens, torch.tensor([9, 0, 0]).view(1, 3, 1).expand(4, 3, 5)], dim=2)  # ids behind the mask
    assert_same(model(longer, audio, vision)["M"], model(tokens, audio, vision)["M"], 1e-5)


def test_a_sample_without_tokens_stays_finite(tiny_bert):
    settings = SMALL | {"use_bert": True, "pretrained": str(tiny_bert), "modalities": ("text", "audio")}
    model = DecAlign(Settings(**settings)).train()
    tokens = token_batch()
    tokens[1] = 0  # no id, no mask: the audio of this sample has nothing but padding to attend to
    out = model(tokens, batch(4)[1].float(), None)
    assert bool(torch.isfinite(out["Feature_f"]).all())
    assert bool(torch.isfinite(out["terms"].hetero))
    common_text = out["Feature_f"][1, 16:24]
    assert bool((common_text != 0).all())  # its first step counts, as masking.py promises


def test_text_encoder_errors(tiny_bert, tmp_path):
    settings = SMALL | {"use_bert": True}
    with pytest.raises(InputError, match="cannot be loaded"):
        DecAlign(Settings(**settings, pretrained=str(tmp_path)))
    (tmp_path / "config.json").write_text((tiny_bert / "config.json").read_text())
    with pytest.raises(InputError, match="cannot be loaded"):
        DecAlign(Settings(**settings, pretrained=str(tmp_path)))
    model = DecAlign(Settings(**settings, pretrained=str(tiny_bert)))
    _, audio, vision = [x.float() for x in batch(4)]
    with pytest.raises(InputError, match="expected token ids"):
        model(torch.zeros(4, 5, 6), audio, vision)
    with pytest.raises(InputError, match="outside the text encoder's vocabulary of 60"):
        model(token_batch(vocabulary=600), audio, vision)
