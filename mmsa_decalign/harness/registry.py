"""Plugins inside MMSA: ``register`` puts them (and the compatibility patches) in, ``unregister`` takes them out.

MMSA has no hook for further models. Its seams are the names that MMSA/run.py binds at import (AMIO, ATIO, the data
loader, the look-ups of settings), the same look-ups as MMSA exports them, the lists of supported names, and the table
of metrics. A built-in model on one of MMSA's own data sets still goes through MMSA's own functions, which only unpickle
more carefully (see safe_reading.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .catalogue import Catalogue, catalogue, classes_of, find_dataset, find_model, mmsa_config
from .compat import Undo, apply_patches, replace
from .config import choose, merge
from .plugins import GROUP, Found, ModelPlugin, discover

__all__ = ["GROUP", "Found", "ModelPlugin", "active", "discover", "register", "unregister"]

_undo: list[Undo] = []


def register() -> None:
    """Make ``MMSA.MMSA_run``, ``MMSA_test`` and the config look-ups know every plugin. Calling it again is harmless."""
    if _undo:
        return
    import MMSA
    import MMSA.config
    import MMSA.run
    import MMSA.utils

    from .safe_reading import read_safely

    known = catalogue()
    found = {name: model.plugin for name, model in known.models.items() if model.plugin is not None}
    lookups = {
        "get_config_regression": _lookup(MMSA.config.get_config_regression, "regression", found),
        "get_config_tune": _lookup(MMSA.config.get_config_tune, "tune", found),
        "get_config_all": _all_configs(MMSA.config.get_config_all, found),
    }
    new_models = [name for name in found if name not in {model.lower() for model in MMSA.SUPPORTED_MODELS}]
    new_datasets = [name for name in known.datasets if name.upper() not in MMSA.SUPPORTED_DATASETS]
    try:
        for name, function in lookups.items():
            for owner in (MMSA, MMSA.config, MMSA.run):
                if hasattr(owner, name):
                    _undo.append(replace(owner, name, function))
        _undo.append(replace(MMSA.run, "AMIO", _model_builder(MMSA.run.AMIO, found)))
        _undo.append(replace(MMSA.run, "ATIO", _trainer_table(MMSA.run.ATIO, found)))
        _undo.append(replace(MMSA.run, "MMDataLoader", _loader(MMSA.run.MMDataLoader, found)))
        _undo.append(replace(MMSA.utils.MetricsTop, "getMetics", _metrics(MMSA.utils.MetricsTop.getMetics)))
        _undo.append(_extend(MMSA.SUPPORTED_MODELS, new_models))
        _undo.append(_extend(MMSA.SUPPORTED_DATASETS, [name.upper() for name in new_datasets]))
        _undo.append(read_safely())
        _undo.append(apply_patches())
    except BaseException:
        unregister()
        raise


def unregister() -> None:
    """Put back everything that ``register`` replaced."""
    while _undo:
        _undo.pop()()


@contextmanager
def active() -> Iterator[None]:
    """Registered inside the block, and afterwards as before it."""
    before = bool(_undo)
    register()
    try:
        yield
    finally:
        if not before:
            unregister()


def _lookup(original: Callable[..., Any], kind: str, found: Mapping[str, ModelPlugin]) -> Callable[..., Any]:
    def get_config(model_name: str, dataset_name: str, config_file: Any = "", **options: Any) -> Any:
        # MMSA_run always passes a path: its own default file must still find the plugins, a user's file is the user's.
        default = config_file in ("", None) or Path(config_file).resolve() == mmsa_config(kind).resolve()
        known = catalogue()
        ours = model_name in found or known.dataset_sources.get(dataset_name, "MMSA ").split()[0] != "MMSA"
        if not (default and ours):
            return original(model_name, dataset_name, *([] if config_file is None else [config_file]), **options)
        return _plugin_settings(known, model_name, dataset_name, kind, **options)

    get_config.__doc__ = original.__doc__
    return get_config


def _plugin_settings(
    known: Catalogue, model_name: str, dataset_name: str, kind: str, random_choice: bool = True
) -> Any:
    """What MMSA's look-ups return, for a plugin's model or data set."""
    from easydict import EasyDict

    model, dataset = find_model(known, model_name), find_dataset(known, dataset_name)
    section = model.tuning if kind == "tune" else model.section
    settings = merge(model, dataset, section, known.datasets[dataset], tuning=kind == "tune")
    if kind == "tune":
        debug = section.get("debugParams", {})
        settings["d_paras"] = list(debug.get("d_paras", []))
        for key in settings["d_paras"]:
            settings[key] = choose(debug[key]) if random_choice else debug[key]
    settings["featurePath"] = str(Path(_mmsa_data_root()) / settings["featurePath"])
    return EasyDict(settings)


def _mmsa_data_root() -> str:
    return json.loads(mmsa_config("regression").read_text(encoding="utf-8"))["datasetCommonParams"]["dataset_root_dir"]


def _all_configs(original: Callable[..., Any], found: Mapping[str, ModelPlugin]) -> Callable[..., Any]:
    def get_config_all(config_file: str) -> Any:
        everything = original(config_file)
        for name, plugin in found.items():
            content = plugin.read_config()
            everything.setdefault(name, type(everything)(content[name]))
            for dataset, section in content.get("datasetCommonParams", {}).items():
                everything["datasetCommonParams"].setdefault(dataset, section)
        return everything

    get_config_all.__doc__ = original.__doc__
    return get_config_all


def _model_builder(original: Callable[..., Any], found: Mapping[str, ModelPlugin]) -> Callable[..., Any]:
    def build(args: Any) -> Any:
        plugin = found.get(args["model_name"])
        return original(args) if plugin is None else plugin.model(args)

    return build


def _trainer_table(original: type, found: Mapping[str, ModelPlugin]) -> type:
    class Trainers(original):  # type: ignore[misc, valid-type]
        def getTrain(self, args: Any) -> Any:
            from .classification import taught_classes

            plugin = found.get(args["model_name"])
            return taught_classes(super().getTrain(args), args) if plugin is None else plugin.trainer(args)

    return Trainers


def _loader(original: Callable[..., Any], found: Mapping[str, ModelPlugin]) -> Callable[..., Any]:
    def load(args: Any, num_workers: int) -> Any:
        import torch

        from .datasets import load_features, locate, make_loaders, make_splits, metrics_family

        if args["model_name"] not in found and metrics_family(args["dataset_name"]) == args["dataset_name"]:
            return original(args, num_workers)
        if _classes(args["dataset_name"]):  # MMSA_run has just written regression there
            args["train_mode"] = "classification"
        path = args.get("custom_feature") or args["featurePath"]
        if not Path(path).is_file() and not args.get("custom_feature"):
            relative = str(path).removeprefix(_mmsa_data_root()).lstrip("/\\")
            path = locate(args["dataset_name"], relative)
        files = {modality: args.get(f"feature_{modality[0].upper()}") for modality in ("text", "audio", "vision")}
        # MMSA_run has just seeded torch with the run's seed and tells it to nobody else.
        splits = make_splits(args, load_features(Path(path), files))
        return make_loaders(args, splits, seed=torch.initial_seed(), num_workers=num_workers)

    return load


def _metrics(original: Callable[..., Any]) -> Callable[..., Any]:
    def getMetics(self: Any, datasetName: str) -> Any:
        from .classification import class_metrics
        from .datasets import metrics_family

        if classes := _classes(datasetName.lower()):
            return class_metrics(classes)
        return original(self, metrics_family(datasetName.lower()))

    return getMetics


def _classes(dataset: str) -> tuple[str, ...]:
    return classes_of(catalogue().datasets.get(dataset, {}))


def _extend(names: list[str], more: list[str]) -> Undo:
    names.extend(more)

    def undo() -> None:
        for name in more:
            names.remove(name)

    return undo
