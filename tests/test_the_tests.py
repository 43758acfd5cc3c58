"""Rules for the tests themselves: no comparison whose result is dropped, no assertion that cannot fail, no import by
editing the path.

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

    def compares(value: ast.AST) -> bool:
        if isinstance(value, ast.Call):
            called = value.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            return name in COMPARING
        if isinstance(value, ast.UnaryOp):
            return compares(value.operand)
        if isinstance(value, ast.Tuple | ast.List):
            return any(compares(item) for item in value.elts)
        if isinstance(value, ast.ListComp | ast.GeneratorExp | ast.SetComp):
            return compares(value.elt)
        return isinstance(value, ast.Compare | ast.BoolOp)

    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    statements += [  # _ = a == b
        node for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and all(isinstance(t, ast.Name) and t.id == "_" for t in node.targets)
    ]  # fmt: skip
    return sorted(node.lineno for node in statements if compares(node.value))


def idle_assertions(tree: ast.AST) -> list[int]:
    """Lines of assertions that hold whatever the code does: of a constant, a tuple, or something compared with itself.

    `a or True`, and an approximation that is compared with nothing, are of this kind too.
    """

    def holds(test: ast.expr) -> bool:
        literal = ast.Constant | ast.Tuple | ast.List | ast.Dict | ast.Lambda | ast.JoinedStr | ast.GeneratorExp
        if isinstance(test, literal):
            return True
        if isinstance(test, ast.ListComp):  # one that filters may be empty: `assert not [x for x in a if wrong(x)]`
            return not any(loop.ifs for loop in test.generators)
        if isinstance(test, ast.UnaryOp):
            return holds(test.operand)
        if isinstance(test, ast.BoolOp):
            return any(holds(value) for value in test.values)
        if isinstance(test, ast.Compare):
            same = len(test.ops) == 1 and ast.dump(test.left) == ast.dump(test.comparators[0])
            constant = all(isinstance(side, ast.Constant) for side in (test.left, *test.comparators))
            return same or constant
        if isinstance(test, ast.Call):
            name = test.func.attr if isinstance(test.func, ast.Attribute) else getattr(test.func, "id", "")
            return name in ("approx", "assert_allclose", "assert_array_equal", "assert_same")
        return False

    return sorted(node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert) and holds(node.test))


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
           "np.array_equal(a, b)", "allclose(a, b)", "not a == b", "(a == b).all()", "torch.allclose(a, b)",
           "a, b == c", "_ = a == b", "[x == y for x in a]", "a is None", "a in b", "isclose(a, b).all()"]  # fmt: skip
    good = ["assert a == b", "x = a == b", "assert_allclose(a, b)", "assert np.allclose(a, b)", "check(a == b)",
            "_ = f(a)", "[check(x) for x in a]", "a, b"]  # fmt: skip
    for line in bad:
        assert dropped_comparisons(ast.parse(f"def test():\n    {line}\n")) == [2], line
    for line in good:
        assert dropped_comparisons(ast.parse(f"def test():\n    {line}\n")) == [], line


def test_no_assertion_in_the_tests_is_idle():
    assert {name: lines for name, tree in trees().items() if (lines := idle_assertions(tree))} == {}


def test_an_idle_assertion_is_found():
    bad = ["assert True", "assert 'text'", "assert (a == b, 'message')", "assert a == a", "assert 1 == 1",
           "assert not 0", "assert a or True", "assert f'{a}'", "assert [x == y for x in a]",
           "assert (x == y for x in a)", "assert approx(a)", "assert np.testing.assert_allclose(a, b)"]  # fmt: skip
    good = ["assert a", "assert a == b", "assert a == 1", "assert all(x == y for x in a)", "assert a.b == a.c",
            "assert not a", "assert a == approx(b)", "assert a < b < a", "assert not [x for x in a if b]"]  # fmt: skip
    for line in bad:
        assert idle_assertions(ast.parse(line)) == [1], line
    for line in good:
        assert idle_assertions(ast.parse(line)) == [], line


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
