"""``mmsa list --check MODEL``: the checks of checks.py run on one model, shown, and judged as a whole.

Here is what surrounds the checks: the tiny file and encoder, what is known of MMSA's own models, progress and the
table. A fault that faults.py knows of a model as it is shipped is flagged where it would fail.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .catalogue import catalogue, find_dataset, find_model
from .checks import CHECKS, SAMPLES, Bench, Verdict, failed, flagged, text_of
from .config import resolve
from .datasets import metrics_family
from .faults import faults_of
from .job import Job, prepare
from .needs import has_unimodal_weights
from .probe import quiet
from .progress import stderr_console
from .runner import session
from .tiny import write_tiny_encoder, write_tiny_file


@dataclass(frozen=True)
class Result:
    """One check of one model."""

    name: str
    status: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything that was found out about a model on a data set's layout."""

    model: str
    source: str
    dataset: str
    results: list[Result]

    def with_status(self, status: str) -> list[str]:
        """Names of the checks that ended so."""
        return [result.name for result in self.results if result.status == status]

    @property
    def conforms(self) -> bool:
        """Whether nothing failed."""
        return not self.with_status("failed")


def check_model(
    model: str, dataset: str | None = None, *, pretrained: str | None = None, names: Iterable[str] | None = None
) -> Report:
    """Run the checks, or those in ``names``, on one model.

    dataset: whose layout and settings to take (default: the first that the model has settings for). pretrained:
    a folder with a text encoder; a tiny random one is made where the model wants one and none is given.
    Raises InputError for an unknown model or data set, and for a combination that the harness refuses.
    """
    known = catalogue()
    entry = find_model(known, model)
    dataset = find_dataset(known, dataset) if dataset else next(iter(entry.datasets(known.datasets)), "mosi")
    with tempfile.TemporaryDirectory(prefix="mmsa-check-") as name, quiet():
        folder = Path(name)
        write, job = _job(entry.name, dataset, pretrained, folder)
        with session(job) as bars:
            results = list(_run(Bench(job, folder, write, bars), list(CHECKS if names is None else names)))
    return Report(entry.name, entry.source, dataset, results)


def print_report(report: Report, console: Console) -> None:
    """A row for each check, and what came out in one line."""
    table = Table(title=f"{report.model} ({report.source}), layout of {report.dataset}", title_justify="left")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("detail", overflow="fold")
    for result in report.results:
        table.add_row(result.name, f"[{_COLOURS[result.status]}]{result.status}[/]", escape(result.detail))
    console.print(table)
    counts = [f"{len(names)} {status}" for status in _COLOURS if (names := report.with_status(status))]
    seconds = sum(result.seconds for result in report.results)
    console.print(f"{', '.join(counts)} in {seconds:.0f} s", highlight=False)


def report_document(report: Report) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"schema_version": 1, "model": report.model, "source": report.source, "dataset": report.dataset,
            "conforms": report.conforms, "checks": [asdict(result) for result in report.results]}


# Check -> the faults of faults.py that show in it.
_EXPLAINED_BY = {
    "batch composition": ("batch_as_time",),
    "checkpoint in a new process": ("untrained_graph_networks",),
    "every parameter trained": ("untrained_rank_weights", "untrained_entropy_projection"),
}
_COLOURS = {"passed": "green", "flagged": "yellow", "failed": "red", "skipped": "dim"}


def _job(model: str, dataset: str, pretrained: str | None, folder: Path) -> tuple[Callable[..., Path], Job]:
    """The job on the tiny file, and the function that writes variants of it."""
    settings = resolve(model, dataset).settings
    if settings.get("use_bert") and pretrained is None:
        pretrained = str(write_tiny_encoder(folder / "encoder"))
    family = metrics_family(dataset)
    unimodal = family == "sims" or dataset == "synthetic" or has_unimodal_weights(settings)
    write = partial(write_tiny_file, settings=settings, samples=SAMPLES, limit=1.0 if family == "sims" else 3.0,
                    unimodal=unimodal, classes=settings.get("label_names", ()))
    job = prepare(model, dataset, feature_file=write(folder / "tiny.pkl"), pretrained=pretrained, device="cpu",
                  verbose=0, **{f"{name}_dir": folder / name for name in ("model_save", "res_save", "log")})
    return write, job


def _run(bench: Bench, names: list[str]) -> Iterator[Result]:
    """The results of the checks, one after another; without a training there is nothing that others could look at."""
    console, hopeless = stderr_console(), False
    for number, name in enumerate(names, start=1):
        if hopeless:
            yield Result(name, "skipped", "the model does not train", 0.0)
            continue
        began = time.perf_counter()
        text = f"check {number} of {len(names)}: {name}"
        if console.is_terminal:
            with console.status(text):
                verdict = _verdict(bench, name)
        else:
            console.print(text, markup=False)
            verdict = _verdict(bench, name)
        hopeless = name == "trains" and verdict.status == "failed"
        yield Result(name, verdict.status, verdict.detail, round(time.perf_counter() - began, 2))


def _verdict(bench: Bench, name: str) -> Verdict:
    try:
        verdict = CHECKS[name](bench)
    except (Exception, SystemExit) as error:  # a stranger's model may fail in any way
        return failed(text_of(error))
    known = [fault.text for fault in faults_of(bench.job.resolved.model) if fault.name in _EXPLAINED_BY.get(name, ())]
    if known and verdict.status != "passed":
        return flagged(f"{verdict.detail} (known of it: {'; '.join(known)})")
    return verdict
