"""Results for people: the table of a run, and the list of models and data sets. Printed on standard output."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .config import STANDS_FOR, Catalogue
from .faults import faults_of
from .metrics import LOWER_IS_BETTER, metric_rules, why_no_number
from .needs import needs


def run_document(outcome: Any) -> dict[str, Any]:
    """What ``--json`` prints after a run: the records, their summary, and where everything is."""
    job = outcome.job
    return {
        "schema_version": 1,
        "model": job.model,
        "dataset": job.dataset,
        "mended": job.mended,
        "flags": outcome.records[0]["flags"],
        "seeds": list(job.seeds),
        "summary": outcome.summary,
        "spread": "population standard deviation over the seeds",
        "runs": outcome.records,
        "records": [str(path) for path in outcome.record_paths],
        "csv": str(outcome.csv) if outcome.csv else None,
    }


def print_outcome(outcome: Any, console: Console) -> None:
    """The metrics of the data set, mean and spread over the seeds, with the protocol under the table."""
    table = _results(outcome, outcome.records)
    if Measurement.get(console, console.options.update(width=10_000), table).maximum > console.width:
        table = _results(outcome, [])  # a seed's figures are in its record; names and digits must be whole
    console.print(table)
    console.print(_caption(outcome), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _results(outcome: Any, shown: Sequence[Mapping[str, Any]]) -> Table:
    """Mean and spread of every metric, and a column for each record in ``shown``."""
    job, several = outcome.job, len(outcome.records) > 1
    table = Table(title=f"{job.label} on {job.dataset}, test split", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ["mean", *(["std"] if several else []), *(f"seed\n{record['seed']}" for record in shown)]:
        table.add_column(name, justify="right", no_wrap=True)
    for name, item in outcome.summary.items():
        figures = [item["mean"], *([item["std"]] if several else []), *(record["test"][name] for record in shown)]
        table.add_row(name, *map(_number, figures))
    return table


def _caption(outcome: Any) -> str:
    job, records = outcome.job, outcome.records
    rules = metric_rules(job.dataset)
    lines = [f"{name}: {rules[name]}" for name in ("Has0_acc_2", "Non0_acc_2", "Mult_acc_2") if name in rules]
    lines.append(f"lower is better: {', '.join(name for name in outcome.summary if name in LOWER_IS_BETTER)}")
    selection = records[0]["selection"]
    best = "lowest" if selection["mode"] == "min" else "highest"
    epochs = ", ".join(str(record["selection"]["epoch"]) for record in records)
    lines.append(f"checkpoint: {best} validation {selection['metric']} (epoch {epochs}); test split read once")
    seeds = f"{len(records)} seeds; std: population standard deviation" if len(records) > 1 else "1 seed"
    samples = records[0]["features"]["samples"]
    lines.append(f"{seeds}; train/valid/test {samples['train']}/{samples['valid']}/{samples['test']}")
    row = f"row added to {outcome.csv}" if outcome.csv else "no row added to MMSA's table, see above"
    lines.append(f"records: {job.res_save_dir / 'runs'}; {row}")
    for name in outcome.summary:
        empty = [str(record["seed"]) for record in records if record["test"][name] is None]
        if empty:
            lines.append(f"{name}: none for seed {', '.join(empty)}, since {why_no_number(name)} there")
    return "\n".join([*lines, *_faults(job.model, records[0]["flags"])])


def _faults(model: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each fault of MMSA's model that has an effect on this result, or that was repaired for it."""
    lines = []
    for flag in found:
        if flag["repaired"]:
            lines.append(f"repaired for this result (--mended): in MMSA's {model} {flag['fault']}")
        else:
            remedy = " (--mended repairs it)" if flag["mendable"] else ""
            lines.append(f"as MMSA ships {model}: {flag['fault']}{remedy}")
    return lines


def print_search(search: Any, console: Console) -> None:
    """The best trials of a search with the figures they were ranked by, and the options that repeat the first."""
    job = search.job
    best = "lowest" if search.mode == "min" else "highest"
    table = Table(title=f"{job.label} on {job.dataset}: best trials, validation split", title_justify="left")
    for name in (search.metric, "settings"):
        table.add_column(name, overflow="fold")
    for trial in search.trials[:5]:
        table.add_row(_number(trial["valid"].get(search.metric)), json.dumps(trial["settings"]))
    console.print(table)
    lines = [f"ranked by the {best} validation {search.metric}, seed {job.seeds[0]}; unlike in MMSA the test split was "
             "not read", f"all trials: {search.csv}"]
    if search.trials and search.trials[0]["valid"]:
        chosen = (f"--set {key}={json.dumps(value, separators=(',', ':'))}"
                  for key, value in search.trials[0]["settings"].items())
        call = f"mmsa -m {job.model} -d {job.dataset} " + ("--mended " if job.mended else "")
        lines.append(f"use it: {call}" + " ".join(map(_quoted, chosen)))
    lines += _faults(job.model, search.flags)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def catalogue_document(known: Catalogue) -> dict[str, Any]:
    """What ``mmsa list --json`` prints."""
    return {
        "schema_version": 1,
        "models": [
            {"name": model.name, "source": model.source, "datasets": model.datasets(known.datasets),
             "needs": needs(model), "faults": [fault.document() for fault in faults_of(model)],
             "summary": model.plugin.summary if model.plugin else None, "error": model.error}
            for model in known.models.values()
        ],
        "datasets": [
            {"name": name, "source": known.dataset_sources[name], "files": dataset_files(section),
             "settings_of": STANDS_FOR.get(name, name)}
            for name, section in known.datasets.items()
        ],
    }


def print_catalogue(known: Catalogue, console: Console) -> None:
    """Models with their source, data sets, needs and faults, the faults in words, then data sets with their files."""
    document = catalogue_document(known)
    models = Table(title="models (-m)", title_justify="left")
    for column in ("name", "from", "data sets", "needs", "faults"):
        models.add_column(column, overflow="fold")
    marks: dict[str, str] = {}
    legend = []
    for model in document["models"]:
        if model["error"]:
            wants = f"cannot be loaded: {model['error']}"
        else:
            wants = "; ".join(model["needs"]) or "nothing special"
        for fault in model["faults"]:
            if fault["name"] not in marks:
                marks[fault["name"]] = ascii_lowercase[len(marks)]
                legend.append((marks[fault["name"]], fault))
        shown = " ".join(sorted(marks[fault["name"]] for fault in model["faults"]))
        models.add_row(model["name"], model["source"], " ".join(model["datasets"]) or "none", wants, shown)
    console.print(models)
    if legend:
        lines = ["faults of MMSA's models, kept so that numbers compare with published ones, and repaired by --mended:"]
        for mark, fault in legend:
            lines.append(f"  {mark}  {fault['fault']}" + ("" if fault["mendable"] else " (not repaired)"))
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    datasets = Table(title="data sets (-d)", title_justify="left")
    for column in ("name", "from", "feature file below the data root"):
        datasets.add_column(column, overflow="fold")
    for dataset in document["datasets"]:
        files = "; ".join(f"{kind}: {path}" for kind, path in dataset["files"].items())
        datasets.add_row(dataset["name"], dataset["source"], files)
    console.print(datasets)


def dataset_files(section: Mapping[str, Any]) -> dict[str, str]:
    """Kind (aligned, unaligned) -> feature file relative to the data root."""
    return {kind: part["featurePath"] for kind, part in section.items() if isinstance(part, Mapping)}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _quoted(option: str) -> str:
    name, _, value = option.partition(" ")
    return f"{name} {shlex.quote(value)}"
