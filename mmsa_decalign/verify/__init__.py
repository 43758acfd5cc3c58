"""`mmsa verify`: the installed operators against the installed NumPy reference, on the devices of this machine.

Lives here: the run. The comparison is in comparison.py, the cases are in table.py, the output is in report.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from .comparison import GRADIENT_TOLERANCE, TOLERANCE, Case, gradient_error, value_error
from .report import Row, document, print_rows
from .table import cases

__all__ = ["Case", "Row", "cases", "devices_here", "document", "gradient_error", "print_rows", "value_error", "verify"]


@contextmanager
def lowest_precision() -> Iterator[None]:
    """Let float32 matrix products be as coarse as a program may allow (TF32, bfloat16): the operators must not care."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def devices_here() -> list[torch.device]:
    """The CPU and every CUDA GPU. The operators need float64, which Apple's MPS lacks."""
    return [torch.device("cpu"), *(torch.device(f"cuda:{i}") for i in range(torch.cuda.device_count()))]


def verify(devices: Sequence[torch.device]) -> list[Row]:
    """One row per operator, device and type, of all cases; float32 products are allowed to be coarse throughout."""
    by_operator: dict[str, list[Case]] = {}
    for case in cases():
        by_operator.setdefault(case.operator, []).append(case)
    rows = []
    with lowest_precision():
        for device in devices:
            for operator, own in by_operator.items():
                for dtype in TOLERANCE:
                    value = max(value_error(case, dtype, device) for case in own)
                    gradient = max(gradient_error(case, dtype, device) for case in own)
                    limits = TOLERANCE[dtype], GRADIENT_TOLERANCE[dtype]
                    passed = value <= limits[0] and gradient <= limits[1]
                    name = str(dtype).removeprefix("torch.")
                    rows.append(Row(operator, str(device), name, value, limits[0], gradient, limits[1], passed))
    return rows
