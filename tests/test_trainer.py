"""The trainer: what it optimises, how it chooses the checkpoint, what it refuses. No MMSA in here."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmsa_decalign import DecAlign, InputError, Settings
from mmsa_decalign.trainer import DecAlignTrainer
from tests.conftest import assert_same


class Toy(Dataset):
    """y is a linear function of the text; the loader's format, lengths included."""

    def __init__(self, n: int, seed: int, classes: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.x = [torch.randn(n, t, d, generator=rng) for t, d in ((3, 4), (2, 3), (2, 3))]
        self.x[1] = self.x[1] * 50 + 100
        y = self.x[0].mean(dim=1).sum(dim=1)
        self.y = (y > 0).float() + (y > 1).float() if classes else y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Any]:
        text, audio, vision = (x[i] for x in self.x)
        return {"text": text, "audio": audio, "vision": vision, "id": f"v$_${i}", "labels": {"M": self.y[i].view(1)},
                "text_lengths": 3, "audio_lengths": 2, "vision_lengths": 2}  # fmt: skip


def loaders(classes=0, batch=17, spy=None):
    out = {}
    for seed, split in enumerate(("train", "valid", "test")):
        rng = torch.Generator().manual_seed(0)
        out[split] = DataLoader(Toy(52, seed, classes), batch_size=batch, shuffle=split == "train", generator=rng)
    return out


def mae(prediction, label):
    return {"MAE": float((prediction - label).abs().mean()), "Corr": 0.5}


def trainer(tmp_path, metrics=mae, **change):
    settings = {
        "feature_dims": [4, 3, 3], "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 3, "num_epochs": 6,
        "learning_rate": 5e-3, "need_feature_standardized": True,
    }  # fmt: skip
    args = settings | {"device": "cpu", "model_save_path": tmp_path / "best.pth"} | change
    torch.manual_seed(0)
    return DecAlignTrainer(args, metrics), DecAlign(Settings.from_args(args))


def test_training_lowers_the_loss_and_keeps_the_account(tmp_path):
    t, model = trainer(tmp_path)
    assert t.do_train(model, loaders()) is None
    first, last = t.history[0], t.history[-1]
    assert last["train"]["loss"] < 0.8 * first["train"]["loss"]
    assert set(first["train"]) == {"loss", "task", "decoupling", "hetero", "homo", "contrastive"}
    assert set(first["valid"]) == {"MAE", "Corr", "Loss"}
    assert [h["epoch"] for h in t.history] == list(range(1, len(t.history) + 1))


def test_the_checkpoint_is_the_epoch_with_the_best_validation_value(tmp_path):
    t, model = trainer(tmp_path, learning_rate=0.05, num_epochs=8)
    t.do_train(model, loaders())
    losses = [h["valid"]["Loss"] for h in t.history]
    assert t.best_epoch == losses.index(min(losses)) + 1
    assert t.selection == {"metric": "Loss", "mode": "min", "split": "valid", "value": min(losses)}
    assert t.history[t.best_epoch - 1]["selected"]
    model.load_state_dict(torch.load(tmp_path / "best.pth"))
    assert t.do_test(model, loaders()["valid"])["Loss"] == min(losses)
    assert model.standardise["audio"].mean.abs().min() > 50  # the training split's statistics travel in the checkpoint


def test_a_metric_that_is_better_when_higher_is_maximised(tmp_path):
    values = itertools.cycle([0.1, 0.5, 0.3, 0.2])
    t, model = trainer(tmp_path, metrics=lambda p, y: {"Corr": next(values)}, KeyEval="Corr", num_epochs=4)
    t.do_train(model, loaders())
    assert t.best_epoch == 2
    assert t.selection == {"metric": "Corr", "mode": "max", "split": "valid", "value": 0.5}


def test_early_stop(tmp_path):
    t, model = trainer(tmp_path, metrics=lambda p, y: {"Corr": 0.1}, KeyEval="Corr", num_epochs=30, early_stop=3)
    t.do_train(model, loaders())
    assert len(t.history) == 4  # the first epoch, and three that are no better


def test_the_test_split_is_never_read_in_training(tmp_path):
    class Forbidden:
        def __iter__(self):
            raise AssertionError("the test split was read during training")

    t, model = trainer(tmp_path, num_epochs=2)
    t.do_train(model, loaders() | {"test": Forbidden()})
    assert len(t.history) == 2


def test_epoch_results_on_request(tmp_path):
    t, model = trainer(tmp_path, num_epochs=2)
    results = t.do_train(model, loaders(), return_epoch_results=True)
    assert {split: len(entries) for split, entries in results.items()} == {"train": 2, "valid": 2, "test": 2}


def test_same_seed_same_numbers(tmp_path):
    runs = []
    for _ in range(2):
        t, model = trainer(tmp_path, num_epochs=2)
        t.do_train(model, loaders())
        runs.append([(h["train"], h["valid"]) for h in t.history])
    assert runs[0] == runs[1]


def test_results_do_not_depend_on_the_batch_size(tmp_path):
    t, model = trainer(tmp_path, num_epochs=1)
    t.do_train(model, loaders())
    one, all_at_once = (t.do_test(model, loaders(batch=b)["valid"], return_sample_results=True) for b in (1, 64))
    assert_same(one["SResults"], all_at_once["SResults"], 1e-5)
    assert one["Loss"] == pytest.approx(all_at_once["Loss"], abs=1e-4)
    assert len(one["Ids"]) == len(one["Labels"]) == 52
    assert one["Features"]["Feature_f"].shape == (52, 48)


@pytest.mark.parametrize("batch", [51, 26])
def test_a_last_batch_of_one_sample_trains(tmp_path, batch):
    t, model = trainer(tmp_path, num_epochs=1)
    t.do_train(model, loaders(batch=batch))
    assert math.isfinite(t.history[0]["train"]["loss"])


@pytest.mark.parametrize("weights", [None, "balanced", [1.0, 2.0, 3.0]])
def test_classification(tmp_path, weights):
    def accuracy(prediction, label):
        return {"Acc": float((prediction.argmax(dim=1) == label).float().mean())}

    change = {"train_mode": "classification", "num_classes": 3, "class_weights": weights, "KeyEval": "Acc"}
    t, model = trainer(tmp_path, metrics=accuracy, **change)
    t.do_train(model, loaders(classes=3))
    assert t.selection["value"] > 0.5


def test_encoder_parameters_have_their_own_rate(tmp_path, tiny_bert):
    from mmsa_decalign.trainer import _optimizer

    settings = {"feature_dims": (4, 3, 3), "use_bert": True, "pretrained": str(tiny_bert), "bert_learning_rate": 1e-5}
    model = DecAlign(Settings(**settings))
    groups = _optimizer(model, model.settings).param_groups
    assert [g["lr"] for g in groups] == [1e-5, 6e-5]
    assert len(groups[0]["params"]) == len(list(model.text_encoder.parameters()))
    frozen = DecAlign(Settings(**settings, use_finetune=False))
    assert len(_optimizer(frozen, frozen.settings).param_groups) == 1


def test_an_unknown_metric_is_refused_by_name(tmp_path):
    t, model = trainer(tmp_path, KeyEval="mae")
    with pytest.raises(InputError, match="did you mean 'MAE'"):
        t.do_train(model, loaders())
