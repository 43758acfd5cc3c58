"""Where a training step's time goes, its arithmetic in FLOP, and how far it is from what this machine could do.

    python benchmarks/profile_step.py [--threads 1] [--repeats 20] [--out benchmarks/results]

Each part of the model runs forward and backward by itself, on inputs cut from the graph, so that the parts need not add
up to the step exactly. The floor is the arithmetic of all matrix products divided by the speed of this machine's at the
shapes of the step: nothing that computes them in the same precision can be faster. May change with the model's parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import WORK, batch_of, our_model, our_step, settings_of
from timing import in_words, measure, milliseconds, store, surroundings, threads
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmsa_decalign import DecAlign, objective
from mmsa_decalign.kernels import linear
from mmsa_decalign.masking import masked_mean
from mmsa_decalign.ops import decoupling_loss, hetero_loss, homo_loss
from mmsa_decalign.trainer import _optimizer


def leaf(x: Tensor) -> Tensor:
    """The same numbers, cut from the graph."""
    return x.detach().requires_grad_()


def backward(of: Any) -> None:
    """Backward from the sum of some tensors, with gradients as they come in a step: numbers in memory of their own."""
    of = list(of)
    torch.autograd.backward(of, [torch.ones_like(one) for one in of])


def parts(model: DecAlign, batch: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Each part of a step as a call that runs it forward and backward."""
    s = model.settings
    names = s.modalities
    raw = {m: batch[m] for m in names}
    x, valid, _ = model._encode(raw, {})
    x = {m: leaf(one) for m, one in x.items()}
    unique = {m: leaf(linear(one, model.unique[m].weight)) for m, one in x.items()}
    common = {m: leaf(linear(one, model.common.weight)) for m, one in x.items()}
    pooled = [leaf(masked_mean(one, valid[m])) for m, one in unique.items()]
    mapped = [leaf(masked_mean(one, valid[m])) for m, one in common.items()]
    out = model(*raw.values())
    labels = batch["labels"]["M"]
    representation = leaf(out["Feature_f"])
    optimizer = _optimizer(model, s)

    def objective_alone() -> Tensor:
        fresh = {"M": model.head(model.output_dropout(representation)), "Feature_f": representation, "terms": terms}
        parts = objective(fresh, labels, s)
        parts.numbers()
        return parts.total

    losses = ("decoupling", "hetero", "homo")
    terms = out["terms"]._replace(**{name: getattr(out["terms"], name).detach() for name in losses})
    return {
        "standardise and project": lambda: backward(model._encode(raw, {})[0].values()),
        "unique and common": lambda: backward(
            [linear(one, w) for m, one in x.items() for w in (model.unique[m].weight, model.common.weight)]
        ),
        "transformers": lambda: backward(model._fuse(unique, valid, None).values()),
        "decoupling loss": lambda: decoupling_loss(list(unique.values()), list(common.values())).backward(),
        "heterogeneity loss": lambda: hetero_loss(
            pooled, n_components=s.num_prototypes, reg=s.ot_reg, n_iter=s.gmm_em_iters, tol=s.ot_tol
        ).value.backward(),
        "homogeneity loss": lambda: homo_loss(
            [model.distribution[m](z) for m, z in zip(names, mapped, strict=True)], bandwidth=s.mmd_bandwidth
        ).value.backward(),
        "averages": lambda: backward([masked_mean(one, valid[m]) for m, one in (unique | common).items()]),
        "head and objective": lambda: objective_alone().backward(),
        "clipping": lambda: nn.utils.clip_grad_norm_(model.parameters(), s.clip),
        "optimiser": optimizer.step,
    }


def flop(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products of a call; torch's counter does not know oneDNN's."""
    before = torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        with FlopCounterMode(display=False) as counter:
            call()
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before[0])
    return counter.get_total_flops()


def product_speed(rows: int, d: int, device: str) -> dict[str, float]:
    """FLOP per second of a product at the step's most frequent shape, (rows, d) with (4 d, d): torch's and ours."""
    x, w = torch.randn(rows, d, device=device), torch.randn(4 * d, d, device=device)
    work = 2 * rows * d * 4 * d
    with torch.no_grad():
        return {name: work / measure(lambda f=f: f(x, w), repeats=50).median for name, f in
                (("torch", F.linear), ("kernels.linear", linear))}


def profile(dataset: str, repeats: int, device: str) -> dict[str, Any]:
    """Parts, whole step, arithmetic and floor for the settings of a data set."""
    torch.manual_seed(0)
    config = settings_of(None, dataset)
    model = our_model(config, None, device)
    samples, steps = WORK[dataset]
    batch = batch_of(config, samples, steps, device)
    step = our_step(model, batch, device)
    whole = measure(step, repeats=repeats)
    found = {name: measure(call, repeats=repeats) for name, call in parts(model, batch).items()}
    speed = product_speed(samples * steps, model.settings.d_model, device)
    work = flop(step)
    return {
        "step": whole, "parts": found, "flop": {name: flop(call) for name, call in parts(model, batch).items()},
        "flop of the step": work, "speed": speed, "floor": work / max(speed.values()),
    }


def markdown(about: dict[str, Any], found: dict[str, dict[str, Any]]) -> str:
    """A table per data set's settings."""
    lines = [
        f"{in_words(about)}, {about['threads']} thread(s), device {about['device']}. Medians.",
        "", "No CUDA device was at hand: figures for one are missing." if about["gpu"] is None else "",
    ]
    for dataset, one in found.items():
        whole, total = one["step"], sum(part.median for part in one["parts"].values())
        speeds = ", ".join(f"{speed / 1e9:.0f} by {name}" for name, speed in one["speed"].items())
        lines += [
            "", f"## {dataset.upper()} settings", "",
            f"Step {milliseconds(whole, 2)} ms; matrix products {one['flop of the step'] / 1e9:.2f} GFLOP, this "
            f"machine's speed {speeds} GFLOP/s: floor {one['floor'] * 1e3:.1f} ms, the step takes "
            f"{whole.median / one['floor']:.1f} times that.", "",
            "| part, forward and backward | ms (quartiles) | share of the parts | GFLOP |", "| --- | --- | --- | --- |",
        ]
        for name, part in one["parts"].items():
            share, work = part.median / total, one["flop"][name] / 1e9
            lines.append(f"| {name} | {milliseconds(part, 2)} | {share:.0%} | {work:.3f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with threads(arguments.threads):
        about = surroundings() | {"device": arguments.device}
        found = {dataset: profile(dataset, arguments.repeats, arguments.device) for dataset in WORK}
    text = markdown(about, found)
    print(text)
    store(arguments.out, "profile_step", text, {"about": about, "results": found})


if __name__ == "__main__":
    main()
