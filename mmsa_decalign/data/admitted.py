"""What a pickle may ask for: stand-ins for the few functions that pickles of plain data and arrays call.

Each checks all of its arguments and takes no more memory than they do. An array is made only from exactly as many bytes
as its shape says: NumPy's own door trusts the file, and crashes. What may change here: further names in `ADMITTED`.
"""

from __future__ import annotations

import collections
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_LATIN1 = ("latin1", "latin-1", "latin_1", "iso-8859-1")
_EMPTY_AXIS = 1 << 20  # the longest axis of an array without values: they cost the file nothing
_TYPES = r"b1|[iu][1248]|f[248]|c(8|16)|O[48]|[SU][0-9]{1,9}"  # no long double: it has patterns that are no numbers
SCALARS = (str, bytes, int, float, bool, complex, type(None))


class Refused(Exception):
    """The pickle wants something that is not let in; the text goes on from "the pickle"."""


def admitted(module: str, name: str) -> Any:
    """What stands for a name of a pickle."""
    try:
        return ADMITTED[module, name]
    except KeyError:
        raise Refused(f"asks for {_shown(f'{module}.{name}')}") from None


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else ascii(name[:80])


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, which `fill` gives its content: how every protocol below 5 begins one."""
    if kind is not np.ndarray:
        raise Refused("makes an array of an unknown kind")
    return np.ndarray((0,), np.int8)


class Type:
    """An array's type as the pickle goes on describing it. NumPy's own would change under arrays that have it."""

    def __init__(self, spec: str) -> None:
        self.spec, self.order = spec, "="

    def describe(self, state: Any) -> None:
        plain = type(state) is tuple and len(state) == 8 and type(state[1]) is str and type(state[5]) is int
        if not plain or state[1] not in ("<", ">", "=", "|") or any(one is not None for one in state[2:5]):
            raise Refused("makes an array of records or of another type that is not plain")
        if state[5] not in (-1, np.dtype(self.spec).itemsize):
            raise Refused("holds an array of a type of another size")
        self.order = state[1]


def _dtype(spec: Any, align: Any = False, copy: Any = False) -> Type:
    if type(spec) is not str or not re.fullmatch(_TYPES, spec):
        raise Refused(f"makes an array of type {_shown(str(spec)) if type(spec) is str else type(spec).__name__}")
    return Type(spec)


def fill(array: np.ndarray, state: Any) -> None:
    if type(state) is not tuple or len(state) != 5:
        raise Refused("holds an array in an unknown form")
    _, shape, dtype, fortran, content = state
    content = _as_bytes(content)
    dtype = _checked(shape, dtype, content)
    array.__setstate__((1, shape, dtype, bool(fortran), content))


def _as_bytes(content: Any) -> Any:
    """The bytes of an array; in a pickle of Python 2 they are a string, read as latin1: a character is a byte."""
    return content.encode("latin1") if type(content) is str else content


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """An array of protocol 5."""
    dtype = _checked(shape, dtype, content)
    if dtype.kind == "O" or type(order) is not str or order not in ("C", "F", "K"):
        raise Refused("holds an array in an unknown form")
    flat = np.frombuffer(content, dtype) if len(content) else np.empty(0, dtype)
    if order == "K":
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    content = _as_bytes(content)
    dtype = _checked((1,), dtype, content)
    if dtype.kind == "O":
        raise Refused("holds a number in an unknown form")
    return np.frombuffer(content, dtype)[0]


def _checked(shape: Any, described: Any, content: Any) -> np.dtype:
    """The type of an array whose content is exactly what its shape says; nothing is allocated before that is known."""
    if type(described) is not Type:
        raise Refused("holds an array of an unknown type")
    dtype = np.dtype(described.order + described.spec)
    if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused("holds an array without a valid shape")
    count = math.prod(shape)
    if dtype.kind == "O":
        fits = type(content) is list and len(content) == count
    else:
        fits = isinstance(content, bytes | bytearray) and len(content) == count * dtype.itemsize
    if not fits or (count and not dtype.itemsize) or (not count and max(shape) > _EMPTY_AXIS):
        raise Refused("holds an array whose shape does not fit its content")
    if dtype.kind == "U" and count:
        points = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > sys.maxunicode:
            raise Refused("holds strings of characters that do not exist")
    return dtype


def encode(text: Any, encoding: Any) -> bytes:
    """How protocols below 3 write bytes."""
    if type(text) is not str or type(encoding) is not str or encoding not in _LATIN1:
        raise Refused("encodes something that is no array")
    return text.encode("latin1")


def _bytes(*content: Any) -> bytes:
    if content:
        raise Refused("makes bytes of an unknown form")
    return b""


def _bytearray(content: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(content if type(content) is bytes else encode(content, encoding))


def _complex(real: Any, imaginary: Any) -> complex:
    if not type(real) is type(imaginary) is float:
        raise Refused("makes a complex number of something else")
    return complex(real, imaginary)


def _set(items: Any = ()) -> set[Any]:
    return set(plain_keys(items))


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(plain_keys(items))


def _ordered(pairs: Any = ()) -> collections.OrderedDict[Any, Any]:
    if type(pairs) not in (list, tuple) or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
        raise Refused("makes a dictionary of an unknown form")
    plain_keys([key for key, _ in pairs])
    return collections.OrderedDict(pairs)


def plain_keys(keys: Any) -> list[Any] | tuple[Any, ...]:
    """Refuse keys and members that are nested: their hashes can take for ever."""
    if type(keys) not in (list, tuple):
        raise Refused("makes a set of an unknown form")
    for key in keys:
        inner: Iterable[Any] = key if type(key) is tuple else (key,)
        if not all(type(one) in SCALARS or isinstance(one, np.generic) for one in inner):
            raise Refused("uses a container as a key")
    return keys


# NumPy's own helpers moved from numpy.core to numpy._core. `ndarray` is only ever an argument: it is not in `CALLS`.
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): encode,
    ("collections", "OrderedDict"): _ordered,
}
for _core in ("numpy.core", "numpy._core"):
    ADMITTED |= {(f"{_core}.multiarray", "_reconstruct"): _reconstruct, (f"{_core}.multiarray", "scalar"): _scalar,
                  (f"{_core}.numeric", "_frombuffer"): _frombuffer}
for _builtins in ("builtins", "__builtin__"):
    ADMITTED |= {(_builtins, "set"): _set, (_builtins, "frozenset"): _frozenset, (_builtins, "bytes"): _bytes,
                  (_builtins, "bytearray"): _bytearray, (_builtins, "complex"): _complex}
CALLS: tuple[Callable[..., Any], ...] = tuple(one for one in ADMITTED.values() if one is not np.ndarray)
