"""A grid of the stub's cells in a process: ``python -m compare_parent STORE LOG CELLS WORKERS SECONDS``."""

from __future__ import annotations

import sys

from compare_stub import cell

from mmsa_decalign.compare import grid
from mmsa_decalign.compare.store import Store
from mmsa_decalign.errors import Interrupted


class Silent:
    def started(self, cell: object) -> None:
        print("started", flush=True)

    def ended(self, cell: object, outcome: str, error: str | None) -> None:
        print(outcome, flush=True)

    def tick(self) -> None: ...


if __name__ == "__main__":
    path, log, cells, workers, seconds = sys.argv[1:]
    grid.WORKER = "compare_stub"
    plan = [cell("slow", number, log=log, seconds=float(seconds)) for number in range(int(cells))]
    try:
        outcome = grid.run(plan, Store(path), Silent(), workers=int(workers), device="cpu")
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    print(len(outcome.found), len(outcome.done), len(outcome.failed))
