"""Would the tests notice a wrong operator? Changes one expression of mmsa_decalign/ops at a time and runs the tests.

    OMP_NUM_THREADS=1 nice python benchmarks/mutation.py --out benchmarks/results/mutation.md
    python benchmarks/mutation.py --only moments.py           # one file, on the screen

Works on a copy in a temporary folder, never on the checkout; needs a system with fork. Each mutant runs the tests of
the operators, fastest first, up to the first failure, in a process of its own with a time limit (an endless loop counts
as noticed). What no test can notice, since results stay the same, stands in mutation_equivalent.json with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("tests/test_architecture.py::test_operators_and_reference_are_twins", "tests/oracle/test_properties.py",
          "tests/ops/test_transport.py", "tests/ops/test_losses.py"), ("tests/oracle/test_operators.py",)  # fmt: skip
LEFT_OUT = (  # slow, and repeat what others see
    "not largest and not autocast and not default_floor and not gradcheck and not slope and not (float32 and drawn)"
)
QUICK = 150  # cases of the table of `mmsa verify` that run before any test
LIMIT = 25  # seconds of processor time per group of tests: an endless loop ends

# (file, statement as `ast` writes it, what was changed into what): why the results stay the same.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (file, statement, change): entry["reason"]
    for entry in json.loads((Path(__file__).parent / "mutation_equivalent.json").read_text("utf-8"))
    for file, statement, change in entry["mutants"]
}


class Mutant(NamedTuple):
    """One changed expression."""

    file: str
    line: int
    statement: str  # the first line of the statement it is in
    change: str  # "a + b -> a - b"
    source: str  # of the whole file

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.statement, self.change


OPERATORS = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.Pow: [ast.Mult],
    ast.Mod: [ast.Mult], ast.MatMult: [ast.Mult], ast.And: [ast.Or], ast.Or: [ast.And],
    ast.Lt: [ast.LtE], ast.LtE: [ast.Lt], ast.Gt: [ast.GtE], ast.GtE: [ast.Gt],  # conditions are negated as a whole
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is], ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
}  # fmt: skip
SWAPPED = {
    "min": "max", "max": "min", "amax": "amin", "sum": "mean", "mean": "sum", "clamp_min": "clamp_max", "all": "any",
    "any": "all", "zeros_like": "ones_like", "ones_like": "zeros_like", "combinations": "permutations",
    "permutations": "combinations", "rsqrt": "sqrt", "logsumexp": "sum",
}  # fmt: skip
DROPPED = {"square", "sqrt", "log", "exp", "abs", "detach", "double", "mT", "diagonal"}  # x.square() -> x


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    for field in ("op", "ops"):
        old = getattr(node, field, None)
        first = old[0] if isinstance(old, list) and len(old) == 1 else old
        for new in OPERATORS.get(type(first), []):
            changed = copy.deepcopy(node)
            setattr(changed, field, [new()] if isinstance(old, list) else new())
            yield changed
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield node.operand
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield changed
    if isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, float):
            yield ast.Constant(2 * node.value if node.value else 1.0)
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in SWAPPED:
            changed = copy.deepcopy(node)
            setattr(changed.func, "attr" if isinstance(called, ast.Attribute) else "id", SWAPPED[name])
            yield changed
        if name in DROPPED and isinstance(called, ast.Attribute) and not node.args:
            yield called.value
    if isinstance(node, ast.Attribute) and node.attr in DROPPED:
        yield node.value
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    if isinstance(node, ast.Break):
        yield ast.Pass()


def skipped(node: ast.AST) -> bool:
    """Words for people, types, and what is written for a reader of errors: nothing that a result depends on."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.keyword) and node.arg in ("strict", "stacklevel")


def mutants(file: str, source: str, *, write: bool = True) -> Iterator[Mutant]:
    """All mutants of a file; without their sources, which take the time, unless `write`."""
    tree = ast.parse(source)
    yield from _below(tree, tree, file, "", write)


def _below(tree: ast.Module, parent: ast.AST, file: str, statement: str, write: bool) -> Iterator[Mutant]:
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or skipped(node):
                continue
            inside = ast.unparse(node).splitlines()[0] if isinstance(node, ast.stmt) else statement
            # The name of a function goes with its call, the 1 of -1 with its sign.
            name = isinstance(parent, ast.Call) and field == "func"
            signed = isinstance(parent, ast.UnaryOp) and isinstance(node, ast.Constant)
            for new in () if name or signed else replacements(node):
                _put(parent, field, index, new)
                changed = ast.unparse(ast.fix_missing_locations(tree)) if write else ""
                _put(parent, field, index, node)
                change = f"{_short(node)} -> {_short(new)}"
                yield Mutant(file, getattr(node, "lineno", 0), inside, change, changed)
            yield from _below(tree, node, file, inside, write)


def _put(parent: ast.AST, field: str, index: int, node: ast.AST) -> None:
    value = getattr(parent, field)
    if isinstance(value, list):
        value[index] = node
    else:
        setattr(parent, field, node)


def _short(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:100]


# The run


def workspace(folder: Path) -> Path:
    """A copy of the package, as installed, and of its tests."""
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "mmsa_decalign", folder / "mmsa_decalign", ignore=hidden)
    for part in ("reference", "configs"):
        shutil.copytree(ROOT / part, folder / "mmsa_decalign" / part, ignore=hidden)
        shutil.copytree(ROOT / part, folder / part, ignore=hidden)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=hidden)
    shutil.copy(ROOT / "setup.cfg", folder)
    return folder


def _agrees() -> bool:
    """Whether values and gradients of the table of `mmsa verify` agree with the reference, smallest cases first."""
    from mmsa_decalign import verify
    from mmsa_decalign.verify.comparison import GRADIENT_TOLERANCE, TOLERANCE

    for case in itertools.islice(verify.cases(), QUICK):
        for dtype, limit in TOLERANCE.items():
            if not verify.value_error(case, dtype, "cpu") <= limit:
                return False
        dtype, limit = next(iter(GRADIENT_TOLERANCE.items()))
        if not verify.gradient_error(case, dtype, "cpu") <= limit:
            return False
    return True


def _run_tests(folder: Path, tests: tuple[str, ...]) -> None:
    """In a process of its own: exits with pytest's code. The libraries are there already, the package is not."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # before the finder of an editable installation
    os.environ["HYPOTHESIS_PROFILE"] = "few"
    sys.dont_write_bytecode = True  # of a file that changes within the second
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    if not tests:
        os._exit(0 if _agrees() else 1)
    # Warnings are errors by setup.cfg; this one says that Hypothesis was imported before pytest.
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    os._exit(int(pytest.main(["-x", "-q", *quiet, "-k", LEFT_OUT, *tests])))


def groups_of(file: str) -> list[tuple[str, ...]]:
    """Tests that see a file of the operators, in groups, fastest first; the empty one is a part of `mmsa verify`."""
    own = f"tests/ops/test_{file}"
    return [(), (own if (ROOT / own).is_file() else "tests/ops/test_losses.py",), *OTHERS]


def passes(folder: Path, tests: tuple[str, ...]) -> bool:
    """Whether all tests pass in time on what is in the folder now."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(folder, tests))
    process.start()
    process.join()
    return process.exitcode == 0


def survives(mutant: Mutant, folder: Path, groups: list[tuple[str, ...]]) -> bool:
    """Whether the tests pass with the mutant in place of its file; the file is restored."""
    path = folder / "mmsa_decalign" / "ops" / mutant.file
    original = path.read_text("utf-8")
    path.write_text(mutant.source, "utf-8")
    try:
        return all(passes(folder, tests) for tests in groups)
    finally:
        path.write_text(original, "utf-8")


def preload() -> None:
    """What takes long to import, once, for all processes to come."""
    import hypothesis  # noqa: F401
    import ot  # noqa: F401
    import pytest  # noqa: F401
    import scipy.optimize
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)  # a forked process cannot use its parent's threads


def report(found: list[Mutant], missed: list[Mutant], seconds: float) -> str:
    """The result as Markdown."""
    known = [mutant for mutant in found if mutant.key in EQUIVALENT]
    able = len(found) - len(known)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    files = sorted({mutant.file for mutant in found})
    lines = [
        "# Mutation check of the operators", "",
        f"{datetime.date.today()}, commit {commit}, Python {platform.python_version()}, {seconds / 60:.0f} minutes on "
        "one core; `python benchmarks/mutation.py --out benchmarks/results/mutation.md`.", "",
        f"**{able - len(missed)} of {able} mutants noticed: {(able - len(missed)) / able:.1%}.** "
        f"{len(known)} more change nothing that a result depends on, are listed below with the reason and not run.", "",
        "| file | mutants | equivalent | noticed | missed |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for file in files:
        count, same, bad = (sum(m.file == file for m in group) for group in (found, known, missed))
        lines.append(f"| {file} | {count} | {same} | {count - same - bad} | {bad} |")
    lines += ["", "## Missed", ""]
    lines += [f"- `{m.file}:{m.line}`: `{m.change}` in `{m.statement}`" for m in missed] or ["None."]
    lines += ["", "## Equivalent", ""]
    lines += [f"- `{m.file}:{m.line}`: `{m.change}` in `{m.statement}`: {EQUIVALENT[m.key]}" for m in known] or ["None"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, run all mutants one after the other, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the report (default: the screen)")
    parser.add_argument("--only", nargs="+", metavar="FILE", help="files of mmsa_decalign/ops (default: all)")
    arguments = parser.parse_args()
    paths = [path for path in sorted((ROOT / "mmsa_decalign" / "ops").glob("*.py")) if path.name != "__init__.py"]
    paths = [path for path in paths if not arguments.only or path.name in arguments.only]
    everything = [mutant for path in paths for mutant in mutants(path.name, path.read_text("utf-8"))]
    found = [mutant for mutant in everything if mutant.key not in EQUIVALENT]
    preload()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copied = workspace(Path(folder))
        if not all(passes(copied, tests) for tests in {group for m in found for group in groups_of(m.file)}):
            sys.exit("the tests fail, or take too long, without any change: nothing to learn from mutants")
        survivors = []
        console = Console(stderr=True)
        for mutant in track(found, "mutants", console=console, transient=True):
            if survives(mutant, copied, groups_of(mutant.file)):
                survivors.append(mutant)
                console.print(f"missed: {mutant.file}:{mutant.line} {mutant.change}", markup=False, highlight=False)
    text = report(everything, survivors, time.monotonic() - start)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
