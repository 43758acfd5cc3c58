"""What a model asks of data and machine, as far as it is known without reading a file, and what cannot work at all.

Read off the settings; the little that no setting says of MMSA's own models stands in the tables here. ``mmsa list``
shows it, ``prepare`` refuses by it. What only the file can tell is the business of fits.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from .catalogue import Model

# MMSA's models that convolve without padding, so that a sequence must be as long as the kernel.
CONVOLVES = ("mult", "tetfn")
# Models of MMSA's GitHub head that read an encoder with pytorch_transformers, which knows no other file of weights.
_OLD_WEIGHTS = {"cenet": "pytorch_model.bin"}
# MMSA's models whose output and trainer work with classes, tried one by one; why the others do not.
CLASSIFIES = ("tfn", "lmf", "mfn", "ef_lstm", "lf_dnn", "graph_mfn", "mult", "misa", "mfm")
_NO_CLASSES = {
    "bert_mag": "its head has one output whatever the number of classes",
    "tfr_net": "its head has one output whatever the number of classes",
    "mctn": "its head has one output and its loss is a difference",
    "self_mm": "its trainer refuses anything but regression",
    "mmim": "its estimate of entropy goes by the sign of the label",
}
# MMSA's models that take one step of audio and vision, which need_normalized makes by averaging.
AVERAGED = ("tfn", "lmf", "lf_dnn", "mtfn", "mlmf", "mlf_dnn")
_KERNELS = ("conv1d_kernel_size_l", "conv1d_kernel_size_a", "conv1d_kernel_size_v")


def needs(model: Model) -> list[str]:
    """What a model needs, a few words each; the most it asks for on any of its data sets."""
    if model.error is not None:
        return []
    settings, found = model_settings(model.section), []
    if settings.get("need_data_aligned"):
        if model.plugin is not None:
            found.append("reads the aligned file where there is one")
        else:
            pooled = settings.get("need_model_aligned")
            found.append("aligned features (others are averaged down)" if pooled else "aligned features")
    if settings.get("use_bert"):
        old = f" with {_OLD_WEIGHTS[model.name]}" if model.name in _OLD_WEIGHTS else ""
        found += ["token ids (text_bert)", f"a text encoder{old}"]
    elif "pretrained" in settings and model.plugin is None:
        found.append("with use_bert=true: token ids and a text encoder")
    steps = least_steps(model)
    if steps > 1:
        found.append(f"at least {steps} time steps")
    if has_unimodal_weights(settings):
        found.append("unimodal labels")
    if settings.get("data_missing"):
        found.append("lengths (hides steps itself, see missing_rate)")
    return found + list(model.plugin.needs if model.plugin else ())


def model_settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model's section with those of its first data set."""
    first = next(iter(section.get("datasetParams", {}).values()), {})
    return {**section.get("commonParams", {}), **first}


def least_steps(model: Model) -> int:
    """How many time steps a model wants at least, with the settings it is shipped with, on any of its data sets."""
    if model.plugin is not None or model.name not in CONVOLVES:
        return 1
    per_dataset = model.section.get("datasetParams", {}).values()
    return max((settings.get(kernel, 1) for settings in per_dataset for kernel in _KERNELS), default=1)


def has_unimodal_weights(settings: Mapping[str, Any]) -> bool:
    """Whether the loss has a weight for the label of each modality."""
    return {"M", "T", "A", "V"} <= set(settings)


def why_no_settings(section: Mapping[str, Any]) -> str:
    """End of the message that a model has no settings for a data set: the reason, if there is one."""
    return "; it learns a label of each modality too, which only SIMS has" if has_unimodal_weights(
        model_settings(section)) else ""


def why_no_classes(model: Model) -> str | None:
    """Why one of MMSA's models is not trained on classes; None for one that is, and for a plugin."""
    if model.plugin is not None or model.name in CLASSIFIES:
        return None
    if has_unimodal_weights(model_settings(model.section)):
        return "it learns a label of each modality too, and there are none"
    return _NO_CLASSES.get(model.name, "it was not tried with classes")


def check_combination(model: Model, dataset: str, settings: Mapping[str, Any]) -> None:
    """Raise InputError for settings of one of MMSA's models that cannot work on any file of this data set."""
    from .encoders import ALWAYS

    if model.plugin is not None:
        return
    if has_unimodal_weights(settings) and "sims" not in dataset:
        raise InputError(f"model {model.name!r} learns a label of each modality, and MMSA trains it on SIMS alone: "
                         f"use -d sims, or another model on {dataset!r}")
    if model.name in AVERAGED and not settings.get("need_normalized"):
        raise InputError(f"model {model.name!r} takes the averages of audio and vision over time: need_normalized must "
                         "stay true")
    if model.name in ALWAYS and not settings.get("use_bert"):
        raise InputError(f"model {model.name!r} reads token ids and has a text encoder in any case: leave out "
                         "use_bert=false")
    if settings.get("use_bert") and not settings.get("pretrained"):
        raise InputError(f"model {model.name!r} with use_bert=true needs a text encoder: give one with --pretrained")
    if model.name in _OLD_WEIGHTS:
        folder, weights = Path(settings["pretrained"]).expanduser(), _OLD_WEIGHTS[model.name]
        if folder.is_dir() and not (folder / weights).is_file():
            raise InputError(f"--pretrained {folder}: model {model.name!r} reads {weights} and no other file of "
                             "weights; save the encoder's state_dict there with torch.save")
