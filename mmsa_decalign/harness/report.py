"""Results for people: the table of a run, and the list of models and data sets. Printed on standard output."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .config import STANDS_FOR, Catalogue, Model
from .metrics import LOWER_IS_BETTER, metric_rules


def run_document(outcome: Any) -> dict[str, Any]:
    """What ``--json`` prints after a run: the records, their summary, and where everything is."""
    job = outcome.job
    return {
        "schema_version": 1,
        "model": job.model,
        "dataset": job.dataset,
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
    table = Table(title=f"{job.model} on {job.dataset}, test split", title_justify="left")
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
    if any(value is None for record in records for value in record["test"].values()):
        lines.append("none: not a number on these predictions, as Corr is when all of them are equal")
    return "\n".join(lines)


def print_search(search: Any, console: Console) -> None:
    """The best trials of a search with the figures they were ranked by, and the options that repeat the first."""
    job = search.job
    best = "lowest" if search.mode == "min" else "highest"
    table = Table(title=f"{job.model} on {job.dataset}: best trials, validation split", title_justify="left")
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
        lines.append(f"use it: mmsa -m {job.model} -d {job.dataset} " + " ".join(map(_quoted, chosen)))
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)


def catalogue_document(known: Catalogue) -> dict[str, Any]:
    """What ``mmsa list --json`` prints."""
    return {
        "schema_version": 1,
        "models": [
            {"name": model.name, "source": model.source, "datasets": model.datasets(known.datasets),
             "needs": needs(model), "summary": model.plugin.summary if model.plugin else None, "error": model.error}
            for model in known.models.values()
        ],
        "datasets": [
            {"name": name, "source": known.dataset_sources[name], "files": dataset_files(section),
             "settings_of": STANDS_FOR.get(name, name)}
            for name, section in known.datasets.items()
        ],
    }


def print_catalogue(known: Catalogue, console: Console) -> None:
    """Models with their source, data sets and needs, then data sets with their feature files."""
    document = catalogue_document(known)
    models = Table(title="models (-m)", title_justify="left")
    for column in ("name", "from", "data sets", "needs"):
        models.add_column(column, overflow="fold")
    for model in document["models"]:
        if model["error"]:
            wants = f"cannot be loaded: {model['error']}"
        else:
            wants = "; ".join(model["needs"]) or "nothing special"
        models.add_row(model["name"], model["source"], " ".join(model["datasets"]) or "none", wants)
    console.print(models)
    datasets = Table(title="data sets (-d)", title_justify="left")
    for column in ("name", "from", "feature file below the data root"):
        datasets.add_column(column, overflow="fold")
    for dataset in document["datasets"]:
        files = "; ".join(f"{kind}: {path}" for kind, path in dataset["files"].items())
        datasets.add_row(dataset["name"], dataset["source"], files)
    console.print(datasets)


# MMSA's models that the tests train and test; the others may stop at a fault of MMSA that is not mended yet.
TESTED = ("tfn", "lmf", "lf_dnn", "mfn", "ef_lstm", "graph_mfn", "mfm")


def needs(model: Model) -> list[str]:
    """What a model asks of the data, read off its settings."""
    if model.error is not None:
        return []
    common = model.section.get("commonParams", {})
    some = next(iter(model.section.get("datasetParams", {}).values()), {})
    settings = {**common, **some}
    found = []
    if settings.get("need_data_aligned"):
        if model.plugin is not None:
            found.append("reads the aligned file where there is one")
        else:
            pooled = settings.get("need_model_aligned")
            found.append("aligned features (others are averaged down)" if pooled else "aligned features")
    if settings.get("use_bert"):
        found.append("token ids (text_bert)")
    if "pretrained" in settings and (settings.get("use_bert") or model.plugin is None):
        found.append("a text encoder" if settings.get("use_bert") else "a text encoder with use_bert=true")
    if settings.get("data_missing"):
        found.append("incomplete data (not supported yet)")
    if {"M", "T", "A", "V"} <= set(settings):
        found.append("unimodal labels")
    if model.plugin is None and model.name not in TESTED:
        found.append("not tested here yet on today's torch")
    return found + list(model.plugin.needs if model.plugin else ())


def dataset_files(section: Mapping[str, Any]) -> dict[str, str]:
    """Kind (aligned, unaligned) -> feature file relative to the data root."""
    return {kind: part["featurePath"] for kind, part in section.items() if isinstance(part, Mapping)}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _quoted(option: str) -> str:
    name, _, value = option.partition(" ")
    return f"{name} {shlex.quote(value)}"
