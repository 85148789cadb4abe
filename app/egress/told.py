"""What the gateway is told of one sandbox: names that were given, and events, no more of them than somebody reads."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from ipaddress import IPv4Address
from typing import Any, Protocol

from app.egress.protocol import BytesMoved, EventsDropped, NameGiven, NetworkEventTold, Report
from app.egress.rates import Rate
from app.egress.reasons import FAILURES

PER_SECOND, BURST = 50, 500  # events of one sandbox
SAME_SECONDS = 1.0  # in which one refusal is told once: a program asks for A and AAAA, and tries again
REMEMBERED = 64


class Reports(Protocol):
    @property
    def is_behind(self) -> bool: ...

    def tell(self, report: Report, told: Callable[[], None] | None = None) -> None: ...


class Told:
    """Must be closed."""

    def __init__(self, sandbox: str, reports: Reports, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds."""
        self._sandbox, self._reports, self._clock = sandbox, reports, clock
        self._rate = Rate(PER_SECOND, BURST, clock)
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refused: OrderedDict[Hashable, float] = OrderedDict()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._dropped:
            self._reports.tell(EventsDropped(self._sandbox, self._dropped))

    def name(self, name: str, address: IPv4Address, told: Callable[[], None]) -> None:
        self._reports.tell(NameGiven(self._sandbox, name, str(address)), told)

    def moved(self, count: int) -> None:
        self._reports.tell(BytesMoved(self._sandbox, count))

    def refusal(self, kind: str, reason: str, **fields: Any) -> None:
        """An event about something that was refused before it began. The same one is told once a second."""
        now = self._clock()
        same = (kind, reason, fields.get("name"), fields.get("address"), fields.get("port"))
        if now - self._refused.pop(same, -SAME_SECONDS) < SAME_SECONDS:
            self._refused[same] = now
            return
        self._refused[same] = now
        if len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)
        self.event(kind, reason=reason, **fields)

    def event(self, kind: str, *, reason: str | None = None, **fields: Any) -> None:
        """With a reason it was refused, or has failed. Fields that are not given are null or 0."""
        if self._reports.is_behind or not self._rate.take():
            self._dropped += 1
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(SAME_SECONDS, self._tell_dropped)
            return
        self._reports.tell(NetworkEventTold(self._sandbox, _event(kind, reason, fields)))

    def _tell_dropped(self) -> None:
        self._timer = None
        self._reports.tell(EventsDropped(self._sandbox, self._dropped))
        self._dropped = 0


def _event(kind: str, reason: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    address, name = fields.get("address"), fields.get("name")
    return {
        "at": time.time(),
        "kind": kind,
        "name": name[:253] if name is not None else None,
        "address": str(address) if address is not None else None,
        "port": fields.get("port"),
        "verdict": "allowed" if reason is None else "failed" if reason in FAILURES else "refused",
        "method": fields.get("method"),
        "path": fields.get("path"),
        "rule": fields.get("rule"),
        "reason": None if reason is None else str(reason),
        "bytes_sent": fields.get("bytes_sent", 0),
        "bytes_received": fields.get("bytes_received", 0),
        "duration_seconds": fields.get("duration_seconds", 0.0),
    }
