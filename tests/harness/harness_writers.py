"""What several processes do at once in test_many_writers.py, each from a common start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mmsa_decalign.data import fetch as fetching
from mmsa_decalign.data.published import PublishedFile
from mmsa_decalign.data.synthetic import ensure_synthetic
from mmsa_decalign.harness.files import append_row
from mmsa_decalign.harness.progress import LOGGER, logging_to, stderr_console
from mmsa_decalign.harness.registry import active
from mmsa_decalign.locks import guarded

HEADER = ["Model", "MAE"]


def rows(start: Any, path: Path, who: int, count: int) -> None:
    """Append so many rows of one's own."""
    start.wait()
    for number in range(count):
        append_row(path, HEADER, [f"m{who}-{number}", (1.5, 0.0)])


def mmsa_runs(start: Any, folder: Path, who: int, count: int) -> None:
    """MMSA_run so many times, with the training left out."""
    import MMSA
    import MMSA.run

    MMSA.run._run = lambda args, *rest: {"MAE": who / 100, "Corr": args["cur_seed"] / 100}
    with active():
        start.wait()
        for _ in range(count):
            MMSA.MMSA_run("lf_dnn", "mosi", seeds=[1], gpu_ids=[], verbose_level=0, model_save_dir=folder / "models",
                          res_save_dir=folder / "results", log_dir=folder / "logs")


def lines(start: Any, path: Path, who: int, count: int, length: int) -> None:
    """Log so many lines."""
    with logging_to(stderr_console(), path, 0):
        start.wait()
        for number in range(count):
            LOGGER.info("<%d-%d %s>", who, number, "x" * length)


def synthetic(start: Any, root: Path, answers: Any) -> None:
    """Make the default data set where it is absent, and read it."""
    from mmsa_decalign.data.reading import sha256_of

    start.wait()
    answers.put(sha256_of(ensure_synthetic(root)))


def fetched(start: Any, file: PublishedFile, root: Path, source: Path, answers: Any) -> None:
    """Fetch a file, slowly."""
    fetching._BLOCK = 64
    start.wait()
    answers.put(fetching.fetch(file, root, str(source), progress=lambda *_: time.sleep(0.01))["fetched"])


def hold(path: Path, ready: Any) -> None:
    """Keep the lock until killed."""
    with guarded(path):
        ready.set()
        while os.getppid() != 1:
            time.sleep(0.05)
