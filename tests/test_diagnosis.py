"""Numbers that go bad stop a training where they do; what a training says of itself changes none of its numbers."""

from __future__ import annotations

import logging
import math
import warnings

import pytest
import torch

from mmsa_decalign import DecAlign, RunError, Settings, diagnosis, objective
from mmsa_decalign import trainer as trainer_module
from mmsa_decalign.finite import bad_losses, gradient_norms, in_words, suspects
from mmsa_decalign.objective import weights
from tests.test_trainer import loaders, trainer


class BadBackwards(torch.autograd.Function):
    """The number itself, with a gradient that is none."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def spoiled(monkeypatch, term, change, from_batch):
    """The trainer's objective with one term changed from this batch on, counted from 1 over all epochs."""
    batches = []

    def objective_then(outputs, labels, settings, class_weights=None):
        parts = objective(outputs, labels, settings, class_weights)
        batches.append(1)
        if len(batches) < from_batch:
            return parts
        bad, weight = change(getattr(parts, term)), weights(settings)[term]
        return parts._replace(**{term: bad, "total": parts.total - weight * getattr(parts, term) + weight * bad})

    monkeypatch.setattr(trainer_module, "objective", objective_then)


# Bad numbers


@pytest.mark.parametrize(("value", "words"), [(math.nan, "is not a number"), (math.inf, "is infinite")])
def test_a_loss_that_is_no_number_stops_the_run_at_its_batch(tmp_path, monkeypatch, value, words):
    t, model = trainer(tmp_path)
    spoiled(monkeypatch, "homo", lambda term: term + value, from_batch=7)  # four batches an epoch
    with pytest.raises(RunError) as error:
        t.do_train(model, loaders())
    text = str(error.value)
    assert text.startswith(f"epoch 2, batch 3 of 4: the homo loss {words} (samples v$_$")
    assert text.count("v$_$") == 3
    assert "and 14 more): lower learning_rate or clip, or look at these samples" in text
    assert t.best_epoch == 1
    kept = torch.load(tmp_path / "best.pth")
    assert all(torch.isfinite(kept[name]).all() for name, _ in model.named_parameters())


def test_several_terms_are_named_and_the_total_only_where_it_is_the_only_one():
    assert bad_losses({"loss": math.nan, "task": math.nan, "homo": math.inf, "hetero": 1.0}) == (
        "the task loss is not a number, the homo loss is infinite")
    assert bad_losses({"loss": math.inf, "task": 3e38}) == "the total loss is infinite"
    assert bad_losses({"loss": 1.0, "task": 1.0}) is None


def test_only_the_samples_with_bad_predictions_are_named_where_there_are_others(tmp_path):
    t, model = trainer(tmp_path, need_feature_standardized=False)
    data = loaders()
    data["train"].dataset.x[0][5] = 1e38
    with pytest.raises(RunError, match=r"epoch 1, batch \d of 4: the task loss is .* \(sample v\$_\$5\)"):
        t.do_train(model, data)
    assert not (tmp_path / "best.pth").exists()
    assert suspects(["a", "b"], torch.tensor([[math.nan], [math.inf]])) == ["a", "b"]
    assert suspects(["a", "b"], torch.tensor([[1.0], [math.inf]])) == ["b"]


def test_features_that_are_not_finite_stop_the_run_before_the_operators_do(tmp_path):
    t, model = trainer(tmp_path)
    with torch.no_grad():
        model.unique["audio"].weight[0, 0] = math.nan
    with pytest.raises(RunError, match="epoch 1, batch 1 of 4: the features under the hetero and homo losses are not"):
        t.do_train(model, loaders())


def test_ids_out_of_a_file_stay_on_one_line():
    assert in_words(["a"]) == "sample a"
    assert in_words(["a\nb", "c", "d", "e"]) == "samples 'a\\nb', c, d and 1 more"


@pytest.mark.parametrize("clip", [0.6, None])
def test_a_gradient_that_is_no_number_names_its_term_and_changes_no_parameter(tmp_path, monkeypatch, clip):
    t, model = trainer(tmp_path, clip=clip)
    spoiled(monkeypatch, "hetero", BadBackwards.apply, from_batch=6)
    steps = []
    take = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *rest: (steps.append(1), take(self, *rest))[1])
    with pytest.raises(RunError, match="epoch 2, batch 2 of 4: the gradient of the hetero loss is not a number"):
        t.do_train(model, loaders())
    assert len(steps) == 5
    assert all(torch.isfinite(p).all() for p in model.parameters())


# Gradients by term


def test_the_gradient_norms_are_those_of_each_weighted_term_alone(tmp_path):
    t, model = trainer(tmp_path)
    model.train()
    batch = next(iter(loaders()["train"]))
    state = torch.get_rng_state()

    def parts():
        torch.set_rng_state(state)
        return t._step_forward(model, batch, None)[1]

    named = weights(t.settings)
    found = gradient_norms(parts(), named, list(model.parameters()))
    assert set(found) == {"task", "decoupling", "hetero", "homo", "contrastive"}  # binary has weight 0
    for name, norm in found.items():
        model.zero_grad()
        (named[name] * getattr(parts(), name)).backward()
        alone = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        assert norm == pytest.approx(float(alone), rel=1e-5)
        assert norm > 0


@pytest.mark.parametrize("encoder", [False, True])
def test_measuring_changes_no_number(tmp_path, monkeypatch, tiny_bert, encoder):
    change = {"use_bert": True, "pretrained": str(tiny_bert), "gradient_checkpointing": True} if encoder else {}

    def run(measure):
        monkeypatch.setattr(trainer_module, "measured", lambda epoch: measure)
        t, model = trainer(tmp_path, num_epochs=3, relu_dropout=0.2, res_dropout=0.2, attn_dropout=[0.1] * 3, **change)
        data = loaders()
        if encoder:
            for split in data.values():
                x = split.dataset.x
                x[0] = torch.stack([torch.randint(1, 60, (52, 5)), torch.ones(52, 5, dtype=torch.long),
                                    torch.zeros(52, 5, dtype=torch.long)], dim=1).float()
        t.do_train(model, data)
        drop = ("seconds", "gradient_norms")
        return ([{k: v for k, v in entry.items() if k not in drop} for entry in t.history], model.state_dict(),
                torch.get_rng_state(), [entry.get("gradient_norms") for entry in t.history])

    (history, state, drawn, norms), (without, plain_state, plain_drawn, none) = run(True), run(False)
    assert history == without
    assert all(torch.equal(value, plain_state[name]) for name, value in state.items())
    assert torch.equal(drawn, plain_drawn)
    assert all(norms)
    assert none == [None] * 3


def test_gradients_are_measured_in_few_epochs():
    assert [epoch for epoch in range(1, 40) if diagnosis.measured(epoch)] == [1, 2, 4, 8, 16, 32]


# Advice


def advice_of(t):
    return [one["what"] for one in t.advice]


def test_a_healthy_training_says_nothing(tmp_path, caplog):
    t, model = trainer(tmp_path)
    with caplog.at_level(logging.WARNING, "MMSA"):
        t.do_train(model, loaders())
    assert t.advice == []
    assert caplog.records == []
    assert t.history[0]["alignment"] == {"batches": 4, "empty_component": 0, "not_converged": 0,
                                         "marginal_error": t.history[0]["alignment"]["marginal_error"]}


def test_too_many_prototypes_for_a_batch_are_known_before_the_first_step(tmp_path, caplog, monkeypatch):
    t, model = trainer(tmp_path, num_prototypes=9)
    monkeypatch.setattr(t, "_optimise", lambda *rest: None)
    with caplog.at_level(logging.WARNING, "MMSA"):
        t.do_train(model, loaders(batch=32))
        assert t.advice == []
        t.settings = Settings(num_prototypes=9, batch_size=17)
        t.do_train(model, loaders(batch=17))
    (said,) = t.advice
    assert said["what"] == "batches of 17 samples for num_prototypes=9: fewer than 2 samples a prototype"
    assert said["try"] == "num_prototypes=8 or less, or a larger batch_size"
    assert [record.getMessage() for record in caplog.records] == [f"{said['what']}; try {said['try']}"]
    assert diagnosis.before(Settings(num_prototypes=9, batch_size=17, alpha=0.0), 52) == []
    assert diagnosis.before(Settings(num_prototypes=9, batch_size=17, modalities=("text",)), 52) == []


def test_transport_that_does_not_converge_is_said_once(tmp_path, caplog):
    t, model = trainer(tmp_path, ot_max_iter=1, ot_tol=1e-12, ot_reg=0.001, num_epochs=3)
    with caplog.at_level(logging.WARNING, "MMSA"), warnings.catch_warnings():
        warnings.simplefilter("error")  # the operator's own warning, at every batch
        t.do_train(model, loaders())
    (what,) = advice_of(t)
    notes = [entry["alignment"] for entry in t.history]
    worst, times = max(one["marginal_error"] for one in notes), sum(one["not_converged"] for one in notes)
    assert what == (f"transport did not converge in {times} of 12 batches: marginal error up to "
                    f"{worst:.1e}, ot_tol 1e-12")
    assert worst > 1e-12
    assert times > 5
    assert len(caplog.records) == 1


def test_the_release_s_arithmetic_is_told_to_be_short_of_its_marginals(tmp_path):
    t, model = trainer(tmp_path, ot_solver="release", ot_reg=0.001, num_epochs=1)
    t.do_train(model, loaders())
    assert "transport did not converge in 4 of 4 batches" in advice_of(t)[0]
    assert t.advice[0]["try"] == "ot_solver=log, which converges"


def test_empty_prototypes():
    assert _noted(torch.tensor([0.6, 0.4 - 1e-7, 1e-7]), samples=20)["alignment"]["empty_component"] == 1
    assert _noted(torch.tensor([0.6, 0.3, 0.1]), samples=20)["alignment"]["empty_component"] == 0
    entry = {"alignment": {"batches": 5, "empty_component": 1, "not_converged": 0, "marginal_error": 0.0}}
    (said,) = diagnosis.after(Settings(), [entry, {}, entry])
    assert said["what"] == "in 2 of 10 batches a prototype stood for no sample (less than 0.01)"
    assert diagnosis.after(Settings(alpha=0.0), [entry]) == []
    entry["alignment"]["batches"] = 10  # a small last batch of an epoch may have one
    assert diagnosis.after(Settings(), [entry]) == []


def _noted(weights_of, samples):
    from mmsa_decalign.model import AlignmentTerms
    from mmsa_decalign.ops import GaussianMixture, HeteroLoss, TransportResult

    zero = torch.zeros(())
    mixture = GaussianMixture(weights_of, torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(samples, 3))
    result = TransportResult(zero, zero, (), 0.0, 1, True)
    notes = {}
    diagnosis.note(notes, AlignmentTerms(zero, None, None, None, None))
    assert notes == {}
    hetero = HeteroLoss(zero, zero, zero, (mixture, mixture), result)
    diagnosis.note(notes, AlignmentTerms(zero, zero, zero, hetero, None))
    assert notes["alignment"]["batches"] == 1
    return notes


def history(**norms):
    return [{"gradient_norms": norms}, {}, {"gradient_norms": norms}]


def test_a_term_that_drowns_the_others():
    settings = Settings()
    (said,) = diagnosis.after(settings, history(task=1.0, hetero=20.0, homo=0.1))
    begins = "the hetero loss drowns the task: the norm of its gradient is 20, that of the task 1 "
    assert said["what"].startswith(begins)
    assert said["try"] == "a smaller alpha"
    (said,) = diagnosis.after(settings, history(task=5000.0, homo=1.0, contrastive=0.1))
    begins = "the task drowns every other loss: the norm of its gradient is 5e+03, the next is homo"
    assert said["what"].startswith(begins)
    assert diagnosis.after(settings, history(task=1.0, hetero=9.0, homo=0.1)) == []
    assert diagnosis.after(settings, history(task=1.0)) == []
    assert diagnosis.after(settings, []) == []
    once = [{"gradient_norms": {"task": 1.0, "hetero": 100.0}}, *history(task=1.0, hetero=1.0)]
    assert diagnosis.after(settings, once) == []  # the median counts


def test_weights_that_drown_the_task_are_found_in_a_training(tmp_path):
    t, model = trainer(tmp_path, beta=500.0, num_epochs=2)
    t.do_train(model, loaders())
    assert any(what.startswith("the homo loss drowns the task") for what in advice_of(t))


def test_the_model_is_ready_after_a_training_that_was_measured(tmp_path):
    t, model = trainer(tmp_path, num_epochs=1)
    t.do_train(model, loaders())
    assert isinstance(model, DecAlign)
    assert all(math.isfinite(norm) for norm in t.history[0]["gradient_norms"].values())
