"""200 short trainings in one process hold no more than the first of them did, and say each thing once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import harness_long
import pytest

GROWTH_KIB = 8 * 1024  # of the memory in use, over three quarters of a phase; allocators keep some


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts handles and memory as Linux shows them")
def test_200_trainings_hold_no_more_than_the_first(tiny: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", harness_long.__file__, str(tmp_path), str(tiny)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {name: count for name, (count, *_) in harness_long.phases(tmp_path, tiny).items()}
    assert sum(counts.values()) == 200
    for name, looks in found.items():
        first, last = looks[0], looks[-1]
        print(f"{name}: {counts[name]} trainings, memory {[look['KiB'] // 1024 for look in looks]} MiB, {last}")
        assert last["KiB"] - first["KiB"] < GROWTH_KIB, name
        assert {**last, "KiB": 0} == {**first, "KiB": 0}, name
    said = Counter(re.findall(r"seed \d+ \(1 of 1\)|Running with seed \d+ \[1/1\]", done.stderr))
    assert set(said.values()) == {1}
    assert len(said) == 200
    logs = "".join(path.read_text() for path in (tmp_path / "l").iterdir())
    assert Counter(re.findall(r"seed \d+ \(1 of 1\)|Running with seed \d+ \[1/1\]", logs)) == said
