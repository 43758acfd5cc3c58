"""Whether `torch.compile` pays on a CPU: a training step with the transformers compiled and without, in alternation.

    python benchmarks/compiled.py [--datasets mosi iemocap] [--pairs 10] [--out benchmarks/results]

Under a compiler `kernels.py` and `attention.py` call torch's own functions, which is what inductor can fuse. The time
of the first step, which compiles, is given too: divided by what a later step gains, it is the break-even.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from step import WORK, batch_of, our_model, our_step, settings_of
from timing import alternate, in_words, milliseconds, store, surroundings, threads

from mmsa_decalign import model as model_module


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["mosi", "iemocap"], choices=WORK)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    about, plain, found = surroundings(), model_module.fuse, {}
    compiled = torch.compile(plain, dynamic=False)
    lines = [f"{in_words(about)}, one thread. Medians in ms (quartiles); above 1 compiling pays.", "",
             "| step | as it is, ms | compiled, ms | as it is / compiled | first compiled step, s |",
             "| --- | --- | --- | --- | --- |"]
    with threads(1):
        for dataset in arguments.datasets:
            torch.manual_seed(0)
            config = settings_of(None, dataset)
            batch = batch_of(config, *WORK[dataset], "cpu")
            step = our_step(our_model(config, None, "cpu"), batch, "cpu")

            def run(fuse, step=step):
                model_module.fuse = fuse
                try:
                    step()
                finally:
                    model_module.fuse = plain

            began = time.perf_counter()
            run(compiled)
            first = time.perf_counter() - began
            pair = alternate(lambda run=run: run(compiled), lambda run=run: run(plain), pairs=arguments.pairs)
            found[dataset] = pair._asdict() | {"first": first}
            lines.append(f"| {dataset.upper()} settings | {milliseconds(pair.theirs)} | {milliseconds(pair.ours)} | "
                         f"{pair.ratio} | {first:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    store(arguments.out, "compiled", text, {"about": about, "results": found})


if __name__ == "__main__":
    main()
