"""What `mmsa verify` prints: a row per operator, device and type, as a table or as one JSON document."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch


class Row(NamedTuple):
    """The worst of an operator's cases on one device in one type. Errors are inf where NaN or a wrong shape came."""

    operator: str
    device: str
    dtype: str
    value_error: float
    value_tolerance: float
    gradient_error: float
    gradient_tolerance: float
    passed: bool


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """The result as one JSON document; an infinite error is null."""
    return {
        "schema_version": 1,
        "passed": all(row.passed for row in rows),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "devices": {row.device: _device_name(row.device) for row in rows},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "operators": [
            {key: None if value == math.inf else value for key, value in row._asdict().items()} for row in rows
        ],
    }  # fmt: skip


def print_rows(rows: Sequence[Row], console: Any) -> None:
    """The result as a table."""
    from rich.table import Table

    console.print("DecAlign's operators against their NumPy reference: the worst relative errors", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))  # 80 columns
    for name in ("operator", "device", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "limit", "gradient", "limit"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("pass", no_wrap=True)
    for row in rows:
        errors = (row.value_error, row.value_tolerance, row.gradient_error, row.gradient_tolerance)
        table.add_row(*row[:3], *(f"{error:.0e}" for error in errors), "yes" if row.passed else "[bold red]NO[/]")
    console.print(table)
    for device in dict.fromkeys(row.device for row in rows):
        console.print(f"{device}: {_device_name(device)}", highlight=False, markup=False)
    console.print(
        f"float32 matrix products of this program: {torch.get_float32_matmul_precision()!r}; of no account to the "
        "operators, which compute in float64 (measured with 'medium', which allows TF32)",
        highlight=False, markup=False,
    )  # fmt: skip


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
