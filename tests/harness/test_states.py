"""State files: what is read is what was written, damage is noticed, and the state before is there to fall back on."""

from __future__ import annotations

import json
import logging
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsa_decalign.errors import RunError
from mmsa_decalign.harness import states
from mmsa_decalign.harness.states import Damaged, StateFile, read_state


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.arange(3000.0) * number, "nothing": None, "best": float("inf"),
            "random": (3, tuple(range(5)), None), "epochs": [{"epoch": 1, "valid": {"Corr": float("nan")}}]}


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "run.state")


def names(file: StateFile) -> list[str]:
    return sorted(path.name for path in file.path.parent.iterdir())


def test_the_latest_state_comes_back_and_the_one_before_is_kept(file: StateFile) -> None:
    assert file.read() is None
    for number in (1, 2, 3):
        file.write(state(number))
    found = file.read()
    assert found is not None
    assert (found["number"], found["nothing"], found["best"], found["random"]) == (
        3, None, float("inf"), (3, (0, 1, 2, 3, 4), None))
    assert torch.equal(found["weights"], torch.arange(3000.0) * 3)
    assert read_state(file.before)["number"] == 2
    assert names(file) == ["run.state", "run.state.before"]
    file.remove()
    assert names(file) == []


def test_a_file_cut_at_every_tenth_of_its_length_gives_way_to_the_one_before(
        file: StateFile, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        file.write(state(number))
    whole = file.path.read_bytes()
    cuts = [len(whole) * tenth // 10 for tenth in range(10)] + [1, 50, whole.index(b"\n") + 1, len(whole) - 1]
    noticed = 0
    for cut in cuts:
        file.path.write_bytes(whole[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "MMSA"):
            found = file.read()
        assert found is not None
        assert found["number"] == 1
        (warning,) = caplog.messages
        assert str(file.path) in warning
        assert "the one before it is used" in warning
        noticed += 1
    with capsys.disabled():
        print(f"\nstate file cut at {len(cuts)} lengths: {noticed} noticed, the one before used each time")


@pytest.mark.parametrize("place", [0, 5, 60, 400, -1])
def test_a_changed_byte_is_noticed(file: StateFile, place: int) -> None:
    file.write(state(1))
    content = bytearray(file.path.read_bytes())
    content[place] ^= 1
    file.path.write_bytes(content)
    with pytest.raises(Damaged):
        read_state(file.path)


def test_both_damaged_is_a_new_beginning_and_says_so(file: StateFile, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        file.write(state(number))
    for path in (file.path, file.before):
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "MMSA"):
        assert file.read() is None
    assert [str(file.before) in message for message in caplog.messages] == [False, True]
    assert "the run starts again" in caplog.messages[1]


def test_code_is_not_unpickled(file: StateFile, tmp_path: Path) -> None:
    import hashlib
    import io

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    for content in (pickle.dumps(Evil()), io.BytesIO()):
        if isinstance(content, io.BytesIO):
            torch.save({"a": Evil()}, content)
            content = content.getvalue()
        head = {"mmsa_decalign_state": states.VERSION, "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest()}
        file.path.write_bytes(json.dumps(head).encode() + b"\n" + content)
        with pytest.raises(Damaged, match=r"torch\.load"):
            read_state(file.path)
    assert not (tmp_path / "owned").exists()


def test_an_end_between_the_two_renames_loses_one_state_at_most(
        file: StateFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    file.write(state(1))
    real, calls = os.replace, []

    def killed(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise SystemExit
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        file.write(state(2))
    monkeypatch.undo()
    found = file.read()
    assert found is not None
    assert found["number"] == 1
    assert caplog.messages == []


def test_time_stamps_play_no_part(file: StateFile) -> None:
    for number in (1, 2):
        file.write(state(number))
    os.utime(file.path, (1e9, 1e9))  # the clock jumped back between the two
    os.utime(file.before, (4e9, 4e9))
    found = file.read()
    assert found is not None
    assert found["number"] == 2


def test_a_full_disk_is_named_and_leaves_the_state_before(file: StateFile) -> None:
    file.write(state(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))  # of one file; as if the disk had no more
    try:
        with pytest.raises(RunError) as refused:
            file.write(state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(file.path) in str(refused.value)
    assert "free space" in str(refused.value)
    found = file.read()
    assert found is not None
    assert found["number"] == 1
    assert names(file) == ["run.state"]


def test_a_vanished_folder_is_named(file: StateFile, tmp_path: Path) -> None:
    gone = StateFile(tmp_path / "share" / "run.state")
    with pytest.raises(RunError, match="share/run.state cannot be written"):
        gone.write(state(1))


HOLDER = """
import sys, time
from pathlib import Path
from mmsa_decalign.harness.states import StateFile
with StateFile(Path(sys.argv[1])).owned() as own:
    print(own, flush=True)
    time.sleep(600)
"""


def test_a_file_has_one_owner_until_that_one_ends_however_it_ends(file: StateFile) -> None:
    with file.owned() as own:
        assert own
        with StateFile(file.path).owned() as other:
            assert not other
    assert names(file) == []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with file.owned() as own:
            assert not own
        process.kill()
    with file.owned() as own:
        assert own
    assert names(file) == []
