"""What `app/serving` overrides and uses of uvicorn, name by name. Most of it is private there: a new minor version may
rename it, and Python would then take our methods for new ones and run without the bounds.

So `pyproject.toml` pins the minor version. Whoever raises it reads here which names to look at. The table is complete:
a name that the code uses and the table lacks fails a test, and so does one of ours that uvicorn begins to use.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import httptools
import pytest
import uvicorn
from packaging.requirements import Requirement
from packaging.version import Version
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.serving.gateway import AnnouncedServer
from app.serving.http_bounds import BoundedHttp
from app.serving.http_slices import HeldFlow, SlicedHttp
from app.serving.http_upgrades import UpgradesIgnored

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Names:
    overridden: frozenset[str] = field(default_factory=frozenset)
    used: frozenset[str] = field(default_factory=frozenset)


def names(used: str, overridden: str = "") -> Names:
    """`used`: read, set or called; an overridden one that is called too is in both."""
    return Names(frozenset(overridden.split()), frozenset(used.split()))


TABLE: dict[type, Names] = {
    HttpToolsProtocol: names(
        "__init__ _should_upgrade _start_asgi_task _unset_keepalive_if_required app_state client config connection_lost"
        " connection_made connections cycle data_received flow handle_websocket_upgrade headers loop on_body on_header"
        " on_headers_complete on_message_begin on_message_complete on_response_complete on_url parser pause_writing"
        " pipeline resume_writing scope send_400_response server_state transport url ws_protocol_class",
        overridden="__init__ _should_upgrade _start_asgi_task connection_lost connection_made data_received"
        " handle_websocket_upgrade on_body on_header on_headers_complete on_message_begin on_message_complete"
        " on_response_complete on_url pause_writing resume_writing send_400_response",
    ),
    FlowControl: names("_transport pause_reading read_paused resume_reading", overridden="resume_reading"),
    RequestResponseCycle: names("body disconnected message_event response_complete"),
    uvicorn.Server: names("__init__ server_state servers shutdown startup", overridden="__init__ shutdown startup"),
    ServerState: names("tasks"),
    httptools.HttpRequestParser: names("feed_data get_http_version get_method should_upgrade"),
}

# Our classes, and the one of uvicorn of which each is made.
OURS: dict[type, type] = {
    UpgradesIgnored: HttpToolsProtocol,
    SlicedHttp: HttpToolsProtocol,
    BoundedHttp: HttpToolsProtocol,
    HeldFlow: FlowControl,
    AnnouncedServer: uvicorn.Server,
}
# What else the code of those classes takes hold of: expressions, as they are written.
OBJECTS: dict[str, type] = {
    "cycle": RequestResponseCycle,
    "self.cycle": RequestResponseCycle,
    "self._running": RequestResponseCycle,
    "self.flow": FlowControl,
    "self.parser": httptools.HttpRequestParser,
    "self.server_state": ServerState,
}
# Attributes of uvicorn's that hold what is not uvicorn's: asyncio's, or plain values.
PLAIN = frozenset({"_transport", "app_state", "connections", "loop", "pipeline", "servers", "transport"})


def has(class_: type) -> frozenset[str]:
    """Names of the class, and of what its methods and those of its bases set in an object of it."""
    found = set(dir(class_))
    for base in class_.__mro__:
        if base.__module__.split(".")[0] in {"uvicorn", "websockets"}:
            found |= {name for owner, name, stored in attributes(code_of(base)) if stored and owner == "self"}
    return frozenset(found - set(dir(object)) | {"__init__"})


def attributes(tree: ast.AST) -> Iterator[tuple[str, str, bool]]:
    """(what it is an attribute of, its name, is it set)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node.value), node.attr, isinstance(node.ctx, ast.Store)


def defined(class_: type) -> set[str]:
    """What an object of the class has by its body: methods, properties, values."""
    return set(vars(class_)) - {"__module__", "__doc__", "__annotations__", "__dict__", "__weakref__"}


def code_of(class_: type) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(class_)))


def found() -> dict[type, Names]:
    overridden: dict[type, set[str]] = {class_: set() for class_ in TABLE}
    used: dict[type, set[str]] = {class_: set() for class_ in TABLE}
    for ours, theirs in OURS.items():
        overridden[theirs] |= defined(ours) & has(theirs)
        for owner, name, _ in attributes(code_of(ours)):
            if owner in {"self", "super()"} and name in has(theirs):
                used[theirs].add(name)
            elif owner in OBJECTS and not (owner == "self.flow" and name in defined(HeldFlow) - has(FlowControl)):
                used[OBJECTS[owner]].add(name)
    return {class_: Names(frozenset(overridden[class_]), frozenset(used[class_])) for class_ in TABLE}


FOUND = found()
each_class = pytest.mark.parametrize("class_", TABLE, ids=lambda class_: class_.__name__)


def gone(class_: type, named: Names) -> frozenset[str]:
    return (named.overridden | named.used) - has(class_)


def test_a_name_that_is_not_there_is_found() -> None:
    assert gone(HttpToolsProtocol, names("data_received pipeline no_such_name")) == {"no_such_name"}


@each_class
def test_every_name_is_still_there(class_: type) -> None:
    version = metadata.version("uvicorn")
    assert not gone(class_, TABLE[class_]), f"{class_.__name__} of uvicorn {version} has no such names any more"


@each_class
def test_the_table_has_every_name_that_is_overridden(class_: type) -> None:
    """Also when uvicorn begins to use a name of ours."""
    assert FOUND[class_].overridden == TABLE[class_].overridden


@each_class
def test_the_table_has_every_name_that_is_used(class_: type) -> None:
    assert FOUND[class_].used == TABLE[class_].used


def test_every_class_that_is_made_of_one_of_uvicorns_is_looked_at() -> None:
    made = set()
    for path in ROOT.glob("app/**/*.py"):
        if "uvicorn" not in path.read_text():
            continue
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                made |= {value for base in value.__mro__ if base.__module__.startswith("uvicorn")}
    assert made == set(OURS)


def test_it_is_known_what_each_attribute_of_uvicorns_holds() -> None:
    for ours, theirs in OURS.items():
        for owner, name, _ in attributes(code_of(ours)):
            holder = owner.removeprefix("self.")
            if holder != owner and holder in has(theirs) and owner not in OBJECTS:
                assert holder in PLAIN, f"{ours.__name__} uses {owner}.{name}: put {owner} into OBJECTS or PLAIN"


def test_the_minor_version_is_pinned() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (pinned,) = (found for text in listed if (found := Requirement(text)).name == "uvicorn")
    installed = Version(metadata.version("uvicorn"))
    assert installed in pinned.specifier
    assert Version(f"{installed.major}.{installed.minor}.99") in pinned.specifier
    assert Version(f"{installed.major}.{installed.minor + 1}") not in pinned.specifier
