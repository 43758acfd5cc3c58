"""Settings: what those of one run are after every layer was applied, and what is refused on the way.

Order, later wins: data set < model < model on that data set < file given by ``-c`` < ``--set key=value``.
What may change here: the keys and values that are checked for MMSA's models; a plugin checks its own.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from .catalogue import Model, catalogue, classes_of, find_dataset, find_model, lender
from .needs import CLASSIFIES, why_no_classes, why_no_settings

PAPER_COUNT = "paper_count"
PROTOCOLS = ("session_valid", PAPER_COUNT)  # the file's own splits; train and valid together, chosen on test

# Keys that every trainer or loader of MMSA reads, whether or not a model's section spells them out.
_COMMON_KEYS = ("KeyEval", "batch_size", "early_stop", "need_normalized", "max_epochs")
# Keys of MMSA's argument dictionary that are no settings: what is said of them on the command line.
_NOT_SETTINGS = {
    "seed": "use -s", "cur_seed": "use -s", "device": "use --device", "featurePath": "use --feature-file",
    "custom_feature": "use --feature-file", "feature_T": "use -Ft", "feature_A": "use -Fa", "feature_V": "use -Fv",
    "model_save_path": "use --model-save-dir", "res_save_dir": "use --res-save-dir",
    "train_mode": "the data set decides, classes are for -d iemocap and -d iemocap4",
    "label_names": "the data set decides",
}
_COUNTS = ("batch_size", "early_stop", "update_epochs", "max_epochs")


@dataclass(frozen=True)
class Resolved:
    """Settings of one model on one data set. ``feature_path`` is relative to a data root; ``space`` is for tuning."""

    model: Model
    dataset: str
    settings: dict[str, Any]
    overrides: dict[str, Any]
    feature_path: str
    config_root: str | None = None
    settings_of: str | None = None  # the data set that they were made for
    space: dict[str, Any] = field(default_factory=dict)


def resolve(
    model: str,
    dataset: str,
    *,
    config: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    tuning: bool = False,
) -> Resolved:
    """The settings of ``model`` on ``dataset``.

    config: a path or the name of a file shipped in mmsa_decalign.configs: a file in MMSA's schema, whose sections
    replace the shipped ones, or a flat JSON object of settings, or such objects by model. Raises InputError for
    anything unknown.
    """
    known = catalogue()
    entry, dataset = find_model(known, model), find_dataset(known, dataset)
    classes = classes_of(known.datasets[dataset])
    section = entry.tuning if tuning else entry.section
    dataset_section, root, flat = known.datasets[dataset], None, {}
    if config is not None:
        content = read_config(config)
        if is_schema(content):
            section, dataset_section, root = _from_schema(content, config, entry, dataset, dataset_section)
        elif is_by_model(content, known.models):
            if entry.name not in content:
                raise InputError(f"{config} has no settings for model {entry.name!r}; it has: {_names(content)}")
            flat = content[entry.name]
        else:
            flat = content
    if not section:
        raise InputError(f"no tuning space for model {entry.name!r}; give one with -c FILE")
    given = {**flat, **(overrides or {})}
    for key, value in given.items():
        if key in _NOT_SETTINGS:
            raise InputError(f"unknown setting {key!r}: {_NOT_SETTINGS[key]}")
        if key in ("model_name", "dataset_name") and value != (entry.name if key == "model_name" else dataset):
            raise InputError(f"setting {key}={value!r} contradicts the command line; use -m and -d")
    if classes and "num_classes" in given:
        raise InputError(f"unknown setting 'num_classes': data set {dataset!r} has {len(classes)} classes: "
                         f"{', '.join(classes)}")
    settings = merge(entry, dataset, section, dataset_section, given, tuning=tuning)
    if tuning and section is entry.tuning is not entry.section:
        settings = {**_left_unsaid(entry, dataset, dataset_section, given), **settings}
    _check_protocol(settings, given, tuning)
    feature_path = settings.pop("featurePath", "")
    space = tuning_space(section, given) if tuning else {}
    if entry.plugin is None or entry.plugin.check is None:
        searched = {key: choose(section["debugParams"][key], lambda choices: choices[0])
                    for key in section.get("debugParams", {}).get("d_paras", [])} if tuning else {}
        _check_overrides(entry, {**searched, **settings}, given)
    settings.update(given)
    _check_values(entry, settings)
    return Resolved(entry, dataset, settings, given, feature_path, root,
                    lender(entry, section, dataset, dataset_section), space)


def _from_schema(
    content: Mapping[str, Any], config: str | Path, model: Model, dataset: str, shipped: Mapping[str, Any]
) -> tuple[dict[str, Any], Mapping[str, Any], str | None]:
    """The sections of a model and a data set in a file of MMSA's schema, and its data root; ``shipped`` if it has none
    of the data set. Raises InputError where one is missing or not of the form that is read below."""
    if model.name not in content:
        raise InputError(f"{config} has no section for model {model.name!r}; it has: {_names(content)}")
    section = _object(content[model.name], f"{config}: section {model.name!r}")
    for part in ("commonParams", "datasetParams", "debugParams"):
        _object(section.get(part, {}), f"{config}: {part} of {model.name!r}")
    for name, own in section.get("datasetParams", {}).items():
        _object(own, f"{config}: datasetParams of {model.name!r}, {name!r}")
    _check_space(section.get("debugParams", {}), f"{config}: d_paras of {model.name!r}")
    common = _object(content.get("datasetCommonParams", {}), f"{config}: datasetCommonParams")
    part = _object(common.get(dataset, shipped), f"{config}: data set {dataset!r}")
    kinds = {"aligned", "unaligned"} & set(part)
    if not kinds:
        raise InputError(f"{config}: data set {dataset!r} has neither 'aligned' nor 'unaligned' settings")
    for kind in sorted(kinds):
        _object(part[kind], f"{config}: data set {dataset!r}, {kind!r}")
    root = common.get("dataset_root_dir")
    if not isinstance(root, str | None):
        raise InputError(f"{config}: dataset_root_dir is {json.dumps(root)[:40]}: expected a folder")
    return section, part, root


def _check_space(debug: Mapping[str, Any], what: str) -> None:
    """Refuse a tuning space whose names and choices do not belong together."""
    if not debug:
        return
    names = debug.get("d_paras")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{what} is {json.dumps(names)[:40]}: expected the names of the settings to search, a list")
    for name in names:
        if name not in debug:
            raise InputError(f"{what} names {name!r}, and there are no choices for it beside")
        choices = debug[name]
        lists = choices.values() if isinstance(choices, dict) else [choices] if isinstance(choices, list) else ()
        if not all(isinstance(one, list) and one for one in lists):
            raise InputError(f"{what}: {name!r} has no choice: expected a list, or an object of lists, none empty")


def merge(
    model: Model,
    dataset: str,
    section: Mapping[str, Any],
    dataset_section: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    *,
    tuning: bool = False,
) -> dict[str, Any]:
    """MMSA's merge of a model's section with a data set's, ``featurePath`` staying relative to a data root.

    As in MMSA the aligned file is read where the model wants aligned data and the data set has such a file. A tuning
    section may have no settings per data set; what it fixes rather than searches is merged too. On a data set of
    classes these come last, and MMSA's models look at one step at a time (the shipped one_step) where it has one step.
    """
    common, per_dataset = section.get("commonParams", {}), section.get("datasetParams", {})
    classes = classes_of(dataset_section)
    if classes and model.plugin is None and model.name not in CLASSIFIES:
        raise InputError(f"model {model.name!r} cannot be trained on the classes of data set {dataset!r}: "
                         f"{why_no_classes(model)}")
    source = lender(model, section, dataset, dataset_section)
    own = per_dataset.get(source)
    if own is None and not (tuning and not per_dataset):
        raise InputError(f"model {model.name!r} has no settings for data set {dataset!r}; it has: "
                         f"{_names(per_dataset)}{why_no_settings(section)}")
    debug = section.get("debugParams", {}) if tuning else {}
    fixed = {key: value for key, value in debug.items() if key not in ("d_paras", *debug["d_paras"])}
    own = {**(own or {}), **fixed}
    wants_aligned = {**common, **own, **(given or {})}.get("need_data_aligned")
    kind = "aligned" if wants_aligned and "aligned" in dataset_section else "unaligned"
    shared = dataset_section.get(kind) or dataset_section["aligned"]
    settings = {"model_name": model.name, "dataset_name": dataset, **shared, **common, **own}
    if classes:
        settings.update({key: shared[key] for key in ("train_mode", "num_classes", "protocol") if key in shared},
                        label_names=list(classes))
        if model.plugin is None and max(shared.get("seq_lens") or [2]) == 1:  # MMSA's settings are for sequences
            one_step = read_config("one_step").get(model.name, {})
            settings.update({key: value for key, value in one_step.items() if key in settings})
    return copy.deepcopy(settings)


def _left_unsaid(
    model: Model, dataset: str, dataset_section: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings for training that MMSA's section for tuning forgets: without their weight_decay, mfn and mfm crash."""
    if lender(model, model.section, dataset, dataset_section) is None:
        return {}
    searched = model.tuning.get("debugParams", {}).get("d_paras", [])
    own = merge(model, dataset, model.section, dataset_section, given)
    return {key: value for key, value in own.items() if key not in searched}


def tuning_space(section: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys ``d_paras`` with their choices; a key that the user fixed has this one choice."""
    debug = section.get("debugParams", {})
    return {key: [given[key]] if key in given else debug[key] for key in debug.get("d_paras", [])}


def choose(choices: Any, pick: Callable[[list[Any]], Any] = random.choice) -> Any:
    """One draw from a tuning space: of a list, an element; of an object, one element for each of its keys."""
    if isinstance(choices, dict):
        return {key: pick(values) for key, values in choices.items()}
    return pick(choices) if isinstance(choices, (list, tuple)) else choices


def read_config(config: str | Path) -> dict[str, Any]:
    """The JSON object in a file, or in the shipped file of that name ("utterance" is configs/utterance.json)."""
    path = Path(config).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config} cannot be read as JSON text: {error}") from error
    else:
        shipped = _shipped()
        if str(config).removesuffix(".json") not in shipped:
            raise InputError(f"config {str(config)!r} is neither a file nor a shipped one; "
                             f"{nearest(str(config), shipped)}")
        text = shipped[str(config).removesuffix(".json")].read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{config} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{config}: expected a JSON object of settings, got {type(content).__name__}")
    return content


def is_schema(content: Mapping[str, Any]) -> bool:
    """Whether a config file has MMSA's sections rather than settings at its top level."""
    return "datasetCommonParams" in content or any(
        isinstance(value, dict) and {"commonParams", "datasetParams", "debugParams"} & set(value)
        for value in content.values()
    )


def is_by_model(content: Mapping[str, Any], models: Iterable[str]) -> bool:
    """Whether a config file holds flat settings under names of models, as the shipped one_step.json does."""
    return bool(content) and set(content) <= set(models) and all(isinstance(value, dict) for value in content.values())


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts as settings: a value is JSON where it parses as JSON (numbers, true, lists), else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {pair!r}: expected key=value, for example --set learning_rate=0.001")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = {"True": True, "False": False, "None": None}.get(value, value)
    return settings


def _shipped() -> dict[str, Any]:
    files = resources.files("mmsa_decalign.configs").iterdir()
    return {file.name.removesuffix(".json"): file for file in files if file.name.endswith(".json")}


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} is {json.dumps(value)[:40]}: expected a JSON object, as in MMSA's own files")
    return value


def _names(content: Mapping[str, Any]) -> str:
    return ", ".join(name for name in content if name != "datasetCommonParams") or "none"


def _check_overrides(model: Model, settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse keys that this model never reads and values of another kind than the one they replace."""
    encoder = ("pretrained",) if settings.get("use_bert") else ()  # a tuning space names none
    valid = [key for key in {*settings, *_COMMON_KEYS, *encoder}
             if key not in ("model_name", "dataset_name", "featurePath")]
    for key, value in given.items():
        if key == "pretrained" and key not in valid:
            raise InputError(f"model {model.name!r} has no text encoder, so there is nothing to load {value!r} into")
        if key not in valid:
            raise InputError(f"unknown setting {key!r} for model {model.name!r}; {nearest(key, valid)}")
        if key in settings and _kind(value) != _kind(settings[key]) and settings[key] is not None:
            raise InputError(f"setting {key}={json.dumps(value)}: expected {_kind(settings[key])} "
                             f"such as {json.dumps(settings[key])}")


def _check_protocol(settings: Mapping[str, Any], given: Mapping[str, Any], tuning: bool) -> None:
    """Refuse a protocol where there is none to choose, one that is unknown, and a search on the test split."""
    if "protocol" not in given:
        return
    if "protocol" not in settings:
        raise InputError(f"unknown setting 'protocol' for data set {settings['dataset_name']!r}: its splits are those "
                         "of the file; IEMOCAP has a choice (-d iemocap, -d iemocap4)")
    if given["protocol"] not in PROTOCOLS:
        raise InputError(f"setting protocol={given['protocol']!r}: expected one of {', '.join(PROTOCOLS)}")
    if tuning and given["protocol"] == PAPER_COUNT:
        raise InputError(f"a search with protocol={PAPER_COUNT} would score every trial on the test split; leave the "
                         "protocol out")


def _check_values(model: Model, settings: Mapping[str, Any]) -> None:
    for key in _COUNTS:
        value = settings.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"setting {key}={json.dumps(value)}: expected a whole number of at least 1")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return {str: "text", list: "a list", tuple: "a list", dict: "an object"}.get(type(value), "null")
