"""The whole model against loops over single entries, SciPy, the release's model, and what must not change it."""

import itertools
import json
import re

import numpy as np
import pytest
from mmsa_decalign.reference import fusion
from mmsa_decalign.reference.model import encode, valid_steps
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import correlate

from mmsa_decalign import reference as ref

MODALITIES = ("text", "audio", "vision")
SHOWN = ("M", "Feature_t", "Feature_a", "Feature_v", "Feature_f")


def check_same(one, other, rtol=1e-10):
    """Two outputs of the model in training: features and terms."""
    assert one.keys() == other.keys()
    for key in one.keys() - {"terms"}:
        assert_allclose(one[key], other[key], rtol=rtol, atol=rtol, err_msg=key)
    for name, a, b in zip(("decoupling", "hetero", "homo"), one["terms"], other["terms"], strict=False):
        assert_allclose(a, b, rtol=rtol, atol=rtol, err_msg=name)


# The parts


def test_layer_norm_by_hand():
    p = {"weight": np.array([2.0, 1.0]), "bias": np.array([0.0, 3.0])}
    normed = fusion.layer_norm(np.array([[1.0, 5.0], [7.0, 7.0]]), p)
    scaled = 2 / np.sqrt(4 + 1e-5)
    assert_allclose(normed, [[-2 * scaled, scaled + 3], [0.0, 3.0]], rtol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attention_is_the_loop_over_heads_and_steps(rng, make_parameters, n_heads, causal):
    p = fusion.part(make_parameters(), "fuse.text.layers.0.attention")
    x, context = rng.normal(size=(3, 4)), rng.normal(size=(3 if causal else 5, 4))
    weight, bias = p["in_proj_weight"], p["in_proj_bias"]
    joined = np.zeros((3, 4))
    for t, column in itertools.product(range(3), range(4)):
        width = 4 // n_heads
        mine = range(column // width * width, column // width * width + width)
        total, value = 0.0, 0.0
        for s in range(t + 1 if causal else len(context)):
            score = 0.0
            for c in mine:
                query = sum(weight[c, i] * x[t, i] for i in range(4)) + bias[c]
                key = sum(weight[4 + c, i] * context[s, i] for i in range(4)) + bias[4 + c]
                score += query * key / np.sqrt(width)
            total += np.exp(score)
            value += np.exp(score) * (weight[8 + column] @ context[s] + bias[8 + column])
        joined[t, column] = value / total
    expected = joined @ p["out_proj.weight"].T + p["out_proj.bias"]
    assert_allclose(fusion.attention(x, context, p, n_heads, causal), expected, rtol=1e-12)


@pytest.mark.parametrize("with_context", [False, True])
def test_transformer_layer_by_layer(rng, make_parameters, with_context, settings):
    p = make_parameters()
    x, context = rng.normal(size=(3, 4)), rng.normal(size=(5, 4)) if with_context else None
    stack, state = fusion.part(p, "fuse.audio"), 2.0 * x  # sqrt(d) = 2
    for number in range(2):
        layer = fusion.part(stack, f"layers.{number}")
        seen = 2.0 * context if with_context else state
        state = state + fusion.attention(state, seen, fusion.part(layer, "attention"), 2, causal=not with_context)
        state = fusion.layer_norm(state, fusion.part(layer, "attention_norm"))
        hidden = state @ layer["up.weight"].T + layer["up.bias"]
        state = state + np.where(hidden > 0, hidden, 0.0) @ layer["down.weight"].T + layer["down.bias"]
        state = fusion.layer_norm(state, fusion.part(layer, "final_norm"))
    assert_allclose(fusion.transformer(x, context, stack, settings), state, rtol=1e-10, atol=1e-12)
    seeing = fusion.transformer(x, context, stack, settings | {"attn_mask": False})
    assert bool(np.abs(seeing - state).max() > 1e-3) is not with_context  # a context is never masked


@pytest.mark.parametrize(("activation", "function"), [("none", None), ("tanh", np.tanh), ("relu", np.abs)])
@pytest.mark.parametrize(("steps", "kernel"), [(6, 1), (6, 3), (4, 4), (2, 5), (1, 3)])
def test_encoder_is_scipys_correlation(rng, steps, kernel, activation, function):
    x, weight = rng.normal(size=(steps, 3)), rng.normal(size=(4, 3, kernel))
    bounds = {"low": np.array([-0.5, -9, -9]), "high": np.array([9, 0.5, 9])}
    p = bounds | {"mean": np.array([0.0, 1.0, 2.0]), "std": np.array([1.0, 1.0, 3.0])}
    z = np.stack([np.maximum(x[:, 0], -0.5), np.minimum(x[:, 1], 0.5) - 1, (x[:, 2] - 2) / 3], axis=1)
    padded = np.concatenate([z, np.zeros((max(kernel - steps, 0), 3))])
    expected = np.stack([correlate(padded, row.T, mode="valid", method="direct")[:, 0] for row in weight], axis=1)
    if function is not None:  # relu(x) = (x + |x|) / 2
        expected = (expected + np.abs(expected)) / 2 if activation == "relu" else function(expected)
    found = encode(x, p, {"weight": weight}, activation)
    assert found.shape == (max(steps - kernel + 1, 1), 4)
    assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert_allclose(encode(x, p, {}, activation), z, rtol=1e-14)  # without a convolution nothing is activated


@pytest.mark.parametrize(
    ("rows", "length", "kept"),
    [([1, 0, 2, 0], None, 3), ([0, 0], None, 1), ([1, 2], None, 2), ([1, 2, 3], 2, 2), ([1, 2], 0, 1), ([1, 2], 9, 2)],
    ids=["zeros at the end", "zeros only", "no zeros", "given", "none given", "too many given"],
)
def test_valid_steps(rows, length, kept):
    x = np.array(rows, dtype=float)[:, None] * [0.0, 1.0]
    assert_array_equal(valid_steps(x, length), x[:kept])


# The whole


def test_features_and_terms_from_the_parts(make_parameters, make_inputs, settings):
    p, (text, audio, vision) = make_parameters(kernels=(2, 1, 3)), make_inputs()
    found = ref.decalign(p, settings, text, audio, vision)
    n, unique, common, h = len(text), [], [], []
    for m, x in zip(MODALITIES, (text, audio, vision), strict=True):
        before, project = fusion.part(p, f"standardise.{m}"), fusion.part(p, f"project.{m}")
        convolved = [encode(x_n, before, project, "none") for x_n in x]
        unique.append([e @ p[f"unique.{m}.weight"].T for e in convolved])
        common.append([e @ p["common.weight"].T for e in convolved])
    for i, m in enumerate(MODALITIES):
        first, second = [j for j in range(3) if j != i]
        contexts = [np.concatenate([unique[first][k], unique[second][k]]) for k in range(n)]
        stack = fusion.part(p, f"fuse.{m}")
        pairs = zip(unique[i], contexts, strict=True)
        h.append(np.stack([fusion.transformer(s, c, stack, settings).mean(axis=0) for s, c in pairs]))
        assert_allclose(found[f"Feature_{m[0]}"], h[i], rtol=1e-12)
    means = [[np.stack([s.mean(axis=0) for s in one]) for one in features] for features in (unique, common)]
    seen = np.concatenate([*h, *means[1]], axis=1)
    assert_allclose(found["Feature_f"], seen, rtol=1e-12)
    assert_allclose(found["M"], seen @ p["head.weight"].T + p["head.bias"], rtol=1e-12)
    stacked = [[np.stack(one) for one in features] for features in (unique, common)]
    assert_allclose(found["terms"].decoupling, ref.decoupling_loss(*stacked), rtol=1e-12)
    hetero = ref.hetero_loss(means[0], n_components=3, n_iter=3, var_floor=1e-3, reg=0.2, tol=1e-11)
    assert_allclose(found["terms"].hetero, hetero.value, rtol=1e-10)
    z = []
    for m, c in zip(MODALITIES, means[1], strict=True):
        hidden = c @ p[f"distribution.{m}.0.weight"].T + p[f"distribution.{m}.0.bias"]
        z.append(np.maximum(hidden, 0) @ p[f"distribution.{m}.3.weight"].T + p[f"distribution.{m}.3.bias"])
    assert_allclose(found["terms"].homo, ref.homo_loss(z).value, rtol=1e-12)
    assert found["terms"].hetero_parts.value == found["terms"].hetero
    assert found["terms"].homo_parts.value == found["terms"].homo


@pytest.mark.parametrize(
    ("setting", "value", "term"),
    [("decoupling_power", 1, "decoupling"), ("num_prototypes", 2, "hetero"), ("gmm_em_iters", 0, "hetero"),
     ("gmm_var_floor", 0.3, "hetero"), ("gmm_covariance", "full", "hetero"), ("cost_reduction", "sum", "hetero"),
     ("prototype_mahalanobis", True, "hetero"), ("ot_reg", 0.9, "hetero"), ("ot_solver", "release", "hetero"),
     ("mmd_bandwidth", "median", "homo")],
)  # fmt: skip
def test_each_setting_changes_its_own_term(make_parameters, make_inputs, setting, value, term, settings):
    p, inputs = make_parameters(), make_inputs()
    before, after = (ref.decalign(p, settings | change, *inputs)["terms"] for change in ({}, {setting: value}))
    for name in ("decoupling", "hetero", "homo"):
        change = abs(getattr(after, name) - getattr(before, name))
        assert change > 1e-7 if name == term else change == 0, name


def test_solver_limits_are_passed_on(make_parameters, make_inputs, settings):
    p, inputs = make_parameters(), make_inputs()
    loose = ref.decalign(p, settings | {"ot_tol": 1e-2}, *inputs)["terms"].hetero_parts.result
    assert 1e-11 < loose.marginal_error <= 1e-2
    with pytest.warns(RuntimeWarning, match="after 1 rounds"):
        ref.decalign(p, settings | {"ot_max_iter": 1}, *inputs)


def test_evaluation_gives_the_same_prediction_without_terms(make_parameters, make_inputs, settings):
    p, inputs = make_parameters(), make_inputs()
    training = ref.decalign(p, settings, *inputs)
    evaluation = ref.decalign(p, settings, *inputs, training=False)
    assert evaluation.keys() == set(SHOWN) == training.keys() - {"terms"}
    for key in SHOWN:
        assert_array_equal(evaluation[key], training[key])


def test_a_hidden_layer_in_the_head(rng, make_parameters, make_inputs, settings):
    p, inputs = make_parameters(), make_inputs()
    linear = ref.decalign(p, settings, *inputs, training=False)
    weight, bias = p.pop("head.weight"), p.pop("head.bias")
    positive_and_negative = np.concatenate([weight, -weight])  # relu(u) - relu(-u) = u
    p |= {"head.0.weight": positive_and_negative, "head.0.bias": np.zeros(2)}
    p |= {"head.2.weight": np.array([[1.0, -1.0]]), "head.2.bias": bias}
    assert_allclose(ref.decalign(p, settings, *inputs, training=False)["M"], linear["M"], rtol=1e-12)


@pytest.mark.parametrize("kernels", [(1, 1, 1), (3, 2, 5)])
def test_padding_and_lengths(make_parameters, make_inputs, kernels, settings):
    """Zeros at the end are padding; given the lengths, so is anything else; with masks off, nothing is."""
    p, inputs = make_parameters(kernels=kernels), make_inputs()
    plain = ref.decalign(p, settings, *inputs)
    zeros = [np.pad(x, ((0, 0), (0, 3), (0, 0))) for x in inputs]
    check_same(ref.decalign(p, settings, *zeros), plain)
    nines = [np.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=9.0) for x in inputs]
    lengths = {m: np.full(6, x.shape[1]) for m, x in zip(MODALITIES, inputs, strict=True)}
    check_same(ref.decalign(p, settings, *nines, lengths=lengths), plain)
    del lengths["text"]
    check_same(ref.decalign(p, settings, zeros[0], *nines[1:], lengths=lengths), plain)
    unmasked = settings | {"use_sequence_mask": False}
    assert np.abs(ref.decalign(p, unmasked, *zeros)["M"] - plain["M"]).max() > 1e-3
    check_same(ref.decalign(p, unmasked, *inputs, lengths={"text": np.ones(6)}), plain)


def test_samples_of_different_lengths_do_not_meet_in_the_prediction(make_parameters, make_inputs, settings):
    p, inputs = make_parameters(kernels=(2, 1, 2)), make_inputs()
    lengths = {"text": np.array([1, 5, 2, 4, 3, 5]), "audio": np.array([7, 1, 3, 5, 2, 6])}
    together = ref.decalign(p, settings, *inputs, lengths=lengths, training=False)
    for n in range(6):
        text, audio = (x[n : n + 1, : lengths[m][n]] for m, x in zip(("text", "audio"), inputs, strict=False))
        alone = ref.decalign(p, settings, text, audio, inputs[2][n : n + 1], training=False)
        for key in SHOWN:
            assert_allclose(together[key][n], alone[key][0], rtol=1e-12)


@pytest.mark.parametrize("modalities", [("audio",), ("text", "vision"), MODALITIES])
def test_without_cross_modal_attention_each_modality_is_on_its_own(make_parameters, make_inputs, modalities, settings):
    p, inputs = make_parameters(), make_inputs()
    p["head.weight"] = p["head.weight"][:, : 8 * len(modalities)]
    settings = settings | {"modalities": modalities, "use_cross_modal_attention": False}
    found = ref.decalign(p, settings, *inputs)
    for m in modalities:
        x = inputs[MODALITIES.index(m)][0]
        stack = fusion.part(p, f"fuse.{m}")
        unique = x @ p[f"project.{m}.weight"][:, :, 0].T @ p[f"unique.{m}.weight"].T
        expected = fusion.transformer(unique, None, stack, settings).mean(axis=0)
        assert_allclose(found[f"Feature_{m[0]}"][0], expected, rtol=1e-10)
    assert (found["terms"].hetero is None) is (found["terms"].homo is None) is (len(modalities) == 1)


def test_a_single_modality_has_no_alignment_between_modalities(make_parameters, make_inputs, settings):
    p, inputs = make_parameters(), make_inputs()
    p["head.weight"] = p["head.weight"][:, :8]
    found = ref.decalign(p, settings | {"modalities": ("vision",)}, None, None, inputs[2])
    assert found["Feature_f"].shape == (6, 8)
    assert found["terms"][1:] == (None, None, None, None)
    total = ref.objective(found, np.zeros(6), settings | {"ct_weight": 0.0})
    assert_allclose(total.total, (found["M"] ** 2).mean() + found["terms"].decoupling, rtol=1e-12)
    assert total.contrastive is None


def test_wrong_input_is_named(make_parameters, make_inputs, settings):
    p, (text, audio, vision) = make_parameters(), make_inputs()
    with pytest.raises(ValueError, match=r"audio must have 3 axes, got shape \(\)"):
        ref.decalign(p, settings, text, None, vision)
    with pytest.raises(ValueError, match="text must have 3 axes"):
        ref.decalign(p, settings, text[0], audio, vision)
    with pytest.raises(ValueError, match="vision must be finite"):
        ref.decalign(p, settings, text, audio, vision * np.nan)
    with pytest.raises(ValueError, match="shorter"):
        ref.decalign(p, settings, text, audio, vision[:4])


# The release's model

RELEASE_NAMES = {
    "proj_": "project.", "encoder_uni_": "unique.", "encoder_com.": "common.", "trans_": "fuse.",
    "pde_": "distribution.", "out_layer.": "head.", "self_attn.": "attention.", "attn_layer_norm.": "attention_norm.",
    "fc1.": "up.", "fc2.": "down.", "final_layer_norm.": "final_norm.", "net.": "",
}  # fmt: skip


def our_name(name):
    """The name in our state dict of a parameter of the release."""
    name = re.sub(r"^(\w+_)([lav])\.", lambda m: m[1] + {"l": "text.", "a": "audio.", "v": "vision."}[m[2]], name)
    for theirs, ours in RELEASE_NAMES.items():
        name = re.sub(rf"(^|\.){theirs}", rf"\g<1>{ours}", name)
    return name


@pytest.fixture(params=[f"case{number}" for number in range(5)])
def release(request, release_numbers, settings):
    """(parameters, settings, inputs, label, arrays of the case, translation of its parameter names)."""
    arrays = release_numbers("model.npz")
    config = json.loads(str(arrays["meta"]))[request.param]
    case = {key.removeprefix(f"{request.param}/"): arrays[key] for key in arrays if key.startswith(request.param)}
    # It also keeps projections that it never uses; they have no gradient.
    theirs = [key.removeprefix("grad/") for key in case if key.startswith("grad/")]
    names = {name: our_name(name) for name in theirs}
    p = {ours: case[f"param/{theirs}"] for theirs, ours in names.items()}
    for m in MODALITIES:
        width = case[f"in_{m}"].shape[2]
        bounds = {"low": -np.inf, "high": np.inf, "mean": 0.0, "std": 1.0}
        p |= {f"standardise.{m}.{name}": np.full(width, value) for name, value in bounds.items()}
        p[f"unique.{m}.weight"] = p[f"unique.{m}.weight"][:, :, 0]  # a convolution over one step
    p["common.weight"] = p["common.weight"][:, :, 0]
    settings = settings | {
        "use_sequence_mask": False, "num_heads": config["dst_feature_dim_nheads"][1], "nlevels": config["nlevels"],
        "use_cross_modal_attention": config.get("use_cross_modal_attention", True), "attn_mask": config["attn_mask"],
        "num_prototypes": config["num_prototypes"], "gmm_em_iters": config["gmm_em_iters"],
        "gmm_var_floor": config["gmm_var_floor"], "ot_reg": config["lambda_ot"], "ot_max_iter": config["ot_num_iters"],
        "ot_solver": "release", "mmd_bandwidth": config["mmd_bandwidth"], "ct_weight": 0.0,
    }  # fmt: skip
    return p, settings, [case[f"in_{m}"] for m in MODALITIES], case["in_label"], case, names


def test_outputs_and_losses_are_the_releases(release):
    p, settings, inputs, label, case, _ = release
    found = ref.decalign(p, settings, *inputs)
    width = case["fusion_hetero"].shape[1]
    for mine, theirs in [
        (found["M"], "output_logit"), (found["Feature_f"][:, :width], "fusion_hetero"),
        (found["Feature_f"][:, width:], "fusion_homo"), (found["terms"].decoupling, "decoupling_loss"),
        (found["terms"].hetero, "hetero_loss"), (found["terms"].homo, "homo_loss"),
        (ref.objective(found, label, settings).task, "task_loss_mse"),
        (ref.objective(found, label, settings).total, "total_loss"),
    ]:  # fmt: skip
        assert_allclose(mine, case[theirs], rtol=1e-9, atol=1e-9, err_msg=theirs)


def test_slopes_of_the_total_loss_are_the_releases_gradients(release, rng):
    """Central differences along random directions, of all parameters at once and of each kind of parameter.

    The step is short because the rectifiers have kinks.
    """
    p, settings, inputs, label, case, names = release
    grads = {ours: case[f"grad/{theirs}"].reshape(p[ours].shape) for theirs, ours in names.items()}

    def total(moved):
        return ref.objective(ref.decalign(p | moved, settings, *inputs), label, settings).total

    step = 1e-7
    for group in ("", "project", "unique", "common", "fuse", "distribution", "head"):
        chosen = [name for name in grads if name.startswith(group)]
        assert chosen
        direction = {name: rng.normal(size=p[name].shape) for name in chosen}
        up, down = ({name: p[name] + s * direction[name] for name in chosen} for s in (step, -step))
        slope = sum((grads[name] * direction[name]).sum() for name in chosen)
        assert_allclose((total(up) - total(down)) / (2 * step), slope, rtol=2e-6, atol=1e-8, err_msg=group)
