"""Reading feature files: pickles in MMSA's layout through the restricted unpickler, and files of `mmsa data convert`.

`read_file` is the safe door: `unpickling` or `mapped`, whichever the content calls for, with every way in which a file
can be wrong turned into one sentence; `read_features` adds the hash, MMSA's override files and the checks of `schema`.
What may change here: further formats, recognised by their first bytes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from ..errors import InputError
from . import unpickling
from .arrays import as_strings
from .mapped import looks_mapped, read_mapped, source_of
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
    data = read_file(main)
    check_splits(data, main)
    given = {m: Path(p).expanduser() for m, p in zip(MODALITIES, (text, audio, vision), strict=True) if p is not None}
    data = {name: dict(data[name]) for name in SPLITS}  # files exist whose splits share one dictionary
    for modality, source in given.items():
        _override(data, modality, read_file(source), main, source)
    hashes = {modality: sha256_of(source) for modality, source in given.items()}
    return features_from_dict(data, main, sha256_of(main), sources=given, overrides=hashes)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks of one MiB."""
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_file(path: str | os.PathLike[str]) -> Any:
    """What a feature file holds: the object in a pickle made of builtin containers, strings, numbers and NumPy arrays,
    or {split: {key: array or list of strings}} of a file of `mmsa data convert`, its arrays mapped. Raises InputError.
    """
    path = Path(path).expanduser()
    with _open(path) as file:
        return read_open(path, file)


def read_open(path: Path, file: BinaryIO) -> Any:
    """As `read_file`, from a file that is open for reading bytes, at its start; `path` is for messages."""
    try:
        head = _refuse_other_formats(path, file)
        return read_mapped(path, file) if looks_mapped(head) else unpickling.load(file)
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
    """Whether `mmsa data convert` wrote this file, judged by its header."""
    try:
        with _open(path) as file:
            return looks_mapped(file.read(16)) and source_of(path, file) is not None
    except (InputError, OSError):
        return False


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
