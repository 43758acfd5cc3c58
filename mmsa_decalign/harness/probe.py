"""One training seen from outside, and the predictions of any model through its own trainer.

The runner trains as it does for a user; what it builds is noted at the two names of MMSA that it builds with. Run as a
module this file is the other end of a round trip: it loads a checkpoint in a process that never trained, and predicts.
"""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import RunError
from .compat import overlaid
from .datasets import load_features, make_splits
from .encoders import quiet_transformers
from .job import Job
from .registry import active
from .training import train_and_test
from .watch import LoaderView

_CHILD_SECONDS = 300


class Trial:
    """One training, ``train()``, and what was seen of it. Settings and features that do not fit raise InputError.

    record: what the runner returns. args: what model and trainer were built from. before: the state dict before the
    first step; ``model`` holds that of the checkpoint. saved: whether the trainer wrote a checkpoint (its last state
    takes its place if not, so that more can be said of it). read_test: whether training read the test split.
    """

    def __init__(self, job: Job, features: Any, seed: int, settings: Mapping[str, Any]) -> None:
        self.job, self.features, self.seed, self.settings = job, features, seed, settings
        self.splits = make_splits(settings, features)
        self.record: dict[str, Any] = {}
        self.model: Any = None
        self.trainer: Any = None
        self.args: dict[str, Any] = {}
        self.before: dict[str, Any] | None = None
        self.saved = self.read_test = False

    def train(self, max_epochs: int, show: Any = iter) -> Trial:
        """Train and test as the runner does; returns itself."""
        with self._observed(), quiet():
            self.record = train_and_test(self.job, self.features, self.splits, self.seed, 1, show,
                                         settings=self.settings, max_epochs=max_epochs)
        return self

    def predict(self, batches: Sequence[Mapping[str, Any]]) -> Any:
        """Predictions (N, ...) of the chosen checkpoint, in the order of the batches."""
        with quiet():
            return predict(self.model, self.trainer, batches)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        import MMSA.run

        build, trainers = MMSA.run.AMIO, MMSA.run.ATIO

        def build_model(args: Any) -> Any:
            self.args = copy.deepcopy(dict(args))
            self.model = build(args)
            return self.model

        def get_trainer(args: Any) -> Any:
            self.trainer = trainers().getTrain(args)
            train = self.trainer.do_train
            self.trainer.do_train = lambda model, loaders, *more, **named: self._train(
                train, model, loaders, *more, **named)
            return self.trainer

        with (overlaid(MMSA.run, "AMIO", build_model),
              overlaid(MMSA.run, "ATIO", lambda: SimpleNamespace(getTrain=get_trainer))):
            yield

    def _train(self, train: Callable[..., Any], model: Any, loaders: Any, *more: Any, **named: Any) -> Any:
        import torch

        self.before = state_of(model)
        test = _Unsealed(loaders["test"])
        checkpoint = Path(self.args["model_save_path"])
        try:
            return train(model, {**loaders, "test": test}, *more, **named)
        finally:  # the runner ends a training with an exception
            self.read_test, self.saved = test.read, checkpoint.exists()
            if not self.saved:
                torch.save(model.state_dict(), checkpoint)


class _Unsealed(LoaderView):
    """The test split, open during training: notes that it was read instead of ending the run."""

    read = False

    def __iter__(self) -> Iterator[Any]:
        self.read = True
        self._loader.open()
        return iter(self._loader)


def state_of(model: Any) -> dict[str, Any]:
    """A copy of the model's state dict, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def batches_of(split: Any, size: int, order: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """The samples of a split in batches of ``size``, in the file's order or the one given."""
    order = list(range(len(split)) if order is None else order)
    return [split[order[start:start + size]] for start in range(0, len(order), size)]


def predict(model: Any, trainer: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
    """What ``trainer.do_test`` predicts for the samples of ``batches``, (N, ...), in their order.

    That is the model's output "M", as a plugin's model returns it; of a model that returns something else (some of
    MMSA's) it is what the trainer hands to its metrics. Raises RunError where neither has a row per sample.
    """
    import torch

    samples, outputs, measured = sum(len(batch["id"]) for batch in batches), [], []

    def note(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, Mapping) and isinstance(output.get("M"), torch.Tensor):
            outputs.append(torch.atleast_1d(output["M"].detach().cpu().clone()))

    with ExitStack() as stack:
        stack.callback(model.register_forward_hook(note).remove)
        metrics = getattr(trainer, "metrics", None)
        if callable(metrics):

            def measure(predictions: Any, labels: Any, *more: Any) -> Any:
                measured.append(predictions.detach().cpu().clone())
                return metrics(predictions, labels, *more)

            stack.enter_context(overlaid(trainer, "metrics", measure))
        trainer.do_test(model, batches, mode="TEST")
    for parts in (outputs, measured[:1]):
        if sum(map(len, parts)) == samples:
            return torch.cat(parts)
    raise RunError(f"do_test on {samples} samples: expected the model's output 'M' to have a row for each of them, "
                   f"got {sum(map(len, outputs))}")


@contextmanager
def quiet() -> Iterator[None]:
    """No printing, no warnings and no progress bars of transformers: what a check shows is its verdict."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), quiet_transformers():
        warnings.simplefilter("ignore")
        yield


def predict_in_new_process(trial: Trial, job: Job, batch_size: int, folder: Path) -> Any:
    """Predictions on the test split from the checkpoint of ``trial``, by a Python that starts with another seed.

    Whatever the model needs and the checkpoint lacks is then another. Raises RunError if that process fails.
    """
    import torch

    request, answer = folder / "request.pkl", folder / "answer.pt"
    request.write_bytes(pickle.dumps({
        "args": trial.args, "checkpoint": trial.record["checkpoint"], "seed": trial.record["seed"] + 1,
        "features": job.feature_file, "batch_size": batch_size, "threads": torch.get_num_threads(),
        "built_in": job.resolved.model.plugin is None, "answer": answer,
    }))
    command = [sys.executable, "-m", __name__, str(request)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHILD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"the new process was not done after {_CHILD_SECONDS} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"the new process failed: {reason}")
    return torch.load(answer, weights_only=True)


def _answer(request: Mapping[str, Any]) -> None:
    """The other end of ``predict_in_new_process``."""
    import MMSA.run
    import torch
    from easydict import EasyDict
    from MMSA.utils import setup_seed

    torch.set_num_threads(request["threads"])
    with active(), quiet():
        setup_seed(request["seed"])
        args = EasyDict(request["args"])
        model = MMSA.run.AMIO(args).to(args.device)
        trainer = MMSA.run.ATIO().getTrain(args)
        if request["built_in"]:
            trainer.model = model  # some of MMSA's trainers test the model that they were last given for training
        model.load_state_dict(torch.load(request["checkpoint"], map_location=args.device, weights_only=True))
        split = make_splits(args, load_features(request["features"], {}))["test"]
        torch.save(predict(model, trainer, batches_of(split, request["batch_size"])), request["answer"])


if __name__ == "__main__":
    _answer(pickle.loads(Path(sys.argv[1]).read_bytes()))
