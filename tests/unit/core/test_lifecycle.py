"""The states of a sandbox: every event in every state, and that nobody else changes what a record holds."""

from __future__ import annotations

import itertools

import pytest

from app.core.lifecycle import TRANSITIONS, Event, IllegalTransition, Lifecycle
from app.core.models import SandboxState

# One row for each state, one column for each event: what follows. `-`: the event cannot come there. A star: the end of
# the sandbox has begun.
HEADER = "started create_failed lost paused resumed end_begun end_failed destroyed"
TABLE = """
creating    running  failed  -       -       -        creating*   -         -
running     -        -       failed  paused  running  running*    -         -
paused      -        -       failed  paused  running  paused*     -         -
failed      -        -       -       -       -        failed*     -         -
destroyed   -        -       -       -       -        -           -         -
creating*   running* failed* -       -       -        -           creating  destroyed
running*    -        -       failed* -       -        -           running   destroyed
paused*     -        -       failed* -       -        -           paused    destroyed
failed*     -        -       -       -       -        -           failed    destroyed
"""
EVENTS = [Event(name) for name in HEADER.split()]
ROWS = {row.split()[0]: row.split()[1:] for row in TABLE.strip().splitlines()}
PATHS = {
    "creating": "",
    "running": "started",
    "paused": "started paused",
    "failed": "started lost",
    "destroyed": "started end_begun destroyed",
}


def lifecycle(place: str) -> Lifecycle:
    life = Lifecycle()
    for event in f"{PATHS[place.rstrip('*')]} {'end_begun' if place.endswith('*') else ''}".split():
        life.apply(Event(event))
    return life


def place_of(life: Lifecycle) -> str:
    return f"{life.state}{'*' if life.is_ending else ''}"


def test_the_table_has_every_state_and_every_event() -> None:
    assert set(EVENTS) == set(Event) == set(TRANSITIONS)
    assert {place.rstrip("*") for place in ROWS} == {str(state) for state in SandboxState}
    assert all(len(row) == len(EVENTS) for row in ROWS.values())
    assert len(ROWS) == 2 * len(SandboxState) - 1, "what is destroyed cannot be on its way to that"


@pytest.mark.parametrize(("place", "event"), list(itertools.product(ROWS, EVENTS)), ids=str)
def test_every_event_in_every_state(place: str, event: Event) -> None:
    life = lifecycle(place)
    assert place_of(life) == place
    expected = ROWS[place][EVENTS.index(event)]
    if expected == "-":
        with pytest.raises(IllegalTransition, match=f"^{event} does not follow on a sandbox that is "):
            life.apply(event, "why")
        assert (place_of(life), life.reason) == (place, None)
    else:
        life.apply(event, "why")
        assert (place_of(life), life.reason) == (expected, "why")


def test_a_reason_stays_until_there_is_another() -> None:
    life = Lifecycle()
    for event, reason, told in [
        (Event.STARTED, None, "running"),
        (Event.LOST, "the launcher ended", "failed: the launcher ended"),
        (Event.END_BEGUN, None, "being destroyed"),
        (Event.END_FAILED, None, "failed: the launcher ended"),
        (Event.END_BEGUN, None, "being destroyed"),
        (Event.DESTROYED, "its ttl passed", "destroyed: its ttl passed"),
    ]:
        life.apply(event, reason)
        assert life.describe() == told
