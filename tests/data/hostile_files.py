"""Feature files and checkpoints that are broken or lie: from good ones by chance, and by hand.

Every function makes the content of one file from a generator of random numbers. What may change here: further kinds.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import socket
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_pickles
import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays


def good_layout() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(0)
    data = {}
    for split, rows in (("train", 5), ("valid", 3), ("test", 4)):
        data[split] = {
            "raw_text": [f"sentence {i}" for i in range(rows)], "id": [f"{split}$_${i}" for i in range(rows)],
            "text_bert": np.ones((rows, 3, 4), np.int64),
            "audio_lengths": [4] * rows, "vision_lengths": np.full(rows, 4),
            "regression_labels": rng.uniform(-3, 3, rows).astype(np.float32),
        }  # fmt: skip
        for modality, width in (("text", 6), ("audio", 3), ("vision", 2)):
            data[split][modality] = rng.normal(size=(rows, 4, width)).astype(np.float32)
    return data


def broken(rng: random.Random, goods: list[bytes]) -> tuple[str, bytes]:
    """A good file with a few bytes changed, cut, or parts moved, doubled or taken from another."""
    data = bytearray(rng.choice(goods))
    kind = rng.choice(("flipped", "flipped", "cut", "spliced"))
    if kind == "cut":
        return kind, bytes(data[:rng.randrange(len(data))])
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(300, len(data)))  # heads matter more
        if kind == "flipped":
            data[at] = rng.randrange(256)
        else:
            other = rng.choice(goods)
            start = rng.randrange(len(other))
            data[at:at + rng.choice((0, 1, 8, 100))] = other[start:start + rng.choice((0, 1, 8, 100))]
    return kind, bytes(data)


_FITS = (5, 4, 3)
ODD: list[Any] = [
    None, 0, -1, 2**70, 10**5000, 1.5, float("nan"), True, "", "text", b"bytes", (), [], {}, set(), [None], [[]],
    [[[]]], [[1], [1, 2]], [10**400, 1.5], [1, "a"], ["a"] * 5, [b"\xff"] * 5, [{}] * 5, [[1.0] * 3] * 5,
    {"a": 1}, {1: 2}, [2**63] * 5, [-(2**63)] * 5, "x" * 5, np.float32(1), np.str_("x"),
    *(np.zeros(shape) for shape in ((), 0, 4, 5, (5, 1), (5, 2), (5, 4), (0, 4, 3), (5, 0, 3), (5, 4, 0), (5,) * 4)),
    *(np.ones(_FITS, kind) for kind in (complex, bool, np.float16, np.longdouble, ">f4", np.int8, np.uint64)),
    *(np.full(_FITS, value) for value in (1e300, np.inf, -np.inf, np.nan, 0.5)), np.full(_FITS, 2**63, np.uint64),
    np.asfortranarray(np.ones(_FITS)), np.ones((5, 3, 4)), np.full((5, 3, 4), 0.5), np.ones((1,) * 20),
    *(np.array([value] * 5) for value in ("a", b"a", b"\xff", None, 1e30, -1, 99)), np.array([2**62] * 5, np.uint64),
    np.array(["a"] * 5, object), np.array([[1], [1, 2]], object), np.array([[["a"] * 3] * 4] * 5),
    np.array(10**5000, object), np.array([10**5000] * 5, object),
]  # fmt: skip


def swapped(rng: random.Random, good: dict[str, dict[str, Any]]) -> bytes:
    """A file with one to three values, splits or keys replaced by something odd."""
    data: dict[Any, Any] = {name: dict(split) for name, split in good.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        split = rng.choice(list(good))
        if not isinstance(data.get(split), dict):
            continue
        action = rng.random()
        keys = [*data[split], "text_lengths", "regression_labels_T", "classification_labels"]
        if action < 0.8:
            data[split][rng.choice(keys)] = rng.choice(ODD)
        elif action < 0.9:
            data[split].pop(rng.choice(keys), None)
        elif action < 0.95:
            data[split] = rng.choice(ODD)
        else:
            data[rng.choice((1, None, b"train", ("a", 1), "Train"))] = data.pop(split)
    return pickle.dumps(data, rng.randrange(2, 6))


def instructions(rng: random.Random, pieces: list[bytes]) -> bytes:
    """A random program of the pickle machine, from instructions and from what payloads are made of."""
    codes = b"(.0123bcdehijloqrstuRQ})]N\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94\x95\x98".replace(b".", b"")
    simple = [bytes([code]) for code in codes] + [b"]", b"}", b")", b"K\x01", b"I7\n", b"h\x01", b"q\x01"]
    simple += [hostile_pickles.text("train"), hostile_pickles.blob(b"b" * 8)]
    made = b"".join(rng.choice(pieces if rng.random() < 0.4 else simple) for _ in range(rng.randrange(3, 40)))
    return b"\x80" + bytes([rng.choice((2, 4))]) + made + b"."


def headers(rng: random.Random, good: bytes) -> bytes:
    """A safetensors file with a header that lies."""
    length = struct.unpack("<Q", good[:8])[0]
    header, rest = json.loads(good[8:8 + length]), good[8 + length:]
    name = rng.choice(list(header))
    odd = [None, True, 0, -1, 1.5, 1e400, 2**63, 2**64, 10**30, "x", "F64", "U8", "BOOL", "BF16", [], {}, [[]],
           [2**40] * 4, [0, 2**50], [-1, -8]]
    entry = header[name]
    action = rng.randrange(8)
    if action == 0:
        header[name] = rng.choice(odd)
    elif action <= 3:
        entry[rng.choice(("dtype", "shape", "data_offsets", "format", "version"))] = rng.choice(odd)
    elif action == 4 and "shape" in entry:
        entry[rng.choice(("shape", "data_offsets"))][0] = rng.choice(odd)
    elif action == 5:
        header[rng.choice(("train/text", "", "/", "train", "train/id/x", "x" * 9999, "train/id"))] = header.pop(name)
    elif action == 6 and "shape" in entry:
        entry.update(rng.choice([value for key, value in header.items() if key != "__metadata__"]))
    else:
        del header[name]
    text = json.dumps(header).encode()
    tail = rng.random()
    if tail < 0.05:
        text = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"{", b"{}", b'{"a": ' + b"9" * 9999 + b"}",
                           b"{" + b"\xff" * 99, b'{"__metadata__": 1}'))
    lies = (0, 1, 8, len(text) - 1, len(text) + 1, 2**20 + 1, 2**31, 2**39, 2**63)
    stated = len(text) if tail < 0.9 else rng.choice(lies)
    return struct.pack("<Q", stated) + text + rest


def lists_of_strings(rng: random.Random, folder: Path) -> bytes:
    """A safetensors file whose strings are none."""
    from safetensors.numpy import load_file, save

    tensors = load_file(folder / "good.safetensors")
    odd = (b"", b"[", b"[" * 100_000, b"[" * 500 + b"]" * 500, b"{}", b"[1]", b'["a", null]', b"[" + b"9" * 9999 + b"]",
           b"\xff", b'["\xff"]', b"NaN", b'"a"')
    tensors[rng.choice(("train/id", "test/raw_text"))] = np.frombuffer(rng.choice(odd), np.uint8)
    return save(tensors, {"mmsa_decalign.features": '{"version": 1}'})


def special_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Links and things that are no files."""
    targets = {
        "nothing": "absent", "itself": "itself", "a folder": ".", "zeros": "/dev/zero", "random": "/dev/urandom",
        "null": "/dev/null", "full": "/dev/full", "terminal": "/dev/tty", "memory": "/proc/self/mem",
        "maps": "/proc/self/maps", "environment": "/proc/self/environ", "processes": "/proc",
        "standard input": "/dev/fd/0",
        "a ring": "ring a", "a good file": "good.pkl", "a name with a line\n": "good.pkl",
    }  # fmt: skip
    for name, target in targets.items():
        path = folder / f"link to {name}"
        path.symlink_to(folder / path.name if name == "itself" else folder / target)
        yield path.name, path
    os.symlink(folder / "ring b", folder / "ring a")
    os.symlink(folder / "ring a", folder / "ring b")
    yield "ring", folder / "ring a"
    os.mkfifo(folder / "pipe")
    yield "pipe", folder / "pipe"
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)
        server.bind("socket")
        yield "socket", folder / "socket"
    yield "long name", folder / ("x" * 300)
    yield "zero byte", folder / "a\0b"
    yield "file as a folder", folder / "good.pkl" / "x"


def anything() -> st.SearchStrategy[Any]:
    """Data of any form, arrays among it, and dictionaries with the keys of feature files."""
    keys = st.sampled_from(["train", "valid", "test", "text", "audio", "vision", "id", "raw_text", "regression_labels",
                            "text_bert", "audio_lengths"])
    leaves = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
              | arrays.arrays(arrays.scalar_dtypes(), arrays.array_shapes(min_dims=0, min_side=0, max_side=3)))
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6)
                        | st.tuples(inner, inner), max_leaves=12)


def checkpoints() -> list[bytes]:
    """Good ones in the three formats: zip archive, old pickle, safetensors."""
    import safetensors.torch

    state = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2), "steps": torch.tensor(3)}
    made = []
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=zipped)
        made.append(stream.getvalue())
    return [*made, safetensors.torch.save(state)]


def with_program(archive: bytes, payload: bytes) -> bytes:
    """A checkpoint whose pickle is a payload."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.namelist():
            program = b"\x80\x02}" + hostile_pickles.text("weight") + payload + b"s."
            new.writestr(entry, program if entry.endswith("data.pkl") else old.read(entry))
    return stream.getvalue()
