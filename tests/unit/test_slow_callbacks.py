"""What holds the event loop is found on either loop, and work that is divided well is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import uvloop

from app.serving.slow_callbacks import SlowCallbacks

LIMIT_MS = 40
Told = tuple[float, list[str]]
LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


async def told_about(work: Callable[[], object], *, times: int = 0) -> list[Told]:
    """What is told while `work` runs as a callback: so many times, or until something is told."""
    told: list[Told] = []
    loop = asyncio.get_running_loop()
    watch = SlowCallbacks(LIMIT_MS, lambda ms, where: told.append((ms, where)))
    watch.start()
    try:
        count = 0
        while count < times or (not times and not told):
            loop.call_soon(work)
            await asyncio.sleep(0.001)
            count += 1
    finally:
        watch.stop()
    return told


def _spin(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def hold_in_python() -> None:
    _spin(0.2)


def hold_in_c() -> None:
    sorted(range(3_000_000, 0, -1), key=float)


@LOOPS
@pytest.mark.parametrize("work", [hold_in_python, hold_in_c])
def test_what_holds_the_loop_is_told_with_its_place(
    new_loop: Callable[[], asyncio.AbstractEventLoop], work: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "app.serving.slow_callbacks._Delays.since_last", lambda _: 0.0
    )  # a busy machine hides what C holds
    told: list[Told] = []
    with asyncio.Runner(loop_factory=new_loop) as runner:
        while not _names(told, work) and len(told) < 5:  # there are false alarms on a machine that is busy otherwise
            told += runner.run(told_about(work))
    assert all(milliseconds > LIMIT_MS for milliseconds, _ in told)
    assert _names(told, work), told


def _names(told: list[Told], work: Callable[[], None]) -> bool:
    return any(work.__qualname__ in place for _, where in told for place in where)


@LOOPS
def test_many_short_callbacks_are_nothing_to_tell(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """There are false alarms on a machine that is busy otherwise: not in each of five tries."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert any(not runner.run(told_about(lambda: _spin(0.001), times=300)) for _ in range(5))
