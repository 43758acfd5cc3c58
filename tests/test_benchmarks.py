"""What the benchmarks share: figures from pairs of times, their form, and files that any JSON reader takes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_timing", FOLDER / "timing.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_taken_within_pairs(timing):
    found = timing.compare([(1.0, 3.0), (4.0, 4.0), (2.0, 10.0)])
    assert found.ours == (2.0, 1.5, 3.0)
    assert found.theirs == (4.0, 3.5, 7.0)
    assert found.ratio == (3.0, 2.0, 4.0)  # of 3, 1 and 5; the ratio of the medians is 2
    assert found.fastest == 3.0
    assert found.pairs == 3


def test_two_pieces_of_work_take_turns_and_the_first_pairs_do_not_count(timing, monkeypatch):
    turns = []
    monkeypatch.setattr(timing, "seconds", lambda call, prepare: (turns.append(call), len(turns))[1])
    found = timing.alternate("ours", "theirs", pairs=2, warm_up=1)
    assert turns == ["ours", "theirs"] * 3
    assert found == timing.compare([(3, 4), (5, 6)])


def test_times_are_shown_in_milliseconds(timing):
    assert timing.milliseconds(timing.Spread(0.0123, 0.012, 0.1)) == "12.3 (12.0 to 100.0)"
    assert timing.milliseconds(timing.Spread(0.0123, 0.012, 0.1), 2) == "12.30 (12.00 to 100.00)"


def test_a_table_says_where_it_was_measured(timing):
    about = timing.surroundings()
    words = timing.in_words(about)
    for name in ("machine", "date", "commit", "load", "processors"):
        assert str(about[name]) in words
    assert f"torch {about['versions']['torch']}" in words


def test_results_are_strict_json_beside_their_table(timing, tmp_path):
    found = {"time": timing.Spread(1.0, 0.5, 2.0), "name": "ä"}
    timing.store(tmp_path / "new", "one", "a table ä\n", found)
    assert (tmp_path / "new" / "one.md").read_text("utf-8") == "a table ä\n"
    assert json.loads((tmp_path / "new" / "one.json").read_text("utf-8")) == {"time": [1.0, 0.5, 2.0], "name": "ä"}
    with pytest.raises(ValueError, match="JSON"):
        timing.store(tmp_path / "other", "one", "", {"time": math.nan})
    assert not (tmp_path / "other").exists()


PROBE = """
import json
import epoch, linear, operators, peer, profile_step, scaling, step
import alignment, alignment_report, choices, diagnosed, missing, presets, study
pairs = [[1.0, 2.0], [2.0, 6.0]]
print(json.dumps([epoch._summary(pairs), epoch._summary([[1.0], [3.0]])], allow_nan=False))
"""


def test_every_script_can_be_imported_and_an_epoch_has_the_figures_of_a_step():
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    both, alone = json.loads(done.stdout.splitlines()[-1])
    assert both == [[1.5, 1.25, 1.75], [4.0, 3.0, 5.0], [2.5, 2.25, 2.75], 2, 2.0]
    assert alone == [2.0, 1.5, 2.5]
