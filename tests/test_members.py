"""Several members: each trained as it would be alone, averaged, chosen together; one member is the model as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mmsa_decalign import DecAlign, InputError, RunError, Settings
from mmsa_decalign.members import Members, build, members_of
from mmsa_decalign.objective import Objective, mean_of
from mmsa_decalign.settings import MODALITIES
from mmsa_decalign.trainer import DecAlignTrainer
from tests.conftest import assert_same

SMALL = {"feature_dims": [4, 3, 3], "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 3,
         "learning_rate": 0.01, "weight_decay": 0.1, "clip": 0.2, "members": 3}  # fmt: skip
STILL = {"attn_dropout": [0.0] * 3, "relu_dropout": 0.0, "embed_dropout": 0.0, "res_dropout": 0.0}
PREPARED = {"need_feature_standardized": True, "pooled_skip": ["text"], "skip_start": "ridge"}


class Loader(DataLoader):
    """Batches of ten of forty samples with two steps each, as MMSA's loaders give them."""

    def __init__(self, seed: int, shuffle: bool = False) -> None:
        rng = torch.Generator().manual_seed(seed)
        inputs = {m: torch.randn(40, 2, width, generator=rng) for m, width in zip(MODALITIES, (4, 3, 3), strict=True)}
        labels = inputs["text"].mean(dim=(1, 2)).unsqueeze(1)
        rows = [{m: x[i] for m, x in inputs.items()} | {"labels": {"M": labels[i]}, "id": str(i)} for i in range(40)]
        super().__init__(rows, 10, shuffle, generator=torch.Generator().manual_seed(1))


def loaders() -> dict[str, Loader]:
    return {"train": Loader(0, shuffle=True), "valid": Loader(1)}


def trainer(folder: Any, **change: Any) -> DecAlignTrainer:
    args = SMALL | {"device": "cpu", "model_save_path": folder / "best.pth"} | change
    return DecAlignTrainer(args, lambda prediction, label: {"MAE": float((prediction - label).abs().mean())})


def made(t: DecAlignTrainer) -> Any:
    torch.manual_seed(0)
    return build(t.settings)


def test_one_member_is_a_decalign_and_several_start_apart() -> None:
    assert type(build(Settings())) is DecAlign
    model = build(Settings(**SMALL))
    assert isinstance(model, Members)
    assert len(members_of(model)) == 3
    heads = [one.head.weight for one in members_of(model)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])
    with pytest.raises(InputError, match="members=3"):
        DecAlign(Settings(**SMALL))
    with pytest.raises(InputError, match="members"):
        Settings(members=0)


@pytest.mark.parametrize("change", [{}, {"train_mode": "classification"}], ids=str)
def test_predictions_are_the_mean_and_features_stand_side_by_side(change: dict[str, Any]) -> None:
    model = build(Settings(**SMALL | change)).eval()
    batch = next(iter(Loader(0)))
    absent = {"present": {"audio": torch.arange(10) > 4}}
    inputs = [batch[m] for m in MODALITIES]
    each = [one(*inputs, **absent) for one in members_of(model)]
    found = model(*inputs, **absent)
    assert_same(found["M"], sum(one["M"] for one in each) / 3, 1e-6, "M")
    assert found.keys() == each[0].keys()
    for name in ("Feature_t", "Feature_a", "Feature_v", "Feature_f"):
        assert torch.equal(found[name], torch.cat([one[name] for one in each], dim=1))


def test_each_member_is_trained_as_it_would_be_alone(tmp_path: Any) -> None:
    """Prepared, its gradient clipped, stepped; without dropout nothing else tells the two trainings apart."""
    t = trainer(tmp_path, **STILL, **PREPARED)
    model = made(t)
    start = copy.deepcopy(members_of(model))
    t.do_train(model, loaders())
    alone = []
    for member, trained in zip(start, members_of(model), strict=True):
        own = trainer(tmp_path, **STILL, **PREPARED, members=1)
        own.do_train(member, loaders())
        alone.append(own.history)
        for (name, ours), theirs in zip(trained.named_parameters(), member.parameters(), strict=True):
            assert_same(ours, theirs, 1e-5, name)
    for epoch, *each in zip(t.history, *alone, strict=True):
        for term, value in epoch["train"].items():
            assert value == pytest.approx(sum(one["train"][term] for one in each) / 3, rel=1e-4), term


def test_the_checkpoint_is_chosen_by_the_average_and_holds_all(tmp_path: Any) -> None:
    t = trainer(tmp_path, learning_rate=0.1, num_epochs=6)
    model = made(t)
    t.do_train(model, loaders())
    fresh = build(t.settings)
    fresh.load_state_dict(torch.load(tmp_path / "best.pth"))
    fresh.eval()
    batches = list(Loader(1))
    with torch.no_grad():
        mean = torch.cat([sum(one(b["text"], b["audio"], b["vision"])["M"] for one in members_of(fresh)) / 3
                          for b in batches])
    labels = torch.cat([b["labels"]["M"] for b in batches])
    loss = float((mean - labels).square().mean())
    assert loss == pytest.approx(min(epoch["valid"]["Loss"] for epoch in t.history), abs=1e-4)
    assert t.selection["value"] == pytest.approx(loss, abs=1e-4)


def test_a_gradient_that_is_no_number_in_one_member_stops_all(tmp_path: Any) -> None:
    t = trainer(tmp_path)
    model = made(t)
    before = copy.deepcopy(model.state_dict())
    members_of(model)[1].common.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(RunError, match="gradient .* is not a number"):
        t.do_train(model, loaders())
    parameters = dict(model.named_parameters())
    assert all(torch.equal(value, parameters[name]) for name, value in before.items() if name in parameters)


def test_the_mean_of_objectives_leaves_out_who_lacks_a_term() -> None:
    def parts(total: float, homo: float | None) -> Objective:
        return Objective(torch.tensor(total), torch.tensor(total), None, None, None if homo is None else
                         torch.tensor(homo), None, None)

    found = mean_of([parts(1.0, 4.0), parts(2.0, None), parts(6.0, 2.0)])
    assert found.numbers() == {"loss": 3.0, "task": 3.0, "homo": 3.0}
    one = parts(1.0, None)
    assert mean_of([one]) is one


def test_members_are_found_in_a_wrapper() -> None:
    model = build(Settings(**SMALL))
    assert members_of(nn.Sequential(nn.Linear(1, 1), model)) == list(model.members)
