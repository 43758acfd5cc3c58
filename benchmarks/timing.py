"""How the benchmarks measure: two pieces of work in alternation, and the peak memory of one in a process of its own.
Also how they say where they ran and store what they found.

The clock starts after `prepare` and stops when the device has finished. Two contenders take turns (A, B, A, B, ...), so
that a machine that slows down for a while slows down both; the figure is the median over the pairs of the ratio within
a pair, with its quartiles. May change: how things are measured, but then every file in results/ is measured anew.
"""

from __future__ import annotations

import datetime
import gc
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmsa_decalign.harness import machine

ROOT = Path(__file__).resolve().parents[1]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


class Comparison(NamedTuple):
    """Seconds of both, and seconds of the second over seconds of the first, pair by pair."""

    ours: Spread
    theirs: Spread
    ratio: Spread
    pairs: int
    fastest: float  # ratio of the fastest calls of both: what remains where other work disturbs most pairs


class Peak(NamedTuple):
    """Bytes that a process held at most: with all that was loaded and prepared, and after the call."""

    before: int
    total: int


def spread(numbers: list[float]) -> Spread:
    """Median and quartiles of some numbers."""
    low, median, high = np.quantile(numbers, [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


def seconds(call: Callable[..., Any], prepare: Callable[[], tuple[Any, ...]] = tuple) -> float:
    """Wall clock of `call(*prepare())` without `prepare`; a GPU has to be done before and after."""
    arguments = prepare()
    _synchronise()
    start = time.perf_counter()
    call(*arguments)
    _synchronise()
    return time.perf_counter() - start


def measure(
    call: Callable[..., Any], prepare: Callable[[], tuple[Any, ...]] = tuple, *, repeats: int = 20, warm_up: int = 3
) -> Spread:
    """Seconds of one piece of work, for curves; `prepare` makes the arguments anew before each call, off the clock."""
    with _no_collection():
        for _ in range(warm_up):
            seconds(call, prepare)
        return spread([seconds(call, prepare) for _ in range(repeats)])


def alternate(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    prepare_ours: Callable[[], tuple[Any, ...]] = tuple,
    prepare_theirs: Callable[[], tuple[Any, ...]] = tuple,
    *,
    pairs: int = 20,
    warm_up: int = 3,
) -> Comparison:
    """Time two pieces of work in turns; `warm_up` pairs go before those that count."""
    with _no_collection():
        both = [(seconds(ours, prepare_ours), seconds(theirs, prepare_theirs)) for _ in range(warm_up + pairs)]
    return compare(both[warm_up:])


def compare(pairs: Sequence[tuple[float, float]]) -> Comparison:
    """What pairs of seconds, ours and theirs, come to."""
    ours, theirs = (list(times) for times in zip(*pairs, strict=True))
    ratios = [b / a for a, b in pairs]
    return Comparison(spread(ours), spread(theirs), spread(ratios), len(pairs), min(theirs) / min(ours))


def peak_memory(script: str | Path, function: str, **arguments: Any) -> Peak:
    """Peak memory of a call in a fresh process with the threads of this one.

    `function` of the file `script` gets the arguments (anything JSON can hold) and returns the call to be measured.
    """
    order = json.dumps({"script": str(script), "function": function, "arguments": arguments})
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, __file__, order], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{function} of {script} failed in its own process:\n{done.stderr}")
    return Peak(*json.loads(done.stdout.splitlines()[-1]))


def surroundings() -> dict[str, Any]:
    """Machine, date, commit, versions and threads, for the top of a file of results."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": machine.git_commit(ROOT),
        "machine": _processor(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": machine.versions(),
    }


def in_words(about: dict[str, Any]) -> str:
    """Surroundings for the head of a table."""
    return (
        f"{about['machine']}, {about['processors']} processors, load {about['load']}, {about['date']}, commit "
        f"{about['commit']}, torch {about['versions']['torch']}"
    )


def milliseconds(of: Spread, digits: int = 1) -> str:
    """Seconds as "12.3 (11.9 to 13.0)", in ms."""
    median, low, high = (f"{1e3 * x:.{digits}f}" for x in of)
    return f"{median} ({low} to {high})"


def store(folder: Path, name: str, text: str, document: dict[str, Any]) -> None:
    """Write a table as `name`.md and the figures behind it as `name`.json; ValueError for one that is not a number."""
    stored = json.dumps(document, indent=1, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / f"{name}.json").write_text(stored + "\n", encoding="utf-8")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's collector stays out of the measurement, as in `timeit`."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    """Name of the processor where the system tells, else its family."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _most_memory() -> int:
    """Bytes this process has held at most.

    VmHWM where there is one: ru_maxrss of a child can be that of the process which started it.
    """
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _main(order: str) -> None:
    """In the process of its own: load the script, prepare, call once, print what was held."""
    what = json.loads(order)
    sys.path.insert(0, str(Path(what["script"]).resolve().parent))
    spec = importlib.util.spec_from_file_location("measured", what["script"])
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    call = getattr(module, what["function"])(**what["arguments"])
    before = _most_memory()
    call()
    print(json.dumps([before, _most_memory()]))


if __name__ == "__main__":
    _main(sys.argv[1])
