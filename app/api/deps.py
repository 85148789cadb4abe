"""What the routes need, in one container that `main.py` fills: the core, the operator's numbers, the wires out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import HTTPConnection

from app.api.pool import Pool
from app.api.readiness import Readiness
from app.api.tickets import Tickets
from app.core.policy import LimitRange, Policy
from app.core.registry import Registry
from app.core.sandboxes import Sandboxes

BODY_LIMIT = 4 * 1024 * 1024
RUN_PATH, RUN_BODY_LIMIT = "/run", 32 * 1024 * 1024  # it brings files along


class Journal(Protocol):
    """Where the edge writes down what it did. Never given a query string, a header's value or a body."""

    def request(
        self, *, request_id: str, method: str, path: str, status: int, seconds: float, client: str | None
    ) -> None: ...

    def failure(self, *, request_id: str, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the edge waits for a client, in seconds.

    `probe`: while a program does not read its stdin the socket is not read either, and a client that left is only
    noticed by writing to it. `close`: for the last frames of a stream that is being closed, and for a program to read
    what a client sent before it left. `silence`: between two comments of an event stream.
    """

    body: float = 30
    probe: float = 1
    close: float = 10
    silence: float = 15


@dataclass(frozen=True, slots=True)
class TransferBounds:
    """The largest body of a file or archive in bytes, and how long a client may send and take nothing."""

    ceiling: int = 16 * 1024**3
    stall_seconds: float = 60


BODIES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Edge:
    sandboxes: Sandboxes
    registry: Registry
    readiness: Readiness
    ranges: Mapping[str, LimitRange]
    profiles: Mapping[str, Policy]
    ttl_ceiling_seconds: float
    journal: Journal
    metrics: Callable[[], bytes]
    streamed: Callable[[str, int], None]
    patience: Patience = field(default_factory=Patience)
    tickets: Tickets = field(default_factory=Tickets)
    transfers: TransferBounds = field(default_factory=TransferBounds)
    bodies: Pool = field(default_factory=lambda: Pool(BODIES))


def edge_of(connection: HTTPConnection) -> Edge:
    edge: Edge = connection.scope["app"].state.edge
    return edge


def request_id_of(connection: HTTPConnection) -> str:
    request_id: str = connection.scope["state"]["request_id"]
    return request_id
