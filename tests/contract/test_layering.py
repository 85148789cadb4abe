"""Who may import whom: one table, and a loop over the syntax trees. A row explains itself when it fails.

A package that has no row fails too: first say where it stands, then write it. Never add an exception in the change
that needs one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
ANYTHING = frozenset({"*"})


@dataclass(frozen=True)
class Row:
    inside: frozenset[str]  # packages of app, or dotted modules of them
    outside: frozenset[str]  # beside the standard library


def row(inside: str = "", outside: str = "") -> Row:
    return Row(frozenset(inside.split()), frozenset(outside.split()))


# The longest name that fits a module is its row. The names on the left stand in the order of `app/__init__.py`.
TABLE: dict[str, Row] = {
    "core": row("core"),
    "spill": row("core"),
    "keys": row("core"),
    "telemetry": row("log_buffer core", "prometheus_client structlog"),
    "sentences": row(),
    "settings": row("settings sentences core", "pydantic pydantic_settings"),
    # starlette and pydantic_core are the lower halves of FastAPI and pydantic, which re-export only a part of them
    "api": row("api sentences core", "fastapi starlette pydantic pydantic_core"),
    "api.context": row("api.http core", "starlette"),
    "api.http": row("api.http api.context sentences core", "fastapi starlette pydantic pydantic_core"),
    "api.schemas": row("api.schemas api.http api.context sentences core", "starlette pydantic pydantic_core"),
    "api.streams": row("api.streams api.schemas api.http api.context core", "starlette pydantic pydantic_core"),
    "api.openapi": row("api.openapi api.schemas api.streams api.http core", "fastapi starlette pydantic"),
    # pyroute2 reads a sandbox's network back for the receipt
    "backends": row(
        "backends core settings launcher.protocol egress.protocol egress.authority", "httptools websockets pyroute2"
    ),
    "backends.egress_link": row("core egress.protocol"),
    "backends.boxlite": row("backends.boxlite backends.egress_link core settings", "httptools websockets"),
    "backends.process": row(
        "backends.process backends.egress_link core settings launcher.protocol egress.protocol egress.authority",
        "pyroute2",
    ),
    # It meets hostile programs and servers, so it has nothing of the gateway's but the rules.
    "egress": row("egress privileges huge_pages core", "dns h11 uvloop"),
    "egress.protocol": row("core"),
    "egress.authority": row("egress.protocol", "cryptography"),
    "privileges": row(),
    "log_buffer": row(),
    "huge_pages": row(),
    # What runs in the sandbox's clone cannot reach for what belongs to the launcher, and the wire knows no side.
    "launcher": row("launcher"),
    "launcher.config": row(),
    "launcher.daemon": row("launcher"),
    "launcher.sandbox": row("launcher.sandbox launcher.kernel launcher.protocol launcher.config"),
    "launcher.kernel": row("launcher.kernel"),
    "launcher.protocol": row("launcher.protocol"),
    "client": row("client core", "httpx websockets"),
    "serving.messages": row(),
    "serving.instance": row(),
    "serving.slot": row(),
    "serving.pacing": row(),
    "serving.slow_callbacks": row(),
    "serving.secrets_feed": row("core settings serving.messages"),
    "serving.http_upgrades": row("", "uvicorn httptools"),
    "serving.http_slices": row("core serving.http_upgrades serving.pacing", "uvicorn"),
    "serving.joined_writes": row(),
    "serving.http_bounds": row("serving.http_slices serving.joined_writes", "uvicorn"),
    "serving.ws_handshake": row("", "websockets"),
    "serving.websocket": row("serving.ws_handshake", "uvicorn websockets"),
    "serving.ws_bounds": row("core serving.pacing serving.websocket", "uvicorn websockets"),
    # The gateway has no privilege, so it imports nothing that starts or ends processes as root.
    "serving.gateway": row(
        "main backends core settings keys privileges spill telemetry serving.http_bounds serving.ws_bounds"
        " huge_pages serving.slow_callbacks serving.instance serving.messages serving.secrets_feed",
        "uvicorn",
    ),
    "serving": Row(ANYTHING, ANYTHING),
    "main": Row(ANYTHING, ANYTHING),
    "cli": Row(ANYTHING, ANYTHING),
    "__init__": row(),
    "__main__": row("cli"),
}


def row_of(module: str) -> str | None:
    """`launcher.daemon.oom` -> "launcher.daemon"; None where no row fits."""
    fitting = [name for name in TABLE if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


# The list in `app/__init__.py`, in its order.
MAP = re.findall(r"^``(\w+)``  ", ast.get_docstring(ast.parse((APP / "__init__.py").read_text())) or "", re.MULTILINE)

# Every sandbox is a clone of the launcher and pays for what that has imported: measured, 8 to 18 ms in all.
HEAVY = frozenset(
    {
        "asyncio",
        "dataclasses",
        "enum",
        "inspect",
        "json",
        "logging",
        "pathlib",
        "re",
        "socket",
        "subprocess",
        "threading",
        "typing",
    }
)
READS_ENVIRONMENT = ("settings", "cli", "client", "serving.supervisor", "launcher.config")


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_run_time: bool


def modules() -> list[Path]:
    return sorted(APP.rglob("*.py"))


def dotted(path: Path) -> str:
    """app/api/routes/stream.py -> api.stream; a package's __init__ is the package itself."""
    parts = path.relative_to(APP).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports(tree: ast.AST, package: str, at_run_time: bool = True) -> Iterator[Import]:
    """All imports at any depth, absolute; those below `if TYPE_CHECKING:` are not of the run time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_run_time)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            if base == "app" or base.startswith("app."):
                for alias in node.names:  # `from app.launcher import protocol` imports app.launcher.protocol
                    yield Import(f"{base}.{alias.name}", node.lineno, at_run_time)
            else:
                yield Import(base, node.lineno, at_run_time)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            for child in node.body:
                yield from imports(ast.Module([child], []), package, False)
            for child in node.orelse:
                yield from imports(ast.Module([child], []), package, at_run_time)
        else:
            yield from imports(node, package, at_run_time)


def imports_of(path: Path) -> list[Import]:
    package = ".".join(("app", *path.relative_to(APP).parent.parts))
    return list(imports(ast.parse(path.read_text(), str(path)), package))


def allowed_inside(target: str, row: Row) -> bool:
    """`target` without its leading `app.`; a from-import's last part may be a name instead of a module."""
    return row.inside == ANYTHING or any(target == name or target.startswith(f"{name}.") for name in row.inside)


def refusal(imported: Import, row: Row) -> str | None:
    """Why the row does not allow it, or None."""
    top = imported.module.split(".")[0]
    if top == "app":
        target = imported.module.removeprefix("app").removeprefix(".")
        if target in {"", "__version__"} or allowed_inside(target, row):
            return None
        return f"app.{target} is not among {sorted(row.inside)}"
    if top in sys.stdlib_module_names or row.outside == ANYTHING or top in row.outside:
        return None
    return f"{top} is neither the standard library nor among {sorted(row.outside)}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_module_imports_only_what_its_row_allows(path: Path) -> None:
    name = row_of(dotted(path))
    assert name, f"app/{dotted(path)} has no row in the table of {Path(__file__).name}: say where it stands first"
    wrong = [f"{path.relative_to(ROOT)}:{i.line}: {why}" for i in imports_of(path) if (why := refusal(i, TABLE[name]))]
    assert not wrong, "\n".join(wrong)


LAUNCHER = [path for path in modules() if dotted(path).split(".")[0] == "launcher"]


@pytest.mark.parametrize("path", LAUNCHER, ids=dotted)
def test_launcher_names_no_heavy_module_at_run_time(path: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{i.line}: {i.module}: every sandbox would pay for it"
        for i in imports_of(path)
        if i.at_run_time and i.module.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_launcher_loads_no_heavy_module_through_another() -> None:
    """`signal`, for one, is written in Python and imports enum."""
    names = ["app." + dotted(path) for path in LAUNCHER]
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "".join(f"import {name}\n" for name in names)
    program += f"print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    run = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def reads_of_environment(tree: ast.AST) -> Iterator[int]:
    names = {"environ", "environb", "getenv", "getenvb"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr in names and isinstance(node.value, ast.Name) and node.value.id in {"os", "posix"}:
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in {"os", "posix"}:
            yield from (node.lineno for alias in node.names if alias.name in names)


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_nothing_but_the_settings_reads_the_environment(path: Path) -> None:
    if any(dotted(path) == name or dotted(path).startswith(f"{name}.") for name in READS_ENVIRONMENT):
        return
    lines = list(reads_of_environment(ast.parse(path.read_text())))
    assert not lines, f"{path.relative_to(ROOT)} reads the environment in lines {lines}: take it from the settings"


# --- the checks themselves


def found(source: str, package: str = "app.api") -> list[tuple[str, bool]]:
    return [(i.module, i.at_run_time) for i in imports(ast.parse(source), package)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, re.x", [("os", True), ("re.x", True)]),
        ("from app.core import errors", [("app.core.errors", True)]),
        ("from . import context", [("app.api.context", True)]),
        ("from ..core.models import x", [("app.core.models.x", True)]),
        ("def f():\n  try:\n    import json\n  except E: pass", [("json", True)]),
        ("if TYPE_CHECKING:\n  import json\nelse:\n  import re", [("json", False), ("re", True)]),
        ("if typing.TYPE_CHECKING:\n  def f():\n    import json", [("json", False)]),
    ],
)
def test_every_form_of_import_is_seen(source: str, expected: list[tuple[str, bool]]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize(
    ("package", "module", "fine"),
    [
        ("core", "app.core.models", True),
        ("core", "app.api", False),
        ("core", "app.corelike", False),
        ("core", "pydantic", False),
        ("core", "hashlib", True),
        ("api", "app.backends.process", False),
        ("api", "app.__version__", True),
        ("backends", "app.launcher.protocol.Frame", True),
        ("backends", "app.launcher.daemon.server", False),
        ("launcher", "app.core.errors", False),
        ("launcher", "pyroute2", False),
        ("client", "httpx", True),
        ("client", "app.settings", False),
        ("main", "app.backends.process", True),
    ],
)
def test_table_is_applied_as_it_reads(package: str, module: str, fine: bool) -> None:
    assert (refusal(Import(module, 1, True), TABLE[package]) is None) is fine


def test_map_names_every_package_and_module_once_and_nothing_else() -> None:
    assert sorted(MAP) == sorted({dotted(path).split(".")[0] for path in modules()} - {"__init__"})


def test_what_stands_in_the_map_imports_only_what_stands_below_it() -> None:
    for path in modules():
        top = dotted(path).split(".")[0]
        for found in imports_of(path):
            target = found.module.removeprefix("app.").split(".")[0]
            if top in MAP and found.module.startswith("app.") and target in MAP:
                assert MAP.index(target) >= MAP.index(top), f"{path.relative_to(ROOT)}:{found.line}: {found.module}"


@pytest.mark.parametrize("source", ["import os\nos.environ['A']", "x = os.getenv('A')", "from os import environ as e"])
def test_every_read_of_the_environment_is_seen(source: str) -> None:
    assert list(reads_of_environment(ast.parse(source)))
