"""The code-free feature file: a safetensors file whose arrays are mapped into memory instead of read.

Layout: tensors `SPLIT/KEY`. Strings (the keys `STRINGS`) are a JSON list, as its bytes. The metadata have the key
`_MARK` alone: a JSON object with `version`, `source_sha256` and, where a text encoder made the text, `embedded`.
Mapping is private and writable: what is changed in memory stays there, and a page that nobody changes is the file's
own. The header is read here, since mapping needs the offsets, which the safetensors package keeps to itself, and
written here, since the package wants every tensor at once and copies them all. What may change here: `version` with a
change of the layout.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError

STRINGS = ("id", "raw_text", "annotations")
_MARK = "mmsa_decalign.features"
_VERSION = 1
_HEADER_LIMIT = 1 << 20  # ours have some 5 kB
_LONGEST_AXIS = 1 << 20  # of an array without values
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
          "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1"}
_CODES = {np.dtype(kind): code for code, kind in _TYPES.items()}


class Streamed(NamedTuple):
    """An array that is written while it is made: `pieces` are its rows in order, and it never is in memory whole."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def looks_mapped(head: bytes) -> bool:
    """Whether a file that begins so is a safetensors file: the length of its header, then the header, a JSON object."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def read_mapped(path: Path, file: BinaryIO) -> dict[str, dict[str, Any]]:
    """{split: {key: array mapped from the file, or list of strings}}. Raises InputError."""
    entries, made, start = _header(path, file)
    if made.get("version") != _VERSION:
        raise InputError(f"{path}: is a safetensors file, but not of features; expected one that `mmsa data convert` "
                         "of this version wrote.\nConvert the pickle again, or give the pickle.")
    content = np.asarray(np.memmap(file, np.uint8, mode="c"))
    data: dict[str, dict[str, Any]] = {}
    for name, (dtype, shape, begin, end) in entries.items():
        split, _, key = name.partition("/")
        array = content[start + begin:start + end].view(dtype).reshape(shape)
        data.setdefault(split, {})[key] = _strings(path, name, array) if key in STRINGS else array
    return data


def made_of(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What the file says of its making: `version`, `source_sha256`, `embedded`; nothing for other safetensors files."""
    return _header(path, file)[1]


def write_mapped(
    path: Path, arrays: Mapping[str, Any], source_sha256: str, embedded: Mapping[str, Any] | None = None
) -> None:
    """Write tensors named `SPLIT/KEY`: arrays, `Streamed` ones and lists of strings. OSError where that fails."""
    tensors = {
        name: np.frombuffer(json.dumps(value).encode("ascii"), np.uint8) if isinstance(value, list) else value
        for name, value in arrays.items()
    }
    made = {"version": _VERSION, "source_sha256": source_sha256} | ({"embedded": dict(embedded)} if embedded else {})
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # each on a multiple of its size
    header: dict[str, Any] = {"__metadata__": {_MARK: json.dumps(made)}}
    position = 0
    for name in order:
        shape, dtype = tensors[name].shape, tensors[name].dtype
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    head = json.dumps(header).encode("ascii")
    head += b" " * (-len(head) % 8)
    with path.open("xb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            one = tensors[name]
            for piece in one.pieces if isinstance(one, Streamed) else (one,):
                file.write(np.ascontiguousarray(piece, one.dtype).reshape(-1).view(np.uint8))
            if file.tell() != 8 + len(head) + header[name]["data_offsets"][1]:
                raise ValueError(f"{name}: pieces of another shape than {tuple(one.shape)}")


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, tuple[np.dtype, list[int], int, int]], dict[str, Any], int]:
    """{name: dtype, shape, first byte, end}, what `_MARK` says, where the tensors begin. Every number is checked."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    start = 8 + length
    if length > _HEADER_LIMIT:
        raise InputError(f"{path}: is a safetensors file with a header of {length} bytes, too many for features.\n"
                         "Give a file that `mmsa data convert` wrote.")
    if start > size:
        raise InputError(f"{path}: is cut short after {size} bytes.\nConvert the pickle again.")
    try:
        header = json.loads(file.read(length))
        made = json.loads(header.pop("__metadata__", {}).get(_MARK, "{}"))
        if not isinstance(made, dict):
            raise ValueError("metadata")
        entries = {name: _entry(entry) for name, entry in header.items()}
        position = 0
        for _, _, begin, end in sorted(entries.values(), key=lambda entry: entry[2:]):
            if begin != position:
                raise ValueError("overlap or hole")
            position = end
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path}: is a safetensors file with a damaged header.\nConvert the pickle again.") from None
    if start + position != size:
        what = "is cut short" if start + position > size else "goes on"
        raise InputError(f"{path}: {what} after {min(size, start + position)} bytes; its header says "
                         f"{start + position}.\nConvert the pickle again.")
    return entries, made, start


def _entry(entry: Any) -> tuple[np.dtype, list[int], int, int]:
    dtype, shape, (begin, end) = np.dtype(_TYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in [*shape, begin, end]) or len(shape) > 32:
        raise ValueError("not a count")
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize or (not count and max(shape) > _LONGEST_AXIS):
        raise ValueError("size")
    return dtype, list(shape), begin, end


def _strings(path: Path, name: str, array: np.ndarray) -> list[str]:
    try:
        values = json.loads(array.tobytes()) if array.dtype == np.uint8 else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(type(value) is str for value in values):
        raise InputError(f"{path}: {name} is no list of strings.\nConvert the pickle again.")
    return values
