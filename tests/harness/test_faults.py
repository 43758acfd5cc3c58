"""The table of faults: every entry is in the installed MMSA, those that stay are seen in a run, and flags are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness_faults import bench, entry

from mmsa_decalign.harness import faults
from mmsa_decalign.harness.catalogue import catalogue, mmsa_folder
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.faults import FAULTS, faults_of, flags

BY_NAME = {fault.name: fault for fault in FAULTS}
# The release on PyPI has them all; the GitHub head, which calls itself by the same version, has other models too.
PYPI = "cenet" not in catalogue().models
SIGNS = [pytest.param(fault, model, id=f"{fault.name}-{model}") for fault in FAULTS for model in fault.signs]


@pytest.mark.parametrize(("fault", "model"), SIGNS)
@pytest.mark.skipif(not PYPI, reason="another MMSA than that of PyPI")
def test_every_fault_is_in_the_installed_mmsa(fault: faults.Fault, model: str) -> None:
    assert fault.in_model(model)
    assert fault in faults_of(entry(model))


@pytest.mark.parametrize(("fault", "model"), SIGNS)
def test_a_fault_goes_with_the_code_that_shows_it(
    fault: faults.Fault, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, code = fault.signs[model]
    monkeypatch.setattr(faults, "_source", faults._source.__wrapped__)  # no memory of files
    monkeypatch.setattr(faults, "mmsa_folder", lambda: tmp_path)
    assert not fault.in_model(model), "no such file"
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n\t" + code.replace(" ", "\n\t\t"))
    assert fault.in_model(model), "whatever the spaces"
    path.write_text(code[1:])
    assert not fault.in_model(model)


def test_the_table_is_short_and_clear() -> None:
    assert len(BY_NAME) == len(FAULTS) <= 26, "a letter of the alphabet marks each in the list"
    for fault in FAULTS:
        assert set(fault.signs) <= set(catalogue().models), fault.name
        assert len(fault.text) <= 170, fault.name
        assert not fault.text.endswith("."), fault.name


def test_models_of_others_have_no_faults_of_mmsa(toy: str) -> None:
    for name in ("decalign", toy):
        assert faults_of(entry(name)) == []
        assert flags(entry(name), {}, (1, 1, 1), mended=False) == []


@pytest.mark.parametrize(
    ("name", "model", "matters", "harmless", "steps"),
    [
        ("ignored_learning_rate", "mfm", {"learning_rate": 0.002}, {"learning_rate": 0.001}, (5, 5, 5)),
        ("ignored_weight_decay", "misa", {"weight_decay": 5e-5}, {"weight_decay": 0.0}, (5, 5, 5)),
        ("ignored_text_dropout", "tfn", {"dropouts": [0, 0, 0.1, 0]}, {"dropouts": [1, 1, 0, 1]}, (5, 1, 1)),
        ("ignored_fusion_dropout", "lmf", {"dropouts": [0, 0, 0, 0.1]}, {"dropouts": [1, 1, 1, 0]}, (5, 1, 1)),
        ("two_batches_of_mosei", "mctn", {"dataset_name": "mosei"}, {"dataset_name": "mosi"}, (5, 5, 5)),
        ("ignored_update_epochs", "mmim", {"update_epochs": 2}, {"update_epochs": 1}, (5, 5, 5)),
        ("ignored_bert_dropout", "self_mm", {"t_bert_dropout": 0.1}, {"t_bert_dropout": 0.0}, (5, 5, 5)),
    ],
)
def test_a_setting_that_is_ignored_is_flagged_where_it_would_change_something(
    name: str, model: str, matters: dict[str, Any], harmless: dict[str, Any], steps: tuple[int, int, int]
) -> None:
    settings = resolve(model, "mosi").settings

    def flagged(change: dict[str, Any]) -> bool:
        return name in [flag["name"] for flag in flags(entry(model), {**settings, **change}, steps, mended=False)]

    assert flagged(matters)
    assert not flagged(harmless)


@pytest.mark.parametrize(("steps", "expected"), [((50, 50, 50), False), ((50, 375, 500), True), ((50, 1, 1), False),
                                                 ((50, 20, 60), True)])  # fmt: skip
def test_lengths_matter_where_a_modality_is_longer_than_the_text(steps: tuple[int, int, int], expected: bool) -> None:
    for name, model in (("scrambled_alignment", "ef_lstm"), ("audio_cut_at_text_length", "misa")):
        assert BY_NAME[name].matters(resolve(model, "mosi").settings, steps) == expected
        if not BY_NAME[name].in_model(model):
            continue  # MMSA's GitHub head has mended the first
        settings = resolve(model, "mosi").settings
        assert (name in [flag["name"] for flag in flags(entry(model), settings, steps, mended=False)]) == expected


def test_a_flag_says_what_was_repaired() -> None:
    settings = resolve("mctn", "mosi").settings
    shipped, mended = (flags(entry("mctn"), settings, (5, 5, 5), mended=choice) for choice in (False, True))
    assert {flag["name"]: (flag["mendable"], flag["repaired"]) for flag in mended} == {
        "batch_as_time": (True, True), "decoder_without_memory": (False, False),
        "ignored_update_epochs": (False, False)}
    assert not any(flag["repaired"] for flag in shipped)
    assert [flag["fault"] for flag in shipped] == [BY_NAME[flag["name"]].text for flag in shipped]


# Faults that stay: seen in a run. Those that --mended repairs are seen in test_mended.py.


@pytest.mark.parametrize(("model", "dataset"), [("lmf", "mosi"), ("mlmf", "sims")])
def test_dropout_after_low_rank_fusion_is_never_applied(model: str, dataset: str, tmp_path: Path) -> None:
    given = {"dropouts": [0.0] * 3 + [0.9]} if model == "lmf" else {"dropouts": [0.0] * 3, "post_dropouts": [0.9] * 4}
    with bench(model, dataset, tmp_path, **given) as it:
        batch = it.splits["train"][list(range(12))]
        inputs = [batch[name] for name in ("text", "audio", "vision")]
        it.model.train()
        first, second = it.model(*inputs), it.model(*inputs)
        assert torch.equal(first["M"], second["M"])
        if model == "mlmf":
            assert not torch.equal(first["T"], second["T"]), "the other dropouts are applied"


def test_the_decoders_of_mctn_start_anew_and_see_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    with bench("mctn", "mosi", tmp_path, aligned=True) as it:
        assert {name for name in it.train() if "decoder" in name} == {
            f"Model.decoder{number}.rnn.weight_hh_l0{end}" for number in (1, 2) for end in ("", "_reverse")}
        batch = it.splits["train"][list(range(12))]
        losses = []
        for teacher in (0.0, 1.0):  # always the truth, and never
            monkeypatch.setattr(random, "random", lambda value=teacher: value)
            with torch.no_grad():
                losses.append(it.model(batch["text"], batch["audio"], batch["vision"], batch["labels"]["M"],
                                       lengths=None)[0])
    assert torch.equal(*losses)


def test_the_entropy_of_mmim_is_that_of_random_projections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: dict[int, torch.Tensor] = {}
    step = torch.optim.Adam.step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        for group in self.param_groups:  # mmim draws its weights when training begins
            first.update({id(one): one.detach().clone() for one in group["params"] if id(one) not in first})
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    with bench("mmim", "mosi", tmp_path) as it:
        it.train(2)
        moved = {name: not torch.equal(one, first[id(one)]) for name, one in it.model.named_parameters()
                 if ".mi_tv." in name or ".mi_ta." in name}
    assert len(moved) == 20
    assert {name for name, change in moved.items() if not change} == {name for name in moved if "entropy_prj" in name}


@pytest.mark.parametrize(("model", "aligned", "per_batch"), [("mmim", False, 2), ("mctn", True, 1)])
def test_update_epochs_changes_nothing(
    model: str, aligned: bool, per_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: steps.append(1))
    with bench(model, "mosi", tmp_path, aligned=aligned, update_epochs=3) as it:
        it.train(per_batch)  # mmim passes over the data twice in an epoch, each time with an optimiser of its own
        assert len(steps) == per_batch * len(it.loaders["train"])


def test_text_of_self_mm_is_not_dropped_out(tmp_path: Path) -> None:
    settings = resolve("self_mm", "mosi").settings
    others = {key: 0.0 for key in settings if key.startswith("post_") and key.endswith("dropout")}
    with bench("self_mm", "mosi", tmp_path, **others, t_bert_dropout=0.9) as it:
        batch = it.splits["train"][list(range(12))]
        inputs = batch["text"], *((batch[name], batch[f"{name}_lengths"]) for name in ("audio", "vision"))
        it.model.train()
        for module in it.model.Model.text_model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # BERT's own, which are in its config.json
        assert torch.equal(it.model(*inputs)["M"], it.model(*inputs)["M"])


def test_the_folder_of_mmsa_is_found_without_importing_it() -> None:
    assert (mmsa_folder() / "trains" / "ATIO.py").is_file()
