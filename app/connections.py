"""Who has the connections of the service: each client its share, and newcomers, who have not said yet who they are."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from app.core.budget import Budget

NEWCOMERS = 512


class Closable(Protocol):
    @property
    def idle(self) -> bool:
        """Nothing is being worked out for it."""

    def give_up(self) -> None: ...


class Connections:
    """A connection is a newcomer until its first request was looked at. When there are too many newcomers the first of
    them is closed. When a client has no room for one more, its own connection that has been idle for the longest is."""

    def __init__(self, newcomers: int = NEWCOMERS) -> None:
        self._size = newcomers
        self._newcomers: dict[Place, None] = {}  # in the order of their coming
        self._places: dict[tuple[Budget, Hashable], dict[Place, None]] = {}  # in the order of their last request

    def enter(self, connection: Closable) -> Place:
        place = Place(self, connection)
        self._newcomers[place] = None
        if len(self._newcomers) > self._size:
            next((p for p in self._newcomers if p.connection.idle), place).close()
        return place

    def move(self, place: Place, budget: Budget, holder: Hashable) -> None:
        """Raises CapacityExceeded."""
        if place.held != (budget, holder):
            if not budget.fits(holder):
                self._close_idle(budget, holder)
            budget.take(holder)
            self.remove(place)
            place.held = budget, holder
        places = self._places.setdefault((budget, holder), {})
        places.pop(place, None)
        places[place] = None

    def _close_idle(self, budget: Budget, holder: Hashable) -> None:
        for place in self._places.get((budget, holder), ()):
            if place.connection.idle:
                place.close()
                return

    def remove(self, place: Place) -> None:
        self._newcomers.pop(place, None)
        if place.held is not None:
            budget, holder = place.held
            budget.give_back(holder)
            places = self._places[place.held]
            del places[place]
            if not places:
                del self._places[place.held]
            place.held = None


class Place:
    """One connection among all."""

    def __init__(self, connections: Connections, connection: Closable) -> None:
        self.connection = connection
        self.held: tuple[Budget, Hashable] | None = None
        self._connections = connections

    def belongs_to(self, budget: Budget, holder: Hashable) -> None:
        """Told with each request. Raises CapacityExceeded: the connection is to be closed after the answer."""
        self._connections.move(self, budget, holder)

    def leave(self) -> None:
        """The connection is gone. Repeatable."""
        self._connections.remove(self)

    def close(self) -> None:
        self.leave()
        self.connection.give_up()
