"""A tuning space in MMSA's form (``debugParams``) as Optuna's parameters, and back.

MMSA's spaces are lists of choices, so that every parameter is categorical; a choice that is itself a list, such as
[64, 16, 64], goes by its JSON text.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from typing import Any

Choices = dict[str, dict[Any, Any]]  # parameter -> choice as Optuna stores it -> value as the model gets it


def parameters(space: Mapping[str, Any]) -> Choices:
    """The parameters of a space. An object such as {"drop": [...], "shapes": [...]} is a parameter for each key."""
    found: Choices = {}
    for key, choices in space.items():
        parts = {f"{key}.{name}": part for name, part in choices.items()} if isinstance(choices, dict) else {
            key: choices}
        for name, part in parts.items():
            values = part if isinstance(part, (list, tuple)) else [part]
            found[name] = {_stored(value): value for value in values}
    return found


def settings_of(params: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a trial's parameters stand for."""
    known = parameters(space)

    def value(name: str) -> Any:
        return known[name][params[name]]

    return {key: {name: value(f"{key}.{name}") for name in choices} if isinstance(choices, dict) else value(key)
            for key, choices in space.items()}


def size(choices: Choices) -> int:
    """How many settings there are."""
    return math.prod(len(values) for values in choices.values())


def signature(params: Mapping[str, Any]) -> str:
    """Equal for equal parameters."""
    return json.dumps(dict(sorted(params.items())))


def untried(choices: Choices, tried: set[str], generator: random.Random) -> dict[str, Any] | None:
    """Parameters that are not among the ``tried`` signatures, each with the same chance; None if there are none."""
    if len(tried) >= size(choices):
        return None
    for _ in range(100 * size(choices)):
        params = {name: generator.choice(list(values)) for name, values in choices.items()}
        if signature(params) not in tried:
            return params
    return None


def _stored(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
