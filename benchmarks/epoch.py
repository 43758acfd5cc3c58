"""An epoch of training from the file on: `mmsa`'s run against the release's own loop, for `step.py`.

Both read the feature file, make loaders in this process, train with batches of 32, validate with MMSA's metrics, save
the best state, write a log, read the state back and evaluate the test split. Ours goes through the same call as
`mmsa run` and also standardises the inputs and writes its record; the release's goes through its data loader and its
trainer's `do_train` and `do_test`, without the parts of its `main.py` that need a GPU, sleep, or write a table.
May change: as the two programs do.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from pathlib import Path
from typing import Any

import torch
from peer import Release, _imports_from
from timing import Comparison, Spread, compare, seconds, spread

from mmsa_decalign.harness import runner

FURTHER = 4  # epochs after the first, whose time divided by their number is that of an epoch alone; none stops early


class Epochs:
    """Runs of one epoch and of some more."""

    def __init__(self, fold: Path, scratch: Path, release: Release | None, device: str) -> None:
        self.fold, self.scratch, self.release, self.device = fold, scratch, release, device
        if release is not None:
            with _imports_from(release.folder):
                self._loaders = importlib.import_module("data_loader").MMDataLoader
        self._log = logging.FileHandler(scratch / "release.log")

    def ours(self, epochs: int) -> None:
        """`mmsa run decalign mosi` with so many epochs."""
        job = runner.prepare(
            "decalign", "mosi", config="release", seeds=[1],
            overrides={"num_epochs": epochs, "ot_solver": "log", "use_sequence_mask": True}, feature_file=self.fold,
            device=self.device, verbose=0, model_save_dir=self.scratch, res_save_dir=self.scratch, log_dir=self.scratch,
        )
        runner.run(job)

    def theirs(self, epochs: int) -> None:
        """The release's run with so many epochs."""
        from MMSA.utils import MetricsTop

        checkpoint = self.scratch / "release" / "best.pth"
        args = self.release.arguments(
            "mosi", featurePath=str(self.fold), num_epochs=epochs, cur_seed=1, model_save_path=str(checkpoint),
        )
        logger = logging.getLogger("DecAlign")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self._log)
        try:
            torch.manual_seed(1)
            loaders: Any = self._loaders(args, num_workers=0)
            model = self.release._model(args).to(self.device)
            trainer = self.release._trainer(args)
            trainer.metrics = MetricsTop("regression").getMetics("mosi")
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.do_train(model, loaders)
                model.load_state_dict(torch.load(checkpoint, weights_only=True))
                trainer.do_test(model, loaders["test"], mode="TEST")
        finally:
            logger.removeHandler(self._log)

    def rows(self, pairs: int) -> dict[str, Comparison | Spread]:
        """Two rows of the table: a run of one epoch in all, and an epoch alone."""
        contenders = [self.ours] if self.release is None else [self.ours, self.theirs]
        short: list[list[float]] = []
        longer: list[list[float]] = []
        for turn in range(pairs + 1):  # the first warms up
            first = [seconds(lambda run=run: run(1)) for run in contenders]
            rest = [seconds(lambda run=run: run(1 + FURTHER)) for run in contenders]
            if turn:
                short.append(first)
                longer.append([(all_ - one) / FURTHER for all_, one in zip(rest, first, strict=True)])
        return {"run of one epoch, MOSI fold": _summary(short), "further epoch, MOSI fold": _summary(longer)}


def _summary(times: list[list[float]]) -> Comparison | Spread:
    return compare(times) if len(times[0]) == 2 else spread([ours for (ours,) in times])
