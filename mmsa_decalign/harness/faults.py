"""Faults inside MMSA's own models and trainers, as data: what is wrong, where, what follows, whether it is repaired.

A fault stays as MMSA ships it, so that numbers compare with published ones, and is flagged wherever the model appears;
``--mended`` repairs those with ``mended=True`` (mended.py). Crashes are not here: they are always mended (compat.py).
To add one: an entry of ``FAULTS`` that was seen in a run, and a test that shows it. Nothing here imports MMSA: whether
the installed MMSA has a fault is read off its source, since its GitHub head calls itself by the same version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .catalogue import Model, mmsa_folder

Steps = Sequence[int]  # time steps of text, audio and vision as the model gets them


def _always(settings: Mapping[str, Any], steps: Steps) -> bool:
    return True


@dataclass(frozen=True)
class Fault:
    """One fault.

    name: for records and tests.
    text: what is wrong and what follows, one line that reads on after "model: ".
    signs: model -> (file of MMSA, code in it): the model has the fault where the code is there, whatever the spaces.
    mended: whether ``--mended`` repairs it.
    matters: (settings, time steps) -> whether it has any effect in such a run.
    """

    name: str
    text: str
    signs: Mapping[str, tuple[str, str]]
    mended: bool = True
    matters: Callable[[Mapping[str, Any], Steps], bool] = _always

    def in_model(self, model: str) -> bool:
        """Whether the installed MMSA has this fault in this model."""
        return model in self.signs and _shows(*self.signs[model])

    def document(self) -> dict[str, Any]:
        """What JSON documents say of it."""
        return {"name": self.name, "fault": self.text, "mendable": self.mended}


def faults_of(model: Model) -> list[Fault]:
    """The faults of one of MMSA's models; none for a plugin's."""
    return [] if model.plugin is not None else [fault for fault in FAULTS if fault.in_model(model.name)]


def flags(model: Model, settings: Mapping[str, Any], steps: Steps, *, mended: bool) -> list[dict[str, Any]]:
    """What a record says of the faults that have an effect in this run: name, fault, mendable, repaired."""
    return [
        {**fault.document(), "repaired": mended and fault.mended}
        for fault in faults_of(model)
        if fault.matters(settings, steps)
    ]


@cache
def _source(path: Path) -> str:
    return "".join(path.read_text(encoding="utf-8").split()) if path.is_file() else ""


def _shows(file: str, code: str) -> bool:
    return "".join(code.split()) in _source(mmsa_folder() / file)


def _decays(settings: Mapping[str, Any], steps: Steps) -> bool:
    return bool(settings.get("weight_decay"))


def _drops_text(settings: Mapping[str, Any], steps: Steps) -> bool:
    return settings["dropouts"][2] > 0


def _drops_fused(settings: Mapping[str, Any], steps: Steps) -> bool:
    return settings.get("post_dropouts", settings["dropouts"])[3] > 0


def _longer_than_text(settings: Mapping[str, Any], steps: Steps) -> bool:
    return max(steps[1:]) > steps[0]


_ALIGNMENT = ("models/subNets/AlignNets.py", "view(x.size(0), pool_size, self.dst_len, -1)")
_TEXT_DROPOUT = "if num_layers == 1: dropout = 0.0"

FAULTS = (
    Fault(
        "untrained_graph_networks",
        "the four networks that fuse two or three modalities are neither trained nor saved: they stay random, and a "
        "checkpoint loaded elsewhere predicts something else",
        {"graph_mfn": ("models/singleTask/Graph_MFN.py", "self.networks = {}")},
    ),
    Fault(
        "untrained_rank_weights",
        "the weights and the bias that sum up the low-rank factors are not trained: they stay random",
        {"lmf": ("trains/singleTask/LMF.py", "list(model.parameters())[5:]"),
         "mlmf": ("trains/multiTask/MLMF.py", 'list(model.parameters())[3:5], "lr": 0.0')},
    ),
    Fault(
        "batch_as_time",
        "the samples of a batch are read as the steps of a sequence: a prediction depends on which samples are in "
        "the batch with it",
        {"mctn": ("models/singleTask/MCTN.py", "batch_size = src.shape[1]")},
    ),
    Fault(
        "two_batches_of_mosei",
        "on mosei an epoch ends after two batches",
        {"mctn": ("trains/singleTask/MCTN.py", "i_batch / len(dataloader) >= 0.5")},
        matters=lambda settings, steps: settings["dataset_name"] == "mosei",
    ),
    Fault(
        "ignored_learning_rate",
        "learning_rate is ignored: it is always 0.001",
        {"mfm": ("trains/singleTask/MFM.py", "optim.Adam(model.parameters(), weight_decay=self.args.weight_decay)")},
        matters=lambda settings, steps: settings["learning_rate"] != 0.001,
    ),
    Fault(
        "ignored_weight_decay",
        "weight_decay is ignored",
        {"mult": ("trains/singleTask/MULT.py", "optim.Adam(model.parameters(), lr=self.args.learning_rate)"),
         "misa": ("trains/singleTask/MISA.py",
                  "filter(lambda p: p.requires_grad, model.parameters()), lr=self.args.learning_rate)"),
         "mtfn": ("trains/multiTask/MTFN.py", "{'params': model_params_other}], lr=self.args.learning_rate)")},
        matters=_decays,
    ),
    Fault(
        "ignored_text_dropout",
        "the dropout of text, third of dropouts, is ignored",
        {"tfn": ("models/subNets/FeatureNets.py", _TEXT_DROPOUT),
         "lmf": ("models/subNets/FeatureNets.py", _TEXT_DROPOUT),
         "lf_dnn": ("models/subNets/FeatureNets.py", _TEXT_DROPOUT),
         "mtfn": ("models/multiTask/MTFN.py", _TEXT_DROPOUT),
         "mlmf": ("models/multiTask/MLMF.py", _TEXT_DROPOUT),
         "mlf_dnn": ("models/multiTask/MLF_DNN.py", _TEXT_DROPOUT)},
        matters=_drops_text,
    ),
    Fault(
        "ignored_fusion_dropout",
        "the dropout after fusion, fourth of dropouts or post_dropouts, is ignored",
        {"lmf": ("models/singleTask/LMF.py", "torch.matmul(self.fusion_weights, fusion_zy.permute(1, 0, 2))"),
         "mlmf": ("models/multiTask/MLMF.py", "torch.matmul(self.fusion_weights, fusion_zy.permute(1, 0, 2))")},
        mended=False,
        matters=_drops_fused,
    ),
    Fault(
        "scrambled_alignment",
        "audio and vision longer than the text are shortened to it by averaging steps that are far apart, not "
        "neighbours, so that their order is lost",
        dict.fromkeys(("mfn", "ef_lstm", "graph_mfn", "mfm", "bert_mag"), _ALIGNMENT),
        matters=_longer_than_text,
    ),
    Fault(
        "audio_cut_at_text_length",
        "audio and vision are read only as far as the sentence has tokens; what comes after has no effect",
        {"misa": ("models/singleTask/MISA.py", "self.extract_features(acoustic, lengths,")},
        matters=_longer_than_text,
    ),
    Fault(
        "repeated_steps",
        "the optimiser steps after every batch on gradients that pile up over update_epochs batches, and twice on the "
        "last of them",
        {"tfr_net": ("trains/missingTask/TFR_NET.py", "optimizer.step() train_loss += loss.item()")},
    ),
    Fault(
        "reconstruction_across_samples",
        "hidden steps are reconstructed by attention over the samples of a batch instead of over each sample",
        {"tfr_net": ("models/missingTask/TFR_NET/alignment.py", "self.trans_l_final(h_ls.permute(1,2,0))")},
    ),
    Fault(
        "decoder_without_memory",
        "the translations' decoders start anew at each step and always see the true step before it, so that they "
        "hardly have to translate",
        {"mctn": ("models/singleTask/MCTN.py", "dec_input = trg[t] if teacher_force else top1")},
        mended=False,
    ),
    Fault(
        "untrained_entropy_projection",
        "the projections in the estimate of entropy are not trained: the optimiser that has them never sees it",
        {"mmim": ("trains/singleTask/MMIM.py", "elif 'mi' in name: mmilb_param.append(p)")},
        mended=False,
    ),
    Fault(
        "ignored_update_epochs",
        "update_epochs is ignored: the optimiser steps after every batch",
        {"mmim": ("trains/singleTask/MMIM.py", "self.optimizer_main.step() y_pred.append(results['M'].cpu())"),
         "mctn": ("trains/singleTask/MCTN.py", "self.optimizer.step() epoch_loss += loss.item() * batch_size")},
        mended=False,
        matters=lambda settings, steps: settings.get("update_epochs", 1) > 1,
    ),
    Fault(
        "ignored_bert_dropout",
        "t_bert_dropout is ignored",
        {"self_mm": ("models/multiTask/SELF_MM.py", "text = self.text_model(text)[:,0,:]")},
        mended=False,
        matters=lambda settings, steps: settings["t_bert_dropout"] > 0,
    ),
)
