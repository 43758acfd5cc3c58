"""The peer of the benchmarks: the authors' public release, loaded from a checkout, never copied.

    from peer import Release
    release = Release("path/to/DecAlign")       # a checkout of github.com/taco-group/DecAlign
    model = release.model("mosi")               # their class, the settings of their configuration file

The checkout's own modules have names like `models` and `config` and import some that the release forgot or that nothing
here needs (`utils`, a metric; a tokeniser's library): these are stand-ins while it is imported, and all of them leave
`sys.modules` again.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mmsa_decalign.harness.machine import git_commit

CONFIGURATIONS = {
    "mosi": "dec_mosi_config.json", "mosei": "dec_mosei_config.json", "sims": "dec_sims_config.json",
    "iemocap": "iemocap_decalign_config.json",
}  # fmt: skip
PACKAGES = ("models", "trains", "config", "utils", "data_loader")


class Release:
    """The model, the trainer and the settings of a checkout."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "models" / "model.py").is_file():
            raise SystemExit(f"--release {folder}: expected a checkout of the release, with models/model.py in it")
        with _imports_from(self.folder):
            self._model = importlib.import_module("models.model").DecAlign
            self._trainer = importlib.import_module("trains.ATIO").DecAlignTrainer
            self._settings = importlib.import_module("config").get_config_regression

    @property
    def commit(self) -> str | None:
        """Commit of the checkout, where it is one."""
        return git_commit(self.folder)

    def arguments(self, dataset: str, **changes: Any) -> SimpleNamespace:
        """The release's settings for a data set, from its own files; without BERT unless asked for."""
        file = self.folder / "config" / CONFIGURATIONS[dataset]
        with contextlib.redirect_stdout(io.StringIO()):
            arguments = self._settings("decalign", dataset, str(file))
        vars(arguments).update({"use_bert": False} | changes)
        return arguments

    def model(self, dataset: str, **changes: Any) -> torch.nn.Module:
        """Their model in training mode, with fresh weights."""
        return self._model(self.arguments(dataset, **changes)).train()

    def total_loss(self, dataset: str, **changes: Any) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        """Their training objective: (outputs of their model, labels) to the sum that their trainer differentiates."""
        arguments = self.arguments(dataset, **changes)
        trainer = self._trainer(arguments)

        def total(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
            loss = trainer._combined_loss(trainer._main_loss(outputs["output_logit"], labels), outputs)
            weight = getattr(arguments, "ct_weight", 0.0)
            if weight > 0:
                loss = loss + weight * trainer._contrastive_loss(outputs["final_rep"], labels)
            return loss

        return total


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Import from the checkout, with stand-ins for what it lacks."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in PACKAGES}
    utils, metrices = ModuleType("utils"), ModuleType("utils.metrices")
    metrices.MetricsTop = _NoMetrics
    stand_ins = {"utils": utils, "utils.metrices": metrices}
    if importlib.util.find_spec("transformers") is None:  # only their text encoder needs it
        stand_ins["transformers"] = SimpleNamespace(BertModel=None)
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES or n in stand_ins]:
            del sys.modules[name]
        sys.modules.update(kept)


class _NoMetrics:
    """Their metrics package is not part of the release; a timing needs none."""

    def __init__(self, mode: str) -> None:
        pass

    def getMetrics(self, dataset: str) -> None:
        """Nothing."""
