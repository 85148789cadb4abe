"""Network events of one sandbox: bounded, in order, and a gap where some are missing."""

from __future__ import annotations

import asyncio
from typing import Any

from app.core.budget import Account, Budget
from app.core.network_log import EVENT_BYTES, EVENTS, REFUSED, NetworkEvent, NetworkLog, RefusedHost
from tests.unit.core.support import steps


def event(name: str | None = "a.test", **changes: Any) -> NetworkEvent:
    fields: dict[str, Any] = {
        "at": 1.0,
        "kind": "connection",
        "name": name,
        "address": "203.0.113.1",
        "port": 443,
        "verdict": "allowed",
        "rule": None,
        "reason": None,
    }
    return NetworkEvent(**fields | changes)


def names(log: NetworkLog, begin: int = 0) -> list[str | None]:
    return [logged.event.name for logged in log.read(begin)]


def test_the_oldest_events_go_and_are_still_counted() -> None:
    log = NetworkLog()
    for number in range(EVENTS + 3):
        log.add(event(f"n{number}.test"))
    assert (log.start, log.total, len(log.read(0))) == (3, EVENTS + 3, EVENTS)
    assert names(log, EVENTS + 1) == [f"n{EVENTS + 1}.test", f"n{EVENTS + 2}.test"]
    assert [logged.sequence for logged in log] == list(range(3, EVENTS + 3))


def test_events_that_were_dropped_leave_a_gap() -> None:
    log = NetworkLog()
    log.add(event("a.test"))
    log.drop(5)
    log.add(event("b.test"))
    assert [(logged.sequence, logged.event.name) for logged in log] == [(0, "a.test"), (6, "b.test")]
    assert log.read(7) == []


def test_the_account_bounds_what_is_kept_and_gets_it_back() -> None:
    budget = Budget("bytes", 8 * EVENT_BYTES, "sandbox")
    account, log = Account(budget, "a"), NetworkLog()
    log.charge(account)
    for number in range(10):
        log.add(event(f"n{number}.test"))
    assert (budget.used, names(log)) == (4 * EVENT_BYTES, [f"n{n}.test" for n in range(6, 10)])
    account.close()
    assert budget.used == 0


def test_an_event_without_any_room_is_counted_only() -> None:
    budget = Budget("bytes", 1, "sandbox")
    log = NetworkLog()
    log.charge(Account(budget, "a"))
    log.add(event())
    assert (log.total, log.read(0), budget.used) == (1, [], 0)


def test_a_closed_log_takes_no_more() -> None:
    log = NetworkLog()
    log.close()
    log.add(event())
    log.drop(1)
    assert (log.total, log.closed) == (0, True)


async def test_who_follows_gets_what_is_kept_then_what_comes_then_the_end() -> None:
    log = NetworkLog()
    log.add(event("a.test"))
    log.add(event("b.test"))
    seen: list[str | None] = []

    async def follow() -> None:
        async for found in log.follow(1):
            seen.extend(logged.event.name for logged in found)

    task = asyncio.create_task(follow())
    await steps(3)
    assert seen == ["b.test"]
    log.add(event("c.test"))
    await steps(3)
    assert seen == ["b.test", "c.test"]
    log.close()
    await task


def test_refusals_are_told_once_each_with_their_number() -> None:
    log = NetworkLog()
    log.add(event("a.test", verdict="refused", reason="name", port=None, kind="name", address=None))
    log.add(event("ok.test"))
    for address in ("10.0.0.1", "10.0.0.2"):
        log.add(event("b.test", verdict="refused", reason="private", address=address))
    log.add(event(None, verdict="refused", reason="name"))
    assert log.refused() == (
        RefusedHost("a.test", None, None, "name", 1),
        RefusedHost("b.test", None, 443, "private", 2),
        RefusedHost(None, "203.0.113.1", 443, "name", 1),
    )
    assert log.refused(4) == (RefusedHost(None, "203.0.113.1", 443, "name", 1),)


def test_a_summary_of_refusals_is_bounded() -> None:
    log = NetworkLog()
    for number in range(REFUSED + 1):
        log.add(event(f"n{number}.test", verdict="refused"))
    log.add(event("n0.test", verdict="refused"))
    found = log.refused()
    assert (len(found), found[0].count) == (REFUSED, 2)


def test_execution_is_told_while_it_is_the_only_one() -> None:
    log = NetworkLog()
    log.add(event())
    log.began("exe_1")
    log.add(event())
    log.began("exe_2")
    log.add(event())
    assert [logged.event.execution_id for logged in log] == [None, "exe_1", None]
