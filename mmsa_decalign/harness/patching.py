"""What a patch is made of: its record, a module seen through replaced names, an attribute that can be put back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Undo = Callable[[], None]


@dataclass(frozen=True)
class Patch:
    """``upstream`` says which line is wrong, in which versions, and why."""

    name: str
    applies: Callable[[], bool]
    apply: Callable[[], Undo]
    upstream: str


class View:
    """A module with some of its names replaced, for one importer only."""

    def __init__(self, module: ModuleType | View, **replaced: Any) -> None:
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def replace(owner: Any, name: str, value: Any) -> Undo:
    """Set an attribute; returns the function that puts the old one back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


def add(owner: Any, name: str, value: Any) -> Undo:
    """Give a class an attribute of its own that it lacks or inherits; undoing takes it away again."""
    if name in vars(owner):
        return replace(owner, name, value)
    setattr(owner, name, value)
    return lambda: delattr(owner, name)


def together(undos: list[Undo]) -> Undo:
    """One undoing for several, the last first; calling it again does nothing."""

    def undo() -> None:
        while undos:
            undos.pop()()

    return undo


def mmsa_module(name: str) -> Any:
    """A module of MMSA, whose packages hide many of theirs behind classes of the same name."""
    return importlib.import_module(f"MMSA.{name}")
