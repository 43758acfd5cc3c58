"""Result files: whole or absent, and no row lost between writers."""

from __future__ import annotations

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmsa_decalign.harness.files import append_row, write_text


def test_a_text_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "record.json"
    write_text(path, "one")

    def fail(source: Path, target: Path) -> None:
        assert Path(source).read_text() == "two"
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "two")
    assert path.read_text() == "one"
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_two_writers_lose_no_row(tmp_path: Path) -> None:
    for repeat in range(5):  # a new file each time: its creation is the delicate moment
        path = tmp_path / f"{repeat}.csv"
        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(append_row, path, ["Model", "MAE"], [f"m{number}", (1.5, 0.0)]) for number in range(40)]
        for future in done:
            future.result()
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert sorted(row["Model"] for row in rows) == sorted(f"m{number}" for number in range(40))
        assert {row["MAE"] for row in rows} == {"(1.5, 0.0)"}
        assert len(list(tmp_path.glob("*.csv"))) == len(list(tmp_path.glob(".*.lock"))) == repeat + 1
        assert list(tmp_path.glob("*.tmp")) == []


def test_an_open_last_line_is_closed_first(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n1,2")
    append_row(path, ["x", "y"], [3, 4])
    assert path.read_text() == "x,y\n1,2\n3,4\n"


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,z\n1,2\n")
    with pytest.raises(ValueError, match="has the columns x, z; expected x, y"):
        append_row(path, ["x", "y"], [3, 4])
    assert path.read_text() == "x,z\n1,2\n"
