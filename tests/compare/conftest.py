"""A store, and the stub worker within reach of child processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from compare_maker import Maker, few_resamples

from mmsa_decalign.compare import grid
from mmsa_decalign.compare.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are done by compare_stub."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(grid, "WORKER", "compare_stub")


@pytest.fixture
def maker(store: Store, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """A store to be filled with made-up rows; few resamples."""
    few_resamples(monkeypatch)
    return Maker(store)
