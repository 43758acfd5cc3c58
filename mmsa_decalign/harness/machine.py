"""What a record says about the machine and the code: device, versions, memory, commit."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError

_DISTRIBUTIONS = {"torch": "torch", "numpy": "numpy", "scipy": "scipy", "pandas": "pandas",
                  "scikit_learn": "scikit-learn", "MMSA": "MMSA", "transformers": "transformers",
                  "mmsa_decalign": "mmsa-decalign"}


def pick_device(device: str = "auto", gpu_ids: list[int] | None = None) -> Any:
    """The torch device for "auto", "cpu", "cuda" or "cuda:N"; ``gpu_ids`` are MMSA's and count where device is auto.

    As in MMSA the GPU with most free memory is taken where none is named, and the CPU where there is none.
    """
    import torch

    name = device.lower()
    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
        raise InputError(f"--device {device}: expected auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not available):
        return torch.device("cpu")
    if kind == "cuda" and not available:
        raise InputError(f"--device {device}: torch {torch.__version__} sees no GPU here; use --device cpu")
    wanted = int(number) if number else (gpu_ids[0] if kind == "auto" and gpu_ids else _most_free(torch, available))
    if wanted >= available:
        raise InputError(f"GPU {wanted} does not exist: this machine has {available}, counted from 0")
    return torch.device(f"cuda:{wanted}")


def _most_free(torch: Any, available: int) -> int:
    return max(range(available), key=lambda index: torch.cuda.mem_get_info(index)[0])


def versions() -> dict[str, str | None]:
    """Version of Python and of every library that a result depends on; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def describe_device(device: Any) -> dict[str, Any]:
    """Type and name of the device, and the number of CPU threads torch uses."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"type": str(device), "name": name, "threads": torch.get_num_threads(), "system": platform.platform()}


def git_commit(folder: str | Path) -> str | None:
    """Commit of the repository that tracks `folder`, "-dirty" appended where files differ; None where there is none."""
    try:
        if not _git(folder, "ls-files", "."):  # below a repository that does not hold it: an environment in a checkout
            return None
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("-dirty" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: str | Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def peak_memory(device: Any) -> dict[str, float | None]:
    """Peak memory in MiB so far: of the process (None on Windows), and on the GPU if there is one."""
    import torch

    try:
        import resource
    except ImportError:  # Windows
        process = None
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
        process = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
    gpu = round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None
    return {"process": process, "gpu": gpu}
