"""What a model plugin is and how plugins are found: entry points of the group ``mmsa.models``.

A plugin is one object that names a model, says how to build it and its trainer, and points at its settings. Change
this file when a plugin must be able to say more about itself; how plugins reach MMSA is the business of registry.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

GROUP = "mmsa.models"


@dataclass(frozen=True)
class ModelPlugin:
    """A model that MMSA can run.

    name: the lower-case name given to ``-m`` and to ``MMSA_run``; the entry point carries the same name.
    model: args -> torch module, called as ``module(text, audio, vision)``, which returns a mapping with ``"M"`` (N, 1).
    trainer: args -> object with MMSA's ``do_train(model, dataloader, return_epoch_results)`` and
        ``do_test(model, dataloader, mode, return_sample_results)``. It saves the best state dict, chosen on
        ``dataloader["valid"]``, to ``args.model_save_path``. Its runs can go on after an interruption if it also has
        ``after_epoch``, a function that it calls after each epoch unless it is None; ``state()``, called then or
        between two batches, a dictionary that ``torch.load(weights_only=True)`` reads; and ``restore(state)``, called
        before ``do_train``. The file at ``args.model_save_path`` is kept and put back with it.
    config: JSON file in the schema of MMSA's config_regression.json; anything with ``read_text()``. Its
        ``datasetCommonParams`` holds only data sets that MMSA lacks, ``debugParams`` the tuning space.
    summary: one line for ``mmsa list``.
    needs: what the model asks of data or machine beyond what its settings say, a few words each.
    check: args -> anything; raises InputError for settings that cannot work. With it, the plugin decides which keys
        it knows; without it, only keys of its config are accepted. A dataclass that it returns is taken for the full
        settings, defaults included, and goes into the record.
    presence: whether the trainer reads "text_present", "audio_present" and "vision_present", (N,) bool, from a batch
        and the model leaves out what is absent. Without it an absent modality is zeros to the model.
    """

    name: str
    model: Callable[[Mapping[str, Any]], Any]
    trainer: Callable[[Mapping[str, Any]], Any]
    config: Any
    summary: str
    needs: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], object] | None = None
    presence: bool = False

    def read_config(self) -> dict[str, Any]:
        """The parsed config file; raises ValueError if it lacks this model's section."""
        content = json.loads(self.config.read_text(encoding="utf-8"))
        if "commonParams" not in content.get(self.name, {}) or "datasetParams" not in content[self.name]:
            raise ValueError(f"{self.config} has no section {self.name!r} with commonParams and datasetParams")
        return content


@dataclass(frozen=True)
class Found:
    """One entry point: the plugin, or the reason why there is none; ``source`` is the distribution and its version."""

    name: str
    source: str
    plugin: ModelPlugin | None = None
    error: str | None = None


def discover() -> dict[str, Found]:
    """Every plugin installed on this machine, by name. One that does not load is listed with its error."""
    found: dict[str, Found] = {}
    for entry in sorted(metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        source = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        if entry.name in found:
            if found[entry.name].source != source:  # the same distribution may be on the path twice
                error = f"offered by two distributions: {found[entry.name].source} and {source}"
                found[entry.name] = Found(entry.name, source, error=error)
            continue
        try:
            found[entry.name] = Found(entry.name, source, plugin=_load(entry))
        except Exception as error:  # a stranger's module may fail in any way, and must not take the others with it
            found[entry.name] = Found(entry.name, source, error=f"{type(error).__name__}: {error}")
    return found


def _load(entry: metadata.EntryPoint) -> ModelPlugin:
    plugin = entry.load()
    if not isinstance(plugin, ModelPlugin):
        raise TypeError(f"{entry.value} is {type(plugin).__name__}, expected ModelPlugin")
    if plugin.name != entry.name or plugin.name != plugin.name.lower():
        raise ValueError(f"plugin {plugin.name!r} under entry point {entry.name!r}: both must be one lower-case name")
    plugin.read_config()
    return plugin
