"""The states of a sandbox and every change from one state to another: one table, and the object that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.core.models import SandboxState

CREATING, RUNNING, PAUSED = SandboxState.CREATING, SandboxState.RUNNING, SandboxState.PAUSED
FAILED, DESTROYED = SandboxState.FAILED, SandboxState.DESTROYED

ALIVE = (RUNNING, PAUSED)


class Event(StrEnum):
    """What can happen to a sandbox. A runtime and its clients can cause these events in any order."""

    STARTED = "started"
    CREATE_FAILED = "create_failed"
    LOST = "lost"
    PAUSED = "paused"
    RESUMED = "resumed"
    END_BEGUN = "end_begun"
    END_FAILED = "end_failed"
    DESTROYED = "destroyed"


@dataclass(frozen=True, slots=True)
class Transition:
    """With `target` None the state stays. `while_ending` says whether the end must have begun (True), must not have
    begun (False), or does not matter (None)."""

    sources: tuple[SandboxState, ...]  # short tuples: hashing a member of an enum costs more than comparing it twice
    target: SandboxState | None
    while_ending: bool | None


_NOT_DESTROYED = (RUNNING, CREATING, PAUSED, FAILED)

# A boot, and the loss of a sandbox, may still finish in the moment after its end has begun.
TRANSITIONS: Mapping[Event, Transition] = {
    Event.STARTED: Transition((CREATING,), RUNNING, None),
    Event.CREATE_FAILED: Transition((CREATING,), FAILED, None),
    Event.LOST: Transition(ALIVE, FAILED, None),
    Event.PAUSED: Transition(ALIVE, PAUSED, False),
    Event.RESUMED: Transition(ALIVE, RUNNING, False),
    Event.END_BEGUN: Transition(_NOT_DESTROYED, None, False),
    Event.END_FAILED: Transition(_NOT_DESTROYED, None, True),
    Event.DESTROYED: Transition(_NOT_DESTROYED, DESTROYED, True),
}


class IllegalTransition(RuntimeError):
    """An event came in a state in which it cannot come. This is a fault of the service and never of a client."""


class Lifecycle:
    """It has `state`, `reason` (a sentence that says why), and `is_ending`: the end has begun and is not over. Only
    `apply` changes them.

    >>> life = Lifecycle()
    >>> life.apply(Event.STARTED), str(life.state)
    (None, 'running')
    """

    def __init__(self) -> None:
        self.state = CREATING
        self.reason: str | None = None
        self.is_ending = False

    def apply(self, event: Event, reason: str | None = None) -> None:
        """`reason` is kept until the next event that has one. Raises IllegalTransition, and then changes nothing."""
        transition = TRANSITIONS[event]
        wrong_time = transition.while_ending is not None and transition.while_ending is not self.is_ending
        if wrong_time or self.state not in transition.sources:
            raise IllegalTransition(f"{event} does not follow on a sandbox that is {self.describe()}")
        self.state = transition.target or self.state
        self.reason = self.reason if reason is None else reason
        if event is Event.END_BEGUN:
            self.is_ending = True
        elif event is Event.END_FAILED or event is Event.DESTROYED:
            self.is_ending = False

    def describe(self) -> str:
        """Describes the state, for a sentence that begins with "the sandbox is"."""
        if self.is_ending:
            return "being destroyed"
        return f"{self.state}: {self.reason}" if self.reason else str(self.state)
