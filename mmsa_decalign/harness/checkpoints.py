"""What a checkpoint carries beside its weights: the settings that it was made with, so that it predicts wherever it is.

A ``.pth`` of torch is a zip archive, and readers of state dicts look at torch's own entries alone. ``attach`` adds one
more, ENTRY, a JSON text: no code, read without torch, and it cannot be left behind when the file is copied, as a second
file beside it is. ``torch.load(weights_only=True)`` and MMSA load the weights as before. Where a checkpoint is no zip
archive (torch's old format, safetensors) the same text lies beside it as ``<checkpoint>.json``; a run record has the
same fields and does as well. What may change here: further fields, with a default for checkpoints that lack them.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .files import write_text

ENTRY = "mmsa_decalign.json"
_LARGEST = 1 << 20  # bytes; ours have some 3 kB
_FIELDS = ("schema_version", "id", "model", "model_source", "dataset", "seed", "settings", "mended", "versions", "test")
_TASKS = set("MTAV")


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: its run, and the features of that.

    widths, steps: of text, audio, vision in the training split. sha256, replaced: hashes of the file, and of those that
    took the place of a modality.
    """

    model: str
    dataset: str
    settings: dict[str, Any]
    widths: tuple[int, int, int]
    steps: tuple[int, int, int]
    mended: bool = False
    seed: int | None = None
    id: str | None = None
    sha256: str | None = None
    replaced: dict[str, str] = field(default_factory=dict)
    source: str = ""
    test: dict[str, Any] | None = None

    @property
    def batch_size(self) -> int:
        """Samples in a batch of the run."""
        size = self.settings.get("batch_size")
        return size if isinstance(size, int) and size > 0 else 32


def describe(record: Mapping[str, Any], *, train_mode: str, steps: Sequence[int]) -> dict[str, Any]:
    """What of a run's record prediction needs; neither a path nor a commit, since a checkpoint travels."""
    features = {key: record["features"][key] for key in ("sha256", "replaced", "feature_dims", "seq_lens")}
    return {**{key: record[key] for key in _FIELDS if key in record}, "train_mode": train_mode,
            "features": {**features, "steps": list(steps)}}


def attach(checkpoint: Path, description: Mapping[str, Any]) -> None:
    """Put the description into a checkpoint, or beside it where the file is no zip archive."""
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    if not zipfile.is_zipfile(checkpoint):
        write_text(_beside(checkpoint), text)
        return
    with zipfile.ZipFile(checkpoint, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]  # of torch's own entries; the reader in torch wants it too
        archive.writestr(f"{folder}/{ENTRY}", text)


def origin_of(checkpoint: Path, record: str | Path | None = None) -> Origin:
    """Where a checkpoint comes from: the record given, else what it carries, a file beside it, or the run's record.

    Raises InputError where there is none of them, or one that cannot be read.
    """
    checkpoint = Path(checkpoint).expanduser()
    if record is not None:
        path = Path(record).expanduser()
        return _origin(_parsed(_text(path), str(path)), str(path))
    inside = _inside(checkpoint)
    if inside is not None:
        return _origin(_parsed(inside, str(checkpoint)), str(checkpoint))
    for path in _places(checkpoint):
        found = _parsed(_text(path), str(path))
        if path == _beside(checkpoint) or path.stem.endswith(f"-{found.get('id')}"):
            return _origin(found, str(path))
    raise InputError(f"checkpoint {checkpoint}: carries no settings, and the record of its run was not found.\n"
                     "Give that record, a JSON file in the folder runs of the results: --record FILE")


def _inside(checkpoint: Path) -> bytes | None:
    """The text that ``attach`` added, if it did. Raises InputError where it is damaged: others would not be its own."""
    if not zipfile.is_zipfile(checkpoint):
        return None
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            entries = [one for one in archive.infolist() if one.filename.rpartition("/")[2] == ENTRY]
            if not entries:
                return None
            if entries[-1].file_size > _LARGEST:
                raise InputError(f"checkpoint {checkpoint}: its settings take {entries[-1].file_size} bytes; expected "
                                 f"at most {_LARGEST}.\nGive the record of its run: --record FILE")
            return archive.read(entries[-1])
    except InputError:
        raise
    except Exception as error:  # zipfile and what unpacks for it have one each for every fault
        raise InputError(f"checkpoint {checkpoint}: the settings in it are damaged ({type(error).__name__}).\n"
                         "Give the record of its run: --record FILE") from error


def _places(checkpoint: Path) -> Iterator[Path]:
    """Files beside a checkpoint that may describe it: its own, and records that end with the same number."""
    if _beside(checkpoint).is_file():
        yield _beside(checkpoint)
    number = checkpoint.stem.rpartition("-")[2]
    if re.fullmatch("[0-9a-f]{8}", number):
        home, folder = Path.home() / "MMSA" / "results", checkpoint.absolute().parent
        for runs in (folder, *(one / "runs" for one in (folder, folder.parent, folder.parent / "results", home))):
            yield from sorted(runs.glob(f"*-{number}.json"))


def _beside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _text(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > 64 * _LARGEST:  # a record has an entry for every epoch
            raise InputError(f"record {path}: expected the JSON file that a run left in the folder runs of its results")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"record {path}: cannot be read ({error.strerror or error})") from error


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its settings are not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: its settings are a JSON {type(found).__name__}; expected an object")
    return found


def _origin(found: Mapping[str, Any], where: str) -> Origin:
    """The fields that matter, checked: they may come from strangers."""
    settings, features = found.get("settings"), found.get("features")
    if not isinstance(settings, dict) or not isinstance(features, dict):
        raise InputError(f"{where}: has no 'settings' and 'features'; expected the record of a run of mmsa")
    settings = {**settings, "train_mode": found.get("train_mode", settings.get("train_mode", "regression"))}
    steps = features.get("steps") or _older_steps(settings, features)
    for name, value in (("model", found.get("model")), ("dataset", found.get("dataset"))):
        if not isinstance(value, str):
            raise InputError(f"{where}: {name!r} is {value!r}; expected a name")
    for name, value in (("feature_dims", features.get("feature_dims")), ("steps", steps)):
        if not (isinstance(value, list) and len(value) == 3 and all(type(one) is int and one > 0 for one in value)):
            raise InputError(f"{where}: {name!r} is {value!r}; expected three counts")
    tasks = settings.get("tasks", "M")
    if not isinstance(tasks, str) or not set(tasks) <= _TASKS:  # MMSA hands its letters to eval()
        raise InputError(f"{where}: setting tasks={tasks!r}: expected some of the letters {', '.join(sorted(_TASKS))}")
    for name in ("modalities", "label_names"):
        names = settings.get(name, [])
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise InputError(f"{where}: setting {name}={names!r}: expected a list of names")
    if not isinstance(settings.get("pretrained"), str | None):
        raise InputError(f"{where}: setting pretrained={settings['pretrained']!r}: expected a name or a folder")
    known = {"mended": bool(found.get("mended")), "seed": found.get("seed"), "id": found.get("id"),
             "sha256": features.get("sha256"), "replaced": features.get("replaced") or {}, "test": found.get("test")}
    return Origin(found["model"], found["dataset"], settings, tuple(features["feature_dims"]), tuple(steps),
                  source=where, **known)


def _older_steps(settings: Mapping[str, Any], features: Mapping[str, Any]) -> Any:
    """From records without ``steps``: those that the model saw, or of averaged modalities those of the file."""
    seen, whole = settings.get("seq_lens"), features.get("seq_lens")
    if settings.get("need_normalized") and isinstance(seen, list) and isinstance(whole, list):
        return [*seen[:1], *whole[1:]]
    return seen
