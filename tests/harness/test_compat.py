"""Each patch: the fault without it, its absence with it, and MMSA as before when it is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_decalign.harness.compat import PATCHES, View, apply_patches, replace

pytestmark = pytest.mark.usefixtures("mmsa_run_cleanly")

BY_NAME = {patch.name: patch for patch in PATCHES}


def run_lmf(tiny: Path, folder: Path) -> str:
    """MMSA_run as a user's script calls it; returns its table of results."""
    import MMSA

    MMSA.MMSA_run("lmf", "mosi", config={"early_stop": 1}, seeds=[3], custom_feature=str(tiny), gpu_ids=[],
                  num_workers=0, verbose_level=0, model_save_dir=folder / "models", res_save_dir=folder / "results",
                  log_dir=folder / "logs")
    return (folder / "results" / "normal" / "mosi.csv").read_text()


@pytest.mark.skipif(not BY_NAME["set_device_on_cpu"].applies(), reason="this MMSA or torch is free of the fault")
def test_set_device_on_cpu(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        run_lmf(tiny, tmp_path)
    undo = BY_NAME["set_device_on_cpu"].apply()
    try:
        assert "lmf" in run_lmf(tiny, tmp_path)
    finally:
        undo()
    with pytest.raises((ValueError, AssertionError, RuntimeError)):
        run_lmf(tiny, tmp_path)


def test_set_device_still_reaches_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import MMSA.run

    asked: list[Any] = []
    undo = BY_NAME["set_device_on_cpu"].apply()
    try:
        monkeypatch.setattr(torch.cuda, "set_device", asked.append)
        MMSA.run.torch.cuda.set_device(torch.device("cpu"))
        MMSA.run.torch.cuda.set_device(torch.device("cuda:1"))
        assert MMSA.run.torch.cuda.is_available is torch.cuda.is_available
        assert MMSA.run.torch.load is torch.load
    finally:
        undo()
    assert asked == [torch.device("cuda:1")]
    assert MMSA.run.torch is torch


@pytest.mark.skipif(not BY_NAME["plain_numbers_in_results"].applies(), reason="NumPy 1 writes its numbers plainly")
def test_results_hold_plain_numbers_and_take_a_second_row(tiny: Path, tmp_path: Path) -> None:
    undo_device = BY_NAME["set_device_on_cpu"].apply()
    try:
        assert "np.float64(" in run_lmf(tiny, tmp_path / "without")
        if BY_NAME["second_result_row"].applies():
            with pytest.raises(Warning, match="incompatible dtype"):  # an error here, as in pandas to come
                run_lmf(tiny, tmp_path / "without")
    finally:
        undo_device()
    undo = apply_patches()
    try:
        run_lmf(tiny, tmp_path / "with")
        table = run_lmf(tiny, tmp_path / "with")
    finally:
        undo()
    rows = table.splitlines()
    assert len(rows) == 3
    assert rows[1] == rows[2]  # the same seed twice
    assert "np.float64(" not in table


def test_every_patch_says_what_is_wrong_where() -> None:
    for patch in PATCHES:
        assert "MMSA/" in patch.upstream, patch.name
        assert "2.2.1" in patch.upstream, patch.name


def test_patches_are_applied_only_where_the_fault_is_and_undone_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsa_decalign.harness import compat

    trace: list[str] = []

    def patch(name: str, present: bool) -> compat.Patch:
        def apply() -> compat.Undo:
            trace.append(f"+{name}")
            return lambda: trace.append(f"-{name}")

        return compat.Patch(name, lambda: present, apply, "")

    monkeypatch.setattr(compat, "PATCHES", (patch("a", True), patch("b", False), patch("c", True)))
    compat.apply_patches()()
    assert trace == ["+a", "+c", "-c", "-a"]


def test_a_view_shows_the_module_through_its_replacements() -> None:
    import math

    view = View(math, pi=3)
    assert (view.pi, view.e, math.pi != 3) == (3, math.e, True)
    undo = replace(view, "e", 2)
    assert view.e == 2
    undo()
    assert view.e == math.e
