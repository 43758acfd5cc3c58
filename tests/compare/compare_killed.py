"""Grids and workers for the killer, forked by a server that has imported everything: a start takes no time.

The grid, its workers, store, claims and signals are the real ones; so are DecAlign's runs, the others are made up.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from contextlib import redirect_stdout
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import compare_stub
import MMSA.run  # noqa: F401
from compare_parent import Silent

from mmsa_decalign import trainer  # noqa: F401
from mmsa_decalign.compare import grid, worker
from mmsa_decalign.compare.plan import Cell, key_of
from mmsa_decalign.compare.store import Store
from mmsa_decalign.harness import encoders, registry, runner, training  # noqa: F401

CONTEXT = multiprocessing.get_context("forkserver")
real = worker.do


def serve() -> None:
    """Have this module imported once, in the server."""
    CONTEXT.set_forkserver_preload(["__main__", __name__])


def stop_serving() -> None:
    forkserver._forkserver._stop()


def cell_of(spec: dict[str, Any]) -> Cell:
    return Cell(key_of(spec), spec["model"], spec["dataset"], spec["seed"], spec)


def do(spec: dict[str, Any], folder: Path, device: str) -> Any:
    """A run: DecAlign's is real."""
    return (real if spec["model"] == "decalign" else compare_stub.do)(spec, folder, device)


class Forked:
    """What the grid uses of subprocess.Popen. Each start leaves a line in the file ``started``: process and cell."""

    started: Path

    def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> None:
        theirs, self.stdin = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_worker, args=(command[3:], theirs, stdout.name, env))
        self.process.start()
        theirs.close()
        with self.started.open("a") as file:
            file.write(f"{self.process.pid} {command[4]}\n")

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _worker(arguments: list[str], stdin: Any, output: str, env: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(env)
    os.dup2(stdin.fileno(), 0)
    log = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    worker.do = do
    with open(0, closefd=False) as sys.stdin, open(1, "w", closefd=False) as sys.stdout, \
            open(2, "w", closefd=False) as sys.stderr:
        sys.exit(worker.main(arguments))


def parent(store: str, specs: list[dict[str, Any]], started: Path, done: Any) -> None:
    """A grid of these cells; says through ``done`` how many were found, done now and failed."""
    Forked.started = started
    forkserver._forkserver.ensure_running = lambda: None  # it does, but is no child of this process
    grid.subprocess = type("Forking", (), {"Popen": Forked, "PIPE": None, "TimeoutExpired": subprocess.TimeoutExpired})
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        outcome = grid.run([cell_of(spec) for spec in specs], Store(store), Silent(), workers=2, device="cpu")
    done.send((len(outcome.found), len(outcome.done), len(outcome.failed)))
