"""Imports run downward only: what a module may import can be told from the folder that it is in.

One table says which packages each package may import; imports inside functions count too, imports for type
checkers only do not.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vmx"

_SILICON = {"state", "isa", "mmu", "virt", "cpu", "translator"}

# Package -> the packages below it. `errors` is the floor under all; the facade `vmx` itself is the roof.
MAY_IMPORT = {
    "errors": set(),
    "state": set(),
    "isa": {"state"},
    "mmu": {"isa", "state"},
    "virt": {"mmu", "isa", "state"},
    "cpu": {"virt", "mmu", "isa", "state"},
    "translator": {"cpu", "virt", "mmu", "isa", "state"},
    "devices": {"state"},  # its buses and lines, never the processor
    "boot": {"state"},  # files to plain data
    "guests": set(),
    "machine": {"devices", "boot", *_SILICON},
    "ledger": {"machine", "devices", "boot", *_SILICON},
    "hypervisor": {"machine", "ledger", "devices", "boot", "guests", *_SILICON},
    "cli": {"hypervisor", "ledger", "machine", "devices", "boot", "guests", *_SILICON},
}
ROOF = {"__init__", "__main__"}


def _package(module: str) -> str | None:
    """The folder (or top-level file) of vmx that a dotted module name is in; "__init__" for the facade."""
    parts = module.split(".")
    if parts[0] != "vmx":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _imports(tree: ast.AST, module: str):
    """(line, dotted name) of every import that runs; `from vmx import x` is vmx.x where that is a package."""
    for node in ast.iter_child_nodes(tree):
        if _is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([base] if base else [])])
            if base == "vmx":
                names = [alias.name for alias in node.names]
                yield from ((node.lineno, f"vmx.{name}" if name in MAY_IMPORT else "vmx") for name in names)
            else:
                yield node.lineno, base
        else:
            yield from _imports(node, module)


MODULES = sorted(PACKAGE.rglob("*.py"))


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def test_the_table_has_no_cycle():
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


def test_every_package_is_in_the_table():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert folders | files <= MAY_IMPORT.keys() | ROOF


@pytest.mark.parametrize("path", MODULES, ids=_dotted)
def test_imports_run_downward(path):
    module = _dotted(path)
    own = _package(module)
    if own in ROOF:
        return
    wrong = [
        f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}"
        for line, name in _imports(ast.parse(path.read_text()), module)
        if (target := _package(name)) is not None
        and target not in ("errors", own)
        and target not in MAY_IMPORT[own]
        and not (target == "__init__" and own == "cli")  # the commands are a shell over the facade
    ]
    assert not wrong, f"vmx.{own} may import {sorted(MAY_IMPORT[own]) or 'nothing of vmx'} only"


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["run", "--help"]])
def test_help_imports_neither_numba_nor_numpy(command):
    import subprocess
    import sys

    code = (
        "import sys\nfrom vmx.cli.main import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'numba', 'numpy', 'llvmlite'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
