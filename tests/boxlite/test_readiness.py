"""What `ready` says of a server, how soon, and what it costs the server and others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.api.http.readiness import FRESH_SECONDS
from app.backends.boxlite.timeouts import ServerTimeouts
from app.core.errors import BackendFailure, BackendUnavailable
from tests.boxlite.double import Answer, Route, Stall
from tests.boxlite.rig import INSTANCE, quick, rig, start, until


@asynccontextmanager
async def refusing(port: int) -> AsyncIterator[list[None]]:
    """In the place of a server that is gone: one item for each connection, which ends at once."""
    calls: list[None] = []

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(None)
        writer.transport.abort()

    async with await asyncio.start_server(refuse, "127.0.0.1", port):
        yield calls


def test_a_change_is_known_within_five_seconds() -> None:
    """A server that stalls just after a beat, and the edge, which has asked just before that is noticed."""
    timeouts = ServerTimeouts()
    assert timeouts.health_interval + timeouts.health_answer + FRESH_SECONDS < 5


async def test_a_dead_server_costs_every_create_nothing_and_no_request() -> None:
    async with rig() as r:
        await r.backend.ready()
        await r.double.crash()
        await until(lambda: r.backend._health_check._failure is not None)
        async with refusing(r.double.port) as calls:
            began = time.monotonic()
            for n in range(200):
                with pytest.raises(BackendUnavailable, match="cannot be reached"):
                    await r.sandbox(f"sbx_{n}")
                with pytest.raises(BackendUnavailable):
                    await r.backend.ready()
            assert len(calls) <= (time.monotonic() - began) / (0.2 / 4) + 2, "the pulse alone asks"
        await r.double.restart()
        await until(lambda: r.backend._health_check._failure is None)
        await r.backend.ready()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer.failure("engine_unavailable"), 503),
        (Answer.failure("internal"), 500),
        (Answer.failure("unauthenticated"), 401),
        (Answer.text("<html>", 404), 404),
        (Answer.json({}), 200),
    ],
)
async def test_a_server_that_answers_wrongly_is_asked_once_per_beat_however_many_want_it(
    answer: Answer, status: int
) -> None:
    """And however it does not work, it is unavailable."""
    async with rig(timeouts=quick(health_interval=0.1)) as r:
        await r.backend.ready()
        r.double.faults.on(Route.LIST, answer)
        await until(lambda: r.backend._health_check._failure is not None)
        asked, began = len(r.double.requests), time.monotonic()
        while time.monotonic() - began < 0.5:
            with pytest.raises(BackendUnavailable) as caught:
                await r.sandbox()
            with pytest.raises(BackendUnavailable):
                await r.backend.ready()
            assert caught.value.upstream.status == status
        assert len(r.double.requests) - asked <= (time.monotonic() - began) / 0.1 + 1
        assert not r.double.sent(Route.CREATE)
        r.double.faults.clear()
        await until(lambda: r.backend._health_check._failure is None)


async def test_a_server_that_stalls_is_known_after_the_time_of_an_answer() -> None:
    async with rig(timeouts=quick(health_answer=1)) as r:
        await r.backend.ready()
        r.double.faults.on(Route.LIST, Stall(), times=2)
        await until(lambda: r.backend._health_check._failure is not None)
        with pytest.raises(BackendUnavailable, match=r"within 1 seconds"):
            await r.backend.ready()
        await until(lambda: r.backend._health_check._failure is None)


async def test_a_server_that_stalls_from_the_start_says_so_and_does_not_hold_anybody() -> None:
    """The prefix is asked for first."""
    async with rig(timeouts=quick(health_answer=0.3), opened=False) as r:
        r.double.faults.on(Route.ME, Stall())
        r.backend.open()
        with pytest.raises(BackendUnavailable, match=r"within 0\.3 seconds"):
            await r.backend.ready()


async def test_many_who_meet_a_dead_server_do_not_make_it_asked_more_often() -> None:
    async with rig(timeouts=quick(health_interval=0.4)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Answer.verbatim(b""))
        before, began = len(r.double.sent(Route.LIST)), time.monotonic()
        while time.monotonic() - began < 1:
            with pytest.raises(BackendFailure):
                await start(sandbox, "true")
        assert len(r.double.sent(Route.LIST)) - before <= (time.monotonic() - began) / (0.4 / 4) + 2
        r.double.faults.clear()


async def test_the_readers_of_output_leave_a_dead_server_alone() -> None:
    """Ten executions whose sockets broke: a few attempts each, and then the pulse alone asks."""
    async with rig(timeouts=quick(backoff=(0.01,), health_interval=0.4)) as r:
        sandbox = await r.sandbox()
        runs = [await start(sandbox, "sh", "-c", "echo up; sleep 1000", execution_id=f"exe_{n}") for n in range(10)]
        for run in runs:
            await run.saw(b"up")
        await r.double.crash()
        async with refusing(r.double.port) as calls:
            await until(lambda: r.backend._health_check._failure is not None)
            calls.clear()
            began = time.monotonic()
            await asyncio.sleep(1)  # the time in which connections are counted
            assert len(calls) <= (time.monotonic() - began) / 0.4 + 3.5, "a beat is 0.4 s"
        await r.double.restart()
        for run in runs:
            assert (await run.end()).detail


async def test_open_costs_nothing_and_close_ends_everything() -> None:
    async with rig(opened=False) as r:
        assert not r.double.requests
        r.backend.open()
        await r.backend.ready()
        await r.backend.aclose()
        await r.backend.aclose()
        with pytest.raises(BackendFailure):
            await r.sandbox()
        assert r.backend._prefix == f"bh-{INSTANCE}-"


async def test_a_close_ends_all_sandboxes_at_the_same_time() -> None:
    async with rig() as r:
        for n in range(3):
            await start(await r.sandbox(f"sbx_{n}"), "sleep", "1000")
        stop = Stall(until=asyncio.Event())
        r.double.faults.on(Route.STOP, stop)
        closing = asyncio.get_running_loop().create_task(r.backend.aclose())
        await until(lambda: len(r.double.sent(Route.STOP)) == 3)
        assert stop.until is not None
        stop.until.set()
        await closing
        assert not r.double.boxes
