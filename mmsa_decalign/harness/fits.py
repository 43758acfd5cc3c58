"""Does this feature file fit this model of MMSA? What only the file can tell, said before anything is trained.

Each rule names a crash deep in MMSA that the file would lead to. What may change here: further rules. What a model
needs of a data set as such (token ids, an aligned file, unimodal labels) is known without reading, see needs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.schema import MODALITIES, Features
from ..errors import InputError
from .encoders import check_tokens
from .needs import AVERAGED, CONVOLVES


def check_fit(settings: Mapping[str, Any], features: Features) -> None:
    """Raise InputError where the model cannot work with this file, or no epoch could be chosen on its valid split."""
    check_tokens(settings, features)
    _check_choice(settings, features)
    model = settings.get("model_name")
    steps = dict(zip(MODALITIES, features.seq_lens, strict=True))
    if settings.get("use_bert") and (tokens := features.splits["train"].text_bert) is not None:
        steps["text"] = tokens.shape[2]
    here = f"{features.path}: model {model!r}"
    if min(settings.get("batch_size", 2), len(features.splits["train"])) < 2 and model in (*_NORMALISES, *_COMPARES):
        does = "normalises over" if model in _NORMALISES else "compares"
        raise InputError(f"{here} {does} the samples of a batch, so it cannot train on one; use a batch_size of at "
                         "least 2 and as many training samples")
    if model in ("mtfn", "mlmf", "mlf_dnn"):
        for name, split in features.splits.items():
            lacking = sorted(set("TAV") - set(split.unimodal_labels))
            if lacking:
                raise InputError(f"{here} learns a label of each modality, and split {name!r} has no key "
                                 f"'regression_labels_{lacking[0]}'; use a file with all three, as SIMS has")
    if model in CONVOLVES:
        for modality in MODALITIES:
            size = settings.get(f"conv1d_kernel_size_{_LETTER[modality]}", 1)
            if steps[modality] < size:
                raise InputError(f"{here} convolves {size} steps of {modality}, and the file has {steps[modality]}; "
                                 f"use --set conv1d_kernel_size_{_LETTER[modality]}={steps[modality]} or -c one_step")
    if model == "mctn" and len(set(steps.values())) > 1:
        found = ", ".join(f"{modality} {count}" for modality, count in steps.items())
        raise InputError(f"{here} translates one modality into another step by step, and the file has {found} steps; "
                         "use an aligned file")
    if model == "bert_mag" and steps["text"] < 3:
        raise InputError(f"{here} needs token ids of at least 3 steps, and the file has {steps['text']}")


def _check_choice(settings: Mapping[str, Any], features: Features) -> None:
    """Refuse a ``KeyEval`` that has no number on the validation split whatever is predicted: no epoch is the best."""
    metric, labels = settings.get("KeyEval", "Loss"), features.splits["valid"].labels
    if settings.get("train_mode") == "classification":
        absent = [name for number, name in enumerate(settings["label_names"]) if not (labels == number).any()]
        if str(metric).removeprefix("F1_") in absent:
            raise InputError(f"{features.path}: split 'valid' has no sample of class {metric[3:]!r}, so that KeyEval="
                             f"{metric} has no value; use --set KeyEval=Weighted_F1")
        return
    neutral, equal = not labels.any(), bool((labels == labels[0]).all())
    if (metric == "Corr" and equal) or (str(metric).startswith("Non0") and neutral):
        reason = "only neutral labels (0)" if neutral else "no two labels that differ"
        raise InputError(f"{features.path}: split 'valid' has {reason}, so that KeyEval={metric} has no value in any "
                         "epoch; use --set KeyEval=Loss")


_NORMALISES = (*AVERAGED, "tfr_net")
_COMPARES = ("misa", "mmim")  # by moments and covariances, whose gradients on one sample are not numbers
_LETTER = {"text": "l", "audio": "a", "vision": "v"}
