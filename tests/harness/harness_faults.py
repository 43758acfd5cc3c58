"""One of MMSA's models trained for a few epochs by MMSA's own trainer, as shipped or repaired, for a look inside."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from harness_matrix import small_settings, write_encoder, write_features

from mmsa_decalign.harness.catalogue import Model, catalogue
from mmsa_decalign.harness.config import resolve
from mmsa_decalign.harness.datasets import load_features, make_loaders, make_splits
from mmsa_decalign.harness.mended import repaired
from mmsa_decalign.harness.registry import active
from mmsa_decalign.harness.watch import EnoughEpochs, TrainLoader


@dataclass
class Bench:
    """A model and its trainer, not trained yet, with what they were made of."""

    model: Any
    trainer: Any
    args: Any
    splits: Any
    loaders: dict[str, Any]
    fresh: Any

    def replace_model(self, seed: int) -> None:
        """Put the same model with other random numbers in the place of this one."""
        import MMSA.run

        torch.manual_seed(seed)
        self.model = MMSA.run.AMIO(copy.deepcopy(self.fresh))

    def train(self, epochs: int = 1) -> set[str]:
        """Train for some epochs; returns the names of the parameters that did not move."""
        before = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        passes = iter(range(epochs))

        def before_pass() -> None:
            if next(passes, None) is None:
                raise EnoughEpochs

        loaders = {**self.loaders, "train": TrainLoader(self.loaders["train"], before_pass, iter)}
        with contextlib.suppress(EnoughEpochs), contextlib.redirect_stdout(io.StringIO()):
            self.trainer.do_train(self.model, loaders)
        return {name for name, parameter in self.model.named_parameters() if torch.equal(parameter, before[name])}

    def output(self, batch: dict[str, Any]) -> Any:
        """What the model returns when the trainer tests it on a batch."""
        seen: list[Any] = []
        hook = self.model.register_forward_hook(lambda module, inputs, output: seen.append(output))
        self.trainer.do_test(self.model, [batch])
        hook.remove()
        return seen[0]

    def predict(self, rows: list[int]) -> torch.Tensor:
        """Predictions (N,) for these rows of the validation split, tested as one batch."""
        output = self.output(self.splits["valid"][rows])
        prediction = output["M"] if isinstance(output, dict) else output[1 if self.args.model_name == "mctn" else 0]
        return prediction.detach().view(-1)


def entry(model: str) -> Model:
    """The catalogue's entry of a model."""
    return catalogue().models[model]


@contextmanager
def bench(
    model: str, dataset: str, folder: Path, *, aligned: bool = False, mended: bool = False, **overrides: Any
) -> Iterator[Bench]:
    """A bench with one seed, small layers and short sequences, ready to train inside the block."""
    from MMSA.utils import setup_seed

    small = {name: value for name, value in small_settings(model).items() if name != "max_epochs"}
    args = EasyDict(copy.deepcopy(resolve(model, dataset, overrides={**small, **overrides}).settings))
    if args.get("use_bert"):
        args.pretrained = str(write_encoder(folder / "encoder"))
    args.update(device=torch.device("cpu"), train_mode="regression", cur_seed=1, model_save_path=folder / "best.pth",
                num_classes=3)
    features = load_features(write_features(folder, dataset, aligned=aligned), {})
    splits = make_splits(args, features)
    setup_seed(1)
    loaders = make_loaders(args, splits, seed=1)
    with active(), repaired(entry(model), mended):
        import MMSA.run

        with contextlib.redirect_stdout(io.StringIO()):
            fresh = copy.deepcopy(args)  # building a model changes the settings
            yield Bench(MMSA.run.AMIO(args), MMSA.run.ATIO().getTrain(args), args, splits, loaders, fresh)
