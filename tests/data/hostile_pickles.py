"""Pickles that want to run something, fill the memory or confuse NumPy, put together instruction by instruction.

`payloads` is the whole list, `program` puts one somewhere into a feature file. What may change here: further payloads;
each must say in its name what it tries.
"""

from __future__ import annotations

import datetime
import fractions
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

POSITIONS = ("root", "train", "text", "id", "raw_text", "audio_lengths", "regression_labels", "key")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"I" + str(value).encode() + b"\n"


def blob(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str, *, stack: bool = False) -> bytes:
    if stack:
        return text(module) + text(attribute) + b"\x93"
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def many(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + b"R"


MULTIARRAY = "numpy._core.multiarray"
EMPTY = call(name(MULTIARRAY, "_reconstruct"), name("numpy", "ndarray"), many(number(0)), blob(b"b"))


def dtype(spec: str, state: bytes = b"") -> bytes:
    made = call(name("numpy", "dtype"), text(spec), b"\x89", b"\x88")
    return made + (state + b"b" if state else b"")


def plain(order: str, size: int, alignment: int, flags: int) -> bytes:
    """The state of a type that is no record."""
    return many(number(3), text(order), b"N", b"N", b"N", number(size), number(alignment), number(flags))


def array(shape: bytes, kind: bytes, content: bytes, fortran: bytes = b"\x89") -> bytes:
    return EMPTY + many(number(1), shape, kind, fortran, content) + b"b"


def laughs(width: int, depth: int, opening: bytes, closing: bytes) -> bytes:
    """width ** depth things, by sharing."""
    made = opening + text("ha") * width + closing
    for level in range(depth):
        made += b"q" + bytes([level + 1]) + b"0" + opening + (b"h" + bytes([level + 1])) * width + closing
    return made


def running(trace: str) -> dict[str, bytes]:
    """Pickles that leave a trace, or would, when what they ask for is done."""
    command, code, made = f"touch {trace}/ran", f"open({trace + '/ran'!r}, 'w').close()", f"{trace}/ran"
    system = call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system"))
    calls: dict[str, tuple[str, str, list[bytes]]] = {
        "os.system": ("os", "system", [text(command)]), "posix.system": ("posix", "system", [text(command)]),
        "os.mkdir": ("os", "mkdir", [text(made)]), "posix.mkdir": ("posix", "mkdir", [text(made)]),
        "os.popen": ("os", "popen", [text(command)]), "pty.spawn": ("pty", "spawn", [text("/bin/true")]),
        "subprocess.Popen": ("subprocess", "Popen", [many(text("/bin/true"))]),
        "subprocess.call": ("subprocess", "call", [many(text("/bin/true"))]),
        "eval": ("builtins", "eval", [text(code)]), "exec": ("builtins", "exec", [text(code)]),
        "eval of Python 2": ("__builtin__", "eval", [text(code)]),
        "compile": ("builtins", "compile", [text(code), text("x"), text("exec")]),
        "open": ("builtins", "open", [text(made), text("w")]), "io.open": ("io", "open", [text(made), text("w")]),
        "import": ("builtins", "__import__", [text("decoy")]), "decoy": ("decoy", "run", [text(made)]),
        "importlib": ("importlib", "import_module", [text("decoy")]), "runpy": ("runpy", "run_module", [text("decoy")]),
        "pickle.loads": ("pickle", "loads", [blob(b"cdecoy\nrun\n.")]),
        "timeit": ("timeit", "timeit", [text(code)]), "code": ("code", "interact", []),
        "webbrowser": ("webbrowser", "open", [text("file:///")]), "ctypes": ("ctypes", "CDLL", [text("libc.so.6")]),
        "np.load": ("numpy", "load", [text(made)]), "np.save": ("numpy", "save", [text(made), number(1)]),
        "np.fromfile": ("numpy", "fromfile", [text("/etc/hostname")]),
        "np.memmap": ("numpy", "memmap", [text(made), text("u1"), text("w+"), number(0), many(number(9))]),
        "np.savetxt": ("numpy", "savetxt", [text(made), b"]"]), "np.loadtxt": ("numpy", "loadtxt", [text(made)]),
        "np.runstring": ("numpy.testing._private.utils", "runstring", [text(code), b"}"]),
        "np.fromiter": ("numpy", "fromiter", [b"]", text("f8")]), "np.lookfor": ("numpy", "lookfor", [text("x")]),
        "np.f2py": ("numpy.f2py", "compile", [text(code)]), "np.frompyfunc": ("numpy", "frompyfunc", [b"N"]),
        "multiarray.fromfile": (MULTIARRAY, "fromfile", [text("/etc/hostname")]),
        "random state": ("numpy.random._pickle", "__randomstate_ctor", []),
        "masked": ("numpy.ma.core", "_mareconstruct", [name("numpy", "ndarray"), b"N", many(number(0)), blob(b"b")]),
        "torch.load": ("torch", "load", [text(made)]), "torch.save": ("torch", "save", [number(1), text(made)]),
        "torch storage": ("torch.storage", "_load_from_bytes", [blob(b"cdecoy\nrun\n.")]),
        "torch tensor": ("torch._utils", "_rebuild_tensor_v2", [b"N", number(0), many(number(9)), many(number(1))]),
        "torch.hub": ("torch.hub", "load", [text("x/y"), text("z")]), "torch.jit": ("torch.jit", "load", [text(made)]),
        "pandas": ("pandas", "read_pickle", [text(made)]), "joblib": ("joblib", "load", [text(made)]),
        "partial": ("functools", "partial", [name("os", "system"), text(command)]),
        "attrgetter": ("operator", "attrgetter", [text("system")]),
        "methodcaller": ("operator", "methodcaller", [text("touch")]),
        "map": ("builtins", "map", [name("os", "system"), b"]" + text(command) + b"a"]),
        "type": ("builtins", "type", [text("T"), b")", b"}"]), "FunctionType": ("types", "FunctionType", [b"N", b"}"]),
        "globals": ("builtins", "globals", []), "breakpoint": ("builtins", "breakpoint", []),
        "signal": ("os", "kill", [number(0), number(0)]), "exit": ("os", "_exit", [number(0)]),
        "shutil": ("shutil", "rmtree", [text(made)]), "socket": ("socket", "create_connection", [many(number(1))]),
        "codecs.open": ("codecs", "open", [text(made), text("w")]),
        "decode": ("_codecs", "decode", [blob(b"eA=="), text("zlib")]),
        "encode to a module": ("_codecs", "encode", [text("x"), text("decoy")]),
        "encode to hex": ("_codecs", "encode", [blob(b"x" * 99), text("hex")]),
    }  # fmt: skip
    found = {what: call(name(module, function), *arguments) for what, (module, function, arguments) in calls.items()}
    found |= {f"{what}, by strings": call(name(module, function, stack=True), *arguments)
              for what, (module, function, arguments) in calls.items()}
    return found | {
        "getattr chain": call(system, text(command)),
        "dotted name": call(name("os", "path.os.system", stack=True), text(command)),
        "method of an array": call(name("numpy", "ndarray.tofile", stack=True), EMPTY, text(made)),
        "name with a line": name("os\n", "system", stack=True),
        "name that is long": name("o" * 100_000, "s", stack=True),
        "instance": b"(" + text(command) + b"ios\nsystem\n",
        "object": b"(" + name("os", "system") + text(command) + b"o",
        "new object": name("decoy", "run") + many(text(made)) + b"\x81",
        "new admitted object": name("numpy", "ndarray") + many(many(number(1 << 40))) + b"\x81",
        "new object with keywords": name("decoy", "run") + many(text(made)) + b"}\x92",
        "state of a dictionary": b"}" + b"}" + text("__class__") + b"Nsb",
        "state of a function": name("numpy", "dtype") + b"}" + text("__globals__") + b"Nsb",
        "state of a class": name("numpy", "ndarray") + b"}" + text("x") + b"Nsb",
        "class that is called, of a small size": call(name("numpy", "ndarray"), many(number(4))),
        "class that is called": call(name("numpy", "ndarray"), many(number(1 << 40))),
        "data that is called": call(text("os.system"), text(command)), "list that is called": call(b"]", b"N"),
        "extension 1": b"\x82\x01", "extension 2": b"\x83\x01\x00", "extension 4": b"\x84\x01\x00\x00\x00",
        "outside": b"P0\n", "outside, binary": text("x") + b"Q", "buffer outside": b"\x97", "read-only": b"N\x98",
    }  # fmt: skip


def filling() -> dict[str, bytes]:
    """Pickles that are small and want to be large, never end, or hold themselves."""
    million = 1_000_000
    doubled = call(name("_codecs", "encode"), text("x" * 64), text("latin1"))
    for _ in range(30):
        doubled = call(name("_codecs", "encode"), doubled, text("hex"))
    return {
        "bytes of a length": call(name("builtins", "bytes"), number(1 << 33)),
        "bytearray of a length": call(name("builtins", "bytearray"), number(1 << 33)),
        "complex of text": call(name("builtins", "complex"), text("1" * 9999)),
        "set of a dictionary": call(name("builtins", "set"), b"}"),
        "set of text": call(name("builtins", "set"), text("ab")),
        "ordered of text": call(name("collections", "OrderedDict"), text("ab")),
        "encoded again and again": doubled,
        "long frame": b"\x95" + struct.pack("<Q", 1 << 60), "long blob": b"\x8e" + struct.pack("<Q", 1 << 40),
        "blob of 3 GB": b"B" + struct.pack("<I", 3 << 30), "blob of 700 MB": b"B" + struct.pack("<I", 700 << 20),
        "text of 700 MB": b"X" + struct.pack("<I", 700 << 20), "old text": b"T" + struct.pack("<i", 700 << 20),
        "long text": b"\x8d" + struct.pack("<Q", 1 << 62),
        "bytearray of 700 MB": b"\x96" + struct.pack("<Q", 700 << 20),
        "long number": b"\x8b" + struct.pack("<i", (1 << 31) - 1), "negative number": b"\x8b" + struct.pack("<i", -1),
        "number of many digits": b"L" + b"9" * 20_000 + b"L\n", "hexadecimal": b"I0x" + b"f" * 100_000 + b"\n",
        "large number": b"\x8b" + struct.pack("<i", 4000) + b"\x7f" * 4000,
        "place far away": b"Nr" + struct.pack("<I", (1 << 32) - 1), "place in text": b"Np" + b"9" * 30 + b"\n",
        "place of 200 million": b"Nr" + struct.pack("<I", 200 * million), "empty place": b"j\xff\xff\xff\x7f",
        "list laughs": laughs(10, 9, b"(", b"l"), "tuple laughs": laughs(10, 9, b"(", b"t"),
        "wide laughs": laughs(200, 5, b"(", b"l"),
        "laughs as a key": b"}" + laughs(10, 9, b"(", b"t") + b"Ns",
        "laughs in a set": b"\x8f(" + laughs(9, 9, b"(", b"t") + b"\x90",
        "laughs frozen": b"(" + laughs(10, 9, b"(", b"t") + b"\x91",
        "one text many times": text("x" * 100_000) + b"q\x010(" + b"h\x01" * 20_000 + b"l",
        "one array many times": (
            array(many(number(5000)), dtype("f8"), blob(bytes(40_000))) + b"q\x010(" + b"h\x01" * 20_000 + b"l"),
        "deep list": b"]" * 20_000 + b"a" * 19_999, "deep tuple": b")" + b"\x85" * 20_000,
        "deep dictionary": (b"}" + text("a")) * 9_000 + b"N" + b"s" * 9_000,
        "list in itself": b"]q\x01h\x01a", "dictionary in itself": b"}q\x01" + text("train") + b"h\x01s",
        "tuple in itself": b"]q\x01h\x01\x85a", "marks": b"(" * 9_000, "pops": b"0" * 100, "twice": b"N" + b"2" * 9_000,
        "list in many lists": b"]q\x01" + b"0(" + b"h\x01" * 20_000 + b"l",
    }  # fmt: skip


def confusing() -> dict[str, bytes]:
    """Arrays, types and numbers that are not what they say."""
    f8, o8 = dtype("f8"), dtype("O8")
    record = many(number(3), text("|"), b"N", many(text("a")), b"}" + text("a") + many(f8, number(1 << 40)) + b"s",
                  number(8), number(1), number(16))
    states = {
        "shape too large": (many(number(1 << 40)), f8, blob(b"x" * 8)),
        "shape that overflows": (many(number(1 << 32), number(1 << 32)), f8, blob(b"")),
        "shape that wraps": (many(number(1 << 62), number(4)), f8, blob(b"")),
        "negative shape": (many(number(-1)), f8, blob(b"")),
        "negative twice": (many(number(-2), number(-2)), f8, blob(b"x" * 32)),
        "shape of text": (text("abc"), f8, blob(b"x" * 24)), "shape of none": (b"N", f8, blob(b"x" * 8)),
        "shape of lists": (many(b"]"), f8, blob(b"")), "shape of true": (many(b"\x88"), f8, blob(b"x" * 8)),
        "shape of 100 axes": (many(*[number(1)] * 100), f8, blob(b"x" * 8)),
        "empty and wide": (many(number(0), number(1 << 50)), f8, blob(b"")),
        "wide and empty": (many(number(1 << 50), number(0), number(3)), f8, blob(b"")),
        "no width": (many(number(5), number(4), number(0)), f8, blob(b"")),
        "objects too few": (many(number(1_000_000)), o8, b"]" + number(1) + b"a"),
        "objects from bytes": (many(number(1)), o8, blob(b"A" * 8)),
        "objects from text": (many(number(8)), o8, text("A" * 8)),
        "objects from themselves": (many(number(1)), o8, b"]q\x07h\x07a"),
        "numbers from a list": (many(number(1)), f8, b"]" + number(1) + b"a"),
        "numbers from text": (many(number(1)), f8, text("x" * 8)), "numbers from none": (many(number(1)), f8, b"N"),
        "no size": (many(number(1 << 40)), dtype("S0"), blob(b"")),
        "no characters": (many(number(1 << 40)), dtype("U0"), blob(b"")),
        "invalid characters": (many(number(1)), dtype("U1"), blob(b"\xff\xff\xff\xff")),
        "forged objects": (many(number(1)), dtype("f8", plain("|", -1, -1, 63)), blob(b"A" * 8)),
        "forged size": (many(number(1 << 30)), dtype("S1", plain("|", 0, 1, 0)), blob(b"")),
        "forged order": (many(number(1)), dtype("f8", plain("!", -1, -1, 0)), blob(b"A" * 8)),
        "records": (many(number(1)), dtype("V8", record), blob(b"x" * 8)),
        "records of numbers": (many(number(1)), dtype("f8", record), blob(b"x" * 8)),
        "type of nothing": (many(number(1)), b"N", blob(b"x" * 8)),
        "type of text": (many(number(1)), text("O"), blob(b"x" * 8)),
        "no numbers": (many(number(1)), dtype("M8"), blob(b"x" * 8)),
        "half": (many(number(1)), dtype("f2"), blob(b"xx")),
        "long double": (many(number(1)), dtype("f16"), blob(b"x" * 16)),
        "complex": (many(number(1)), dtype("c16"), blob(b"x" * 16)),
        "huge text type": (many(number(0)), dtype("U999999999"), blob(b"")),
        "odd size": (many(number(1)), dtype("f3"), blob(b"xxx")),
        "fields": (many(number(1)), dtype("f4,f4"), blob(b"x" * 8)),
        "evaluated": (many(number(1)), dtype("__import__('os')"), blob(b"x")),
    }  # fmt: skip
    made = {what: array(*state) for what, state in states.items()}
    letter = dtype("U1", plain("<", 4, 4, 8)) + b"q\x09"
    made["order changed afterwards"] = (
        array(many(number(1)), letter, blob(b"a\0\0\0")) + b"h\x09" + plain(">", 4, 4, 8) + b"b0")
    buffer = name("numpy._core.numeric", "_frombuffer")
    scalar = name(MULTIARRAY, "scalar")
    return made | {
        "array of another kind": (
            call(name(MULTIARRAY, "_reconstruct"), name("builtins", "set"), many(number(1 << 40)), blob(b"b"))),
        "array filled twice": (
            array(many(number(1)), f8, blob(b"x" * 8)) + many(number(1), many(number(0)), o8, b"\x89", b"]") + b"b"),
        "array of a short state": EMPTY + many(number(1)) + b"b",
        "array of no state": EMPTY + b"Nb",
        "array as it begins": EMPTY,
        "item of an array": array(many(number(1)), o8, b"]Na") + b")" + laughs(10, 9, b"(", b"l") + b"s",
        "appended to an array": EMPTY + number(1) + b"a", "extended array": EMPTY + b"(" + number(1) + b"e",
        "item of a list": b"]" + number(0) + b"Ns", "added to a list": b"](" + number(0) + b"\x90",
        "buffer of objects": call(buffer, blob(b"A" * 8), o8, many(number(1)), text("C")),
        "buffer too short": call(buffer, blob(b"A" * 8), f8, many(number(1 << 40)), text("C")),
        "buffer in odd order": call(buffer, blob(b"A" * 8), f8, many(number(1)), text("Z")),
        "buffer with odd axes": call(buffer, blob(b"A" * 8), f8, many(number(1)), text("K"), many(number(7))),
        "buffer of text": call(buffer, text("A" * 8), f8, many(number(1)), text("C")),
        "number of an object": call(scalar, o8, blob(b"A" * 8)), "number too short": call(scalar, f8, blob(b"A")),
        "number of none": call(scalar, f8), "number of a list": call(scalar, f8, b"]"),
        "type as data": f8,
        "type of a list": call(name("numpy", "dtype"), b"]"),
        "function as data": name("numpy", "dtype"),
        "class as data": name("numpy", "ndarray"),
    }  # fmt: skip


def strange() -> dict[str, Any]:
    """Things that people pickle, and that are no features."""
    import pandas as pd
    import torch

    return {
        "tensor": torch.ones(5, 4, 3), "frame": pd.DataFrame({"a": [1]}), "path": Path("x"), "range": range(10**12),
        "date": datetime.date(2020, 1, 1), "fraction": fractions.Fraction(1, 3), "slice": slice(1), "dots": ...,
        "class": dict, "function": len, "error": ValueError("x"), "generator": np.random.default_rng(0),
        "masked": np.ma.array([1.0], mask=[True]), "times": np.array(["2020"], "M8[D]"),
        "record array": np.zeros(3, [("a", "f4")]), "module": torch.nn.Linear(1, 1), "random": random.Random(0),
    }  # fmt: skip


def payloads(trace: str) -> dict[str, bytes]:
    """Every payload by what it tries: instructions that leave one thing on the stack."""
    plain = {**running(trace), **filling(), **confusing()}
    return plain | {f"a {what}": pickle.dumps(thing, 2)[2:-1] for what, thing in strange().items()}


def program(payload: bytes, position: str, good: dict[str, Any], protocol: int) -> bytes:
    """A feature file with the payload in a place of it: as the whole, a split, the value of a key, or as a key."""
    start = b"\x80" + bytes([protocol])
    if position == "root":
        return start + payload + b"."
    rest = pickle.dumps({key: value for key, value in good.items() if key != "train"}, 2)[2:-1]
    inside = {key: value for key, value in good["train"].items() if key != position}
    if position == "train":
        train = payload
    else:  # after the rest, whose places in the memo the payload may take
        item = payload + b"N" if position == "key" else text(position) + payload
        train = pickle.dumps(inside, 2)[2:-1] + item + b"s"
    return start + rest + text("train") + train + b"s."
