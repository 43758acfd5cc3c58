"""Training step, inference and epoch: how much faster than the authors' release, in alternation in one process.

    python benchmarks/step.py --release DIR [--fold fold0.pkl] [--threads 1 2] [--pairs 20] [--out benchmarks/results]

Both get the same weights, batch, rates of dropout and numbers of threads. A step is forward, loss, backward, clipping
and optimiser, as each one's own training loop has it. Without --release only our absolute times are measured; without
--fold no epoch. On a machine with a CUDA device, --device cuda.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from epoch import Epochs
from peer import Release
from rich.progress import track
from timing import Comparison, Spread, alternate, in_words, measure, milliseconds, store, surroundings, threads
from torch import Tensor, nn

from mmsa_decalign import DecAlign, from_release
from mmsa_decalign.release import release_settings
from mmsa_decalign.trainer import DecAlignTrainer, _optimizer
from mmsa_decalign.training_state import Account, Training

WORK = {"iemocap": (32, 1), "mosi": (32, 50), "mosei": (128, 50)}  # samples and steps of a batch
GOALS = {
    "step, IEMOCAP settings": (4, 8), "step, MOSI settings": (2.5, 4), "step, MOSEI settings": (2.5, 4),
    "inference, MOSI settings": (3, 5), "run of one epoch, MOSI fold": (3, 6), "further epoch, MOSI fold": (3, 6),
}  # fmt: skip
# What glibc's allocator is told, if anything: by default it gives memory back after each step, to be zeroed once more.
ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD", "GLIBC_TUNABLES")


def settings_of(release: Release | None, dataset: str) -> dict[str, Any]:
    """The release's own settings for a data set, or what ours make of them where there is no checkout."""
    if release is not None:
        return vars(release.arguments(dataset))
    return copy.deepcopy(WITHOUT_A_CHECKOUT[dataset])


WITHOUT_A_CHECKOUT: dict[str, dict[str, Any]] = {
    "iemocap": {
        "train_mode": "classification", "num_classes": 6, "feature_dims": [1024, 512, 1024], "num_prototypes": 6,
        "dst_feature_dim_nheads": [48, 4], "nlevels": 4, "batch_size": 32, "learning_rate": 1e-4, "ct_weight": 0.0,
        "attn_dropout": 0.2, "attn_dropout_a": 0.2, "attn_dropout_v": 0.2, "relu_dropout": 0.2, "embed_dropout": 0.2,
        "res_dropout": 0.2, "output_dropout": 0.2, "text_dropout": 0.2,
    },
    "mosi": {"feature_dims": [768, 5, 20], "dst_feature_dim_nheads": [64, 8], "attn_dropout": 0.1},
    "mosei": {
        "feature_dims": [768, 74, 35], "dst_feature_dim_nheads": [64, 8], "nlevels": 4, "batch_size": 128,
        "attn_dropout": 0.125, "attn_dropout_a": 0.125, "attn_dropout_v": 0.125, "relu_dropout": 0.125,
        "embed_dropout": 0.125, "res_dropout": 0.125, "output_dropout": 0.125, "text_dropout": 0.125,
        "conv1d_kernel_size_l": 5, "conv1d_kernel_size_a": 5, "conv1d_kernel_size_v": 5, "alpha": 0.005, "beta": 0.0,
    },
}  # fmt: skip


def batch_of(config: dict[str, Any], samples: int, steps: int, device: str) -> dict[str, Any]:
    """A batch of noise in the layout of MMSA's loaders."""
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(samples, steps, width, generator=draw).to(device) for width in config["feature_dims"]]
    labels = torch.randn(samples, 1, generator=draw)
    if config.get("train_mode") == "classification":
        labels = torch.randint(config["num_classes"], (samples, 1), generator=draw).float()
    return dict(zip(("text", "audio", "vision"), inputs, strict=True)) | {"labels": {"M": labels.to(device)}}


def our_model(config: dict[str, Any], weights: dict[str, Tensor] | None, device: str) -> DecAlign:
    """Our model in the settings `config`, with the stable solver, and in the release's weights, if any."""
    if weights is None:
        model = DecAlign(release_settings(config | {"solver": "log"}))
    else:
        model = from_release(weights, **config, solver="log")
    return model.to(device).train()


def our_step(model: DecAlign, batch: dict[str, Any], device: str) -> Callable[[], Any]:
    """One step of our trainer, with all that it does in one: its loop over a loader of a single batch, in one of the
    epochs that do not measure gradients by term."""
    trainer = DecAlignTrainer({"device": device}, metrics=None)
    trainer.settings = model.settings
    training = Training(model, _optimizer(model, model.settings), None, [])

    def step() -> Any:
        training.account = Account()
        return trainer._train_epoch(training, [batch], None, epoch=3)

    return step


def their_step(release: Release, dataset: str, model: nn.Module, batch: dict[str, Any]) -> Callable[[], Any]:
    """One step of the release's training loop."""
    args = release.arguments(dataset)
    total = release.total_loss(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    inputs, labels = [batch[m] for m in ("text", "audio", "vision")], batch["labels"]["M"]

    def step() -> float:
        model.zero_grad()
        loss = total(model(*inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        return loss.item()

    return step


def prediction(model: nn.Module, batch: dict[str, Any]) -> Callable[[], Any]:
    """Inference on the batch."""
    inputs = [batch[m] for m in ("text", "audio", "vision")]

    def predict() -> Any:
        with torch.no_grad():
            return model(*inputs)

    return predict


def rows(release: Release | None, fold: Path | None, pairs: int, device: str) -> dict[str, Comparison | Spread]:
    """Every row of the table with the threads that are set."""
    found: dict[str, Comparison | Spread] = {}

    def compare(name: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None, number: int = pairs) -> None:
        if theirs is None:
            found[name] = measure(ours, repeats=number)
        else:
            found[name] = alternate(ours, theirs, pairs=number)

    for dataset, (samples, steps) in track(WORK.items(), f"steps, {torch.get_num_threads()} thread(s)"):
        torch.manual_seed(0)
        config = settings_of(release, dataset)
        peer = None if release is None else release.model(dataset).to(device)
        model = our_model(config, None if peer is None else peer.state_dict(), device)
        batch = batch_of(config, samples, steps, device)
        label = f"{dataset.upper()} settings"
        theirs = None if peer is None else their_step(release, dataset, peer, batch)
        compare(f"step, {label}", our_step(model, batch, device), theirs)
        model.eval()
        theirs = None if peer is None else prediction(peer.eval(), batch)
        compare(f"inference, {label}", prediction(model, batch), theirs)
    if fold is not None:
        with tempfile.TemporaryDirectory() as scratch:
            epochs = Epochs(fold, Path(scratch), release, device)
            found |= epochs.rows(pairs)
    return found


def markdown(about: dict[str, Any], tables: dict[int, dict[str, Comparison | Spread]]) -> str:
    """The tables with what they were measured on."""
    lines = [
        f"{in_words(about)}, device {about['device']}, allocator {about['allocator'] or 'as it comes'}. Medians in ms "
        "(quartiles); the ratio is the median over pairs.", "",
        "No CUDA device was at hand: figures for one are missing, not estimated." if about["gpu"] is None else "", "",
        "| work | threads | release, ms | ours, ms | release / ours | goal |", "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, found in tables.items():
        for name, one in found.items():
            theirs, ours, ratio = "", one, ""
            if isinstance(one, Comparison):
                theirs, ours, ratio = milliseconds(one.theirs), one.ours, str(one.ratio)
            low, high = GOALS.get(name, ("", ""))
            goal = f"{low}, aim {high}" if low else ""
            lines.append(f"| {name} | {number} | {theirs} | {milliseconds(ours)} | {ratio} | {goal} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, help="checkout of github.com/taco-group/DecAlign")
    parser.add_argument("--fold", type=Path, help="feature file for the epoch, in MMSA's layout")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="step", help="of the files in --out")
    arguments = parser.parse_args()
    release = None if arguments.release is None else Release(arguments.release)
    about = surroundings() | {
        "device": arguments.device, "release": release and release.commit,
        "allocator": {name: os.environ[name] for name in ALLOCATOR if name in os.environ},
    }
    tables = {}
    for number in arguments.threads:
        with threads(number):
            tables[number] = rows(release, arguments.fold, arguments.pairs, arguments.device)
    text = markdown(about, tables)
    print(text)
    plain = {str(number): {name: one._asdict() for name, one in found.items()} for number, found in tables.items()}
    store(arguments.out, arguments.name, text, {"about": about, "results": plain})


if __name__ == "__main__":
    main()
