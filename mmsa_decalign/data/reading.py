"""Reading feature files: pickles in MMSA's layout through the restricted unpickler, and files of `mmsa data convert`.

`read_file` is the safe door: `unpickling` or `mapped`, whichever the content calls for, with every way in which a file
can be wrong turned into one sentence; `read_features` adds the hash, MMSA's override files and the checks of `schema`.
What may change here: further formats, recognised by their first bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..errors import InputError
from . import unpickling
from .arrays import as_strings
from .mapped import looks_mapped, made_of, read_mapped
from .schema import (
    MODALITIES,
    SPLITS,
    Features,
    check_splits,
    features_from_dict,
    few,
    repeated,
    require_key,
)

logger = logging.getLogger("MMSA")

_BLOCK = 1 << 20  # bytes
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
    lengths and, for text, the tokens that belong to it; rows are paired by id, see `replace_modality`.
    `Features.sha256` is the hash of the main file. Raises InputError for anything that cannot be used.
    """
    main = Path(path).expanduser()
    data = read_file(main)
    check_splits(data, main)
    given = {m: Path(p).expanduser() for m, p in zip(MODALITIES, (text, audio, vision), strict=True) if p is not None}
    data = {name: dict(data[name]) for name in SPLITS}  # files exist whose splits share one dictionary
    for modality, source in given.items():
        other = read_file(source)
        check_splits(other, source)
        for name in SPLITS:
            replace_modality(data[name], other[name], modality, name, main, source)
    hashes = {modality: sha256_of(source) for modality, source in given.items()}
    return features_from_dict(data, main, sha256_of(main), sources=given, overrides=hashes)


def sha256_of(path: str | os.PathLike[str], progress: Callable[[int, int], None] = lambda *_: None) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks; `progress` is told the bytes done and those in all."""
    digest, done = hashlib.sha256(), 0
    with _open(Path(path)) as file:
        total = os.fstat(file.fileno()).st_size
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(done, total)
    return digest.hexdigest()


def read_file(path: str | os.PathLike[str], *, encoding: str = "ASCII") -> Any:
    """What a feature file holds: the object in a pickle made of builtin containers, strings, numbers and NumPy arrays,
    or {split: {key: array or list of strings}} of a file of `mmsa data convert`, its arrays mapped. `encoding` is that
    of the strings of Python 2, as in `pickle.load`. Raises InputError.
    """
    path = Path(path).expanduser()
    with _open(path) as file:
        return read_open(path, file, encoding=encoding)


def read_open(path: Path, file: BinaryIO, *, encoding: str = "ASCII") -> Any:
    """As `read_file`, from a file that is open for reading bytes, at its start; `path` is for messages."""
    try:
        head = _refuse_other_formats(path, file)
        return read_mapped(path, file) if looks_mapped(head) else unpickling.load(file, encoding)
    except InputError:
        raise
    except unpickling.Refused as refused:
        raise InputError(f"{path}: the pickle {refused}; only containers, strings, numbers and NumPy arrays are read.\n"
                         "Write the file again with pickle.dump from plain dictionaries, lists and arrays.") from None
    except MemoryError:
        raise InputError(f"{path}: needs more memory than there is, or is damaged.\n{_GET_ANOTHER}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # a damaged pickle may raise anything
        _explain(path, file, error)


def is_converted(path: Path) -> bool:
    """Whether `mmsa data convert` or `embed` wrote this file, judged by its header."""
    return _made(path).get("source_sha256") is not None


def converted_from(path: Path) -> str | None:
    """SHA-256 of the file that `mmsa data convert` made this one from, number for number; None for any other file."""
    made = _made(path)
    return None if made.get("embedded") else made.get("source_sha256")


def embedding_of(path: Path) -> dict[str, str | int | None] | None:
    """Which encoder made the text features of a file of `mmsa data embed`, as the file says itself; else None."""
    found = _made(path).get("embedded")
    plain = isinstance(found, dict) and all(type(value) in (str, int, type(None)) for value in found.values())
    return found if plain else None


def _made(path: Path) -> dict[str, Any]:
    try:
        with _open(Path(path)) as file:
            return made_of(path, file) if looks_mapped(file.read(16)) else {}
    except (InputError, OSError):
        return {}


def _open(path: Path) -> BinaryIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: is a folder; expected a feature file (.pkl).\nName the file inside it.")
        if not stat.S_ISREG(mode):  # a device never ends, and a pipe waits for ever
            raise InputError(f"{path}: is a device, a pipe or a socket; expected a feature file.\n"
                             "Copy what it gives to a file first.")
        return path.open("rb")
    except InputError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such feature file.\nGive a file in MMSA's layout (thuiar/MMSA lists where the "
                         "published ones are), or `mmsa data synth` writes one for a first try.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except ValueError:  # of pathlib
        raise InputError(f"{str(path)!r}: is no path.") from None


def _refuse_other_formats(path: Path, file: BinaryIO) -> bytes:
    """Name what a failed download or a wrong file really is; return the first bytes and leave the file at its start."""
    head = file.read(512)
    file.seek(0)
    start = head.lstrip().lower()
    if not head or not os.fstat(file.fileno()).st_size:  # of a file below /proc nobody knows the size
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
    return head


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


def replace_modality(
    ours: dict[str, Any], theirs: Mapping[str, Any], modality: str, name: str, main: Path, source: Path
) -> None:
    """Put one modality of the split `theirs` in the place of that in `ours`, with the keys that belong to it.

    Rows are paired by the key 'id' where both have it, since extraction tools write them in any order, and by position
    otherwise. `name` is the split's, `main` and `source` are the two files. Raises InputError where a sample is absent.
    """
    require_key(theirs, modality, name, source)
    keys = (modality, *_OVERRIDE_KEYS[modality])
    rows = _partners(ours, theirs, keys, name, main, source)
    for key in keys:
        ours.pop(key, None)
        if theirs.get(key) is not None:
            value = theirs[key]
            if rows is not None:
                value = value[rows] if isinstance(value, np.ndarray) else [value[row] for row in rows]
            ours[key] = value


def _partners(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], keys: tuple[str, ...], name: str, main: Path, source: Path
) -> list[int] | None:
    """For each row of `ours` the row of `theirs` with its id; None where position says the same."""
    if "id" not in ours or "id" not in theirs:
        return None
    wanted = as_strings(ours["id"], f"{main}: split {name!r}, key 'id'")
    found = as_strings(theirs["id"], f"{source}: split {name!r}, key 'id'")
    if wanted == found:
        return None
    here = f"{source}: split {name!r}"
    given = [theirs[key] for key in keys if theirs.get(key) is not None]
    counts = {len(one) if isinstance(one, (list, tuple)) or getattr(one, "ndim", 0) else None for one in given}
    if counts != {len(found)}:
        raise InputError(f"{here} has keys of different row counts.\n"
                         "Every key of a split needs one row per sample.")
    for where, ids in ((here, found), (f"{main}: split {name!r}", wanted)):
        if twice := repeated(ids):
            other = main if ids is found else source
            raise InputError(f"{where} has the same id twice ({few(list(twice))}), so that its rows cannot be paired "
                             f"with those of {other}.\n"
                             "Make the ids differ, or give both files the same ids in the same order.")
    row_of = {one: row for row, one in enumerate(found)}
    absent = [one for one in wanted if one not in row_of]
    if absent:
        like = f"; its own look like {found[0]!r}" if found else ""
        raise InputError(f"{here} lacks {len(absent)} of the {len(wanted)} samples of {main}, {absent[0]!r} "
                         f"first{like}.\n"
                         "Extract the same samples under the same ids (without a key 'id' rows pair by position).")
    logger.info("%s: split %r, rows paired with those of %s by their ids", source, name, main)
    return [row_of[one] for one in wanted]
