"""Rules for the tests themselves: no comparison whose result is dropped, no import by editing the path.

Each rule is a function that returns the lines that break it, so that it is shown to find some before it is trusted.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

COMPARING = {"allclose", "isclose", "equal", "array_equal", "array_equiv", "all", "any", "isfinite", "isinstance"}


def trees() -> dict[str, ast.Module]:
    """Syntax tree of every file below tests/."""
    paths = sorted((ROOT / "tests").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def dropped_comparisons(tree: ast.AST) -> list[int]:
    """Lines of comparisons whose result nobody looks at: statements that only look like assertions."""

    def compares(value: ast.expr) -> bool:
        if isinstance(value, ast.Call):
            called = value.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            return name in COMPARING
        if isinstance(value, ast.UnaryOp):
            return compares(value.operand)
        return isinstance(value, ast.Compare | ast.BoolOp)

    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return sorted(node.lineno for node in statements if compares(node.value))


def path_edits(tree: ast.AST) -> list[int]:
    """Lines that touch the import path, and imports of what is installed under another name than its folder's."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            on_sys = isinstance(node.value, ast.Name) and node.value.id == "sys"
            if (on_sys and node.attr == "path") or node.attr in ("syspath_prepend", "addsitedir"):
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            lines += [node.lineno for alias in node.names if alias.name == "path"]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            inside = isinstance(node, ast.ImportFrom) and node.level > 0
            lines += [node.lineno for name in names if not inside and name.split(".")[0] in ("reference", "configs")]
    return sorted(lines)


def test_no_comparison_in_the_tests_is_dropped():
    assert {"tests/conftest.py", "tests/test_architecture.py", "tests/test_the_tests.py"} <= trees().keys()
    assert {name: lines for name, tree in trees().items() if (lines := dropped_comparisons(tree))} == {}


def test_a_dropped_comparison_is_found():
    bad = ["a == b", "a < b < c", "a == b and c", "np.allclose(a, b)", "torch.equal(a, b)", "math.isclose(a, b)",
           "np.array_equal(a, b)", "allclose(a, b)", "not a == b", "(a == b).all()"]  # fmt: skip
    good = ["assert a == b", "x = a == b", "assert_allclose(a, b)", "assert np.allclose(a, b)", "check(a == b)"]
    for line in bad:
        assert dropped_comparisons(ast.parse(f"def test():\n    {line}\n")) == [2], line
    for line in good:
        assert dropped_comparisons(ast.parse(f"def test():\n    {line}\n")) == [], line


def test_no_test_edits_the_import_path():
    assert {name: lines for name, tree in trees().items() if (lines := path_edits(tree))} == {}


def test_a_path_edit_is_found():
    bad = ["sys.path.insert(0, '.')", "sys.path += ['.']", "from sys import path", "monkeypatch.syspath_prepend('.')",
           "site.addsitedir('.')", "from reference import mmd", "import configs"]  # fmt: skip
    good = ["from mmsa_decalign import reference", "from mmsa_decalign.reference import mmd", "import os.path",
            "path = os.path.join('a', 'b')", "from tests.conftest import assert_same"]  # fmt: skip
    for line in bad:
        assert path_edits(ast.parse(line)) == [1], line
    for line in good:
        assert path_edits(ast.parse(line)) == [], line
