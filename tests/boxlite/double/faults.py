"""What goes wrong, when a test says so: by route, and as often as it says. `double.faults.on(Route.EXEC, ...)`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.boxlite.double.boot import NOT_READY
from tests.boxlite.double.http import Failure, Response, answer


class Route(StrEnum):
    """The names of the server's routes; also what `Recorded.route` says."""

    CONFIG = "config"
    ME = "me"
    CREATE = "create"
    LIST = "list"
    GET = "get"
    HEAD = "head"
    DELETE = "delete"
    START = "start"
    STOP = "stop"
    EXEC = "exec"
    EXECUTION = "execution"
    KILL = "kill"
    SIGNAL = "signal"
    RESIZE = "resize"
    ATTACH = "attach"
    ATTACH_MAIN = "attach_main"
    UPLOAD = "upload"
    DOWNLOAD = "download"
    SNAPSHOTS = "snapshots"
    METRICS = "metrics"
    BOX_METRICS = "box_metrics"
    OUTBOUND = "outbound"
    INBOUND = "inbound"
    SSH = "ssh"
    IMAGES = "images"
    IMAGE = "image"
    IMAGE_USAGE = "image_usage"
    VOLUMES = "volumes"


@dataclass(frozen=True)
class Answer:
    """This answer instead of the server's own, and nothing is done."""

    response: Response

    @classmethod
    def failure(cls, code: str, message: str = "made up by a test") -> Answer:
        """The server's envelope with one of its codes."""
        return cls(Failure(code, message).response)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        return cls(answer(value, status))

    @classmethod
    def text(cls, body: str | bytes, status: int = 200, content_type: str = "text/html") -> Answer:
        """A body that is not what it should be, or says that it is something else."""
        return cls(Response(status, body.encode() if isinstance(body, str) else body, content_type))

    @classmethod
    def body(cls, make: Callable[[], AsyncIterator[bytes]], content_type: str = "application/json") -> Answer:
        """A body without a length, sent piece by piece: `drip` and `endless` below."""
        return cls(Response(200, make(), content_type))

    @classmethod
    def verbatim(cls, *pieces: bytes) -> Answer:
        """These bytes, head included, and then the end of the connection: for heads and lengths that lie."""

        async def write() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return cls(Response(verbatim=write()))


@dataclass(frozen=True)
class Stall:
    """No answer until `until` is set, or ever. `done`: the work is done, and only its answer is held back."""

    until: asyncio.Event | None = None
    done: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Drop:
    """The connection ends without an answer. `done`: after the work was done."""

    done: bool = False


@dataclass(frozen=True)
class Attach:
    """A WebSocket that misbehaves. Everything that is not named goes on as usual."""

    first: tuple[str | bytes, ...] = ()  # frames before all others: junk, other channels, too much at once
    cut_after: int | None = None  # so many output frames, then the connection is cut, without Close
    output: bool = True
    exit: bool = True
    close: bool = True  # the Close after exit; without it the socket stays open
    pings: bool = True


Fault = Answer | Stall | Drop | Attach


async def drip(body: bytes, seconds: float) -> AsyncIterator[bytes]:
    """Byte by byte."""
    for byte in body:
        yield bytes([byte])
        await asyncio.sleep(seconds)


async def endless(piece: bytes, first: bytes = b"") -> AsyncIterator[bytes]:
    yield first
    while True:
        yield piece
        await asyncio.sleep(0)


@dataclass
class Faults:
    _rules: list[tuple[Route, Fault, list[int | None]]] = field(default_factory=list)
    _boots: list[Failure] = field(default_factory=list)

    def on(self, route: Route, fault: Fault, times: int | None = None) -> None:
        """From now on, or so many times. Rules of one route apply in the order in which they were made."""
        self._rules.append((route, fault, [times]))

    def clear(self) -> None:
        self._rules.clear()
        self._boots.clear()

    def fail_boot(self, times: int = 1, failure: Failure | None = None) -> None:
        """The next boots fail, by not becoming ready in time or with a failure like those of an image:
        `Failure("storage_error", ...)`, `Failure("image_pull_failed", ...)`.
        """
        self._boots += [failure or Failure("engine_unavailable", NOT_READY)] * times

    def take(self, route: Route) -> Fault | None:
        for rule in self._rules:
            if rule[0] is route:
                left = rule[2]
                if left[0] is not None:
                    left[0] -= 1
                    if left[0] <= 0:
                        self._rules.remove(rule)
                return rule[1]
        return None

    def boot_failure(self) -> Failure | None:
        return self._boots.pop(0) if self._boots else None
