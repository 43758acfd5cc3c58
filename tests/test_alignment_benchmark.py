"""benchmarks/alignment.py from training to table and picture, on tiny sizes; its controls see the samples they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPT = """
import copy, json, sys
from pathlib import Path
import numpy as np
import torch
import alignment
from mmsa_decalign import model

seen = []
model.homo_loss = real = lambda features, **options: seen.append([z.tolist() for z in features])
for label in ("control: one third for all", "control: a third for each", "shipped: all terms"):
    with alignment._thirds(label):
        model.homo_loss([torch.arange(6), torch.arange(10, 16), torch.arange(20, 26)])
assert model.homo_loss is real
from mmsa_decalign.ops import homo_loss
model.homo_loss = homo_loss

tiny = {"num_epochs": 1, "d_model": 8, "num_heads": 2, "nlevels": 1, "num_prototypes": 3}
samples = (40, 30, 30)
runs = [alignment.measure(("shipped: all terms", tiny, seed, samples)) for seed in (1, 2)]
labels = [f"{regime}: {label}" for regime, rows in alignment.REGIMES.items() for label in rows]
document = {"about": alignment.timing.surroundings(), "seeds": [1, 2], "samples": samples, "chosen": {}}
ranked = {"searched: shipped": copy.deepcopy(runs), "searched: better": copy.deepcopy(runs),
          "searched: worse": copy.deepcopy(runs)}
for run in ranked["searched: better"]:
    run["pairing"] = 0.9
for run in ranked["searched: worse"]:
    run["pairing"], run["loss"] = 1.0, 2 * run["loss"]
out = Path(sys.argv[1])
searched = alignment.store(document | {"results": ranked}, True, out)
shown = alignment.store(document | {"results": {label: copy.deepcopy(runs) for label in labels}}, False, out)
truth = alignment.make_synthetic(seed=1, samples=samples)["test"]
c, u = truth["latent_common"], {m: truth[f"latent_unique_{m}"] for m in alignment.MODALITIES}
factors = alignment.recovery({m: c for m in u}, {m: c for m in u}, truth, truth)
print(json.dumps({"seen": seen, "run": runs[0], "labels": labels, "searched": searched, "factors": factors,
                  "ceiling": alignment.ceiling(1, (40, 300, 300))}))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("alignment")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"out": out}


def test_controls_see_the_samples_they_say(made: dict) -> None:
    whole = [list(range(start, start + 6)) for start in (0, 10, 20)]
    assert made["seen"] == [[[0, 1], [10, 11], [20, 21]], [[0, 1], [12, 13], [24, 25]], whole]


def test_a_run_is_measured_before_and_after_training(made: dict) -> None:
    before, after = made["run"]["before"], made["run"]["after"]
    assert before.keys() == after.keys()
    assert before["common: holds common"] != after["common: holds common"]
    for kind in ("unique", "common", "compared"):
        assert after[f"{kind}: holds common"] + after[f"{kind}: holds unique"] < 1.1
        assert 0 <= after[f"{kind}: told apart"] <= 1
        assert 0 <= after[f"{kind}: energy"] <= 1
    assert len(made["run"]["points"]["after"]) == 30


def test_factors_themselves_reach_the_top_and_raw_inputs_nearly(made: dict) -> None:
    assert made["factors"]["holds common"] == pytest.approx(1.0)
    assert made["factors"]["shows common"] == pytest.approx(1.0, abs=1e-3)
    assert made["factors"]["correlates with common"] == pytest.approx(1.0, abs=1e-3)
    assert abs(made["factors"]["holds unique"]) < 0.15
    assert made["ceiling"]["shows common"] > 0.95
    assert made["ceiling"]["shows unique"] > 0.95


def test_table_figures_and_picture_are_stored(made: dict) -> None:
    table, stored = (made["out"] / "alignment.md").read_text("utf-8"), json.loads(
        (made["out"] / "alignment.json").read_text("utf-8"))
    mean = sum(run["after"]["common: holds common"] for run in stored["results"]["shipped: all terms"]) / 2
    row = next(line for line in table.splitlines() if line.startswith("| shipped, all terms |"))
    assert row.split("|")[2].startswith(f" {mean:.3f} ± ")
    assert list(stored["results"]) == made["labels"]
    assert "points" not in stored["results"]["shipped: all terms"][0]
    assert "| shipped, without moments | +0.000 ± 0.000 |" in table
    assert "<svg" in (made["out"] / "alignment.svg").read_text("utf-8")


def test_the_search_ranks_by_pairing_and_leaves_out_what_costs_too_much(made: dict) -> None:
    rows = [line.split("|")[1].strip() for line in made["searched"].splitlines() if line.startswith("| ")][2:]
    assert rows == ["better", "shipped", "worse"]
    assert sum("loss too high" in line for line in made["searched"].splitlines()) == 1
    stored = json.loads((made["out"] / "alignment_search.json").read_text("utf-8"))
    assert set(stored["results"]["searched: shipped"][0]) == {"loss", "epoch", "pairing"}
