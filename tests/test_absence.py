"""Absent modalities in the model: masked everywhere, whatever their tensors hold; the rest of the batch has no say."""

from __future__ import annotations

import json
from itertools import combinations, product

import numpy as np
import pytest
import torch

from mmsa_decalign import DecAlign, InputError, Settings, ops
from mmsa_decalign.masking import present_steps
from mmsa_decalign.objective import objective
from mmsa_decalign.presence import StandIn, drop_modalities, presence
from tests.conftest import assert_same

NAMES = ("text", "audio", "vision")
SMALL = {
    "feature_dims": (6, 4, 5), "d_model": 8, "num_heads": 2, "nlevels": 2, "num_prototypes": 3,
    "attn_dropout": (0.0,) * 3, "relu_dropout": 0.0, "embed_dropout": 0.0, "res_dropout": 0.0,
}  # fmt: skip
EVERY_PATTERN = torch.tensor(list(product((True, False), repeat=3)))  # the last row: nothing at all
KINDS = (
    {},
    {"use_sequence_mask": False},
    {"conv_kernel_sizes": (3, 5, 2), "projection_activation": "relu", "head_width": 6},
    {"use_cross_modal_attention": False},
    {"modalities": ("text", "vision")},
    {"modalities": ("audio",)},
)


def build(**change):
    torch.manual_seed(0)
    model = DecAlign(Settings(**(SMALL | change))).double()
    names = len(model.settings.modalities)
    rng = torch.Generator().manual_seed(7)
    model.stand_in.update(torch.randn(4, 2, names, 8, generator=rng, dtype=torch.float64), None)
    return model


def batch(n, steps=(5, 7, 4), dims=(6, 4, 5)):
    rng = torch.Generator().manual_seed(1)
    return [torch.randn(n, t, d, generator=rng, dtype=torch.float64) for t, d in zip(steps, dims, strict=True)]


def with_value(inputs, here, value):
    """The inputs with `value` wherever a modality is absent."""
    return [x.masked_fill(~here[:, i, None, None], value) for i, x in enumerate(inputs)]


@pytest.mark.parametrize("change", KINDS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 0.0])
@pytest.mark.parametrize("given_lengths", [True, False])
def test_what_an_absent_modality_holds_has_no_influence(change, value, given_lengths):
    """Predictions, features, losses and every gradient are those of other contents, for all eight patterns."""
    model = build(**change).train()
    here, inputs = EVERY_PATTERN, batch(8)
    lengths = [torch.tensor([4, 5, 3, 5, 4, 3, 5, 4])] * 3 if given_lengths else None
    found = []
    for content in (inputs, with_value(inputs, here, value)):
        state = {name: x.clone() for name, x in model.stand_in.state_dict().items()}
        model.zero_grad()
        content = [x.clone().requires_grad_() for x in content]
        out = model(*content, lengths=lengths, present=list(here.unbind(1)))
        total = objective(out, torch.arange(8.0, dtype=torch.float64), model.settings).total
        total.backward()
        outside = [x.grad[~here[:, i]] for i, x in enumerate(content) if x.grad is not None]
        assert all(bool((grad == 0).all()) for grad in outside)
        found.append({k: v for k, v in out.items() if k != "terms"} | {"total": total}
                     | {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.stand_in.load_state_dict(state)
    assert bool(torch.isfinite(found[0]["M"]).all())
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        assert bool(torch.isfinite(one).all()), name
        assert_same(found[1][name], one, 0.0, name)


@pytest.mark.parametrize("change", KINDS, ids=str)
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(change):
    model, here, inputs = build(**change).eval(), EVERY_PATTERN, batch(8)
    together = model(*inputs, present=dict(zip(NAMES, here.unbind(1), strict=True)))
    for n in range(8):
        alone = model(*(x[n:n + 1] for x in inputs), present=list(here[n:n + 1].unbind(1)))
        for key, value in alone.items():
            assert_same(together[key][n:n + 1], value, 1e-12, key)


def test_a_complete_sample_predicts_as_without_masks_beside_incomplete_ones():
    model, inputs = build().eval(), batch(8)
    plain, masked = model(*inputs)["M"], model(*inputs, present=list(EVERY_PATTERN.unbind(1)))["M"]
    assert_same(masked[0], plain[0], 1e-12)
    assert bool(((masked[1:] - plain[1:]).abs() > 1e-6).all())


@pytest.mark.parametrize("given", [None, [torch.ones(6, dtype=torch.bool)] * 3, {"audio": None}, {}], ids=str)
def test_presence_of_all_is_the_same_bit_for_bit_as_saying_nothing(given):
    model, inputs = build().train(), batch(6)
    plain, said = model(*inputs), model(*inputs, present=given)
    for key in ("M", "Feature_t", "Feature_f"):
        assert torch.equal(said[key], plain[key])
    for key in ("decoupling", "hetero", "homo"):
        assert torch.equal(getattr(said["terms"], key), getattr(plain["terms"], key))


@pytest.mark.parametrize("absent", NAMES)
def test_features_of_those_present_come_from_attention_to_those_present_alone(absent):
    """The fused features equal those of a model of two modalities with the same weights."""
    rest = tuple(m for m in NAMES if m != absent)
    whole, pair, inputs = build().eval(), build(modalities=rest).eval(), batch(6)
    own = {name: value for name, value in whole.state_dict().items() if name in pair.state_dict()}
    own = {name: value for name, value in own.items() if not name.startswith(("head", "stand_in"))}
    pair.load_state_dict(own, strict=False)
    out = whole(*inputs, present={absent: torch.zeros(6, dtype=torch.bool)})
    expected = pair(*inputs)
    for m in rest:
        assert_same(out[f"Feature_{m[0]}"], expected[f"Feature_{m[0]}"], 1e-12, m)


def test_the_head_sees_the_training_mean_of_what_is_absent():
    model, inputs = build().train(), batch(6)
    seen = [model(*inputs)["Feature_f"] for _ in range(2)]  # no dropout: both batches are the same
    first = build().stand_in.mean  # build() fed one batch, so the next weigh 1/2 and 1/3
    mean = (first + sum(s.detach().mean(dim=0).unflatten(0, (2, 3, 8)) for s in seen)) / 3
    assert_same(model.stand_in.mean, mean, 1e-12)
    model.eval()
    out = model(*inputs, present={"audio": torch.zeros(6, dtype=torch.bool)})["Feature_f"].unflatten(1, (2, 3, 8))
    assert_same(out[:, :, 1], mean[:, 1].expand(6, 2, 8), 1e-12)


def test_stand_in_averages_those_that_have_the_modality_and_forgets_slowly():
    stand_in = StandIn(2, 1).double()
    features = torch.arange(12.0, dtype=torch.float64).view(3, 2, 2, 1)
    here = torch.tensor([[True, False], [False, False], [True, False]])
    stand_in.update(features, here)
    assert_same(stand_in.mean[:, :, 0], torch.tensor([[4.0, 0.0], [6.0, 0.0]]).double(), 0.0)  # rows 0 and 2
    assert stand_in.batches.tolist() == [1, 0]
    for _ in range(30):
        stand_in.update(torch.full((1, 2, 2, 1), 7.0).double(), None)
    before = stand_in.mean.clone()
    stand_in.update(torch.zeros(5, 2, 2, 1).double(), None)
    assert_same(stand_in.mean, 0.9 * before, 1e-12)  # the newest batch never weighs less than a tenth
    stand_in.update(torch.full((2, 2, 2, 1), float("nan")).double(), torch.zeros(2, 2, dtype=torch.bool))
    assert_same(stand_in.mean, 0.9 * before, 1e-12)


def test_states_carry_the_stand_in_once_it_was_trained_and_old_ones_load():
    torch.manual_seed(0)
    fresh = DecAlign(Settings(**SMALL))
    old = {name: value.clone() for name, value in fresh.state_dict().items()}
    assert not [name for name in old if "stand_in" in name]  # the keys of earlier versions
    fresh.train()(*(x.float() for x in batch(6)))
    state = fresh.state_dict()
    assert set(state) - set(old) == {"stand_in.mean", "stand_in.batches"}
    other = DecAlign(Settings(**SMALL))
    other.load_state_dict(state)
    assert_same(other.stand_in.mean, fresh.stand_in.mean, 0.0)
    assert bool((other.stand_in.mean != 0).all())
    other.load_state_dict(old)  # strictly
    assert bool((other.stand_in.mean == 0).all())


def test_alignment_losses_are_those_of_the_samples_that_have_a_modality():
    """Each term by the operators, called on the rows that are present: 6, 4 and 5 of 6."""
    model, inputs = build(use_sequence_mask=False).train(), batch(6)
    rows = {"text": torch.ones(6, dtype=torch.bool), "audio": torch.tensor([1, 0, 1, 1, 0, 1]).bool(),
            "vision": torch.tensor([0, 1, 1, 1, 1, 1]).bool()}  # fmt: skip
    terms = model(*inputs, present=rows)["terms"]
    x = {m: model.project[m](raw.mT).mT[rows[m]] for m, raw in zip(NAMES, inputs, strict=True)}
    unique, common = {m: model.unique[m](x[m]) for m in NAMES}, {m: model.common(x[m]) for m in NAMES}
    means = [unique[m].mean(dim=1) for m in NAMES]
    z = {m: model.distribution[m](common[m].mean(dim=1)) for m in NAMES}
    assert_same(terms.decoupling, ops.decoupling_loss(list(unique.values()), list(common.values())), 1e-12)
    pairs = list(combinations(NAMES, 2))
    mmd = sum(ops.mmd(z[a], z[b]) for a, b in pairs) / 3
    moments = {m: ops.batch_moments(z[m]) for m in NAMES}
    assert_same(terms.homo, mmd + sum(ops.moment_distance(moments[a], moments[b]) for a, b in pairs) / 3, 1e-10)
    mixtures = [ops.fit_gaussian_mixture(mean, 3) for mean in means]
    transport = ops.multimarginal_sinkhorn(
        ops.joint_cost(mixtures), [one.responsibilities.mean(dim=0) for one in mixtures], reg=0.1, tol=1e-6
    ).value
    assert_same(terms.hetero_parts.transport, transport, 1e-9)
    pulls = []
    for i, own in enumerate(mixtures):
        for j, others in enumerate(mixtures):
            if i != j:
                distance = torch.cdist(means[i], others.means).square() / 8
                pulls.append((own.responsibilities * distance).sum(dim=1).mean())
    assert_same(terms.hetero_parts.prototype, sum(pulls) / 6, 1e-9)


def test_a_modality_absent_in_the_whole_batch_leaves_the_averages():
    nobody, inputs = torch.zeros(6, dtype=torch.bool), batch(6)
    whole, pair = build().train(), build(modalities=("text", "vision")).train()
    own = {name: value for name, value in whole.state_dict().items() if name in pair.state_dict()}
    pair.load_state_dict({name: value for name, value in own.items() if not name.startswith(("head", "stand_in"))},
                         strict=False)
    terms, expected = whole(*inputs, present={"audio": nobody})["terms"], pair(*inputs)["terms"]
    for key in ("decoupling", "hetero", "homo"):
        assert_same(getattr(terms, key), getattr(expected, key), 1e-12, key)
    alone = whole(*inputs, present={"audio": nobody, "text": nobody})["terms"]
    assert alone.decoupling is not None
    assert alone.hetero is alone.homo is None
    assert whole(*inputs, present=[nobody] * 3)["terms"].decoupling is None


def test_token_ids_of_an_absent_text_have_no_influence(tiny_bert):
    torch.manual_seed(0)
    model = DecAlign(Settings(**(SMALL | {"use_bert": True, "pretrained": str(tiny_bert)}))).eval()
    tokens = torch.ones(3, 3, 5)
    tokens[:, 0], tokens[:, 2] = torch.randint(1, 20, (3, 5)), 0
    rest, present = [x.float() for x in batch(3)[1:]], {"text": torch.tensor([True, False, True])}
    expected = model(tokens, *rest, present=present)["M"]
    for wrong in (float("nan"), 1e9, -5.0, 0.0):  # out of the vocabulary, a mask of zeros
        tokens[1] = wrong
        assert_same(model(tokens, *rest, present=present)["M"], expected, 0.0)
    assert bool(torch.isfinite(expected).all())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([torch.ones(5, dtype=torch.bool)] * 3, r"presence of text has shape \(5,\)"),
        ({"audio": torch.ones(6)}, r"presence of audio has shape \(6,\) and type torch.float32: expected \(6,\) and"),
        ({"sound": torch.ones(6, dtype=torch.bool)}, r"masks of presence name \['sound'\]"),
        ([torch.ones(6, dtype=torch.bool)], "three in that order"),
    ],
)
def test_masks_that_do_not_fit_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        build()(*batch(6), present=given)


def test_presence_is_a_matrix_of_the_modalities_in_use():
    mask = torch.tensor([True, False])
    assert presence({"vision": mask}, ("text", "vision"), mask).tolist() == [[True, True], [True, False]]
    assert presence({"audio": mask}, ("text", "vision"), mask) is None
    assert presence({"audio": mask | True}, ("audio",), mask) is None


def test_steps_of_an_absent_sample_are_not_attended_to():
    mask = torch.tensor([[True, False], [True, True]])
    assert present_steps(torch.zeros(2, 2, 1), mask, torch.tensor([True, False])).tolist() == [[1, 0], [0, 0]]
    assert present_steps(torch.zeros(2, 2, 1), None, torch.tensor([False, True])).tolist() == [[0, 0], [1, 1]]


def test_modality_dropout_hides_at_its_rates_and_never_the_last():
    torch.manual_seed(0)
    like = torch.zeros(20000, 1)
    kept = drop_modalities(None, [0.5, 0.2, 0.0], like)
    np.testing.assert_allclose((~kept).double().mean(dim=0), [0.5, 0.2, 0.0], atol=0.015)
    kept = drop_modalities(None, [0.9, 0.9, 0.9], like)
    assert bool(kept.any(dim=1).all())
    np.testing.assert_allclose((kept.sum(dim=1) == 1).double().mean(), 0.9**3 + 3 * 0.1 * 0.9**2, atol=0.015)
    np.testing.assert_allclose(kept.double().mean(dim=0), [0.1 + 0.9**3 / 3] * 3, atol=0.015)
    here = torch.tensor([[False, True, False]]).expand(200, 3)
    assert torch.equal(drop_modalities(here, [0.9, 0.9, 0.9], here), here)  # what is absent stays so; the last stays
    assert drop_modalities(None, [0.0, 0.0, 0.0], like) is None


def test_modality_dropout_acts_in_training_alone_and_draws_nothing_when_off():
    inputs, model, plain = batch(40), build(modality_dropout=(0.0, 0.0, 0.9)), build()
    assert_same(model.eval()(*inputs)["M"], plain.eval()(*inputs)["M"], 0.0)
    state = torch.get_rng_state()
    plain.train()(*inputs)
    assert torch.equal(torch.get_rng_state(), state)
    hidden = model.train()(*inputs)["Feature_v"]
    assert 2 <= len(hidden.unique(dim=0)) <= 15  # some 36 of 40 have the stand-in in place of their own
    assert len(model(*inputs)["Feature_t"].unique(dim=0)) == 40


def test_bad_rates_of_modality_dropout_are_refused():
    for rates in ((1.0, 0.0, 0.0), (0.0, -0.1, 0.0)):
        with pytest.raises(InputError, match="modality_dropout"):
            Settings(modality_dropout=rates)
    with pytest.raises(InputError, match=json.dumps([0.1])[1:-1]):
        Settings(modality_dropout=(0.1,))
