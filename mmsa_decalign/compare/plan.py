"""Which runs a comparison consists of: rows (models with settings) x data (feature files) x seeds, all checked.

A cell's key is the hash of everything that its result depends on, so that the same run is never done twice, whichever
comparison asks for it. What may change here: further kinds of rows. PROTOCOL rises when the same cell would give other
numbers than before, for a reason that no version or setting shows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.reading import sha256_of
from ..errors import InputError, nearest
from ..harness.catalogue import catalogue, find_model
from ..harness.config import is_by_model, is_schema, read_config, resolve
from ..harness.job import DEFAULT_SEEDS, Job, prepare
from ..harness.mended import mendable
from ..settings import MODALITIES
from . import sanity
from .notes import differences, marked

PROTOCOL = 1
_TASK = ("train_mode", "label_names", "protocol")  # settings that say what is to be predicted, and on which splits
SANITY_SEED = 0  # a row without chance has one run


@dataclass(frozen=True)
class Row:
    """One line of the table. notes: per data label what is not as in the reference row."""

    label: str
    model: str
    sanity: bool = False
    config: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """One data set in one feature file."""

    label: str
    dataset: str
    given: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run. spec: all that a worker needs."""

    key: str
    row: str
    data: str
    seed: int
    spec: dict[str, Any]

    def entry(self) -> dict[str, Any]:
        """The cell as the store keeps it."""
        return {"key": self.key, "model": self.spec["model"], "dataset": self.spec["dataset"], "seed": self.seed,
                "spec": self.spec}


@dataclass(frozen=True)
class Plan:
    """Everything that one table shows."""

    rows: list[Row]
    data: list[Data]
    seeds: tuple[int, ...]
    reference: str
    cells: list[Cell]
    notes: list[str] = field(default_factory=list)  # what holds for the table as a whole

    def of(self, row: str, data: str) -> list[Cell]:
        """The cells of one row on one data set, by seed."""
        return [cell for cell in self.cells if (cell.row, cell.data) == (row, data)]


def make_plan(
    models: Sequence[str],
    datasets: Sequence[str],
    *,
    seeds: Sequence[int] = (),
    configs: Sequence[str] = (),
    overrides: Mapping[str | None, Mapping[str, Any]] | None = None,
    reference: str | None = None,
    feature_files: Sequence[str] = (),
    data_root: str | None = None,
    pretrained: str | None = None,
    mended: bool = False,
    with_sanity: bool = True,
    own_files: bool = False,
    device: str = "auto",
) -> Plan:
    """Resolve and check every cell; nothing is written or trained.

    models: NAME, or LABEL=NAME for the same model with two sets of settings. datasets: NAME, or NAME=FILE. configs:
    FILE for all rows, or LABEL=FILE; of settings by model each row takes its model's. overrides: settings by label,
    None standing for all rows. own_files: where a data set has an aligned and an unaligned file, let each model read
    the one that its settings name, instead of one for all. Raises InputError.
    """
    rows = _rows(models, configs, overrides or {})
    data = _data(datasets, feature_files)
    names = [row.label for row in rows]
    if reference is not None and reference not in names:
        raise InputError(f"--reference {reference}: no row of that name; {nearest(reference, names)}")
    reference = reference or next((row.label for row in rows if row.model == "decalign"), names[0])
    if with_sanity:
        rows += _single_modalities(rows)
    seeds = tuple(dict.fromkeys(seeds)) or DEFAULT_SEEDS
    options = {"data_root": data_root, "device": device, "seeds": seeds, "mended": mended}
    cells: list[Cell] = []
    hashes: dict[Path, str] = {}
    jobs_of = {one.label: _jobs(rows, one, pretrained, own_files, options) for one in data}
    named = {row.label: marked(row.label, {name: jobs[row.label].resolved.settings for name, jobs in jobs_of.items()})
             for row in rows}
    rows, reference = [dataclasses.replace(row, label=named[row.label]) for row in rows], named[reference]
    trained = list(rows)
    for one in data:
        jobs = {named[label]: job for label, job in jobs_of[one.label].items()}
        for row in trained:
            job = jobs[row.label]
            digest = _hash(job.feature_file, hashes)
            row.notes.setdefault(one.label, []).extend(differences(job, jobs[reference], reference))
            cells += [_cell(row, one, seed, _spec(job, digest, seed)) for seed in seeds]
        if with_sanity:
            task = {"train_mode": "regression", "dataset_name": one.dataset,
                    **{key: value for key, value in jobs[reference].resolved.settings.items() if key in _TASK}}
            for name in sanity.rows_for(task["train_mode"]):
                if name not in [row.label for row in rows]:
                    rows.append(Row(name, name, sanity=True))
                spec = {"kind": "sanity", "protocol": PROTOCOL, "model": name, "source": _version(),
                        "dataset": one.dataset, "seed": SANITY_SEED, "overrides": {}, "mended": False, "settings": task,
                        "sha256": _hash(jobs[reference].feature_file, hashes),
                        "feature_file": str(jobs[reference].feature_file.absolute())}
                cells.append(_cell(Row(name, name), one, SANITY_SEED, spec))
    return Plan(rows, data, seeds, reference, cells)


def key_of(spec: Mapping[str, Any]) -> str:
    """Hash of what a result depends on: where the feature file lies does not count, only what is in it."""
    counts = {name: value for name, value in spec.items() if name not in ("feature_file", "overrides", "settings_of")}
    return hashlib.sha256(json.dumps(counts, sort_keys=True, default=list).encode()).hexdigest()[:20]


def _rows(models: Sequence[str], configs: Sequence[str], overrides: Mapping[str | None, Mapping[str, Any]]
          ) -> list[Row]:
    if not models:
        raise InputError("nothing to compare: name models with -m, for example -m decalign -m lf_dnn")
    pairs = [(label, name) if name else (label, label) for label, _, name in (one.partition("=") for one in models)]
    labels = [label for label, _ in pairs]
    for label in labels:
        if labels.count(label) > 1 or ":" in label or not label:
            raise InputError(f"-m {label}: each row needs a name of its own, without a colon; "
                             "give one with -m LABEL=MODEL")
    by_label: dict[str | None, str] = {}
    for one in configs:
        label, _, config = one.partition("=")
        by_label.update({label: config} if config and label in labels else {None: one})
    for label in overrides:
        if label is not None and label not in labels:
            raise InputError(f"--set {label}:...: no row of that name; {nearest(label, labels)}")
    for_all = by_label.get(None)
    served = set() if for_all is None else _named_in(for_all, [name.lower() for _, name in pairs])
    return [Row(label, name.lower(), config=by_label.get(label, for_all if name.lower() in served else None),
                overrides={**overrides.get(None, {}), **overrides.get(label, {})}) for label, name in pairs]


def _named_in(config: str, models: Sequence[str]) -> set[str]:
    """Those of the models that a file given for all rows has settings for: flat settings are for every model."""
    content = read_config(config)
    if not (is_schema(content) or is_by_model(content, catalogue().models)):
        return set(models)
    named = set(content) & set(models)
    if not named:
        raise InputError(f"-c {config} has settings for none of the rows' models; it has: "
                         f"{', '.join(name for name in content if name != 'datasetCommonParams') or 'none'}")
    return named


def _single_modalities(rows: Sequence[Row]) -> list[Row]:
    """The first DecAlign on each modality alone: what is gained by fusing."""
    for row in rows:
        if row.model == "decalign" and "modalities" not in row.overrides:
            return [dataclasses.replace(row, label=f"{row.label}: {name} only", sanity=True, notes={},
                                        overrides={**row.overrides, "modalities": [name]}) for name in MODALITIES]
    return []


def _data(datasets: Sequence[str], feature_files: Sequence[str]) -> list[Data]:
    pairs = [(name.lower(), file or None) for name, _, file in (one.partition("=") for one in datasets)]
    if feature_files:
        if len(pairs) != 1 or pairs[0][1]:
            raise InputError("--feature-file goes with one -d; with several write -d NAME=FILE for each")
        pairs = [(pairs[0][0], file) for file in feature_files]
    names = [name for name, _ in pairs]
    for name, file in pairs:
        if pairs.count((name, file)) > 1:
            raise InputError(f"-d {name}{f'={file}' if file else ''} is named twice")
    found: list[Data] = []
    for name, file in pairs:
        several = names.count(name) > 1
        label = f"{name} {Path(file).stem}" if several and file else name
        if label in [one.label for one in found]:
            label = f"{name} {file}"
        found.append(Data(label, name, file))
    return found


def _jobs(rows: Sequence[Row], data: Data, pretrained: str | None, own_files: bool, options: Mapping[str, Any]
          ) -> dict[str, Job]:
    """A checked job for each row, all on the same feature file unless the user wants each model's own."""

    def job(row: Row, file: str | Path | None) -> Job:
        more = dict(options)
        if pretrained is not None and _takes_encoder(row, data):
            more["pretrained"] = str(Path(pretrained).absolute()) if Path(pretrained).is_dir() else pretrained
        more["mended"] = options["mended"] and _is_mendable(row)
        try:
            return prepare(row.model, data.dataset, config=row.config, overrides=row.overrides, feature_file=file,
                           **more)
        except InputError as error:
            raise InputError(str(error) if row.label in str(error) else f"row {row.label!r}: {error}") from error

    jobs = {row.label: job(row, data.given) for row in rows}
    files = {one.feature_file for one in jobs.values()}
    if len(files) == 1 or own_files:
        return jobs
    # Every model can read the aligned file, and not every one the other.
    chosen = next((one.feature_file for one in jobs.values() if one.resolved.settings.get("need_data_aligned")), None)
    return jobs if chosen is None else {row.label: job(row, chosen) for row in rows}


def _takes_encoder(row: Row, data: Data) -> bool:
    plain = resolve(row.model, data.dataset, config=row.config, overrides=row.overrides)
    return plain.model.plugin is not None or "pretrained" in plain.settings


def _is_mendable(row: Row) -> bool:
    return mendable(find_model(catalogue(), row.model))


def _spec(job: Job, digest: str, seed: int) -> dict[str, Any]:
    settings = dict(job.resolved.settings)
    plugin = job.resolved.model.plugin
    checked = plugin.check(settings) if plugin is not None and plugin.check is not None else None
    if dataclasses.is_dataclass(checked):  # a default that is spelt out is the same run
        settings.update(dataclasses.asdict(checked))
    encoder = settings.get("pretrained")
    if settings.get("use_bert") and isinstance(encoder, str) and Path(encoder).expanduser().is_dir():
        settings["pretrained"] = str(Path(encoder).expanduser().absolute())
    return {"kind": "model", "protocol": PROTOCOL, "model": job.model, "source": f"{job.resolved.model.source}; "
            f"{_version()}", "dataset": job.dataset, "seed": seed, "settings": json.loads(json.dumps(settings)),
            "overrides": job.resolved.overrides, "settings_of": job.resolved.settings_of, "mended": job.mended,
            "sha256": digest,
            "feature_file": str(job.feature_file.absolute())}


def _cell(row: Row, data: Data, seed: int, spec: dict[str, Any]) -> Cell:
    return Cell(key_of(spec), row.label, data.label, seed, spec)


def _hash(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        known[path] = sha256_of(path)
    return known[path]


def _version() -> str:
    return f"mmsa-decalign {metadata.version('mmsa-decalign')}"


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """Each run once: two rows may ask for the same one."""
    return list({cell.key: cell for cell in cells}.values())
