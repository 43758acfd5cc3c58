"""`from_release`: the release's whole model, its losses and gradients, and what a wrong state dict or key says."""

from __future__ import annotations

import pytest
import torch

from mmsa_decalign import DecAlign, InputError, from_release, objective
from mmsa_decalign.release import _our_name
from tests.conftest import assert_same

CASES = [f"case{i}" for i in range(5)]


@pytest.fixture
def release(golden):
    """A golden case: its configuration, its state dict, and a look-up of its arrays."""

    def load(name):
        meta, arrays = golden("model.npz")
        prefix = f"{name}/param/"
        state = {k.removeprefix(prefix): torch.tensor(arrays[k]) for k in arrays if k.startswith(prefix)}
        return meta[name], state, lambda key: arrays.get(f"{name}/{key}")

    return load


def inputs_of(array):
    return [torch.tensor(array(f"in_{m}")) for m in ("text", "audio", "vision")]


@pytest.mark.parametrize("name", CASES)
def test_outputs_losses_and_gradients(release, name):
    config, state, array = release(name)
    model = from_release(state, **config).train()
    out = model(*inputs_of(array))
    terms = out["terms"]
    d = model.settings.d_model
    assert_same(out["M"], array("output_logit"), 1e-9)
    assert_same(out["Feature_f"][:, : 3 * d], array("fusion_hetero"), 1e-9)
    assert_same(out["Feature_f"][:, 3 * d :], array("fusion_homo"), 1e-9)
    assert_same(terms.decoupling, array("decoupling_loss"), 1e-9)
    assert_same(terms.hetero, array("hetero_loss"), 1e-9)
    assert_same(terms.homo, array("homo_loss"), 1e-9)
    task = (out["M"][:, 0] - torch.tensor(array("in_label"))).square().mean()
    assert_same(task, array("task_loss_mse"), 1e-9)
    total = task + terms.decoupling + 0.05 * terms.hetero + 0.07 * terms.homo
    assert_same(total, array("total_loss"), 1e-9)
    total.backward()
    ours = dict(model.named_parameters())
    compared = 0
    for theirs in state:
        grad = array(f"grad/{theirs}")
        if grad is not None:
            assert_same(ours[_our_name(theirs)].grad.reshape(grad.shape), grad, 1e-9, theirs)
            compared += 1
    assert compared == len(ours)


def test_our_objective_is_the_releases_total(release):
    config, state, array = release("case0")
    model = from_release(state, **config, ct_weight=0.0, dec_loss_weight=1.0, alpha=0.05, beta=0.07).train()
    parts = objective(model(*inputs_of(array)), torch.tensor(array("in_label")), model.settings)
    assert_same(parts.total, array("total_loss"), 1e-9)
    assert parts.contrastive is None
    assert parts.binary is None


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_stable_solver_changes_the_transport_alone(release, name, scale):
    """By how much, and why: on small features next to nothing; on large ones the release's plan loses mass, and with it
    the cost of what is lost.
    """
    config, state, array = release(name)
    inputs = [scale * x for x in inputs_of(array)]
    stable, theirs = (from_release(state, **config, solver=s).train()(*inputs) for s in ("log", "release"))
    assert_same(stable["M"], theirs["M"], 0.0)
    assert_same(stable["terms"].homo, theirs["terms"].homo, 0.0)
    ours, release_parts = stable["terms"].hetero_parts, theirs["terms"].hetero_parts
    assert ours.result.converged
    assert_same(ours.result.plan.sum(), 1.0, 1e-6)
    assert_same(ours.prototype, release_parts.prototype, 0.0)
    mass = float(release_parts.result.plan.sum())
    difference = float((ours.transport - release_parts.transport).detach())
    if scale == 1.0:
        assert 1 - 1e-6 < mass < 1
        assert 0 < difference < 1e-4
    else:
        assert mass < 0.9
        assert difference > (1 - mass) * float(ours.transport.detach()) / 2

def test_evaluation_gives_the_same_prediction_without_terms(release):
    config, state, array = release("case1")
    out = from_release(state, **config)(*inputs_of(array))
    assert_same(out["M"], array("output_logit"), 1e-9)
    assert "terms" not in out


def test_absent_modalities_are_cut_out_of_the_head(release):
    """The release feeds zeros for a modality that is switched off: cutting its columns gives the same prediction."""
    config, state, array = release("case0")
    config = config | {"active_modalities": ["text", "vision"]}
    model = from_release(state, **config)
    text, _, vision = inputs_of(array)
    out = model(text, None, vision)
    d = model.settings.d_model
    rest = torch.zeros(len(text), 6 * d, dtype=torch.float64)
    for place, block in zip((0, 2, 3, 5), out["Feature_f"].split(d, dim=1), strict=True):
        rest[:, place * d : (place + 1) * d] = block
    expected = rest @ state["out_layer.weight"].T + state["out_layer.bias"]
    assert_same(out["M"], expected, 1e-12)




@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda_otter": 1}, "did you mean 'lambda_ot'"),
        ({"nlevels": 2}, "lacks 'fuse.audio.layers.1"),
        ({"dst_feature_dim_nheads": [8, 2]}, "has shape"),
    ],
)
def test_what_does_not_fit_is_named(release, change, message):
    config, state, _ = release("case0")
    if "nlevels" in change:
        change = {"nlevels": config["nlevels"] + 1}
        message = f"lacks 'fuse.audio.layers.{config['nlevels']}"
    with pytest.raises(InputError, match=message):
        from_release(state, **(config | change))


def test_a_foreign_parameter_is_refused():
    with pytest.raises(InputError, match="no parameter of the authors' release"):
        from_release({"backbone.weight": torch.zeros(1)})


def test_the_model_is_ours_in_the_weights_own_type(release):
    config, state, _ = release("case4")
    model = from_release({k: v.float() for k, v in state.items()}, **config)
    assert isinstance(model, DecAlign)
    assert model.head.weight.dtype == torch.float32
    assert model.settings.outputs == 6
    assert not model.training
