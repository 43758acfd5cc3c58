"""The operators against the numbers of the authors' release, and where the stable solver differs from it and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmsa_decalign import ops
from tests.conftest import assert_same

CASES = [f"case{i}" for i in range(6)]
NAMES = ("text", "audio", "vision")
# Total mass of the release's plan (it must be 1), its value, and the converged value of the same problem.
RELEASE_TRANSPORT = {
    "case0": (0.977, 2.1160, 2.33590),
    "case1": (0.999, 0.6517, 0.65370),
    "case2": (0.804, 1.9632, 4.11464),
    "case3": (0.000001, 0.0001, 80.77463),
    "case4": (0.134, 0.1282, 2.08379),
    "case5": (1.000, 1.5992, 1.64556),
}


@pytest.fixture
def case(golden):
    def load(name):
        meta, arrays = golden("losses.npz")
        inputs = [torch.tensor(arrays[f"{name}/{m}"][:, :, 0], requires_grad=True) for m in NAMES]
        return meta[name], inputs, lambda key: arrays[f"{name}/{key}"]

    return load


def hetero_options(meta):
    return {
        "n_components": meta["K"],
        "reg": meta["lambda_ot"],
        "n_iter": meta["gmm_em_iters"],
        "var_floor": meta["gmm_var_floor"],
        "reduction": meta.get("hetero_cost_reduction", "mean"),
        "mahalanobis": meta.get("local_proto_mahalanobis", False),
    }


@pytest.mark.parametrize("name", CASES)
def test_mixtures(case, name):
    meta, inputs, release = case(name)
    for m, x in zip(NAMES, inputs, strict=True):
        fit = ops.fit_gaussian_mixture(x, meta["K"], n_iter=meta["gmm_em_iters"], var_floor=meta["gmm_var_floor"])
        for key, value in zip(("pi", "mu", "var", "posterior"), fit, strict=True):
            assert_same(value, release(f"gmm_{m}_{key}"), 1e-9, key)


@pytest.mark.parametrize("name", CASES)
def test_hetero_loss_and_gradient_in_release_arithmetic(case, name):
    meta, inputs, release = case(name)
    loss = ops.hetero_loss(inputs, solver="release", **hetero_options(meta))
    assert_same(loss.value, release("hetero_loss"), 1e-9)
    assert_same(loss.transport, release("ot_objective"), 1e-9)
    for m, grad in zip(NAMES, torch.autograd.grad(loss.value, inputs), strict=True):
        assert_same(grad, release(f"hetero_grad_{m}")[:, :, 0], 1e-9, m)


@pytest.mark.parametrize("name", CASES)
def test_homo_loss_and_gradient(case, name):
    meta, inputs, release = case(name)
    loss = ops.homo_loss(inputs, bandwidth=meta["mmd_bandwidth"])
    assert_same(loss.semantic, release("semantic_loss"), 1e-9)
    assert_same(loss.mmd, release("mmd_loss"), 1e-9)
    for m, grad in zip(NAMES, torch.autograd.grad(loss.value, inputs), strict=True):
        assert_same(grad, release(f"homo_grad_{m}")[:, :, 0], 1e-9, m)
    for m, x in zip(NAMES, inputs, strict=True):
        moments = ops.batch_moments(x)
        for key in ("mean", "cov", "skew"):
            assert_same(getattr(moments, key), release(f"{key}_{m}"), 1e-9, key)


@pytest.mark.parametrize("name", CASES)
def test_decoupling_loss(case, name):
    _, (text, audio, _), release = case(name)
    loss = ops.decoupling_loss([text[:, :, None]], [audio[:, :, None]])
    assert_same(loss, release("decoupling_loss_text_audio"), 1e-9)


@pytest.mark.parametrize("name", CASES)
def test_transport_convention(case, name):
    """On the release's own cost and marginals: its mass and value, the converged ones, and so by how much they differ.

    The release exponentiates -C / reg, clamps at 1e-30 and adds 1e-8 to each denominator, 50 rounds whatever happens:
    where C / reg exceeds some 20 for all entries, the padding swallows the plan's mass and with it the loss.
    """
    meta, _, release = case(name)
    mass, release_value, converged_value = RELEASE_TRANSPORT[name]
    cost = torch.tensor(release("joint_cost"))
    marginals = [torch.tensor(release(f"gmm_{m}_posterior")).mean(dim=0) for m in NAMES]
    theirs = ops.multimarginal_sinkhorn(cost, marginals, reg=meta["lambda_ot"], solver="release")
    ours = ops.multimarginal_sinkhorn(cost, marginals, reg=meta["lambda_ot"])
    assert_same(theirs.plan.sum(), mass, 6e-4 if mass > 1e-3 else 1e-7)
    assert_same(theirs.value, release_value, 6e-5)
    assert not theirs.converged
    assert_same(ours.value, converged_value, 3e-6)
    assert_same(ours.plan.sum(), 1.0, 1e-9)
    assert ours.converged
    assert ours.marginal_error <= 1e-9


def test_covariance_cost_convention(case):
    """The release adds 1e-8 under the root, which shows where variances sit on their floor (case2: N < K)."""
    meta, inputs, release = case("case2")
    mixtures = [ops.fit_gaussian_mixture(x, meta["K"]) for x in inputs]
    assert_same(ops.joint_cost(mixtures, product_floor=1e-8), release("joint_cost"), 1e-9)
    difference = (ops.joint_cost(mixtures) - ops.joint_cost(mixtures, product_floor=1e-8)).detach().numpy()
    at_floor = 2 * (np.sqrt(2) - 1) * 1e-4 * 3  # three pairs, both variances 1e-4
    assert np.abs(difference).max() == pytest.approx(at_floor, rel=1e-3)
    assert (difference > 0).all()
