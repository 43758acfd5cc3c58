"""DecAlign and its objective against their NumPy twins: every output, every term, the total and its gradient.

The reference takes the state dict as arrays and the settings as a mapping, so nothing is shared but names and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from mmsa_decalign import DecAlign, InputError, Settings, objective, reference
from mmsa_decalign.settings import MODALITIES
from tests.conftest import assert_same

TOL = 1e-9
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
NO_DROPOUT = {"attn_dropout": (0.0,) * 3, "relu_dropout": 0.0, "embed_dropout": 0.0, "res_dropout": 0.0}
BASE = {
    "feature_dims": (6, 4, 5), "d_model": 8, "num_heads": 2, "nlevels": 2, "num_prototypes": 3, "ot_tol": 1e-11,
    "gmm_var_floor": 1e-3, "ct_weight": 0.1, **NO_DROPOUT,
}  # fmt: skip
STEPS, N = (5, 7, 4), 6

# What differs from BASE, by a name that says what is special. `n`, `steps` and `lengths` are of the batch.
CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "one step": {"steps": (1, 1, 1)},
    "one sample": {"n": 1},
    "fewer samples than prototypes": {"n": 2},
    "one step in some": {"steps": (1, 9, 1), "lengths": "random"},
    "lengths given": {"lengths": "random"},
    "lengths of one modality": {"lengths": "audio"},
    "masks off": {"use_sequence_mask": False, "lengths": "random"},
    "kernels": {"conv_kernel_sizes": (3, 5, 2), "lengths": "random"},
    "kernels longer than sequences": {"conv_kernel_sizes": (6, 9, 5)},
    "kernels longer than what is valid": {"conv_kernel_sizes": (4, 6, 3), "lengths": "random"},
    "kernels without masks": {"conv_kernel_sizes": (6, 3, 2), "use_sequence_mask": False},
    "tanh": {"projection_activation": "tanh", "conv_kernel_sizes": (2, 1, 1), "lengths": "random"},
    "relu": {"projection_activation": "relu"},
    "projection skipped": {"feature_dims": (6, 8, 5), "skip_equal_projection": True, "projection_activation": "relu"},
    "text": {"modalities": ("text",)},
    "vision without causal mask": {"modalities": ("vision",), "attn_mask": False, "lengths": "random"},
    "text and audio": {"modalities": ("text", "audio"), "lengths": "random"},
    "audio and vision": {"modalities": ("audio", "vision")},
    "text and vision on their own": {"modalities": ("text", "vision"), "use_cross_modal_attention": False},
    "causal self-attention": {"use_cross_modal_attention": False, "lengths": "random"},
    "free self-attention": {"use_cross_modal_attention": False, "attn_mask": False, "lengths": "random"},
    "one head": {"num_heads": 1, "nlevels": 1},
    "many heads": {"num_heads": 8, "nlevels": 3},
    "hidden layer in the head": {"head_width": 7},
    "width of the distributions": {"pde_dim": 3},
    "one prototype": {"num_prototypes": 1},
    "many prototypes": {"num_prototypes": 6, "gmm_em_iters": 8, "n": 12},
    "no EM step": {"gmm_em_iters": 0, "gmm_var_floor": 0.1},
    "full covariances": {"gmm_covariance": "full", "gmm_var_floor": 0.05, "num_prototypes": 2, "n": 12},
    "sums and Mahalanobis": {"cost_reduction": "sum", "prototype_mahalanobis": True, "gmm_var_floor": 0.05},
    "full and Mahalanobis": {"gmm_covariance": "full", "prototype_mahalanobis": True, "gmm_var_floor": 0.1, "n": 12},
    "little entropy": {"ot_reg": 0.003},
    "solver of the release": {"ot_solver": "release"},
    "solver of the release, three rounds": {"ot_solver": "release", "ot_max_iter": 3, "ot_reg": 0.02},
    "median bandwidth": {"mmd_bandwidth": "median"},
    "several bandwidths": {"mmd_bandwidth": (0.5, 2.0, 8.0)},
    "signed cosine": {"decoupling_power": 1},
    "L1": {"task_loss": "l1"},
    "smooth L1 and signs": {"task_loss": "smooth_l1", "binary_task_weight": 0.7},
    "weights": {"dec_loss_weight": 0.3, "alpha": 2.0, "beta": 3.0, "ct_weight": 0.0, "binary_task_weight": 0.1},
    "classes": {"train_mode": "classification", "num_classes": 4, "ct_temperature": 0.5, "binary_task_weight": 1.0},
    "weighted classes": {"train_mode": "classification", "num_classes": 3, "class_weights": (0.5, 2.0, 1.0)},
    "all at once": {
        "modalities": ("text", "vision"), "conv_kernel_sizes": (2, 1, 3), "projection_activation": "tanh",
        "head_width": 5, "pde_dim": 2, "num_prototypes": 4, "mmd_bandwidth": "median", "decoupling_power": 1,
        "binary_task_weight": 0.2, "task_loss": "smooth_l1", "lengths": "random", "n": 9, "cost_reduction": "sum",
    },
}  # fmt: skip


class Twins:
    """A model with random weights and statistics, its state as arrays, a batch in both forms, and labels."""

    def __init__(self, device: str = "cpu", *, n: int = N, steps=STEPS, lengths: str | None = None, **settings: Any):
        torch.manual_seed(1)
        rng = np.random.default_rng(2)
        self.settings, self.device = Settings(**(BASE | settings)), device
        self.model = DecAlign(self.settings).double()
        names = self.settings.modalities
        for m in names:
            width = self.settings.feature_dims[MODALITIES.index(m)]
            self.model.standardise[m].fit(torch.tensor(rng.normal(0.2, 1.5, size=(40, width))), (5.0, 90.0))
        with torch.no_grad():
            for parameter in self.model.parameters():  # the biases and norms of a new model are zeros and ones
                parameter.add_(torch.tensor(rng.normal(scale=0.1, size=parameter.shape)))
        self.model = self.model.to(device)
        self.plain = asdict(self.settings)
        shapes = zip(MODALITIES, steps, self.settings.feature_dims, strict=True)
        self.inputs = [rng.normal(size=(n, t, d)) if m in names else None for m, t, d in shapes]
        for x in self.inputs:
            if x is not None and x.shape[1] > 2:
                x[0, -2:] = 0.0  # padding, where no length says otherwise
                x[-1, 1] = 0.0  # and a zero step that is none
        chosen = names if lengths == "random" else [lengths] if lengths else []
        self.lengths = {m: rng.integers(1, steps[MODALITIES.index(m)] + 1, size=n) for m in chosen}
        classes = self.settings.num_classes
        classify = self.settings.train_mode == "classification"
        self.labels = rng.integers(0, classes, size=n) * 1.0 if classify else rng.integers(-6, 7, size=n) / 2.0
        self.class_weights = self.settings.class_weights

    def tensor(self, array: Any) -> torch.Tensor | None:
        return None if array is None else torch.tensor(np.asarray(array), device=self.device)

    def ours(self) -> dict[str, Any]:
        lengths = {m: self.tensor(steps) for m, steps in self.lengths.items()}
        return self.model(*map(self.tensor, self.inputs), lengths=lengths or None)

    def our_objective(self, outputs: dict[str, Any]) -> Any:
        weights = self.tensor(self.class_weights)
        return objective(outputs, self.tensor(self.labels), self.settings, weights)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: value.detach().cpu().numpy().copy() for name, value in self.model.state_dict().items()}

    def theirs(self, p: Mapping[str, np.ndarray] | None = None, training: bool = True) -> dict[str, Any]:
        p = self.parameters() if p is None else p
        return reference.decalign(p, self.plain, *self.inputs, lengths=self.lengths, training=training)

    def their_objective(self, outputs: dict[str, Any]) -> Any:
        return reference.objective(outputs, self.labels, self.plain, self.class_weights)


def assert_same_records(ours: Any, theirs: Any, what: str) -> None:
    """Every field of two records, those inside them too; how many rounds a solver took is its own affair."""
    if ours is None or theirs is None:
        assert ours is theirs, what
    elif hasattr(ours, "_fields"):
        assert ours._fields == theirs._fields
        for field in set(ours._fields) - {"n_iter", "marginal_error"}:
            assert_same_records(getattr(ours, field), getattr(theirs, field), f"{what}.{field}")
    elif isinstance(ours, (tuple, list)):
        assert len(ours) == len(theirs), what
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_records(one, other, f"{what}[{i}]")
    else:
        assert_same(ours.detach().cpu() if isinstance(ours, torch.Tensor) else ours, theirs, TOL, what)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_terms_and_objective(case, device):
    twins = Twins(device, **CASES[case])
    twins.model.train()
    ours, theirs = twins.ours(), twins.theirs()
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert_same_records(ours[key], theirs[key], key)
    assert_same_records(twins.our_objective(ours), twins.their_objective(theirs), "objective")


@pytest.mark.parametrize("case", CASES)
def test_evaluation_has_no_dropout_and_no_terms(case):
    dropout = {"attn_dropout": (0.4, 0.5, 0.6), "relu_dropout": 0.3, "embed_dropout": 0.2, "res_dropout": 0.3,
               "output_dropout": 0.5, "text_dropout": 0.4, "audio_dropout": 0.3, "vision_dropout": 0.2}  # fmt: skip
    twins = Twins(**(CASES[case] | dropout))
    twins.model.eval()
    ours, theirs = twins.ours(), twins.theirs(training=False)
    assert ours.keys() == theirs.keys()
    assert "terms" not in ours
    for key in ours:
        assert_same(ours[key], theirs[key], TOL, key)


def test_every_setting_of_the_model_is_varied():
    """A setting that the reference reads and that no case changes would be compared at its default alone."""
    asked = set()

    class Recorder(dict):
        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

    for case in CASES.values():
        twins = Twins(**case)
        twins.plain = Recorder(twins.plain)
        twins.their_objective(twins.theirs())
    varied = {key for case in CASES.values() for key in case} | {"ot_tol"}  # the tolerance: as tight as can be
    assert asked - varied == set()
    assert asked > {"modalities", "num_heads", "ot_reg", "ct_weight", "attn_mask"}


@pytest.mark.parametrize("name", ["common.weight", "fuse.audio.layers.1.down.bias", "standardise.text.mean"])
def test_a_wrong_parameter_is_noticed(name):
    twins = Twins()
    twins.model.train()
    p = twins.parameters()
    p[name] = p[name] + np.linspace(0, 1e-6, p[name].shape[-1])  # a layer norm would take a constant out again
    ours, theirs = twins.ours(), twins.theirs(p)
    with pytest.raises(AssertionError):
        assert_same(ours["M"], theirs["M"], TOL)


@pytest.mark.parametrize(
    "case",
    ["as published", "text", "causal self-attention", "kernels", "full and Mahalanobis", "hidden layer in the head",
     "several bandwidths", "signed cosine", "solver of the release", "smooth L1 and signs", "weighted classes",
     "all at once"],
)  # fmt: skip
def test_gradient_of_the_total_is_the_references_slope(case):
    """Central differences of the reference's total along random directions in the space of all parameters, and in that
    of each kind of parameter. The step is short: rectifiers have kinks.
    """
    twins = Twins(**CASES[case])
    twins.model.train()
    twins.our_objective(twins.ours()).total.backward()
    grads = {name: p.grad.numpy() for name, p in twins.model.named_parameters() if p.grad is not None}
    p, rng, step = twins.parameters(), np.random.default_rng(3), 3e-7
    groups = ["", *sorted({name.split(".")[0] for name in grads})]
    assert {"project", "unique", "common", "fuse", "head"} <= set(groups)
    for group in groups:
        direction = {name: rng.normal(size=p[name].shape) for name in grads if name.startswith(group)}
        ends = []
        for sign in (1, -1):
            moved = p | {name: p[name] + sign * step * along for name, along in direction.items()}
            ends.append(twins.their_objective(twins.theirs(moved)).total)
        slope = sum(float((grads[name] * along).sum()) for name, along in direction.items())
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7), group


def test_encoded_text_takes_the_place_of_token_ids(tiny_bert):
    """The reference starts where the text encoder ends: its features, and its attention mask as lengths."""
    twins = Twins(use_bert=True, pretrained=str(tiny_bert), feature_dims=(24, 4, 5))
    rng = np.random.default_rng(4)
    mask = np.arange(8) < np.array([8, 3, 5, 1, 8, 6])[:, None]
    tokens = torch.tensor(np.stack([rng.integers(1, 60, size=mask.shape) * mask, mask, 0 * mask], axis=1)).double()
    twins.model.eval()
    ours = twins.model(tokens, *map(twins.tensor, twins.inputs[1:]))
    with torch.no_grad():
        encoded, valid = twins.model.text_encoder(tokens)
    twins.inputs[0], twins.lengths = encoded.numpy(), {"text": valid.sum(dim=1).numpy()}
    for key, value in twins.theirs(training=False).items():
        assert_same(ours[key], value, TOL, key)


@pytest.mark.parametrize("lengths", [{"speech": torch.ones(N)}, [torch.ones(N), torch.ones(N)]])
def test_lengths_that_name_no_modality_are_refused(lengths):
    twins = Twins()
    with pytest.raises(InputError, match="expected text, audio, vision by name, or three in that order"):
        twins.model(*map(twins.tensor, twins.inputs), lengths=lengths)


def test_lengths_by_order_are_lengths_by_name():
    twins = Twins(lengths="audio")
    twins.model.eval()
    in_order = [None, twins.tensor(twins.lengths["audio"]), None]
    found = twins.model(*map(twins.tensor, twins.inputs), lengths=in_order)["M"]
    assert_same(found, twins.theirs(training=False)["M"], TOL)
