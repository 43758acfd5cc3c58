"""A tiny feature file, folders for results, and a stranger's plugin behind the entry points."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.data.synthetic import write_synthetic
from mmsa_decalign.harness.plugins import GROUP

# 33 training samples with batches of 16: the last batch would hold one.
SAMPLES = (33, 12, 17)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("features") / "tiny.pkl", samples=SAMPLES)


@pytest.fixture
def mmsa_run_cleanly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MMSA_run sleeps a second after every run and leaves log handlers behind."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    logger = logging.getLogger("MMSA")
    before = list(logger.handlers)
    yield
    for handler in [handler for handler in logger.handlers if handler not in before]:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {f"{name}_dir": tmp_path / name for name in ("model_save", "res_save", "log")}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``install(name="module:attribute")`` adds entry points to those that are really there."""
    real = metadata.entry_points

    def add(**entries: str) -> None:
        def entry_points(**query: Any) -> Any:
            if query.get("group") != GROUP:  # other libraries ask too
                return real(**query)
            return [*real(**query), *(metadata.EntryPoint(name, value, GROUP) for name, value in entries.items())]

        monkeypatch.setattr(metadata, "entry_points", entry_points)

    return add


@pytest.fixture
def toy(install: Callable[..., None]) -> str:
    install(toy="harness_toy:plugin")
    return "toy"
