"""Stream tickets: a right to open one stream once, for clients that cannot send headers, such as pages in a browser."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import QueryParams
from starlette.types import Scope

from app.core.budget import Budget
from app.core.errors import Unauthenticated

LIFE_SECONDS = 30
FIELDS = 64  # of a query, in which a ticket is looked for: it is read before a key is, so it must not cost much


@dataclass(frozen=True, slots=True)
class Ticket:
    """`client` asked for the ticket with its key. A stream that is opened with it counts for that client."""

    path: str
    stdin: bool
    client: str
    expires: float

    def opens(self, path: str, stdin: bool, now: float) -> bool:
        return now < self.expires and path == self.path and (self.stdin or not stdin)


class Tickets:
    """The tickets that were given out and not used yet, oldest first."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._tickets: dict[str, Ticket] = {}

    def __len__(self) -> int:
        self._forget_expired()
        return len(self._tickets)

    def issue(self, path: str, stdin: bool, client: str) -> str:
        """Makes a ticket that is valid for LIFE_SECONDS. Raises CapacityExceeded."""
        self._forget_expired()
        self._budget.take(client)
        text = secrets.token_urlsafe(24)
        self._tickets[text] = Ticket(path, stdin, client, self._clock() + LIFE_SECONDS)
        return text

    def spend(self, scope: Scope) -> tuple[Ticket | None, ...]:
        """Takes the tickets of the request out and returns them: None for one that does not exist or is spent, nothing
        when the request has none. They are spent even if the request fails."""
        if not scope.get("query_string"):
            return ()
        return tuple(self._remove(text) for text in _first_fields(scope).getlist("ticket"))

    def check(self, spent: tuple[Ticket | None, ...], scope: Scope) -> Ticket:
        """Returns the one ticket that allows what the request asks for. Raises Unauthenticated."""
        stdin = _first_fields(scope).get("stdin", "false") != "false"
        if len(spent) != 1 or spent[0] is None or not spent[0].opens(scope["path"], stdin, self._clock()):
            raise Unauthenticated(
                "the stream ticket was used, has expired, is for another path, or does not allow stdin"
            )
        return spent[0]

    def _remove(self, text: str) -> Ticket | None:
        ticket = self._tickets.pop(text, None)
        if ticket is not None:
            self._budget.give_back(ticket.client)
        return ticket

    def _forget_expired(self) -> None:
        now = self._clock()
        while self._tickets and (oldest := next(iter(self._tickets.items())))[1].expires <= now:
            self._remove(oldest[0])


def _first_fields(scope: Scope) -> QueryParams:
    """The first fields of a query. A route that takes a ticket has no more fields than these, so it refuses the
    rest."""
    return QueryParams(b"&".join(scope["query_string"].split(b"&", FIELDS)[:FIELDS]))
