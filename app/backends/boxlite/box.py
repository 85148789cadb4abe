"""A box as the server describes it, and the checks that it is the box that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.backends.boxlite import RUNTIME
from app.core.errors import BackendRefused, Upstream

_ID = re.compile(r"(?!\.{1,2}$)[!-~]{1,256}")  # the server's own affair, but it becomes one segment of a path


@dataclass(frozen=True, slots=True)
class Box:
    id: str
    name: str | None
    status: str
    said: Mapping[str, Any]  # as the server tells it

    @property
    def over(self) -> bool:
        return self.status in {"stopped", "failed"}


def box_of(found: Any) -> Box:
    if not isinstance(found, dict) or not is_id(found.get("box_id")):
        raise BackendRefused(RUNTIME, "the answer of the BoxLite server has no box", Upstream())
    name = found.get("name")
    return Box(found["box_id"], name if isinstance(name, str) else None, str(found.get("status")), found)


def is_id(found: Any) -> bool:
    return isinstance(found, str) and _ID.fullmatch(found) is not None


def called(box: Box, name: str) -> Box:
    """Checks the name of a box. A box with another name belongs to somebody else, whatever the server says."""
    if box.name != name:
        raise BackendRefused(RUNTIME, "the BoxLite server answered with another box than the requested one", Upstream())
    return box


def with_id(box: Box, box_id: str) -> Box:
    if box.id != box_id:
        raise BackendRefused(RUNTIME, "the BoxLite server answered with another box than the requested one", Upstream())
    return box
