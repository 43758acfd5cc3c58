"""Reading feature files: a pickle is a program, so only the few parts that feature files are made of are let in.

`read_pickle` is the safe door (containers, strings, numbers, NumPy arrays) and turns every way a download goes wrong
into one sentence; `read_features` adds the hash, MMSA's override files and the checks of `schema`. What may change
here: further names in `_ADMITTED`, each of which must be harmless with any arguments.
"""

from __future__ import annotations

import codecs
import collections
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import InputError
from .arrays import as_strings
from .schema import MODALITIES, SPLITS, Features, check_splits, features_from_dict, require_key

_GET_ANOTHER = "Fetch the file again from its publisher, or try `mmsa data synth` for data made here."
_OVERRIDE_KEYS = {"text": ("text_bert", "text_lengths"), "audio": ("audio_lengths",), "vision": ("vision_lengths",)}


def read_features(
    path: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    audio: str | os.PathLike[str] | None = None,
    vision: str | os.PathLike[str] | None = None,
) -> Features:
    """Read and check a feature file in MMSA's layout.

    `text`, `audio`, `vision` name files whose modality replaces the main file's (MMSA's -Ft, -Fa, -Fv), with the
    lengths and, for text, the tokens that belong to it. `Features.sha256` is the hash of the main file. Raises
    InputError for anything that cannot be used.
    """
    main = Path(path).expanduser()
    data = read_pickle(main)
    check_splits(data, main)
    given = {m: Path(p).expanduser() for m, p in zip(MODALITIES, (text, audio, vision), strict=True) if p is not None}
    data = {name: dict(data[name]) for name in SPLITS}  # files exist whose splits share one dictionary
    for modality, source in given.items():
        _override(data, modality, read_pickle(source), main, source)
    hashes = {modality: sha256_of(source) for modality, source in given.items()}
    return features_from_dict(data, main, sha256_of(main), sources=given, overrides=hashes)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of one MiB."""
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The object in a pickle made of builtin containers, strings, numbers and NumPy arrays. Raises InputError."""
    path = Path(path).expanduser()
    with _open(path) as file:
        _refuse_other_formats(path, file)
        try:
            return _Unpickler(file, path).load()
        except InputError:
            raise
        except MemoryError:
            raise InputError(f"{path}: needs more memory than there is, or is damaged.\n{_GET_ANOTHER}") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
        except Exception as error:  # a damaged pickle may raise anything
            _explain(path, file, error)


class _Unpickler(pickle.Unpickler):
    """Looks names up in `_ADMITTED` alone: no module that a file names is ever imported."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise InputError(
                f"{self._path}: the pickle asks for {module}.{name}; only containers, strings, numbers and "
                "NumPy arrays are read.\nWrite the file again from plain dictionaries, lists and arrays."
            ) from None

    def persistent_load(self, pid: Any) -> NoReturn:
        raise InputError(f"{self._path}: the pickle refers to data outside itself; expected a self-contained file.\n"
                         "Write it with pickle.dump from plain dictionaries, lists and arrays.")


def _dtype(spec: Any, align: Any = False, copy: Any = False) -> np.dtype:
    """numpy.dtype for old pickles too: they pass the flags as 0 and 1, and NumPy 2.4 warns."""
    return np.dtype(spec, align=bool(align), copy=bool(copy))


# NumPy's own helpers, taken from what it puts into a pickle: their home moved from numpy.core to numpy._core.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = np.zeros(1).__reduce__()[0]
    _ADMITTED[f"{_core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]  # arrays of pickle protocol 5
for _builtins in ("builtins", "__builtin__"):
    _ADMITTED |= {(_builtins, t.__name__): t for t in (set, frozenset, bytes, bytearray, complex)}


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise InputError(f"{path}: no such feature file.\nGive a file in MMSA's layout (thuiar/MMSA lists where the "
                         "published ones are), or `mmsa data synth` writes one for a first try.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a feature file (.pkl).\nName the file inside it.")
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def _refuse_other_formats(path: Path, file: BinaryIO) -> None:
    """Name what a failed download or a wrong file really is; leave the file at its start."""
    head = file.read(512)
    file.seek(0)
    start = head.lstrip().lower()
    if not head:
        raise InputError(f"{path}: is empty (0 bytes); expected a feature file.\n{_GET_ANOTHER}")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path}: is a web page, not a feature file: the download link answered with a page.\n"
                         "Open the link in a browser, download the file itself, and put it here.")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path}: is a Git LFS pointer, not the file it stands for.\n"
                         "Run `git lfs pull` in the repository it came from.")
    for magic, what in ((b"PK\x03\x04", "a zip archive (or a torch checkpoint)"), (b"\x1f\x8b", "a gzip archive"),
                        (b"\x89HDF", "an HDF5 file"), (b"\x93NUMPY", "a single NumPy array (.npy)")):
        if head.startswith(magic):
            raise InputError(f"{path}: is {what}; expected a pickle in MMSA's layout.\n"
                             "Unpack or convert it first; `mmsa data synth` writes an example of the layout.")


def _explain(path: Path, file: BinaryIO, error: Exception) -> NoReturn:
    """Say in words why a pickle could not be loaded: cut short, written by Python 2, or not a pickle."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    first = file.read(1)
    file.seek(size - 1)
    last = file.read(1)
    starts_like_a_pickle = first in (b"\x80", b"(", b"]", b"}", b"c")
    if starts_like_a_pickle and (last != b"." or isinstance(error, EOFError)):  # every pickle ends with a stop sign
        raise InputError(f"{path}: is cut short after {size} bytes: a truncated pickle.\n{_GET_ANOTHER}") from None
    if isinstance(error, UnicodeDecodeError):
        raise InputError(f"{path}: holds strings of Python 2, which cannot be decoded.\n"
                         "Load it with pickle.load(file, encoding='latin1') and write it again.") from None
    raise InputError(f"{path}: is not a readable pickle (a damaged file, or another format).\n{_GET_ANOTHER}") from None


def _override(data: Any, modality: str, other: Any, main: Path, source: Path) -> None:
    """Put one modality of `other` in the place of `data`'s, with the keys that belong to it."""
    check_splits(other, source)
    for name in SPLITS:
        require_key(other[name], modality, name, source)
        if "id" in other[name] and "id" in data[name]:
            ours = as_strings(data[name]["id"], f"{main}: split {name!r}, key 'id'")
            theirs = as_strings(other[name]["id"], f"{source}: split {name!r}, key 'id'")
            if len(ours) == len(theirs) and ours != theirs:
                row = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                raise InputError(
                    f"{source}: split {name!r}, row {row} is sample {theirs[row]!r}, but {ours[row]!r} in {main}.\n"
                    "Bring the rows into the same order (without a key 'id' rows are paired by position)."
                )
        for key in (modality, *_OVERRIDE_KEYS[modality]):
            data[name].pop(key, None)
            if key in other[name]:
                data[name][key] = other[name][key]
