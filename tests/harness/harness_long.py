"""200 short trainings in this one process: what the process holds while they go on, as JSON on standard output.

Called by test_long_processes.py with a folder and a feature file. A phase is one kind of training; its seeds are nobody
else's.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmsa_decalign import RunError
from mmsa_decalign.harness.registry import active
from mmsa_decalign.harness.runner import prepare, run

DECALIGN = {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 3, "num_epochs": 1}
LF_DNN = {"max_epochs": 1, "hidden_dims": [8, 8, 8], "text_out": 8, "post_fusion_dim": 8}
LOOKS = 4  # at each phase; the first comes after its warm-up


def held() -> dict[str, int]:
    """What must not grow with the number of trainings."""
    import MMSA.run
    from torch import nn

    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:
        pages = int(statm.read().split()[1])
    return {
        "KiB": pages * os.sysconf("SC_PAGE_SIZE") // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "handlers": len(logging.getLogger("MMSA").handlers) + len(logging.getLogger().handlers),
        "loggers": len(logging.Logger.manager.loggerDict),
        "filters": len(warnings.filters),
        "modules": len(sys.modules),
        "layers of replaced names": _depth(MMSA.run.pd) + _depth(MMSA.run.torch) + _depth(MMSA.run.np),
        "parts of models": sum(isinstance(one, nn.Module) for one in gc.get_objects()),
    }


def _depth(module: Any) -> int:
    depth = 0
    while "_module" in vars(module):
        module, depth = vars(module)["_module"], depth + 1
    return depth


def phases(folder: Path, features: Path) -> dict[str, tuple[int, bool, Callable[[int], None]]]:
    """Name: how many trainings, whether MMSA stays registered between them, and one of them, of a seed."""
    folders = {"model_save_dir": folder / "m", "res_save_dir": folder / "r", "log_dir": folder / "l"}

    def train(model: str, overrides: dict[str, Any], seed: int, **options: Any) -> None:
        run(prepare(model, "synthetic", feature_file=features, seeds=[seed], device="cpu", verbose=1,
                    overrides=overrides, **folders, **options))

    def failing(seed: int) -> None:
        try:
            train("lf_dnn", {**LF_DNN, "batch_size": 8, "learning_rate": 1e30}, seed)
        except RunError:
            return
        raise AssertionError("a training that diverges went well")

    def by_mmsa(seed: int) -> None:
        import MMSA

        MMSA.MMSA_run("lf_dnn", "mosi", config={**LF_DNN, "early_stop": 1, "learning_rate": 1e-9}, seeds=[seed],
                      custom_feature=str(features), gpu_ids=[], num_workers=0, verbose_level=1, **folders)

    return {
        "decalign": (80, True, lambda seed: train("decalign", DECALIGN, seed)),
        "lf_dnn": (40, True, lambda seed: train("lf_dnn", LF_DNN, seed)),
        "registered each time": (28, False, lambda seed: train("decalign", DECALIGN, seed)),
        "failing": (20, True, failing),
        "with event files": (12, True, lambda seed: train("decalign", DECALIGN, seed, tensorboard=folder / "events")),
        "MMSA_run": (20, True, by_mmsa),
    }


def main(folder: str, features: str) -> None:
    """Do it all."""
    found, seed = {}, 1000
    time.sleep = lambda seconds: None  # MMSA_run waits a second after each training
    for name, (count, registered, train) in phases(Path(folder), Path(features)).items():
        found[name] = []
        with active() if registered else nullcontext():
            for number in range(1, count + 1):
                seed += 1
                train(seed)
                if number % (count // LOOKS) == 0:
                    found[name].append(held())
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
