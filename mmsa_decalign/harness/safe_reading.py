"""Reading what may come from strangers, without running it: checkpoints, and MMSA's own loaders.

``read_checkpoint`` takes what ``torch.save`` wrote, tensors alone, and safetensors files. ``read_safely`` gives the
modules of MMSA that unpickle features or load weights a view of ``pickle`` and ``torch`` that does the same for them.
What may change here: further modules of MMSA that read files.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..data.mapped import looks_mapped
from ..data.reading import is_converted, read_file, read_open
from ..data.schema import MODALITIES
from ..errors import InputError
from .patching import Undo, View, mmsa_module, replace, together

_EXPECTED = "expected a .pth or .safetensors file with a state dict"
_FEATURES = (f"checkpoint {{}}: is a feature file; {_EXPECTED}.\n"
             "Were the two swapped? The checkpoint comes first: mmsa predict CHECKPOINT FEATURES")
_READERS = ("data_loader", "run")  # modules of MMSA 2.2.1 that unpickle features


def read_checkpoint(path: str | os.PathLike[str], device: Any = "cpu") -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint: tensors by name, on ``device``. Nothing in the file is run.

    Raises InputError for a file that is absent or damaged, and for one that holds more than tensors.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise InputError(f"checkpoint {path}: is a folder; {_EXPECTED}.\nName the file inside it.")
        if not path.is_file():  # neither a pipe, which waits for ever
            raise InputError(f"checkpoint {path}: no such file; {_EXPECTED}")
        if not path.stat().st_size:
            raise InputError(f"checkpoint {path}: is empty (0 bytes); {_EXPECTED}")
        if is_converted(path):
            raise InputError(_FEATURES.format(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it is instead is said below
            state = _load(path, map_location=device)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"checkpoint {path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pickle, zipfile, torch and safetensors have one each for every fault
        if _holds_features(path):
            raise InputError(_FEATURES.format(path)) from None
        raise InputError(f"checkpoint {path}: is damaged, or holds more than tensors ({type(error).__name__}).\n"
                         "Save it with torch.save(model.state_dict(), path), or as safetensors.") from error
    tensors = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items())
    if not tensors:
        raise InputError(f"checkpoint {path}: holds no state dict (tensors by name).\n"
                         "Save it with torch.save(model.state_dict(), path), or as safetensors.")
    return dict(state)


def _holds_features(path: Path) -> bool:
    """Whether a pickle that is no checkpoint has arrays of a modality, by split or of one sample."""
    try:
        data = read_file(path)
    except InputError:
        return False
    parts = [data, *data.values()] if isinstance(data, Mapping) else []
    return any(isinstance(one, Mapping) and any(m in one for m in MODALITIES) for one in parts)


def read_safely() -> Undo:
    """MMSA's loaders through the restricted unpickler, and its checkpoints as ``read_checkpoint`` loads them.

    Files of `mmsa data convert` are read in place of pickles too. Nobody else's ``pickle`` and ``torch`` change.
    """
    undos: list[Undo] = []
    for name in _READERS:
        module = mmsa_module(name)
        if hasattr(module, "pickle"):
            undos.append(replace(module, "pickle", View(module.pickle, load=_unpickle)))
    run = mmsa_module("run")
    undos.append(replace(run, "torch", View(run.torch, load=_load)))
    return together(undos)


def _unpickle(file: BinaryIO, **_: Any) -> Any:
    return read_open(Path(file.name), file)


def _load(path: Any, map_location: Any = None, **_: Any) -> Any:
    """``torch.load`` of tensors alone, whichever of the two formats."""
    with open(path, "rb") as file:
        mapped = looks_mapped(file.read(16))
    if mapped:
        from safetensors.torch import load_file

        return load_file(path, device=str(map_location or "cpu"))
    return torch.load(path, map_location=map_location, weights_only=True)
