"""DecAlign's own plugin: it comes in by the door that is open to everybody, the entry points of ``mmsa.models``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from ..settings import Settings
from .plugins import ModelPlugin


def build_model(args: Mapping[str, Any]) -> Any:
    """The DecAlign, or several, of the settings in MMSA's ``args``."""
    from ..members import build

    return build(Settings.from_args(args))


def build_trainer(args: Mapping[str, Any]) -> Any:
    """Its trainer, with MMSA's metrics of the data set."""
    from MMSA.utils import MetricsTop

    from ..trainer import DecAlignTrainer

    return DecAlignTrainer(args, MetricsTop(args["train_mode"]).getMetics(args["dataset_name"]))


plugin = ModelPlugin(
    name="decalign",
    model=build_model,
    trainer=build_trainer,
    config=resources.files("mmsa_decalign.configs") / "decalign.json",
    summary="hierarchical alignment of decoupled features by prototypes and optimal transport (arXiv 2503.11892)",
    check=Settings.from_args,
    presence=True,
)
