"""A disk that fills up and a folder that vanishes in the middle of a run: the path is named, what is finished stays,
and the run goes on once there is room."""

from __future__ import annotations

import json
import logging
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmsa_decalign.errors import RunError
from mmsa_decalign.harness import runner
from mmsa_decalign.harness.progress import logging_to, stderr_console
from mmsa_decalign.harness.runner import prepare, run
from mmsa_decalign.harness.storage import not_written, writing

# A batch of the second seed, of two an epoch, whose epoch writes to the checkpoint's folder.
BATCH = {"decalign": 3 * 2 + 3, "lf_dnn": 3 * 2 + 1}
SMALL = {"decalign": {"d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 2, "num_epochs": 3},
         "lf_dnn": {"max_epochs": 3}}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[bool], None]]]:
    """A folder on a disk of 20 MB, and what fills it up or frees it. Where none can be mounted (it takes the system's
    administrator), files of this process may not grow instead."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    mounted = mount is not None and subprocess.run(command, capture_output=True).returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(full: bool) -> None:
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else before[0], before[1]))
        elif full:
            with suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        else:
            (folder / "ballast").unlink()

    yield folder, fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def at_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """``at_batch(n, act)``: act at the n-th training batch of the runs to come."""

    def plan(number: int, act: Callable[[], None]) -> None:
        seen = 0

        def bars(*_: Any, **__: Any) -> Any:
            def show(loader: Any) -> Iterator[Any]:
                nonlocal seen
                for batch in loader:
                    seen += 1
                    if seen == number:
                        act()
                    yield batch

            return show

        monkeypatch.setattr(runner, "epoch_bars", bars)

    return plan


def go(model: str, tiny: Path, folder: Path, **more: Any) -> Any:
    folders = {f"{name}_dir": folder / name for name in ("model_save", "res_save", "log")}
    return run(prepare(model, "synthetic", feature_file=tiny, device="cpu", verbose=0, seeds=[7, 8],
                       overrides={**SMALL[model], "batch_size": 16}, **{**folders, **more}))


def records(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "res_save" / "runs").glob("*.json")]
    assert len({record["seed"] for record in found}) == len(found)
    return {record["seed"]: record for record in found}


@pytest.mark.parametrize("model", SMALL)
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_later(
        model: str, tiny: Path, tmp_path: Path, disk: tuple[Path, Callable[[bool], None]],
        at_batch: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    folder, fill = disk
    calm = {record["seed"]: record for record in go(model, tiny, tmp_path / "calm").records}
    at_batch(BATCH[model], lambda: fill(True))
    with pytest.raises(RunError) as refused:
        go(model, tiny, folder)
    text = str(refused.value)
    assert str(folder / "model_save") in text
    assert "free space" in text
    assert "1 of 2 seeds finished, their results are in" in text
    assert len(text.splitlines()) <= 2
    assert "Traceback" not in capsys.readouterr().err
    before = records(folder)
    assert list(before) == [7]
    assert not [path for path in (folder / "model_save").iterdir() if path.name.startswith(".")]
    fill(False)
    outcome = go(model, tiny, folder, resume=True)
    after = records(folder)
    assert after[7] == before[7]
    assert {seed: record["test"] for seed, record in after.items()} == {
        seed: record["test"] for seed, record in calm.items()}
    assert len(outcome.records[1]["resumed"]) == (model == "decalign")
    assert len(list((folder / "model_save").iterdir())) == 2
    with capsys.disabled():
        print(f"\n{model}: a full disk survived; records expected: 2, found: {len(after)}")


@pytest.mark.parametrize(("model", "gone", "batch"), [
    ("decalign", "model_save", BATCH["decalign"]), ("lf_dnn", "model_save", BATCH["lf_dnn"]),
    ("lf_dnn", "model_save", BATCH["decalign"]),  # nothing is written any more: its last epochs are no better
    ("decalign", "res_save", BATCH["decalign"])])
def test_a_vanished_folder_is_named_and_the_run_goes_on_later(
        model: str, gone: str, batch: int, tiny: Path, tmp_path: Path, at_batch: Callable[..., None]) -> None:
    def vanish() -> None:  # as a network folder does, and nothing can be made in its place
        (tmp_path / gone).rename(tmp_path / "elsewhere")
        (tmp_path / gone).touch()

    at_batch(batch, vanish)
    with pytest.raises(RunError, match=f"{tmp_path / gone}.* cannot be written") as refused:
        go(model, tiny, tmp_path)
    assert len(str(refused.value).splitlines()) <= 2
    (tmp_path / gone).unlink()
    (tmp_path / "elsewhere").rename(tmp_path / gone)
    assert list(records(tmp_path)) == [7]
    outcome = go(model, tiny, tmp_path, resume=True)
    assert sorted(records(tmp_path)) == [7, 8]
    assert [len(record["resumed"]) for record in outcome.records] == [0, int(model == "decalign")]


def test_a_log_on_a_full_disk_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with logging_to(stderr_console(), tmp_path / "log", 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            for number in range(3):
                logging.getLogger("MMSA").info("line %d", number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert [err.count(f"line {number}") for number in range(3)] == [1, 1, 1]
    assert err.count(f"log {tmp_path / 'log'} cannot be written") == 1
    assert "Traceback" not in err


def test_only_what_storage_raises_is_taken_for_it(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"table .*x\.csv cannot be written \(No space left on device\): free space"), \
            writing("table", tmp_path / "x.csv"):
        fail()
    assert not_written(RuntimeError("shapes do not match"), tmp_path) is None
    assert not_written(ValueError("unexpected pos"), tmp_path) is None
    assert "checkpoint" in str(not_written(RuntimeError("PytorchStreamWriter failed writing file"), tmp_path / "a.pth"))
