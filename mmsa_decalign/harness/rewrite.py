"""A function of MMSA compiled anew from its installed source with one statement or argument changed.

For faults inside long functions, where no name can be replaced that the function looks up. What may change here:
further edits. Which functions are edited, and why, stands where the edit is used.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any


def source_tree(function: Callable[..., Any]) -> ast.FunctionDef:
    """The syntax tree of a function, read from its file, with the edits that it was compiled anew with."""
    if hasattr(function, "edited"):
        original, edit = function.edited
        tree = source_tree(original)
        edit(tree)
        return tree
    tree = ast.parse(source_text(function)).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise TypeError(f"{function!r} is no plain function")
    return tree


def source_text(function: Callable[..., Any]) -> str:
    """The source of a function as it is installed."""
    return _text(function.__code__)


@functools.cache
def _text(code: CodeType) -> str:
    return textwrap.dedent(inspect.getsource(code))


def rewritten(function: FunctionType, edit: Callable[[ast.FunctionDef], None]) -> FunctionType:
    """``function`` after ``edit`` changed its tree, with the globals, defaults and name of the original.

    ``super()`` without arguments works; a decorator or any other closure does not and is refused.
    """
    tree = source_tree(function)
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if tree.decorator_list or set(closure) - {"__class__"}:
        raise TypeError(f"{function.__qualname__} has a decorator or a closure and cannot be compiled anew")
    edit(tree)
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)  # for tracebacks
    factory = ast.parse("def factory(__class__):\n    pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [tree, ast.Return(ast.Name(tree.name, ast.Load()))]
    module = ast.fix_missing_locations(ast.Module([factory], type_ignores=[]))
    scope: dict[str, Any] = {}
    exec(compile(module, inspect.getfile(function), "exec"), function.__globals__, scope)
    cell = closure.get("__class__")
    new = scope["factory"](cell.cell_contents if cell else None)
    new.__defaults__, new.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    new.__qualname__, new.__module__ = function.__qualname__, function.__module__
    new.edited = function, edit
    return new


def unbound_in_first_pass(function: Callable[..., Any], name: str) -> bool:
    """Whether the source reads the local ``name`` above the line that first sets it, in the same loop."""
    uses = [node for node in ast.walk(source_tree(function)) if isinstance(node, ast.Name) and node.id == name]
    reads, writes = ([node.lineno for node in uses if isinstance(node.ctx, kind)] for kind in (ast.Load, ast.Store))
    return bool(reads) and (not writes or min(reads) < min(writes))


def times_set(function: Callable[..., Any], name: str) -> int:
    """In how many places the source sets the local ``name``."""
    return sum(isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
               for node in ast.walk(source_tree(function)))


def squeezes(function: Callable[..., Any]) -> bool:
    """Whether the source calls ``squeeze()`` without an axis."""
    return any(map(_bare_squeeze, ast.walk(source_tree(function))))


def set_in_every_pass(statement: str) -> Callable[[ast.FunctionDef], None]:
    """Edit: ``statement`` comes first in the function's outer ``while`` loop."""

    def edit(tree: ast.FunctionDef) -> None:
        loop = next(node for node in tree.body if isinstance(node, ast.While))
        loop.body[:0] = ast.parse(statement).body

    return edit


def with_argument(called: str, keyword: str, value: str) -> Callable[[ast.FunctionDef], None]:
    """Edit: every call of ``called`` that lacks ``keyword`` gets ``keyword=value``."""

    def edit(tree: ast.FunctionDef) -> None:
        for call in ast.walk(tree):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == called
            if named and not any(given.arg == keyword for given in call.keywords):
                call.keywords.append(ast.keyword(keyword, ast.parse(value, mode="eval").body))

    return edit


def with_squeeze(axis: int | None) -> Callable[[ast.FunctionDef], None]:
    """Edit: ``x.squeeze()``, which takes away a batch of one sample too, becomes ``x.squeeze(axis)``; x for None."""

    class Edit(ast.NodeTransformer):
        def visit_Call(self, call: ast.Call) -> ast.AST:
            self.generic_visit(call)
            if _bare_squeeze(call):
                if axis is None:
                    return call.func.value  # type: ignore[attr-defined]
                call.args.append(ast.Constant(axis))
            return call

    def edit(tree: ast.FunctionDef) -> None:
        Edit().visit(tree)

    return edit


def _bare_squeeze(node: ast.AST) -> bool:
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "squeeze"
            and not node.args and not node.keywords)
