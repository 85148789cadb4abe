"""Stream tickets: a right to open one stream once, for clients that cannot send headers, as pages in a browser."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.types import Scope

from app.core.errors import CapacityExceeded

LIFE_SECONDS = 30
OUTSTANDING = 4096


@dataclass(frozen=True, slots=True)
class _Ticket:
    path: str
    stdin: bool
    expires: float

    def opens(self, path: str, stdin: bool, now: float) -> bool:
        return now < self.expires and path == self.path and (self.stdin or not stdin)


class Tickets:
    """Those that were given out and not used yet, oldest first."""

    def __init__(self, limit: int = OUTSTANDING, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._tickets: dict[str, _Ticket] = {}

    def __len__(self) -> int:
        self._forget_expired()
        return len(self._tickets)

    def issue(self, path: str, stdin: bool) -> str:
        """Good for LIFE_SECONDS. Raises CapacityExceeded."""
        if len(self) >= self._limit:
            raise CapacityExceeded("stream tickets that wait to be used", self._limit)
        text = secrets.token_urlsafe(24)
        self._tickets[text] = _Ticket(path, stdin, self._clock() + LIFE_SECONDS)
        return text

    def spend(self, scope: Scope) -> bool | None:
        """Whether the request's ticket opens what the request asks for; None when it has none. Whatever ticket it
        names is gone then. A request with two has a bad one."""
        if not scope.get("query_string"):
            return None
        query = QueryParams(scope["query_string"])
        if "ticket" not in query:
            return None
        spent = [self._tickets.pop(text, None) for text in query.getlist("ticket")]
        stdin = query.get("stdin", "false") != "false"
        return len(spent) == 1 and spent[0] is not None and spent[0].opens(scope["path"], stdin, self._clock())

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._tickets and (oldest := next(iter(self._tickets.items())))[1].expires <= now:
            del self._tickets[oldest[0]]
