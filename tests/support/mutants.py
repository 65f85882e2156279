"""Change a module in one small way at a time, run its tests, and list the changes that no test noticed.

    python tests/support/mutants.py trainlib/data/batches/plan.py tests/unit/test_plan.py

Each mutant lives in a process that is forked for it, which takes the changed module from memory: no file is touched,
and torch is imported once. Tests that start the module in other processes see the original.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

SECONDS = 120  # of a mutant that hangs; one that is ended so was noticed

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
}


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield each small change of a node alone."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        yield ast.Constant("XX" + node.value)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Raise | ast.Expr | ast.AugAssign | ast.Continue):
        yield ast.Pass()


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """Yield each mutant of a module, with the line and the change in words. Docstrings and types stay."""
    nodes = list(ast.walk(tree))
    skipped = set[int]()
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped |= {id(node), id(node.value)}
        for field in ("annotation", "returns"):
            if (annotation := getattr(node, field, None)) is not None:
                skipped |= {id(inside) for inside in ast.walk(annotation)}
    for number, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for new in changed(node):
            twin = copy.deepcopy(tree)
            _replace(twin, list(ast.walk(twin))[number], ast.copy_location(new, node))
            words = f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)!r} becomes {ast.unparse(new)!r}"
            yield words, ast.fix_missing_locations(twin)


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(each is old for each in value):
                value[[each is old for each in value].index(True)] = new


class _Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives a changed module to whoever imports it."""

    def __init__(self, name: str, path: Path, tree: ast.Module):
        self._name, self._path, self._code = name, path, compile(tree, str(path), "exec")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        found = importlib.machinery.ModuleSpec(name, self, origin=str(self._path)) if name == self._name else None
        if found is not None:
            found.has_location = True
        return found

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code, vars(module))


def is_noticed(name: str, path: Path, tree: ast.Module, tests: list[str]) -> bool:
    """Run the tests with a mutant, in a process of its own; return True if one of them failed."""
    child = os.fork()
    if child == 0:
        import pytest

        signal.alarm(SECONDS)
        sys.meta_path.insert(0, _Mutant(name, path, tree))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests])
        os._exit(int(code))
    return os.waitpid(child, 0)[1] != 0


def main(source: str, *tests: str) -> int:
    """Print the mutants of a file that these tests do not notice; return how many there are."""
    import hypothesis
    import pytest
    import torch

    del hypothesis, pytest, torch  # imported once, for all mutants
    path = Path(source)
    name, tree = ".".join(path.with_suffix("").parts), ast.parse(path.read_text())
    if is_noticed(name, path, tree, list(tests)):
        raise SystemExit("the tests fail without any change")
    survivors, count = 0, 0
    for words, mutant in mutants(tree):
        count += 1
        if not is_noticed(name, path, mutant, list(tests)):
            survivors += 1
            print(words, flush=True)
    print(f"{source}: {count} mutants, {survivors} unnoticed")
    return survivors


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
