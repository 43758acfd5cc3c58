"""What must stay true of the package as a whole: who imports whom, no side effects, twins that match, docstrings.

Each rule is a function that returns its violations, so that it is shown to find one before it is trusted to find none.
"""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mmsa_decalign
from mmsa_decalign import ops, reference

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mmsa_decalign"
STANDARD = set(sys.stdlib_module_names) | {"__future__"}

# From the bottom: a module imports from its own layer and those below. Modules of a package share its layer.
LAYERS = (
    {"errors", "locks", "ops", "reference", "configs"},
    {"settings", "data", "verify"},
    {"masking", "presence", "standardise", "encoder", "kernels", "attention", "fusion", "objective", "finite", "model",
     "members", "release", "skip"},
    {"training_state", "diagnosis", "preparation", "trainer"},
    {"harness"},
    {"compare"},
    {"tune"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
NOT_FOR_THE_COMMAND_LINE = {"ops", "model", "fusion", "objective", "trainer"}


def modules() -> dict[str, ast.Module]:
    """Syntax tree of every module of the package, by its installed name; a package is named `package.__init__`."""
    folders = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.reference": ROOT / "reference"}
    return {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]): ast.parse(path.read_text("utf-8"))
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*.py"))
    }


def imports(module: str, tree: ast.Module) -> set[str]:
    """Absolute names of all that a module imports, at its top and inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            # `from . import x` imports a module; of `from .x import y` the x is what counts here
            found |= {".".join(base)} if node.module else {".".join([*base, alias.name]) for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def part(name: str) -> str:
    """Which part of the package a module belongs to: `mmsa_decalign.harness.runner` is of `harness`."""
    return name.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def strangers(module: str, tree: ast.Module, home: str, *allowed: str) -> set[str]:
    """Imports of a module that are neither standard library, nor below `home`, nor `allowed`."""
    return {
        name
        for name in imports(module, tree)
        if name.split(".")[0] not in STANDARD | set(allowed) and not within(name, home)
    }


def upward(module: str, tree: ast.Module) -> set[str]:
    """Imports of a module that reach above its layer. The bare package counts as its top: it imports the harness."""
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    return {
        name
        for name in imports(module, tree)
        if within(name, PACKAGE) and level.get(part(name), len(LAYERS)) > level[part(module)]
    }


# Who imports whom


def test_the_modules_are_found():
    names = set(modules())
    for expected in ("__init__", "ops.transport", "reference.transport", "harness.registry", "model", "cli"):
        assert f"{PACKAGE}.{expected}" in names


def test_imports_are_resolved():
    source = "import os.path\nfrom . import a\nfrom .b import c\nfrom ..d import e\ndef f():\n    import torch.nn\n"
    found = imports("p.q.r", ast.parse(source))
    assert found == {"os.path", "p.q.a", "p.q.b", "p.d", "torch.nn"}


@pytest.mark.parametrize(
    ("home", "allowed"), [("mmsa_decalign.ops", ["torch"]), ("mmsa_decalign.reference", ["numpy", "scipy"])]
)
def test_operators_and_reference_stand_alone(home: str, allowed: list[str]):
    own = {name: tree for name, tree in modules().items() if within(name, home)}
    assert len(own) >= 6
    assert {name: bad for name, tree in own.items() if (bad := strangers(name, tree, home, *allowed))} == {}


def test_a_stranger_is_found():
    tree = ast.parse("import math, torch.nn\nfrom .mmd import mmd\nfrom ..errors import InputError\nimport numpy\n")
    assert strangers("mmsa_decalign.ops.new", tree, "mmsa_decalign.ops", "torch") == {"mmsa_decalign.errors", "numpy"}
    tree = ast.parse("import numpy as np\ndef f():\n    from torch import nn\n    from mmsa_decalign import ops\n")
    found = strangers("mmsa_decalign.reference.new", tree, "mmsa_decalign.reference", "numpy", "scipy")
    assert found == {"torch", "mmsa_decalign"}


def test_only_the_harness_imports_mmsa():
    users = {name for name, tree in modules().items() if any(within(other, "MMSA") for other in imports(name, tree))}
    assert f"{PACKAGE}.harness.registry" in users, "the search finds nothing"
    assert {name for name in users if not within(name, f"{PACKAGE}.harness")} == set()


def test_every_module_has_a_layer():
    parts = {part(name) for name in modules()} - {"__init__"}
    assert parts - set().union(*LAYERS) == set(), "new modules need a place in LAYERS"


def test_dependencies_point_one_way():
    below = {name: tree for name, tree in modules().items() if name != f"{PACKAGE}.__init__"}
    assert {name: bad for name, tree in below.items() if (bad := upward(name, tree))} == {}


@pytest.mark.parametrize("module", ["ops.x", "data.x", "settings", "objective", "model", "trainer"])
@pytest.mark.parametrize("target", ["harness", "harness.runner", "compare", "cli"])
def test_an_upward_import_is_found(module: str, target: str):
    tree = ast.parse(f"def f():\n    from {PACKAGE}.{target} import anything\n")
    assert upward(f"{PACKAGE}.{module}", tree) == {f"{PACKAGE}.{target}"}
    assert upward(f"{PACKAGE}.cli", tree) == set()
    assert upward(f"{PACKAGE}.{module}", ast.parse(f"from {PACKAGE} import register")) == {PACKAGE}


def test_the_command_line_leaves_the_model_to_the_harness():
    thin = {name: imports(name, tree) for name, tree in modules().items()
            if name == f"{PACKAGE}.cli" or within(name, f"{PACKAGE}.commands")}
    known_to = {name: {other for other in used if within(other, PACKAGE) and part(other) in NOT_FOR_THE_COMMAND_LINE}
                for name, used in thin.items()}
    assert {name: bad for name, bad in known_to.items() if bad} == {}
    assert f"{PACKAGE}.errors" in thin[f"{PACKAGE}.cli"], "the search finds nothing"
    assert f"{PACKAGE}.harness" in thin[f"{PACKAGE}.commands.train"], "the search finds nothing"


# Importing the package changes nothing

PROBE = """
import json, logging, os, random, sys, warnings
import numpy, torch  # first, since what they do at import is theirs

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch seed": torch.initial_seed(),
        "numpy seed": str(numpy.random.get_state()),
        "python seed": str(random.getstate()),
        "logging": [str(logging.root.handlers), logging.root.level, logging.root.manager.disable],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "MMSA": "MMSA" in sys.modules,
    }

before = state()
exec(sys.argv[1])
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]))
"""


def changed_by(statement: str) -> set[str]:
    """What of the interpreter's global state a statement changes, in a process of its own."""
    probe = subprocess.run([sys.executable, "-c", PROBE, statement], capture_output=True, text=True, check=False)
    assert probe.returncode == 0, probe.stderr
    return set(json.loads(probe.stdout.splitlines()[-1]))


def test_importing_the_package_has_no_side_effects():
    assert changed_by(f"import {PACKAGE}") == set()


def test_a_side_effect_is_found():
    statement = (
        "torch.set_default_dtype(torch.float64); torch.set_num_threads(torch.get_num_threads() + 1);"
        "torch.set_grad_enabled(False); torch.use_deterministic_algorithms(True); torch.manual_seed(7);"
        "numpy.random.seed(7); random.seed(7); logging.basicConfig(level='INFO'); os.environ['NEW'] = '1';"
        "os.chdir(os.sep); sys.modules['MMSA'] = json"
    )
    assert changed_by(statement) == {
        "default dtype", "threads", "gradients", "deterministic", "torch seed", "numpy seed", "python seed", "logging",
        "environment", "folder", "MMSA",
    }  # fmt: skip


# Public names: documented, and the same in the operators and the reference


def undocumented(module: ModuleType) -> list[str]:
    """Public names without a docstring of their own; the one that NamedTuple or dataclass writes does not count."""

    def text(name: str) -> str:
        doc = (inspect.getdoc(getattr(module, name)) or "").strip()
        return "" if doc.startswith(f"{name}(") else doc

    return [name for name in module.__all__ if not text(name)]


@pytest.mark.parametrize("module", [mmsa_decalign, ops, reference], ids=lambda module: module.__name__)
def test_public_names_are_documented(module: ModuleType):
    assert len(module.__all__) == len(set(module.__all__)) > 0
    assert undocumented(module) == []


def shape(thing: Any) -> list[Any]:
    """What callers rely on: the fields of a record, or a function's parameters in order, with kinds and defaults."""
    if hasattr(thing, "_fields"):
        return list(thing._fields)
    parameters = inspect.signature(thing).parameters.values()
    return [(each.name, each.kind.name, each.default) for each in parameters]


def differences(one: ModuleType, other: ModuleType, only_in_other: set[str]) -> dict[str, Any]:
    """Names that one of two modules lacks, and names that both have with different shapes."""
    missing = set(one.__all__) ^ (set(other.__all__) - only_in_other)
    common = set(one.__all__) & set(other.__all__)
    unequal = {
        name: (shape(getattr(one, name)), shape(getattr(other, name)))
        for name in sorted(common)
        if shape(getattr(one, name)) != shape(getattr(other, name))
    }
    return {"missing": missing, **unequal}


def test_operators_and_reference_are_twins():
    more = {"exact_transport", "AlignmentTerms", "Objective", "decalign", "objective"}  # the last four: the whole model
    assert differences(ops, reference, more) == {"missing": set()}


@pytest.mark.parametrize("name", ["AlignmentTerms", "Objective", "objective"])
def test_the_model_and_its_reference_have_the_same_records(name: str):
    assert shape(getattr(mmsa_decalign, name)) == shape(getattr(reference, name))


def made(source: str) -> ModuleType:
    module = ModuleType("made")
    exec(source, module.__dict__)
    return module


def test_an_undocumented_name_and_unequal_twins_are_found():
    record = "from typing import NamedTuple\nclass R(NamedTuple):\n    {}: int\ndef g(x): pass\n"
    one = made(record.format("a") + "def f(x, *, tol=1): 'Text.'\n__all__ = list('Rfg')\n")
    other = made(record.format("b") + "def f(x, *, tol=2): pass\ndef h(): pass\n__all__ = list('Rfgh')\n")
    assert undocumented(one) == ["R", "g"]
    found = differences(one, other, set())
    assert found["missing"] == {"h"}
    assert set(found) == {"missing", "R", "f"}
    assert differences(one, one, set()) == {"missing": set()}
