"""The mutation check of benchmarks/mutation.py: it makes the mutants it should, and tells noticed from missed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "mutation.py"


@pytest.fixture(scope="module")
def mutation() -> ModuleType:
    pytest.importorskip("resource", reason="the mutation check needs a system with fork")
    spec = importlib.util.spec_from_file_location("mutation_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SOURCE = '''
"""A docstring: 1 + 1."""
def f(x: int = 3, *, flag: bool = True) -> int:
    """Another one."""
    if not x > 0 and flag:
        raise ValueError(f"x={x + 1}")
    total = -x.square().sum(dim=-1)
    return min(total, 0.5) * 2
'''


def test_every_kind_of_change_is_made_and_words_are_left_alone(mutation):
    changes = {mutant.change for mutant in mutation.mutants("f.py", SOURCE)}
    assert {
        "3 -> 4", "True -> False", "x > 0 -> x >= 0", "not x > 0 -> x > 0", "not x > 0 and flag -> not x > 0 or flag",
        "-x.square().sum(dim=-1) -> x.square().sum(dim=-1)", "x.square().sum(dim=-1) -> x.square().mean(dim=-1)",
        "x.square() -> x", "-1 -> 1", "min(total, 0.5) -> max(total, 0.5)", "0.5 -> 1.0", "2 -> 3",
        "min(total, 0.5) * 2 -> min(total, 0.5) / 2",
        "if not x > 0 and flag: -> if not (not x > 0 and flag):",
    } <= changes  # fmt: skip
    assert len(changes) <= 16
    assert not any("x + 1" in change or "docstring" in change for change in changes)


def test_a_mutant_differs_in_one_place_and_the_original_is_kept(mutation):
    found = list(mutation.mutants("f.py", SOURCE))
    plain = [line for line in mutation.ast.unparse(mutation.ast.parse(SOURCE)).splitlines()]
    for mutant in found:
        lines = mutant.source.splitlines()
        assert len(lines) == len(plain)
        assert sum(a != b for a, b in zip(lines, plain, strict=True)) == 1
    assert len({mutant.source for mutant in found}) == len(found)


def test_equivalent_mutants_still_exist(mutation):
    """An entry whose line has changed since would excuse nothing, and hide that nobody has looked again."""
    folder = SCRIPT.parents[1] / "mmsa_decalign" / "ops"
    paths = list(folder.glob("*.py"))
    keys = {m.key for path in paths for m in mutation.mutants(path.name, path.read_text("utf-8"), write=False)}
    assert set(mutation.EQUIVALENT) - keys == set()
    assert all(len(reason) > 10 for reason in mutation.EQUIVALENT.values())


def test_the_own_tests_of_a_file_run_on_its_mutants(mutation):
    """By name, so that a new file of operators with tests of its own needs no entry anywhere."""
    folder = SCRIPT.parents[1]
    operators = {path.name for path in (folder / "mmsa_decalign" / "ops").glob("*.py")}
    with_own = {name for name in operators if (folder / "tests" / "ops" / f"test_{name}").is_file()}
    assert {"diagonal.py", "newton.py", "sinkhorn.py", "losses.py"} <= with_own
    for name in with_own:
        assert (f"tests/ops/test_{name}",) in mutation.groups_of(name)
    assert ("tests/ops/test_losses.py",) in mutation.groups_of("mmd.py")


def test_the_score_leaves_equivalents_out(mutation, monkeypatch):
    found = [mutation.Mutant("f.py", line, "s", f"{line} -> 0", "") for line in range(1, 6)]
    monkeypatch.setattr(mutation, "EQUIVALENT", {found[0].key: "because"})
    text = mutation.report(found, found[1:2], 60.0)
    assert "**3 of 4 mutants noticed: 75.0%.**" in text
    assert "| f.py | 5 | 1 | 3 | 1 |" in text
    assert "- `f.py:2`: `2 -> 0` in `s`\n" in text
    assert "- `f.py:1`: `1 -> 0` in `s`: because" in text


PROBE = """
import importlib.util, json, sys, tempfile
from pathlib import Path
spec = importlib.util.spec_from_file_location("mutation_check", sys.argv[1])
mutation = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = mutation
spec.loader.exec_module(mutation)
mutation.preload()
with tempfile.TemporaryDirectory() as folder:
    copied = mutation.workspace(Path(folder))
    path = copied / "mmsa_decalign" / "ops" / "decoupling.py"
    before = path.read_text("utf-8")
    def missed(change):
        (mutant,) = (m for m in mutation.mutants(path.name, before) if m.change.startswith(change))
        return mutation.survives(mutant, copied, [()])
    mutation.QUICK = 2
    print(json.dumps({
        "unchanged": mutation.passes(copied, ()),
        "one wrong": missed("cosine.square() -> cosine"),
        "one unseen": missed("len(unique) != len(common) or not unique -> "),
        "restored": path.read_text("utf-8") == before,
    }))
"""


def test_it_notices_a_wrong_operator_and_leaves_the_checkout_alone(mutation):
    """With two cases of decoupling_loss as all tests: one mutant is noticed, one that they cannot see is not."""
    operators = SCRIPT.parents[1] / "mmsa_decalign" / "ops"
    before = {path.name: path.read_bytes() for path in operators.glob("*.py")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(SCRIPT)], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = {"unchanged": True, "one wrong": False, "one unseen": True, "restored": True}
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert {path.name: path.read_bytes() for path in operators.glob("*.py")} == before
