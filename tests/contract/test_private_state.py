"""What a class of the core holds is changed in the file of that class. One pass over the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.executions import Execution
from app.core.resources import Capacity, Resources
from app.core.sandbox import Sandbox
from app.core.tasks import Tasks
from tests.null_backend import NullBackend
from tests.unit.core.support import SPEC, Notes

APP = Path(__file__).resolve().parents[2] / "app"


def targets(tree: ast.AST) -> Iterator[ast.expr]:
    """Whatever is assigned to or deleted, with tuples taken apart."""
    for node in ast.walk(tree):
        found: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            found = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            found = [node.target]
        for target in found:
            yield from target.elts if isinstance(target, ast.Tuple | ast.List) else [target]


def assigned(tree: ast.AST) -> Iterator[tuple[bool, str, int]]:
    """Whether it is an attribute of `self`, its name, and the line. An item of a container counts as the container."""
    for target in targets(tree):
        inner = target
        while isinstance(inner, ast.Subscript):
            inner = inner.value
        if isinstance(inner, ast.Attribute):
            yield isinstance(inner.value, ast.Name) and inner.value.id == "self", inner.attr, target.lineno


def own_attributes(tree: ast.AST) -> set[str]:
    """Of the classes in a file: what they assign to themselves, their fields and their properties."""
    names = {name for of_self, name, _ in assigned(tree) if of_self}
    for class_ in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in class_.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.FunctionDef) and node.decorator_list:
                names.add(node.name)
    return names


# Those that meet objects of the core. The launcher imports none of it, and has words of its own.
FILES = [path for part in ("core", "api", "backends") for path in sorted((APP / part).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text()) for path in [*FILES, APP / "telemetry.py", APP / "main.py"]}
OWN = {path: own_attributes(tree) for path, tree in TREES.items()}
OF_CORE = {  # fields of values are not among them: those are frozen
    name
    for path, tree in TREES.items()
    if path.is_relative_to(APP / "core")
    for of_self, name, _ in assigned(tree)
    if of_self
} | {name for name, value in (vars(Sandbox) | vars(Execution)).items() if isinstance(value, property)}


def intrusions(tree: ast.AST, own: set[str]) -> list[str]:
    return [
        f"line {line}: .{name}"
        for of_self, name, line in assigned(tree)
        if not of_self and name in OF_CORE and name not in own
    ]


def test_no_file_changes_what_a_class_of_the_core_holds_but_its_own() -> None:
    found = {str(path): wrong for path, tree in TREES.items() if (wrong := intrusions(tree, OWN[path]))}
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "sandbox.state = 1",
        "sandbox._handle = None",
        "sandbox.running += 1",
        "sandbox.executions[name] = execution",
        "del sandbox._transfers[0]",
        "a, execution.exit = 1, None",
        "execution.started_at: object = None",
    ],
)
def test_each_way_to_change_it_from_outside_is_seen(line: str) -> None:
    assert len(intrusions(ast.parse(line), set())) == 1


def test_a_sandbox_has_no_public_attribute_that_ever_changes() -> None:
    """Properties tell the rest. Outside of the constructor only private attributes are assigned."""
    tree = TREES[APP / "core" / "sandbox.py"]
    (class_,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Sandbox.__name__)
    later = [node for node in class_.body if getattr(node, "name", "") != "__init__"]
    changed = {name for node in later for of_self, name, _ in assigned(node) if of_self}
    assert {"_handle", "_timer", "_labels"} <= changed
    assert not {name for name in changed if not name.startswith("_")}
    settable = [name for name, value in vars(Sandbox).items() if isinstance(value, property) and value.fset]
    assert not settable


def test_executions_of_a_sandbox_can_be_read_only() -> None:
    sandbox = Sandbox("a", SPEC, NullBackend(), Resources(Capacity(), Notes(), Tasks()), print, named=True)
    with pytest.raises(TypeError):
        sandbox.executions["b"] = None  # type: ignore[index]
