"""Hostile and broken files: none runs code, fills the memory, hangs or comes back as anything but an InputError."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_files
import hostile_pickles
import pytest

from mmsa_decalign.data.reading import read_file
from mmsa_decalign.errors import InputError

PROGRAM = Path(__file__).with_name("fuzz_reading.py")


def fuzz(folder: Path, factor: float, seed: int, seconds: int) -> dict[str, Any]:
    """What became of the files; a process that died is reported with the file that it died of."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}
    command = [sys.executable, "-W", "error", str(PROGRAM), str(folder), str(factor), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=alone, check=False)
    last = (folder / "now").read_text() if (folder / "now").exists() else "no file"
    assert done.returncode == 0, f"exit code {done.returncode} at {last}\n{done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("factor", "seed", "least"), [(0.4, 2, 2000), pytest.param(4, 11, 10_000, marks=pytest.mark.slow)])
def test_no_file_runs_fills_hangs_or_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, seed: int, least: int
) -> None:
    result = fuzz(tmp_path, factor, seed, seconds=1200)
    with capsys.disabled():
        print(f"\n{result['total']} hostile or broken files: {result['files']}\n{result['outcomes']}; "
              f"memory grew by {result['grown_mib']} MiB")
    assert result["faults"] == {"executed": [], "memory": [], "hung": [], "escaped": []}
    assert result["total"] >= least
    assert min(result["files"].values()) >= 10  # of every kind
    assert result["grown_mib"] < 100
    for door in ("features", "override", "inspect", "convert", "checkpoint"):
        assert result["outcomes"][f"{door}: refused"] > 100
    assert result["outcomes"]["features: read"] > 50  # a changed number is still a number


@pytest.mark.parametrize("group", ["running", "filling", "confusing"])
def test_every_payload_is_refused_as_a_whole_file(tmp_path: Path, group: str) -> None:
    """Few are data after all: those that only build a list, a number or an array in an odd way, such as Python 2's."""
    harmless = {"place far away", "place of 200 million", "place in text", "twice", "list in many lists", "no width",
                "half", "complex", "forged objects", "array filled twice", "array as it begins",
                "order changed afterwards", "numbers from text"}
    path, read = tmp_path / "bad.pkl", []
    trace = tmp_path / "trace"
    trace.mkdir()
    payloads = getattr(hostile_pickles, group)(*[str(trace)] * (group == "running"))
    for what, payload in payloads.items():
        path.write_bytes(b"\x80\x04" + payload + b".")
        try:
            read_file(path)
            read.append(what)
        except InputError:
            pass
    assert len(payloads) > 40
    assert set(read) <= harmless
    assert list(trace.iterdir()) == []


def test_the_payloads_work_where_nobody_refuses_them(tmp_path: Path) -> None:
    """A trap that is not set catches nothing: what they try does happen in a plain unpickler."""
    payloads = hostile_pickles.running(str(tmp_path))
    for what in ("os.system", "eval", "exec", "getattr chain", "os.mkdir", "subprocess.call, by strings"):
        pickle.loads(b"\x80\x04" + payloads[what] + b".")
        left = list(tmp_path.iterdir())
        assert left or "subprocess" in what, what
        for one in left:
            one.rmdir() if one.is_dir() else one.unlink()


def test_what_crashes_numpy_is_refused(tmp_path: Path) -> None:
    payload = b"\x80\x04" + hostile_pickles.confusing()["objects too few"] + b"."
    crash = subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({payload!r})"], check=False)
    assert crash.returncode < 0  # a signal: this is why arrays are not left to NumPy
    path = tmp_path / "bad.pkl"
    path.write_bytes(payload)
    with pytest.raises(InputError, match="shape does not fit its content"):
        read_file(path)


def test_an_array_cannot_be_reinterpreted_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "bad.pkl"  # in the other order its letter would be no character, which crashes whoever looks
    path.write_bytes(b"\x80\x04" + hostile_pickles.confusing()["order changed afterwards"] + b".")
    assert read_file(path).tolist() == ["a"]


def test_the_good_files_that_fuzzing_starts_from_are_read(tmp_path: Path) -> None:
    good = hostile_files.good_layout()
    path = tmp_path / "good.pkl"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(good, protocol))
        assert list(read_file(path)) == ["train", "valid", "test"]
