"""The inside of a real DecAlign in the report: both states are the run's own, and what is missing is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from report_reading import pictures, read

from mmsa_decalign.cli import main
from mmsa_decalign.compare import plan as plans
from mmsa_decalign.compare import table
from mmsa_decalign.compare.report import page
from mmsa_decalign.compare.report.inside import DIAGNOSED
from mmsa_decalign.compare.store import Store
from mmsa_decalign.compare.worker import do, job_of
from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.harness import inside
from mmsa_decalign.harness.datasets import load_features, make_splits
from mmsa_decalign.harness.diagnostics import energy_distance, mean_over_pairs, retrieved
from mmsa_decalign.trainer import DecAlignTrainer

pytestmark = pytest.mark.slow
OPTIONS = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 3, "num_epochs": 2, "batch_size": 16,
           "attn_dropout": [0, 0, 0], "relu_dropout": 0, "embed_dropout": 0, "res_dropout": 0, "output_dropout": 0,
           "text_dropout": 0, "use_bert": False, "need_feature_standardized": True}
VALID = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run, and what its state was before the first step."""
    folder = tmp_path_factory.mktemp("inside")
    write_synthetic(folder / "tiny.pkl", samples=(33, VALID, 17))
    made = plans.make_plan(["decalign"], [f"synthetic={folder / 'tiny.pkl'}"], seeds=[7], with_sanity=False,
                           device="cpu", overrides={None: OPTIONS})
    (cell,) = made.cells
    store, seen = Store(folder / "store.sqlite"), {}
    whole, epoch = DecAlignTrainer.do_train, DecAlignTrainer._train_epoch

    def do_train(self: Any, model: Any, loaders: Any, *more: Any, **named: Any) -> Any:
        seen["valid"] = loaders["valid"]
        return whole(self, model, loaders, *more, **named)

    def train_epoch(self: Any, training: Any, *more: Any) -> Any:
        if "before" not in seen:
            seen["before"] = inside._state(training.model, seen["valid"])
        return epoch(self, training, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecAlignTrainer, "do_train", do_train)
        patch.setattr(DecAlignTrainer, "_train_epoch", train_epoch)
        store.add([cell.entry()])
        assert store.claim(cell.key, "t", 0)
        record, samples = do(cell.spec, store.folder(cell.key), "cpu")
        assert store.finish(cell.key, "t", record, samples)
    job = job_of(cell.spec, store.folder(cell.key), "cpu")
    found = inside.look_inside(job, 7, store.checkpoint(cell.key), cell.spec["sha256"])
    yield SimpleNamespace(plan=made, cell=cell, store=store, job=job, before=seen["before"], found=found,
                          record=record, folder=folder)
    store.close()


def test_before_is_the_state_that_the_run_began_with(trained: SimpleNamespace) -> None:
    for kind in ("unique", "common", "prototypes", "weights"):
        for m, values in getattr(trained.before, kind).items():
            np.testing.assert_array_equal(getattr(trained.found["before"], kind)[m], values)
    np.testing.assert_array_equal(trained.found["before"].plan, trained.before.plan)
    assert trained.found["before"].terms == trained.before.terms
    assert not np.allclose(trained.found["after"].unique["text"], trained.before.unique["text"])


def test_after_is_what_the_model_itself_computes_in_training(trained: SimpleNamespace) -> None:
    """Without dropout the terms of one batch of the whole split are those of the model's own training mode."""
    from mmsa_decalign.model import DecAlign
    from mmsa_decalign.settings import Settings

    split = make_splits(trained.job.resolved.settings, load_features(trained.job.feature_file, {}))["valid"]
    batch = split[list(range(VALID))]
    state = torch.load(trained.store.checkpoint(trained.cell.key), weights_only=True)
    settings = {**trained.job.resolved.settings, "feature_dims": trained.record["features"]["feature_dims"]}
    model = DecAlign(Settings.from_args(settings))
    model.load_state_dict({name.removeprefix("Model."): value for name, value in state.items()})
    inputs = [batch[m] for m in ("text", "audio", "vision")]
    lengths = {m: batch[f"{m}_lengths"] for m in ("text", "audio", "vision") if f"{m}_lengths" in batch}
    after = trained.found["after"]
    with torch.no_grad():
        features = model.eval()(*inputs, lengths=lengths)["Feature_f"].reshape(VALID, 2, 3, -1)
        terms = model.train()(*inputs, lengths=lengths)["terms"]
    for number, m in enumerate(("text", "audio", "vision")):
        np.testing.assert_allclose(after.common[m], features[:, 1, number], atol=1e-6)
        np.testing.assert_allclose(after.prototypes[m], terms.hetero_parts.mixtures[number].means, atol=1e-5)
    spaces = {m: model.distribution[m](torch.as_tensor(after.common[m])) for m in after.common}
    for m, values in spaces.items():
        np.testing.assert_allclose(after.compared[m], values.detach(), atol=1e-6)
    assert after.marginal_error == pytest.approx(float(terms.hetero_parts.result.marginal_error), abs=1e-6)
    np.testing.assert_allclose(after.plan, terms.hetero_parts.result.plan, atol=1e-6)
    assert after.terms == pytest.approx({
        "decoupling": float(terms.decoupling), "transport": float(terms.hetero_parts.transport),
        "prototype": float(terms.hetero_parts.prototype), "semantic": float(terms.homo_parts.semantic),
        "mmd": float(terms.homo_parts.mmd)}, rel=1e-4)
    assert after.plan.shape == (3, 3, 3)
    assert after.plan.sum() == pytest.approx(1.0, abs=1e-5)


def test_looking_inside_leaves_the_generators_alone(trained: SimpleNamespace) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1]
    inside.look_inside(trained.job, 7, trained.store.checkpoint(trained.cell.key), trained.cell.spec["sha256"])
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def page_of(trained: SimpleNamespace) -> Any:
    document = table.make_table(trained.plan, trained.store)
    return read(page.build(document, trained.plan, trained.store))


def test_the_page_shows_the_inside(trained: SimpleNamespace) -> None:
    found = page_of(trained)
    alts = list(pictures(found))
    for start in ("Transport plan of decalign. text and audio: most mass",
                  "Principal component maps of the unique features of decalign, 12 validation samples",
                  "Principal component maps of the common features of decalign",
                  "Distance between modalities of decalign, before and after training: unique features of text and",
                  "Decoupling of decalign: mean squared cosine on validation"):
        assert sum(alt.startswith(start) for alt in alts) == 1, start
    (alt,) = [alt for alt in alts if alt.startswith("Decoupling")]
    terms = [state.terms["decoupling"] for state in trained.found.values()]
    lines = [entry["train"]["decoupling"] for entry in trained.record["epochs"]]
    assert f"{terms[0]:.4f} before training, {terms[1]:.4f} in the checkpoint" in alt
    assert f"from {lines[0]:.4f} to {lines[-1]:.4f}" in alt
    (rows,) = [one for one in found.all("table") if one.text().startswith("Alignment terms")]
    assert [row.all("th")[0].text() for row in rows.all("tbody")[0].all("tr")] == [
        *trained.found["after"].terms, *DIAGNOSED]
    after = {row.all("th")[0].text(): row.all("td")[1].text() for row in rows.all("tbody")[0].all("tr")}
    clouds = trained.found["after"].compared.values()
    assert after["energy, compared"] == f"{mean_over_pairs(energy_distance, clouds):.4f}"
    assert after["pairing"] == f"{mean_over_pairs(retrieved, clouds):.4f}"
    assert float(after["marginal error"]) == pytest.approx(trained.found["after"].marginal_error, abs=1e-4)
    plan = next(content for alt, content in pictures(found).items() if alt.startswith("Transport plan"))
    marginal = trained.found["after"].plan.sum(axis=2)
    assert f">{100 * marginal.max():.0f}</text>" in plan


def test_what_is_missing_is_said(trained: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    original = trained.folder / "tiny.pkl"
    moved = original.rename(trained.folder / "elsewhere.pkl")
    try:
        assert "No pictures of its inside" in page_of(trained).text()
        write_synthetic(original, samples=(33, VALID, 18))
        assert "is not the file of the run any more" in page_of(trained).text()
    finally:
        moved.replace(original)
    monkeypatch.setattr(Store, "checkpoint", lambda self, key: None)
    assert "its checkpoints were not kept" in page_of(trained).text()


def test_one_modality_has_no_plan_and_no_distances(trained: SimpleNamespace) -> None:
    from mmsa_decalign.compare.report import svg
    from mmsa_decalign.compare.report.inside import pictures as drawn
    from mmsa_decalign.compare.report.inside import terms

    def only_text(state: inside.State) -> inside.State:
        return inside.State({"text": state.unique["text"]}, {"text": state.common["text"]}, {}, {}, None,
                            {"decoupling": state.terms["decoupling"]})

    states = {when: only_text(state) for when, state in trained.found.items()}
    with svg.drawing():
        titles = [one.title for one in drawn("d", states, [trained.record])]
    assert titles == ["Unique features", "Common features", "Decoupling"]
    assert [one["name"] for one in terms(states)] == ["decoupling"]


def test_the_command_writes_the_report(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is trained: the run is in the store, and the page is made from it."""
    options = [part for name, value in OPTIONS.items() for part in ("--set", f"{name}={str(value).lower()}")]
    out = trained.folder / "out"
    assert main(["compare", "-m", "decalign", "-d", f"synthetic={trained.folder / 'tiny.pkl'}", "-s", "7",
                 "--no-sanity", "--device", "cpu", "--store", str(trained.store.path), "--out", str(out),
                 *options]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().err.replace("\n", "")
    found = read(Path(out / "report.html").read_text("utf-8"))
    assert "Inside decalign" in found.text()
