"""``mmsa verify``: the operators against the reference, on this machine."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import RunError
from .parsing import add_common, option_names, show_result


def add(commands: Any) -> None:
    """The parser of the command."""
    verification = commands.add_parser(
        "verify", help="check DecAlign's operators against the NumPy reference, on this machine",
        description="Compare DecAlign's operators with their NumPy reference: values and gradients, in float64 and "
                    "float32, on the CPU and every CUDA GPU, or on the one that --device names. Some 10 seconds. "
                    "Exit code 1 if any differs by more than the table allows.")
    verification.add_argument("--device", default=argparse.SUPPRESS, help="auto (all of them), cpu, cuda or cuda:N")
    add_common(verification, default=argparse.SUPPRESS)
    verification.set_defaults(run=run, options=option_names(verification))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa verify``: a failed comparison is a failed run."""
    from .. import verify
    from ..harness.machine import pick_device

    everywhere = arguments.device.lower() == "auto"
    rows = verify.verify(verify.devices_here() if everywhere else [pick_device(arguments.device)])
    show_result(arguments, verify.document(rows), lambda console: verify.print_rows(rows, console))
    failed = [f"{row.operator} ({row.device}, {row.dtype})" for row in rows if not row.passed]
    if failed:
        raise RunError(f"operators that differ from the reference by more than allowed: {', '.join(failed)}")
