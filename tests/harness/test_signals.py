"""A signal to the program itself, with processes that load data: exit code, message, nobody and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def command(tiny: Path, folder: Path, *more: str) -> list[str]:
    small = "d_model=8 num_heads=2 nlevels=1 num_prototypes=2 num_epochs=15 early_stop=15 batch_size=8".split()
    return [sys.executable, "-m", "mmsa_decalign", "-m", "decalign", "-d", "synthetic", "--feature-file", str(tiny),
            "-s", "7", "--device", "cpu", *(part for one in small for part in ("--set", one)),
            "--res-save-dir", str(folder / "res"), "--model-save-dir", str(folder / "models"),
            "--log-dir", str(folder / "logs"), *more]


def in_group(group: int) -> list[str]:
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize(("number", "to_all", "code", "word"), [
    (signal.SIGTERM, False, 143, "terminated"), (signal.SIGINT, True, 130, "interrupted")])
def test_a_signal_ends_the_batch_saves_and_leaves_nobody_behind(
        number: signal.Signals, to_all: bool, code: int, word: str, tiny: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    with subprocess.Popen(command(tiny, tmp_path, "-n", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        until = time.monotonic() + 120
        while not list(models.glob("*.state")) or len(in_group(process.pid)) < 3:  # two that load data
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        os.killpg(process.pid, number) if to_all else process.send_signal(number)  # a terminal tells the whole group
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert err.splitlines()[-2] == f"mmsa: {word}; 0 of 1 seeds finished"
    assert err.splitlines()[-1].startswith("The same command with --resume does the rest; seed 7 goes on in epoch")
    assert "Traceback" not in err
    until = time.monotonic() + 10
    while in_group(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert in_group(process.pid) == []
    assert {path.suffix for path in models.iterdir()} <= {".state", ".before"}
    if to_all:
        return
    again = subprocess.run(command(tiny, tmp_path, "--resume", "--json"), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    json.loads(again.stdout)
    (record,) = [json.loads(path.read_text()) for path in (tmp_path / "res" / "runs").iterdir()]
    assert len(record["resumed"]) == 1
    assert len(record["epochs"]) == 15
    assert [path.suffix for path in models.iterdir()] == [".pth"]
