"""A worker whose runs are made up: ``python -m compare_stub`` does what the settings of a cell say, within moments.

Everything else is the real worker: claims, transactions, exit codes. Each start leaves a line in the file "log".
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmsa_decalign.compare import worker
from mmsa_decalign.compare.plan import Cell, key_of
from mmsa_decalign.errors import RunError
from mmsa_decalign.harness.samples import Samples


def cell(name: str, seed: int = 1, **settings: Any) -> Cell:
    """A cell for the worker below."""
    spec = {"kind": "model", "model": name, "dataset": "mosi", "seed": seed, "settings": settings}
    return Cell(key_of(spec), name, "mosi", seed, spec)


def record_of(spec: dict[str, Any], test: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A record with the fields that the table reads."""
    return {
        "id": more.pop("id", f"{spec['model']}{spec['seed']}"), "model": spec["model"], "model_source": "made up",
        "dataset": spec["dataset"], "seed": spec["seed"], "settings": spec["settings"],
        "mended": False, "flags": [], "git_commit": "0" * 40, "epochs": [{"epoch": 1}],
        "features": {"path": "/data/fold0.pkl", "sha256": "f" * 64, "samples": {"train": 9, "valid": 9, "test": 9}},
        "versions": {"torch": "2", "MMSA": "2.2.1", "mmsa_decalign": "0.1"},
        "device": {"type": "cpu", "name": "x", "threads": 1}, "parameters": 3,
        "peak_memory_mib": {"process": 10.0, "gpu": None}, "checkpoint": None, "wall_seconds": 0.5,
        "selection": {"epoch": 1, "metric": "Loss", "mode": "min", "split": "valid", "value": 1.0}, "test": test,
        **more,
    }


def do(spec: dict[str, Any], folder: Path, device: str) -> tuple[dict[str, Any], dict[str, Samples]]:
    """In place of a training."""
    settings = spec["settings"]
    with open(settings["log"], "a") as log:
        log.write(f"{spec['model']} {spec['seed']} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    if settings.get("wait_for"):
        while not Path(settings["wait_for"]).exists():
            time.sleep(0.02)
    (folder / "half.pth").write_text("a checkpoint that nobody finished")
    time.sleep(settings.get("seconds", 0.0))
    if settings.get("behaviour") == "fail":
        raise RunError("the loss is not a number")
    if settings.get("behaviour") == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.get("behaviour") == "exit":
        os._exit(3)
    labels, predictions = (np.random.default_rng([number, spec["seed"] * number]).normal(size=6).astype(np.float32)
                           for number in (0, 1))
    samples = Samples([f"s{number}" for number in range(6)], labels, predictions[:, None])
    test = {"MAE": round(float(np.abs(labels - predictions).mean()), 4)}
    return record_of(spec, test, id=f"{os.getpid()}-{time.monotonic_ns()}"), {"test": samples, "valid": samples}


if __name__ == "__main__":
    worker.do = do
    sys.exit(worker.main(sys.argv[1:]))
