"""Files that several processes write at once: nothing is lost, nothing is there twice, nobody waits for ever."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness_writers as writers
import pytest

from mmsa_decalign import RunError, locks
from mmsa_decalign.data.published import PublishedFile
from mmsa_decalign.harness.compat_writing import WRITING_PATCHES
from mmsa_decalign.harness.files import append_row, write_text
from mmsa_decalign.harness.patching import View, replace
from mmsa_decalign.locks import guarded, lock_of

PROCESSES, ROWS = 8, 100
BY_NAME = {patch.name: patch for patch in WRITING_PATCHES}


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that are forked from one which has imported everything: eight of them start at the same moment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness_writers", "MMSA.run"])
    return context


@pytest.fixture
def at_once(context: Any) -> Callable[..., None]:
    """``at_once(target, arguments of each)``: so many processes, from a common start; all must end well."""

    def run(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> None:
        start = context.Barrier(len(arguments))
        processes = [context.Process(target=target, args=(start, *own)) for own in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * len(processes)

    return run


def count(path: Path, header: list[str], expected: int) -> None:
    """Every row once, the header once; says how many were expected and found."""
    with path.open(newline="") as stream:
        first, *rows = csv.reader(stream)
    each = Counter(map(tuple, rows))
    print(f"{path.name}: rows expected {expected}, found {len(rows)}, different {len(each)}")
    assert first == header
    assert len(rows) == expected
    assert tuple(header) not in each
    assert list(path.parent.glob(".*.tmp")) == []


def test_eight_processes_append_a_hundred_rows_each(at_once: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "results" / "mosi.csv"
    at_once(writers.rows, [(path, who, ROWS) for who in range(PROCESSES)])
    count(path, writers.HEADER, PROCESSES * ROWS)
    with path.open(newline="") as stream:
        names = {row["Model"] for row in csv.DictReader(stream)}
    assert names == {f"m{who}-{number}" for who in range(PROCESSES) for number in range(ROWS)}


def test_eight_processes_call_mmsa_run(at_once: Callable[..., None], tmp_path: Path) -> None:
    at_once(writers.mmsa_runs, [(tmp_path, who, 10) for who in range(PROCESSES)])
    path = tmp_path / "results" / "normal" / "mosi.csv"
    count(path, ["Model", "MAE", "Corr"], PROCESSES * 10)
    with path.open(newline="") as stream:
        each = Counter(row["MAE"] for row in csv.DictReader(stream))
    assert each == {f"({float(who)}, 0.0)": 10 for who in range(PROCESSES)}


def test_eight_processes_log_to_one_file(at_once: Callable[..., None], tmp_path: Path) -> None:
    path, length = tmp_path / "lf_dnn-mosi.log", 20_000  # more than any buffer on the way holds
    at_once(writers.lines, [(path, who, ROWS, length) for who in range(PROCESSES)])
    lines = path.read_text().splitlines()
    found = [re.fullmatch(rf".* - MMSA \[INFO\] - <(\d-\d+) x{{{length}}}>", line) for line in lines]
    print(f"log lines expected {PROCESSES * ROWS}, found {len(lines)}")
    assert all(found)
    assert {one[1] for one in found if one} == {f"{who}-{n}" for who in range(PROCESSES) for n in range(ROWS)}
    assert len(lines) == PROCESSES * ROWS


def test_the_synthetic_data_set_is_made_by_several_at_once(
    context: Any, at_once: Callable[..., None], tmp_path: Path
) -> None:
    answers = context.Queue()
    at_once(writers.synthetic, [(tmp_path, answers)] * 4)
    hashes = {answers.get(timeout=10) for _ in range(4)}
    (path,) = (tmp_path / "SYNTHETIC" / "Processed").iterdir()
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_file_is_fetched_once(context: Any, at_once: Callable[..., None], tmp_path: Path) -> None:
    content, answers = os.urandom(2000), context.Queue()
    source = tmp_path / "source.pkl"
    source.write_bytes(content)
    file = PublishedFile("toy", "aligned", "TOY/toy.pkl", "id", hashlib.sha256(content).hexdigest(), len(content))
    at_once(writers.fetched, [(file, tmp_path / "root", source, answers)] * 4)
    assert sorted(answers.get(timeout=10) for _ in range(4)) == [False, False, False, True]
    assert (tmp_path / "root" / file.path).read_bytes() == content


# The lock


def test_a_lock_that_is_not_to_be_had_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    path = tmp_path / "mosi.csv"
    append_row(path, ["x"], [1])
    with guarded(path), pytest.raises(RunError) as error:
        append_row(path, ["x"], [2])
    assert str(path) in str(error.value)
    assert "for over 0.1 s" in str(error.value)
    assert str(lock_of(path)) in str(error.value)
    assert path.read_text() == "x\n1\n"
    append_row(path, ["x"], [3])
    assert path.read_text() == "x\n1\n3\n"


def test_a_table_that_is_locked_does_not_hide_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsa_decalign.harness.records import append_summary

    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with guarded(tmp_path / "normal" / "mosi.csv"), pytest.raises(RunError, match=str(tmp_path / "runs")):
        append_summary(tmp_path, "toy", "mosi", {"MAE": {"mean": 1.0, "std": 0.0}})


def test_a_killed_process_leaves_no_lock(context: Any, tmp_path: Path) -> None:
    path, ready = tmp_path / "mosi.csv", context.Event()
    process = context.Process(target=writers.hold, args=(path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunError), guarded(path, 0.1):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    append_row(path, ["x"], [1])
    assert path.read_text() == "x\n1\n"


def test_who_may_write_a_file_may_do_so_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append_row(path, ["x"], [1])
    path.chmod(0o664)
    (tmp_path / "link.csv").symlink_to(path)
    append_row(tmp_path / "link.csv", ["x"], [2])
    assert (tmp_path / "link.csv").is_symlink()
    assert path.read_text() == "x\n1\n2\n"
    assert path.stat().st_mode & 0o777 == 0o664
    write_text(path, "x\n")
    assert path.stat().st_mode & 0o777 == 0o664


# MMSA's own writing


@pytest.fixture
def mmsa_run(monkeypatch: pytest.MonkeyPatch, mmsa_run_cleanly: None, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """``mmsa_run(result)``: MMSA_run whose training is a function of its args."""
    import MMSA
    import MMSA.run

    from mmsa_decalign.harness.compat import PATCHES

    train: list[Callable[[Any], dict[str, float]]] = []
    others = [patch.apply() for patch in PATCHES if patch not in WRITING_PATCHES and patch.applies()]
    monkeypatch.setattr(MMSA.run, "_run", lambda args, *rest: train[-1](args))

    def do(result: Callable[[Any], dict[str, float]]) -> None:
        train.append(result)
        try:
            MMSA.MMSA_run("lf_dnn", "mosi", seeds=[1], gpu_ids=[], verbose_level=0, model_save_dir=tmp_path / "models",
                          res_save_dir=tmp_path / "results", log_dir=tmp_path / "logs")
        finally:
            train.pop()

    yield do
    for undo in reversed(others):
        undo()


def rows_after_two_runs(mmsa_run: Callable[..., None], folder: Path) -> list[str]:
    """A second run ends between the moment when the first reads the table and that when it writes it."""
    import MMSA.run

    mmsa_run(lambda args: {"MAE": 0.01})
    read = MMSA.run.pd.read_csv
    waiting = [lambda: mmsa_run(lambda args: {"MAE": 0.02})]

    def read_csv(*args: Any, **kwargs: Any) -> Any:
        frame = read(*args, **kwargs)
        if waiting:
            waiting.pop()()
        return frame

    undo = replace(MMSA.run, "pd", View(MMSA.run.pd, read_csv=read_csv))
    try:
        mmsa_run(lambda args: {"MAE": 0.03})
    finally:
        undo()
    with (folder / "results" / "normal" / "mosi.csv").open(newline="") as stream:
        return [row["MAE"] for row in csv.DictReader(stream)]


@pytest.mark.skipif(not BY_NAME["rows_of_others"].applies(), reason="this MMSA is free of the fault")
def test_a_row_of_another_run_is_lost_without_the_patch(mmsa_run: Callable[..., None], tmp_path: Path) -> None:
    assert rows_after_two_runs(mmsa_run, tmp_path) == ["(1.0, 0.0)", "(3.0, 0.0)"]
    undo = BY_NAME["rows_of_others"].apply()
    try:
        (tmp_path / "results" / "normal" / "mosi.csv").unlink()
        assert rows_after_two_runs(mmsa_run, tmp_path) == ["(1.0, 0.0)", "(2.0, 0.0)", "(3.0, 0.0)"]
        mmsa_run(lambda args: {"MAE": float("nan")})
        with pytest.raises(ValueError, match="mismatched columns"):
            mmsa_run(lambda args: {"MAE": 0.04, "Corr": 0.5})
    finally:
        undo()
    table = (tmp_path / "results" / "normal" / "mosi.csv").read_text()
    assert table.splitlines()[-1] == 'lf_dnn,"(nan, nan)"'
    mmsa_run(lambda args: {"MAE": 0.05})  # as before, by MMSA's own function
    after = (tmp_path / "results" / "normal" / "mosi.csv").read_text()
    assert after == table + 'lf_dnn,"(5.0, 0.0)"\n'


@pytest.mark.skipif(not BY_NAME["checkpoint_of_others"].applies(), reason="this MMSA is free of the fault")
def test_the_checkpoint_of_another_run_is_tested_without_the_patch(
    mmsa_run: Callable[..., None], tmp_path: Path
) -> None:
    def two_at_once() -> float:
        seen = []

        def first(args: Any) -> dict[str, float]:
            Path(args["model_save_path"]).write_text("0.01")
            mmsa_run(second)
            seen.append(float(Path(args["model_save_path"]).read_text()))  # what MMSA tests
            return {"MAE": seen[0]}

        def second(args: Any) -> dict[str, float]:
            Path(args["model_save_path"]).write_text("0.02")
            return {"MAE": 0.02}

        mmsa_run(first)
        return seen[0]

    assert two_at_once() == 0.02
    undo = BY_NAME["checkpoint_of_others"].apply()
    try:
        assert two_at_once() == 0.01
    finally:
        undo()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["lf_dnn-mosi.pth"]
    assert two_at_once() == 0.02
