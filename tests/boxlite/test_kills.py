"""Signals, kills, starts whose answers are lost, and races between all of them."""

from __future__ import annotations

import asyncio

import pytest

from app.backends.boxlite.execution import MAY_LIVE_ON
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, WrongState
from app.core.models import ExitReason
from tests.boxlite.double import Answer, Attach, Drop, Route, Settings, Stall
from tests.boxlite.rig import PLAIN, Rig, quick, rig, start, until

# A child that holds stdout, in a group of its own and with a clean environment: no kill finds it.
HIDDEN = "setsid env -i sh -c 'echo hidden; while :; do sleep 1000; done' & wait"


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


async def test_a_kill_by_the_mark_finds_what_left_the_group() -> None:
    async with rig(timeouts=quick(exit_after_kill=10)) as r:
        run = await start(await r.sandbox(), *script("setsid sh -c 'sleep 1000' & setsid sleep 1000 & echo up; wait"))
        await run.saw(b"up")
        await until(lambda: len(r.marked()) >= 4)
        await run.handle.kill()
        await run.handle.kill()
        end = await run.end()
        assert end.signal == "SIGKILL" and not end.unprompted and end.detail == MAY_LIVE_ON
        assert not r.marked() and not r.double.sent(Route.KILL)


async def test_a_child_that_hides_and_holds_the_pipes_does_not_hold_the_kill() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN))
        await run.saw(b"hidden")
        await run.handle.kill()
        end = await run.end()
        assert (end.reason, end.signal, end.detail) == (ExitReason.SIGNALED, "SIGKILL", MAY_LIVE_ON)


async def test_a_kill_in_a_box_without_a_shell_is_the_servers() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN))
        await run.saw(b"hidden")
        r.double.faults.on(Route.EXEC, Answer.failure("internal", "internal error: spawn_failed: no sh"), times=1)
        await run.handle.kill()
        assert len(r.double.sent(Route.KILL)) == 1
        end = await run.end()
        assert end.signal == "SIGKILL" and end.detail == MAY_LIVE_ON


async def test_a_kill_of_what_had_ended_by_itself_invents_no_end() -> None:
    """The first process is gone, its hidden child holds the pipes: nobody will ever tell how it ended."""
    async with rig() as r:
        run = await start(await r.sandbox(), *script(HIDDEN.replace("& wait", "& exit 0")), **PLAIN)
        await run.saw(b"hidden")
        await until(lambda: not r.marked())
        await run.handle.kill()
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.code is None and "may live on" in (end.detail or "")


async def test_a_kill_that_nobody_confirms_is_an_error_with_the_upstreams_words_and_can_be_repeated() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo up; sleep 1000"), **PLAIN)
        await run.saw(b"up")
        r.double.faults.on(Route.EXEC, Answer.failure("upstream_unavailable"), times=1)
        r.double.faults.on(Route.KILL, Answer.failure("engine_unavailable"), times=1)
        with pytest.raises(BackendTimeout, match="nothing confirms") as caught:
            await run.handle.kill()
        assert (caught.value.upstream.status, caught.value.upstream.code) == (503, "engine_unavailable")
        await run.handle.kill()
        assert (await run.end()).signal == "SIGKILL"


# --- answers that are lost


@pytest.mark.parametrize("fault", [Drop(done=True), Stall(done=True)], ids=["dropped", "stalled"])
async def test_a_start_whose_answer_is_lost_leaves_no_process(fault: Drop | Stall) -> None:
    async with rig(timeouts=quick(control=2)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, fault, times=1)
        with pytest.raises(BackendTimeout):
            await start(sandbox, *script("sleep 1000"))
        await until(lambda: not r.marked())
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_what_could_not_be_killed_at_once_is_killed_later() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Drop(done=True), times=1)
        r.double.faults.on(Route.EXEC, Drop(), times=2)
        with pytest.raises(BackendTimeout):
            await start(sandbox, *script("sleep 1000"), **PLAIN)
        assert r.marked()
        await until(lambda: not r.marked())


async def test_one_box_that_does_not_answer_does_not_close_the_runtime() -> None:
    async with rig(timeouts=quick(control=2, health_interval=30)) as r:  # the next beat is far away
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Stall(), times=2)
        starting = asyncio.get_running_loop().create_task(start(sandbox, "true"))
        while not starting.done():
            await r.backend.ready()
            await asyncio.sleep(0.02)
        with pytest.raises(BackendFailure):
            await starting
        await r.backend.ready()


@pytest.mark.parametrize("code", ["invalid_argument", "internal"])
async def test_a_refused_start_is_told_as_it_is(code: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Answer.failure(code), times=1)
        with pytest.raises(BackendRefused) as caught:
            await start(sandbox, "true")
        assert caught.value.upstream.code == code
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


# --- races


async def _racing(r: Rig, turns: int) -> None:
    sandbox = await r.sandbox()
    loop = asyncio.get_running_loop()
    starting = [loop.create_task(start(sandbox, *script("sleep 1000"), execution_id=f"exe_{n}")) for n in range(3)]
    for _ in range(turns):
        await asyncio.sleep(0.001)
    await asyncio.gather(sandbox.destroy(), sandbox.destroy())
    for task in starting:
        try:
            run = await task
        except (WrongState, BackendFailure):
            continue
        assert (await run.end()).signal == "SIGKILL"
    with pytest.raises(WrongState):
        await start(sandbox, "true")


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40])
async def test_starts_against_a_destroy(turns: int) -> None:
    async with rig() as r:
        await _racing(r, turns)
        assert not r.double.boxes and not r.marked()


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
async def test_a_start_that_is_cancelled_leaves_no_process(turns: int) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        starting = asyncio.get_running_loop().create_task(start(sandbox, *script("sleep 1000")))
        for _ in range(turns):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await starting.result().handle.kill()
        await until(lambda: len(r.double.sent(Route.EXEC)) >= 2 if turns else True)
        await until(lambda: not r.marked())
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0


async def test_kills_signals_and_writes_against_a_natural_end() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        for n in range(5):
            run = await start(sandbox, *script("read -r x; exit 7"), execution_id=f"exe_{n}", stdin=True)
            await run.handle.write(b"go\n")
            results = await asyncio.gather(
                run.handle.kill(), run.handle.signal(2), run.handle.write(b"x"), run.handle.close_stdin(),
                return_exceptions=True,
            )  # fmt: skip
            assert all(result in (None, True, False) or isinstance(result, WrongState) for result in results), results
            end = await run.end()
            assert (end.code, end.signal) in {(7, None), (None, "SIGKILL"), (None, "SIGINT")}


async def test_who_waits_to_write_is_let_go_at_the_end() -> None:
    async with rig(Settings(), timeouts=quick(backoff=(5.0,))) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1), times=1)
        run = await start(sandbox, *script("echo up; sleep 1000"), stdin=True, **PLAIN)
        await run.saw(b"up")
        await until(lambda: not run.handle._current._connected.is_set())  # type: ignore[attr-defined]
        writing = asyncio.get_running_loop().create_task(run.handle.write(b"x"))
        await asyncio.sleep(0)
        await sandbox.destroy()
        await writing
        assert (await run.end()).signal == "SIGKILL"
