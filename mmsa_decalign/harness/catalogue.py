"""Which models and data sets there are: MMSA's own, then those of the plugins, and whose settings each may take.

MMSA's own JSON files are read as data, without importing MMSA, so that a wrong name is answered at once. What may
change here: the names that borrow settings (STANDS_FOR, _LENDERS), and where models and data sets are found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

from ..errors import InputError, nearest
from .needs import CLASSIFIES
from .plugins import ModelPlugin, discover

# A data set on the right lends its settings and metrics to the one on the left, which MMSA's files do not know.
STANDS_FOR = {"synthetic": "mosi"}
# The same for settings alone: the first that a model has settings for. MMSA has none for data sets of classes.
_LENDERS = {**{name: (other,) for name, other in STANDS_FOR.items()}, "iemocap": ("mosi",),
            "iemocap4": ("iemocap", "mosi")}
# The models of release 2.2.1.
_RELEASED = frozenset((
    "tfn", "lmf", "mfn", "ef_lstm", "lf_dnn", "graph_mfn", "bert_mag", "mult", "misa", "mfm", "mtfn", "mlmf", "mlf_dnn",
    "self_mm", "mmim", "mctn", "tfr_net",
))


@dataclass(frozen=True)
class Model:
    """One model: its section of a config file, where it comes from, and the plugin or the reason it cannot run."""

    name: str
    source: str
    section: dict[str, Any] = field(default_factory=dict)
    tuning: dict[str, Any] = field(default_factory=dict)
    plugin: ModelPlugin | None = None
    error: str | None = None

    def datasets(self, known: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Those of the known data sets that this model has settings for, its own or lent ones."""
        return [name for name, dataset in known.items() if lender(self, self.section, name, dataset) is not None]


@dataclass(frozen=True)
class Catalogue:
    """Everything that can be named after ``-m`` and ``-d``."""

    models: dict[str, Model]
    datasets: dict[str, dict[str, Any]]
    dataset_sources: dict[str, str]


def mmsa_folder() -> Path:
    """Where the installed MMSA lies, found without importing it."""
    spec = util.find_spec("MMSA")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("MMSA is not installed; pip install MMSA==2.2.1")
    return Path(spec.submodule_search_locations[0])


def mmsa_config(kind: str) -> Path:
    """MMSA's own file of settings, ``kind`` being "regression" or "tune"."""
    return mmsa_folder() / "config" / f"config_{kind}.json"


def mmsa_datasets() -> dict[str, Any]:
    """The data sets that the installed MMSA knows, with their sections."""
    common = _mmsa_settings("regression")["datasetCommonParams"]
    return {name: section for name, section in common.items() if isinstance(section, dict)}


def catalogue() -> Catalogue:
    """MMSA's models and data sets, then those of the plugins. A plugin cannot take a name that MMSA uses."""
    regression, tuning = (_mmsa_settings(kind) for kind in ("regression", "tune"))
    sections = {name: section for name, section in regression.items() if name != "datasetCommonParams"}
    # MMSA's GitHub head calls itself by the version of the release, and has more models
    source = f"MMSA {metadata.version('MMSA')}" + ("" if set(sections) <= _RELEASED else " (GitHub)")
    datasets = mmsa_datasets()
    sources = dict.fromkeys(datasets, source)
    models = {name: Model(name, source, section, tuning.get(name, {}), error=_why_unknown(name))
              for name, section in sections.items()}
    for name, found in discover().items():
        if name in models:
            continue
        if found.plugin is None:
            models[name] = Model(name, found.source, error=found.error)
            continue
        content = found.plugin.read_config()
        models[name] = Model(name, found.source, content[name], content[name], found.plugin)
        for dataset, section in content.get("datasetCommonParams", {}).items():
            if isinstance(section, dict) and dataset not in datasets:
                datasets[dataset], sources[dataset] = section, found.source
    return Catalogue(models, datasets, sources)


def _mmsa_settings(kind: str) -> dict[str, Any]:
    return json.loads(mmsa_config(kind).read_text(encoding="utf-8"))


def _why_unknown(model: str) -> str | None:
    """Why a model that MMSA has settings for cannot be built, read off the tables of its models and trainers."""
    for file in ("models/AMIO.py", "trains/ATIO.py"):
        if f"'{model}':" not in (mmsa_folder() / file).read_text(encoding="utf-8").replace('"', "'").replace(" ", ""):
            return f"MMSA has settings for it, but {file} does not know it"
    return None


def classes_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes of a data set, in their order, from its section; none where labels are on a scale."""
    part = dataset.get("unaligned") or dataset.get("aligned") or {}
    if part.get("train_mode") != "classification":
        return ()
    return tuple(part.get("label_names") or map(str, range(part["num_classes"])))


def lender(model: Model, section: Mapping[str, Any], name: str, dataset: Mapping[str, Any]) -> str | None:
    """The data set whose settings in ``section`` a model uses on the data set ``name``: itself, a lender, or None.

    Settings for labels on a scale are lent for classes to those of MMSA's own models alone that can emit classes.
    """
    own = section.get("datasetParams", {})
    classes = classes_of(dataset)
    if classes and model.plugin is None and model.name not in CLASSIFIES:
        return None
    scales = mmsa_datasets() if classes and model.plugin is not None else {}
    return next((one for one in (name, *_LENDERS.get(name, ())) if one in own and one not in scales), None)


def find_model(known: Catalogue, name: str) -> Model:
    """The model of this name; raises InputError with the nearest one, or with the reason why it cannot be loaded."""
    model = known.models.get(name.lower())
    if model is None:
        raise InputError(f"unknown model {name!r}; {nearest(name.lower(), known.models)}")
    if model.error is not None:
        raise InputError(f"model {model.name!r} ({model.source}) cannot be loaded: {model.error}")
    return model


def find_dataset(known: Catalogue, name: str) -> str:
    """The data set's own spelling of ``name``; raises InputError with the nearest one."""
    if name.lower() not in known.datasets:
        raise InputError(f"unknown data set {name!r}; {nearest(name.lower(), known.datasets)}")
    return name.lower()
