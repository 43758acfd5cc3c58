"""`mmsa data convert`: a feature file as one that holds no code and is mapped into memory instead of read.

safetensors and not NumPy's .npz: its arrays lie aligned and uncompressed, so that they can be mapped (`np.load` reads
an .npz whole), nothing in it can ask for a pickle or unpack to more than the file, and transformers brings the package
along. What may change here: `KEPT`, with every key that `schema` learns to read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import iemocap
from .arrays import as_strings, feature_array, label_array, length_array, token_array
from .mapped import write_mapped
from .reading import embedding_of, is_converted, read_file, sha256_of
from .schema import MODALITIES, SPLITS, UNIMODAL, check_splits, class_names, classes_of
from .whole import appearing

SUFFIX = ".safetensors"
KEPT: dict[str, Callable[[Any, str], Any]] = {
    "id": as_strings,
    "raw_text": as_strings,
    **{modality: feature_array for modality in MODALITIES},
    "text_bert": token_array,
    **{f"{modality}_lengths": length_array for modality in MODALITIES},
    "regression_labels": label_array,
    **{f"regression_labels_{unimodal}": label_array for unimodal in UNIMODAL},
}


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write the features of `source` to `out`, a safetensors file that is read in its place, and say what became of it.

    Kept are the keys in `KEPT`, whole numbers as int64 and others as float32, which is what every reader makes of them:
    `read_features` gives the same bits for both files. A file with some of the keys, as for -Fa, is converted too. The
    file appears whole or not at all. Classes (`classification_labels`) are kept where they are whole numbers, and their
    names (`annotations`) with them. A raw IEMOCAP release (see `iemocap`) is brought into splits first. Returns
    schema_version, source and path with their sizes and sha256, samples {split}, kept [key], left_out {split or "file":
    [key]}, narrowed [key whose numbers had more digits], raw (what was done to a raw release, lines of text).

    Raises InputError for a source that cannot be read, holds none of the modalities or a key that is not what it should
    be, for an `out` of another name than `SUFFIX`, and for one that is there already and is no converted file.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    _check_place(source, out)
    raw_lines: list[str] = []
    try:
        data = read_file(source)
    except InputError:
        data = iemocap.read_latin1(source)
        if data is None:
            raise
    if iemocap.is_raw(data):
        data, raw_lines = iemocap.splits_of(data, source)
    check_splits(data, source)
    left_out = {"file": [str(key) for key in data if key not in SPLITS]}
    tensors: dict[str, Any] = {}
    narrowed: dict[str, None] = {}
    for split in SPLITS:
        raw = dict(data.pop(split))  # a copy: files exist whose splits share one dictionary
        narrowed |= {key: None for key, check in KEPT.items() if check in (feature_array, label_array)
                     and getattr(raw.get(key), "dtype", None) == np.float64}
        tensors |= take_kept(raw, split, source)
        left_out[split] = sorted(str(key) for key, value in raw.items() if value is not None)
    if not any(name.partition("/")[2] in MODALITIES for name in tensors):
        raise InputError(f"{source}: holds none of {', '.join(MODALITIES)}; expected features in MMSA's layout.\n"
                         "`mmsa data inspect` says what is in it.")
    hashes = sha256_of(source)
    write_features(source, out, tensors, hashes, embedding_of(source))
    rows = {split: [len(v) for name, v in tensors.items() if name.startswith(f"{split}/")] for split in SPLITS}
    return {
        "schema_version": 1,
        "source": {"path": str(source), "size": source.stat().st_size, "sha256": hashes},
        "path": str(out), "size": out.stat().st_size, "sha256": sha256_of(out),
        "samples": {split: max(counts, default=0) for split, counts in rows.items()},
        "kept": list(dict.fromkeys(name.partition("/")[2] for name in tensors)),
        "left_out": {where: keys for where, keys in left_out.items() if keys},
        "narrowed": list(narrowed),
        "raw": raw_lines,
    }  # fmt: skip


def print_converted(result: dict[str, Any], console: Any) -> None:
    """What `convert` did, in a few lines for a rich console."""
    counts = ", ".join(f"{split} {count}" for split, count in result["samples"].items())
    lines = [*result["raw"], f"wrote {result['path']}", f"samples: {counts}", f"kept: {', '.join(result['kept'])}"]
    lines += [f"left out of {where}: {', '.join(keys)}" for where, keys in result["left_out"].items()]
    if result["narrowed"]:
        lines.append(f"float64 to float32: {', '.join(result['narrowed'])}")
    lines.append(f"SHA-256: {result['sha256']}")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def take_kept(raw: dict[str, Any], split: str, source: Path) -> dict[str, Any]:
    """{`split`/key: value as it is read} of what a converted file keeps; taken out of `raw` one by one."""
    tensors = {f"{split}/{key}": check(raw.pop(key), f"{source}: split {split!r}, key {key!r}")
               for key, check in KEPT.items() if raw.get(key) is not None}
    _keep_classes(tensors, split, raw, f"{source}: split {split!r}")
    return tensors


def _keep_classes(tensors: dict[str, Any], split: str, raw: dict[str, Any], where: str) -> None:
    """Move usable classes and their names from ``raw`` to ``tensors``."""
    if f"{split}/regression_labels" in tensors:  # beside these, classes may be anything
        raw["regression_labels"] = True
    classes = classes_of(raw, where)
    raw.pop("regression_labels", None)
    if classes is None:
        return
    tensors[f"{split}/classification_labels"] = classes
    del raw["classification_labels"]
    if class_names(classes, raw.get("annotations")):
        tensors[f"{split}/annotations"] = as_strings(raw.pop("annotations"), f"{where}, key 'annotations'")


def _check_place(source: Path, out: Path) -> None:
    if out.suffix != SUFFIX:
        raise InputError(f"{out}: expected a name that ends in {SUFFIX}, which says what is in it.\n"
                         f"For example {out.with_suffix(SUFFIX).name}.")
    if os.path.exists(out) and os.path.exists(source) and out.samefile(source):
        raise InputError(f"{out}: is the file to be converted.\nName another file to write.")
    if os.path.lexists(out) and not is_converted(out):
        raise InputError(f"{out}: is there already and was not written by `mmsa data convert`.\n"
                         "Remove it, or name another file.")


def write_features(
    source: Path, out: Path, tensors: dict[str, Any], source_sha256: str, embedded: dict[str, Any] | None = None
) -> None:
    """`write_mapped` so that `out` appears whole or not at all, for those who may read `source`."""
    with appearing(out) as unfinished:
        write_mapped(unfinished, tensors, source_sha256, embedded)
        shutil.copymode(source, unfinished)  # whoever may read the one may read the other
