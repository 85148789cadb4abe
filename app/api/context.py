"""What the routes need, in one container that `main.py` fills: the core, the operator's limits, and the connections to
the outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import HTTPConnection

from app.api.http.readiness import Readiness
from app.api.http.tickets import Tickets
from app.core.budget import Budget
from app.core.fair_queue import FairQueue
from app.core.limits import MIB, LimitRange
from app.core.models import Storage
from app.core.operator_secrets import OperatorSecrets
from app.core.policy import EgressPolicy, Policy
from app.core.registry import Registry
from app.core.reservations import BudgetQueue
from app.core.sandboxes import Capacity, Sandboxes

BODY_LIMIT = 4 * 1024 * 1024
# A run brings files along. A text of 8 MiB takes up to 20 ms to parse, in one piece; more goes by PUT.
RUN_BODY_LIMIT = 8 * 1024 * 1024

# Go out in one run through the event loop, to all viewers and clients together. One takes 0.1 to 0.3 ms.
PIECES_EACH_TURN = 16


class Journal(Protocol):
    """The log of the API. It never gets a query string, a header's value or a body."""

    def request(
        self, *, request_id: str, method: str, path: str, status: int, seconds: float, client: str | None, key: str
    ) -> None:
        """`client`: its address. `key`: the SHA-256 of its key, which must not be logged; empty without a key."""

    def refused(self, error: Exception) -> None:
        """Called for each error that is an answer to a request."""

    def failure(self, *, request_id: str, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class RequestTimeouts:
    """How long the API waits for a client, in seconds.

    `probe`: while a program does not read its stdin, the socket is not read either, and a client that left is only
    noticed when something is written to it. `close`: the time for the last frames of a stream that is being closed, and
    for a program to read what a client sent before it left. `silence`: between two comments of an event stream.
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


STRANGERS_ANSWERS = 16 * MIB


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who sent a request. `client`: the SHA-256 of its key in hex, empty where no key is needed. `view_only`: it came
    with a stream ticket without stdin, and can only read. `stranger`: there are keys, and none was needed here.
    `foreign`: its `Host` is not a name of the service, such as that of a web page whose name leads here."""

    client: str = ""
    view_only: bool = False
    stranger: bool = False
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Shares:
    """What clients have in use of the service. Each has a share."""

    streams: Budget
    tickets: Budget
    waits: Budget
    connections: Budget
    strangers: Budget  # connections on which no key was shown; holders are addresses
    bodies: Budget  # bytes of request bodies
    answers: Budget  # bytes
    run_answers: BudgetQueue  # for room in `answers`, as a command that has run cannot be refused any more
    strangers_answers: Budget  # bytes, of answers that needed no key; holders are addresses
    pieces: FairQueue = field(default_factory=lambda: FairQueue(PIECES_EACH_TURN))  # of output and of large answers

    @classmethod
    def of(cls, capacity: Capacity, *, shared: bool, answers_mib: int = 256, bodies_mib: int = 512) -> Shares:
        """If not `shared`, there is one client, which may have everything. The part of strangers is always shared, and
        is never taken from that of the keys."""

        def budget(what: str, size: int) -> Budget:
            return Budget(what, size, "client", shared=shared)

        def memory(what: str, size_mib: int) -> Budget:
            return Budget(f"MiB of {what} at one time", size_mib * MIB, "client", shared=shared, unit=MIB)

        answers = memory("answers", answers_mib)
        return cls(
            streams=budget("streams at one time", capacity.streams),
            tickets=budget("unused stream tickets", capacity.tickets),
            waits=budget("requests that are held at one time", capacity.waits),
            connections=budget("connections at one time", capacity.connections),
            strangers=Budget("connections without a key at one time", capacity.strangers, "client"),
            bodies=memory("request bodies", bodies_mib),
            answers=answers,
            run_answers=BudgetQueue(answers),
            strangers_answers=Budget("MiB of answers without a key at one time", STRANGERS_ANSWERS, "client", unit=MIB),
        )


@dataclass(frozen=True, slots=True)
class ApplicationContext:
    sandboxes: Sandboxes
    registry: Registry
    readiness: Readiness
    ranges: Mapping[str, LimitRange]
    storage: Storage  # of a request that does not say
    profiles: Mapping[str, Policy]
    ttl_ceiling_seconds: float
    journal: Journal
    metrics: Callable[[], bytes]
    streamed: Callable[[str, int], None]
    shares: Shares
    tickets: Tickets
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    secrets: OperatorSecrets = field(default_factory=OperatorSecrets)
    timeouts: RequestTimeouts = field(default_factory=RequestTimeouts)
    transfers: TransferBounds = field(default_factory=TransferBounds)


def context_of(connection: HTTPConnection) -> ApplicationContext:
    context: ApplicationContext = connection.scope["app"].state.context
    return context


def visitor_of(connection: HTTPConnection) -> Visitor:
    visitor: Visitor = connection.scope["state"]["visitor"]
    return visitor


def waiting_request(connection: HTTPConnection) -> AbstractContextManager[None]:
    """A block for work that may hold an answer for long. Raises CapacityExceeded."""
    return context_of(connection).shares.waits.holding(visitor_of(connection).client)


def request_id_of(connection: HTTPConnection) -> str:
    request_id: str = connection.scope["state"]["request_id"]
    return request_id
