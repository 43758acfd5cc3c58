"""Results for people: the table of a run, and the list of models and data sets. Printed on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from ..data.schema import SPLITS
from .absence import in_words
from .catalogue import STANDS_FOR, Catalogue, classes_of
from .faults import faults_of
from .metrics import LOWER_IS_BETTER, metric_rules, why_no_number
from .needs import needs, why_no_classes

_EXPLAINED = ("Has0_acc_2", "Non0_acc_2", "Mult_acc_2", "WA", "UA", "Weighted_F1")  # under the table


def run_document(outcome: Any) -> dict[str, Any]:
    """What ``--json`` prints after a run: the records, their summary, and where everything is."""
    job = outcome.job
    return {
        "schema_version": 1,
        "model": job.model,
        "dataset": job.dataset,
        "mended": job.mended,
        "missing": outcome.records[0]["missing"],
        "classification": outcome.records[0]["classification"],
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
    classes = outcome.records[0]["classification"]
    table = Table(title=f"{job.label} on {job.dataset}, test split", title_justify="left")
    table.add_column("metric", no_wrap=True)
    beside = [f"always\n{classes['majority']['class']}"] if classes else []
    for name in ["mean", *(["std"] if several else []), *beside, *(f"seed\n{record['seed']}" for record in shown)]:
        table.add_column(escape(name), justify="right", no_wrap=True)
    for name, item in outcome.summary.items():
        always = classes["majority"]["test"].get(name) if classes else None
        cell = ["-" if name == "Loss" else _number(always)] if classes else []
        figures = [item["mean"], *([item["std"]] if several else []), *(record["test"][name] for record in shown)]
        cells = list(map(_number, figures))
        at = 2 if several else 1
        table.add_row(escape(name), *cells[:at], *cell, *cells[at:])
    return table


def _caption(outcome: Any) -> str:
    job, records = outcome.job, outcome.records
    rules = metric_rules(job.dataset)
    lines = [f"{name}: {rules[name]}" for name in _EXPLAINED if name in rules]
    lines += _classes(records[0], job.resolved.settings_of)
    lines.append(f"lower is better: {', '.join(name for name in outcome.summary if name in LOWER_IS_BETTER)}")
    selection = records[0]["selection"]
    best = "lowest" if selection["mode"] == "min" else "highest"
    epochs = ", ".join(str(record["selection"]["epoch"]) for record in records)
    if selection["split"] == "test":
        lines.append(f"SELECTED ON TEST: the checkpoint has the {best} {selection['metric']} of the test split"
                     f"{_as_seen(records[0]['missing'])} (epoch {epochs}), so that these figures are too good; "
                     "protocol paper_count, trained on train and valid")
    else:
        lines.append(f"checkpoint: {best} validation {selection['metric']} (epoch {epochs}); test split read once")
    seeds = f"{len(records)} seeds; std: population standard deviation" if len(records) > 1 else "1 seed"
    samples = records[0]["features"]["samples"]
    shown = _split_names(selection["split"] == "test")
    lines.append(f"{seeds}; {'/'.join(shown.values())} {'/'.join(str(samples[split]) for split in shown)}")
    row = f"row added to {outcome.csv}" if outcome.csv else "no row added to MMSA's table, see above"
    lines.append(f"records: {job.res_save_dir / 'runs'}; {row}")
    lines += _missing(records)
    for name in outcome.summary:
        empty = [str(record["seed"]) for record in records if record["test"][name] is None]
        if empty:
            lines.append(f"{name}: none for seed {', '.join(empty)}, since {why_no_number(name)} there")
    return "\n".join([*lines, *fault_lines(job.model, records[0]["flags"])])


def _classes(record: Mapping[str, Any], settings_of: str | None) -> list[str]:
    """Which labels there are, what the column beside the model's is, and whose settings these are."""
    classes = record["classification"]
    if classes is None:
        return []
    labels, majority = classes["labels"], classes["majority"]["class"]
    lines = [f"label set ({len(labels)} classes): {', '.join(labels)}",
             f"always {majority}: what saying {majority!r} of every sample gets, the commonest class of train"]
    if settings_of not in (None, record["dataset"]):
        lines.append(f"settings: those for {settings_of} with the classes of {record['dataset']}, since none are "
                     f"published for {record['model']} on it")
    return lines


def _split_names(on_test: bool) -> dict[str, str]:
    """The splits of a run as people are told of them: protocol paper_count has no validation split."""
    return {"train": "train with valid", "test": "test"} if on_test else {name: name for name in SPLITS}


def _as_seen(missing: Mapping[str, Any] | None) -> str:
    """With which gaps the test split was read for the choice of the checkpoint: those of training, not of the test."""
    if missing is None:
        return ""
    return f" with the gaps of training ({in_words(missing['training'])})" if missing["training"] else " without gaps"


def _missing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many samples lacked a modality, seed by seed, and what the model was shown instead."""
    about = records[0]["missing"]
    if about is None:
        return []
    lines = [f"an absent modality is {about['how']}"]
    on_test = records[0]["selection"]["split"] == "test"
    names = {**_split_names(on_test), **({"valid": "test"} if on_test else {})}
    for split in about["absent"]:
        counts = {m: [record["missing"]["absent"][split][m] for record in records] for m in about["absent"][split]}
        shown = ", ".join(f"{m} {' '.join(map(str, values))}" for m, values in counts.items() if any(values))
        samples = records[0]["features"]["samples"][split]
        when = " while the checkpoint was chosen" if on_test and split == "valid" else ""
        lines.append(f"absent of {samples} {names[split]} samples{when}, by seed: {shown or 'none'}")
    return lines


def fault_lines(model: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each fault of MMSA's model that has an effect on this result, or that was repaired for it."""
    lines = []
    for flag in found:
        if flag["repaired"]:
            lines.append(f"repaired for this result (--mended): in MMSA's {model} {flag['fault']}")
        else:
            remedy = " (--mended repairs it)" if flag["mendable"] else ""
            lines.append(f"as MMSA ships {model}: {flag['fault']}{remedy}")
    return lines


def catalogue_document(known: Catalogue) -> dict[str, Any]:
    """What ``mmsa list --json`` prints."""
    return {
        "schema_version": 1,
        "models": [
            {"name": model.name, "source": model.source, "datasets": model.datasets(known.datasets),
             "needs": needs(model), "no_classes": why_no_classes(model),
             "faults": [fault.document() for fault in faults_of(model)],
             "summary": model.plugin.summary if model.plugin else None, "error": model.error}
            for model in known.models.values()
        ],
        "datasets": [
            {"name": name, "source": known.dataset_sources[name], "files": dataset_files(section),
             "settings_of": STANDS_FOR.get(name, name), "classes": list(classes_of(section))}
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
        cells = (model["name"], model["source"], " ".join(model["datasets"]) or "none", wants, shown)
        models.add_row(*map(escape, cells))  # a plugin's words may have brackets
    console.print(models)
    if legend:
        lines = ["faults of MMSA's models, kept so that numbers compare with published ones, and repaired by --mended:"]
        for mark, fault in legend:
            lines.append(f"  {mark}  {fault['fault']}" + ("" if fault["mendable"] else " (not repaired)"))
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=not console.is_terminal)
    refusing = [f"  {model['name']}: {model['no_classes']}" for model in document["models"] if model["no_classes"]]
    sets = [dataset["name"] for dataset in document["datasets"] if dataset["classes"]]
    if refusing and sets:
        console.print("\n".join([f"not for data sets of classes ({', '.join(sets)}):", *refusing]), markup=False,
                      highlight=False, soft_wrap=not console.is_terminal)
    datasets = Table(title="data sets (-d)", title_justify="left")
    for column in ("name", "from", "feature file below the data root", "labels"):
        datasets.add_column(column, overflow="fold")
    for dataset in document["datasets"]:
        files = "; ".join(f"{kind}: {path}" for kind, path in dataset["files"].items())
        cells = (dataset["name"], dataset["source"], files, ", ".join(dataset["classes"]) or "a scale")
        datasets.add_row(*map(escape, cells))
    console.print(datasets)


def dataset_files(section: Mapping[str, Any]) -> dict[str, str]:
    """Kind (aligned, unaligned) -> feature file relative to the data root."""
    return {kind: part["featurePath"] for kind, part in section.items() if isinstance(part, Mapping)}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
