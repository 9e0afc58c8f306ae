"""Rules for compiled code that Python would not notice: all values are int64 (see vmx.state.jit)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "vmx"
FILES = sorted(path for folder in ("cpu", "mmu", "virt", "state") for path in (ROOT / folder).glob("*.py"))


def is_compiled(function):
    """Whether a function is decorated with `compiled` or `unit`."""
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(target, ast.Name) and target.id in ("compiled", "unit"):
            return True
    return False


def violations(function):
    """(line, what is wrong) of a compiled function."""
    for node in ast.walk(function):
        if isinstance(node, (ast.BinOp, ast.AugAssign)):
            operator = {
                ast.FloorDiv: "// (use udiv)",
                ast.Mod: "% (use urem)",
                ast.Div: "/ (a float)",
                ast.Pow: "**",
            }.get(type(node.op))
            if operator and not (isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant)):
                yield node.lineno, operator
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, float):
                yield node.lineno, f"float {node.value}"
            elif isinstance(node.value, int) and node.value >= 1 << 63:
                yield node.lineno, f"{node.value:#x} does not fit in int64: write it as a negative number"
        elif isinstance(
            node, (ast.Raise, ast.Try, ast.With, ast.Lambda, ast.ListComp, ast.Dict, ast.JoinedStr)
        ):
            yield node.lineno, f"{type(node).__name__.lower()} in compiled code"
        elif isinstance(node, ast.Global):
            yield node.lineno, "global"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_compiled_functions(path):
    found = [
        f"{path.name}:{line}: {function.name}: {what}"
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and is_compiled(function)
        for line, what in violations(function)
    ]
    assert not found, "\n".join(found)
