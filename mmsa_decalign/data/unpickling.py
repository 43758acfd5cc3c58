"""The only pickles that are read: plain containers, strings, numbers and NumPy arrays, checked as they are built.

A pickle is a program. Its machine is the standard library's, in Python, with instructions taken out: names stand for
the functions in `admitted` alone, and no length is believed that is longer than the file. What comes out is looked
through for contents that fill the memory once somebody uses them. What may change here: limits, with the fuzzer's
consent.
"""

from __future__ import annotations

import collections
import pickle
import struct
from typing import Any, BinaryIO, NoReturn

import numpy as np

from .admitted import CALLS, SCALARS, Refused, Type, admitted, encode, fill, plain_keys

__all__ = ["Refused", "load"]

_SMALL = 1 << 16
_NUMBER_BITS = 2048  # Python refuses to write out numbers of more than 4300 digits
_DEPTH = 100
_GROWTH = 16  # written out, with whatever is shared written again, contents take this many bytes for one of the file
_ALLOWANCE = 1 << 24


def load(file: BinaryIO, encoding: str = "ASCII") -> Any:
    """The object in a pickle; `encoding` is that of Python 2's strings.

    Raises Refused, EOFError for a cut file, and whatever a damaged one leads to.
    """
    machine = _Unpickler(file, encoding)
    thing = machine.load()
    _refuse_bombs(thing, _GROWTH * machine.size + _ALLOWANCE)
    return thing


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]  # the one in C builds arrays behind our back
    """The standard machine without frames, and with only the instructions in `_INSTRUCTIONS`."""

    def __init__(self, file: BinaryIO, encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self._file = file
        start = file.tell()
        self.size = file.seek(0, 2) - start
        file.seek(start)
        self._end = start + self.size
        self.readline = file.readline

    def load(self) -> Any:
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        while (code := self.read(1)) != pickle.STOP:
            if code not in _INSTRUCTIONS:
                raise ValueError(f"instruction {code!r}")
            self._code = code[0]
            self.dispatch[self._code](self)
        return self.stack.pop()

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes; what the file cannot have is not asked for."""
        self._must_have(length)
        data = self._file.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def _must_have(self, length: int) -> None:
        if length > _SMALL and length > self._end - self._file.tell():
            raise EOFError

    def find_class(self, module: str, name: str) -> Any:
        return admitted(module, name)

    def persistent_load(self, pid: Any) -> NoReturn:
        raise Refused("refers to data outside itself")

    def load_frame(self) -> None:
        self._must_have(struct.unpack("<Q", self.read(8))[0])  # a frame is a hint: reading it whole would be a copy

    def load_bytearray8(self) -> None:
        length = struct.unpack("<Q", self.read(8))[0]
        self._must_have(length)
        content = bytearray(length)
        if self._file.readinto(content) < length:  # type: ignore[attr-defined]
            raise EOFError
        self.append(content)

    def load_number(self) -> None:
        pickle._Unpickler.dispatch[self._code](self)  # type: ignore[attr-defined]
        if self.stack[-1].bit_length() > _NUMBER_BITS:
            raise Refused("holds a number of thousands of digits")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is one for one in CALLS) or type(arguments) is not tuple:
            raise Refused("calls what is no function")
        self.stack[-1] = function(*arguments)
        if function is encode and len(arguments[0]) > _SMALL:  # bytes of old protocols: the text was only the way here
            self.memo = {key: one for key, one in self.memo.items() if one is not arguments[0]}

    def load_build(self) -> None:
        state = self.stack.pop()
        thing = self.stack[-1]
        if type(thing) is np.ndarray:
            fill(thing, state)
        elif type(thing) is Type:
            thing.describe(state)
        else:
            raise Refused(f"sets the state of a {type(thing).__name__}")

    def load_setitem(self) -> None:
        self._set([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_additems(self) -> None:
        items = plain_keys(self.pop_mark())
        if type(self.stack[-1]) is not set:
            raise Refused("adds to what is no set")
        self.stack[-1].update(items)

    def load_frozenset(self) -> None:
        items = plain_keys(self.pop_mark())
        self.append(frozenset(items))

    def _set(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        if type(target) not in (dict, collections.OrderedDict):
            raise Refused("sets an item of what is no dictionary")
        target.update(zip(plain_keys(keys), items[1::2], strict=True))

    dispatch = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]
    dispatch.update({
        pickle.FRAME[0]: load_frame, pickle.BYTEARRAY8[0]: load_bytearray8, pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict, pickle.ADDITEMS[0]: load_additems, pickle.FROZENSET[0]: load_frozenset,
        pickle.INT[0]: load_number, pickle.LONG[0]: load_number, pickle.LONG1[0]: load_number,
        pickle.LONG4[0]: load_number,
    })  # fmt: skip


# Left out: instances of classes (INST, OBJ, NEWOBJ, NEWOBJ_EX), registered extensions, buffers outside the file.
_INSTRUCTIONS = frozenset(
    getattr(pickle, name) for name in (
        "PROTO FRAME MARK POP POP_MARK DUP GLOBAL STACK_GLOBAL REDUCE BUILD PERSID BINPERSID "
        "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS "
        "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET "
        "GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
    ).split()
)  # fmt: skip


def _refuse_bombs(root: Any, allowed: int) -> None:
    """Refuse contents that are small only while what they share is shared, that hold themselves, or are no data.

    `allowed`: the bytes they may take when written out. A list of ten times the same list of ten times the same list
    is nothing in memory, and everything once somebody makes an array of it.
    """
    costs: dict[int, tuple[int, int]] = {}  # of a container: bytes, depth
    path: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting[-1]
        if id(thing) in costs:
            waiting.pop()
            continue
        inside = _inside(thing)
        if inside is None:
            costs[id(thing)] = _cost(thing), 0
            continue
        # numbers are many, and containers few: those that were seen cost a look, those that were not are visited first
        deeper = [one for one in inside if type(one) not in _NUMBERS]
        unseen = [one for one in deeper if id(one) not in costs]
        if unseen:
            path.add(id(thing))
            if any(id(one) in path for one in unseen):
                raise Refused("holds a container that holds itself")
            waiting.extend(unseen)
            continue
        cost = len(inside) + sum(costs[id(one)][0] for one in deeper)
        depth = 1 + max((costs[id(one)][1] for one in deeper), default=0)
        if cost > allowed or depth > _DEPTH:
            raise Refused("is nested so that it would fill the memory")
        path.discard(id(thing))
        costs[id(thing)] = cost, depth


_NUMBERS = frozenset((int, float, bool, type(None)))


def _inside(thing: Any) -> list[Any] | tuple[Any, ...] | None:
    """What a container holds, keys and values; None for what is none."""
    if type(thing) in (list, tuple):
        return thing
    if type(thing) in (dict, collections.OrderedDict):
        return [*thing.keys(), *thing.values()]
    if type(thing) in (set, frozenset):
        return list(thing)
    if type(thing) is np.ndarray and thing.dtype.kind == "O":
        return list(thing.flat)
    return None


def _cost(thing: Any) -> int:
    if type(thing) in (str, bytes, bytearray):
        return len(thing)
    if type(thing) is np.ndarray:
        return thing.nbytes
    if isinstance(thing, np.generic) or type(thing) in SCALARS:
        return 1
    raise Refused("holds what is no data")
