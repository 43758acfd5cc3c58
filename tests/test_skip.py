"""The path from pooled inputs straight to the output, and its start as ridge regression."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mmsa_decalign import DecAlign, InputError, Settings
from mmsa_decalign.preparation import _ridge_first
from mmsa_decalign.skip import PENALTIES, start_as_ridge
from mmsa_decalign.trainer import DecAlignTrainer

WIDTHS = {"text": 5, "audio": 4, "vision": 3}


def settings(**change) -> Settings:
    return Settings(**{"feature_dims": list(WIDTHS.values()), "d_model": 8, "num_heads": 2, "nlevels": 1,
                       "num_prototypes": 2, "modalities": ["text", "audio", "vision"]} | change)  # fmt: skip


def inputs(n: int = 6) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {m: torch.randn(n, steps, width, generator=rng) for (m, width), steps in zip(WIDTHS.items(), (4, 3, 2),
                                                                                        strict=True)}


LENGTHS = {"text": torch.tensor([4, 1, 2, 3, 4, 2]), "audio": torch.tensor([3, 1, 2, 3, 1, 2]),
           "vision": torch.tensor([2, 1, 2, 1, 1, 2])}


@pytest.mark.parametrize("chosen", [["text"], ["audio", "vision"], ["text", "audio", "vision"]])
def test_the_path_adds_a_linear_function_of_the_means_over_valid_steps(chosen):
    torch.manual_seed(0)
    model = DecAlign(settings(pooled_skip=chosen)).eval()
    x = inputs()
    before = model(*x.values(), lengths=LENGTHS)["M"]
    torch.nn.init.normal_(model.skip.weight), torch.nn.init.normal_(model.skip.bias)
    after = model(*x.values(), lengths=LENGTHS)["M"]
    means = torch.stack([
        torch.cat([x[m][i, : LENGTHS[m][i]].mean(dim=0) for m in chosen]) for i in range(len(before))
    ])  # fmt: skip
    torch.testing.assert_close(after - before, means @ model.skip.weight.T + model.skip.bias, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.pooled_inputs(*x.values(), lengths=LENGTHS), means)


def test_before_training_a_model_with_the_path_says_what_one_without_says():
    torch.manual_seed(0)
    plain = DecAlign(settings()).eval()
    torch.manual_seed(0)
    skipping = DecAlign(settings(pooled_skip=["text"])).eval()
    assert torch.equal(plain(*inputs().values())["M"], skipping(*inputs().values())["M"])


def test_a_modality_that_is_not_in_use_has_no_path():
    model = DecAlign(settings(pooled_skip=["text", "audio"], modalities=["audio", "vision"]))
    assert model.skip.in_features == WIDTHS["audio"]
    assert not hasattr(DecAlign(settings(pooled_skip=["text"], modalities=["audio", "vision"])), "skip")


def test_what_is_absent_adds_nothing_whatever_its_tensor_holds():
    model = DecAlign(settings(pooled_skip=["text", "audio"])).eval()
    x = inputs()
    here = {"text": torch.tensor([True, False] * 3)}
    pooled = model.pooled_inputs(*x.values(), present=here)
    assert bool((pooled[1::2, :5] == 0).all())
    assert bool((pooled[::2, :5] != 0).all())
    x["text"][1::2] = torch.nan
    assert torch.equal(pooled, model.pooled_inputs(*x.values(), present=here))
    assert bool(model(*x.values(), present=here)["M"].isfinite().all())


def test_ridge_start_is_scikit_learns_ridge_with_the_penalty_that_validation_chooses():
    rng = np.random.default_rng(0)
    x, x_valid = rng.normal(size=(30, 6)), rng.normal(size=(20, 6))
    w = rng.normal(size=6)
    y, y_valid = x @ w + 2 + 3 * rng.normal(size=30), x_valid @ w + 2
    layer = torch.nn.Linear(6, 1)
    head = torch.nn.Sequential(torch.nn.Linear(9, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    train, valid = (torch.tensor(x), torch.tensor(y)), (torch.tensor(x_valid), torch.tensor(y_valid))
    chosen = start_as_ridge(layer, head, train, valid)
    errors = {p: np.abs(Ridge(p).fit(x, y).predict(x_valid) - y_valid).mean() for p in PENALTIES}
    assert errors[chosen] == min(errors.values()) < max(errors.values())
    features = torch.randn(20, 9)
    said = layer(torch.tensor(x_valid, dtype=torch.float32)) + head(features)
    expected = Ridge(chosen).fit(x, y).predict(x_valid)
    np.testing.assert_allclose(said.detach().numpy().ravel(), expected, atol=1e-5)


class Batches(list):
    """A loader of one batch, and the data set behind it."""

    def __init__(self, n: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        x = {m: torch.randn(n, 2, width, generator=rng) for m, width in WIDTHS.items()}
        y = x["text"].mean(dim=1).sum(dim=1)
        self.dataset = [{**{m: one[i] for m, one in x.items()}, "labels": {"M": y[i]}} for i in range(n)]
        super().__init__([{**x, "labels": {"M": y}}])


@pytest.mark.parametrize("start", ["ridge", "auto"])
def test_training_starts_from_ridge_regression(tmp_path, start):
    args = dataclasses.asdict(settings(pooled_skip=["text"], skip_start=start, need_feature_standardized=True,
                                       feature_standardize_modalities=["text"], learning_rate=1e-12, num_epochs=1))
    trainer = DecAlignTrainer(args | {"device": "cpu", "model_save_path": tmp_path / "best.pth"},
                              lambda p, y: {"MAE": float((p - y).abs().mean())})
    torch.manual_seed(0)
    model = DecAlign(trainer.settings)
    loaders = {"train": Batches(40, 0), "valid": Batches(30, 1)}
    trainer.do_train(model, loaders)
    (batch,) = loaders["valid"]
    text = model.standardise["text"](batch["text"]).mean(dim=1).numpy()
    (train,) = loaders["train"]
    fits = [Ridge(p).fit(model.standardise["text"](train["text"]).mean(dim=1).numpy(), train["labels"]["M"].numpy())
            for p in PENALTIES]
    best = min(np.abs(fit.predict(text) - batch["labels"]["M"].numpy()).mean() for fit in fits)
    assert trainer.history[0]["valid"]["MAE"] == pytest.approx(best, abs=1e-5)


def test_left_to_itself_the_path_of_single_steps_and_of_classes_starts_at_zero():
    loader = Batches(20, 0)
    model = DecAlign(settings(pooled_skip=["text"], skip_start="auto"))
    assert _ridge_first(model, loader)
    for sample in loader.dataset:
        sample["text"] = sample["text"][:1]
    assert not _ridge_first(model, loader)
    assert _ridge_first(DecAlign(settings(pooled_skip=["text"], skip_start="ridge")), loader)
    assert _ridge_first(DecAlign(settings(pooled_skip=["text", "audio"], skip_start="auto")), loader)
    classes = settings(pooled_skip=["text", "audio"], skip_start="auto", train_mode="classification")
    assert not _ridge_first(DecAlign(classes), loader)


@pytest.mark.parametrize(("change", "named"), [
    ({"skip_start": "ridge"}, "pooled_skip"),
    ({"skip_start": "ridge", "pooled_skip": ["text"], "train_mode": "classification"}, "regression"),
    ({"skip_start": "lasso", "pooled_skip": ["text"]}, "skip_start"),
    ({"pooled_skip": ["sound"]}, "sound"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(change, named):
    with pytest.raises(InputError, match=named):
        settings(**change)
