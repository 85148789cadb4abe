"""One client, its box or its image, against everybody else who uses the same service and the same server."""

from __future__ import annotations

import asyncio

import pytest

from app.backends.boxlite.backend import REMOVALS
from app.backends.boxlite.client import LIST
from app.backends.boxlite.execution import BoxliteExecution
from app.backends.boxlite.inside import MARK, MOST_LINKS, facts_of
from app.backends.boxlite.turns import ASKS, TooManyPending
from app.core.errors import BackendUnavailable, LaunchFailed
from tests.boxlite.double import Answer, Attach, Route, Stall
from tests.boxlite.rig import INSTANCE, PLAIN, descriptors, quick, rig, start, until


async def test_a_box_that_answers_nothing_makes_the_server_seem_gone_for_nobody() -> None:
    """It was: 600 signals took all connections, the pulse got none, and after the grace every sandbox was lost."""
    async with rig(timeouts=quick(control=10, health_answer=3), grace_seconds=3) as r:
        neighbour, hung = await r.sandbox("neighbour"), await r.sandbox("hung")
        run, other = await start(hung, "sleep", "1000"), await start(neighbour, "sleep", "1000")
        before = len(r.double.sent(Route.EXEC)) + len(r.double.sent(Route.SIGNAL))
        r.double.faults.on(Route.EXEC, Stall())
        r.double.faults.on(Route.SIGNAL, Stall())
        signals = [asyncio.create_task(run.handle.signal(15)) for _ in range(600)]
        fds = descriptors()
        await r.beats(8)
        await r.backend.ready()
        assert descriptors() - fds < 40  # ours and the double's are the same process
        assert len(r.double.sent(Route.EXEC)) + len(r.double.sent(Route.SIGNAL)) - before < 100
        r.double.faults.clear()
        await other.handle.signal(9)
        assert (await other.end()).signal == "SIGKILL"
        refused = [signal for signal in signals if signal.done() and isinstance(signal.exception(), TooManyPending)]
        assert len(refused) == 600 - ASKS
        for signal in signals:
            signal.cancel()
        await asyncio.wait(signals)


async def test_who_waits_too_long_for_the_turn_of_a_box_is_told_so_and_asks_nothing() -> None:
    async with rig(timeouts=quick(control=2)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.EXEC, Stall())
        r.double.requests.clear()
        starts = [asyncio.create_task(start(sandbox, "true", execution_id=f"exe_{n}")) for n in range(40)]
        await asyncio.wait(starts)
        errors = [start.exception() for start in starts]
        assert any(isinstance(error, TooManyPending) for error in errors), errors
        assert len(r.double.sent(Route.EXEC)) < 40
        assert not r.double.sent(Route.GET), "that it was not its turn says nothing about the box"
        await r.backend.ready()
        r.double.faults.clear()


async def test_a_create_that_is_given_up_while_it_waits_for_its_turn_boots_nothing() -> None:
    async with rig(boots=1) as r:
        stall = Stall(until=asyncio.Event())
        r.double.faults.on(Route.START, stall, times=1)
        first = asyncio.create_task(r.sandbox("first"))
        await stall.reached.wait()
        given_up = [asyncio.create_task(r.sandbox(f"given-up-{n}")) for n in range(20)]
        last = asyncio.create_task(r.sandbox("last"))
        await r.beats(1)
        for create in given_up:
            create.cancel()
        async with asyncio.timeout(60):
            await asyncio.wait(given_up)
        assert stall.until is not None
        stall.until.set()
        await asyncio.gather(first, last)
        assert len(r.double.sent(Route.CREATE)) == 2


async def test_an_image_that_says_nothing_when_it_is_measured_keeps_no_turn() -> None:
    async with rig(boots=1, timeouts=quick(shell=5)) as r:
        r.double.faults.on(Route.ATTACH, Attach(output=False, exit=False, close=False), times=1)
        silent = asyncio.create_task(r.sandbox("silent"))
        await until(lambda: r.double.sent(Route.ATTACH))
        await r.sandbox("other")
        asked = r.routes()
        assert asked.count(Route.START) == 2 and Route.STOP not in asked, "the first one is given up later"
        silent.cancel()
        await asyncio.wait([silent])


async def test_of_an_execution_that_has_ended_what_it_said_last_is_not_kept_twice() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "sh", "-c", "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2", **PLAIN)
        await run.end()
        assert run.logs.stdout.total > 200_000
        assert isinstance(run.handle, BoxliteExecution)
        assert [len(lane._tail) for lane in run.handle._streams._intake._lanes.values()] == [0, 0]  # type: ignore[attr-defined]


def test_what_an_image_says_of_itself_is_bounded_and_nothing_that_a_terminal_obeys() -> None:
    links = "".join(f"link=e{n} 1\n" for n in range(9000))
    facts = facts_of(f"kernel=6.1\x1b]0;x\x07\x9b31m\ncpus=1\nother={'x' * 1000}\n{links}link=\x1b[2J 1\nroutes=0\n")
    assert facts.kernel.isprintable() and facts.kernel.startswith("6.1")
    assert len(facts.links) == MOST_LINKS and (facts.cpus, facts.routes) == (1, 0)


async def test_what_an_image_says_when_it_refuses_the_workspace_is_one_plain_line() -> None:
    frames = (b"\x02mkdir: \x1b[31mno\x1b[0m\r\nbulkhead: a line of its own\x9b", '{"type":"exit","exit_code":4}')
    async with rig() as r:
        r.double.faults.on(Route.ATTACH, Attach(first=frames), times=1)
        with pytest.raises(LaunchFailed) as caught:
            await r.sandbox()
        assert str(caught.value).isprintable() and "a line of its own" in str(caught.value)


@pytest.mark.parametrize("pid", ["0", "1"])
async def test_a_forged_name_in_an_environment_turns_no_kill_against_the_whole_box(pid: str) -> None:
    """To kill(1), 0 is the group of our own script, and minus 1 everybody."""
    async with rig() as r:
        sandbox = await r.sandbox()
        other = await start(sandbox, "sleep", "1000", execution_id="exe_2")
        forged = f"\n==> /proc/{pid}/environ <==\n{MARK}=exe_1\n"
        run = await start(sandbox, "sleep", "1000", env={"A": forged, "ZZ": forged})
        async with asyncio.timeout(60):
            await run.handle.kill()
        assert (await run.end()).signal == "SIGKILL"
        await other.handle.signal(15)
        assert (await other.end()).signal == "SIGTERM"


async def test_a_server_that_lists_thousands_of_boxes_as_ours_costs_a_few_requests_at_a_time() -> None:
    """20,000 at once stopped the whole gateway for minutes."""
    listed = {"boxes": [{"box_id": f"b{n}", "name": f"bh-{INSTANCE}-{n}", "status": "running"} for n in range(6000)]}
    async with rig(timeouts=quick(stop=1), opened=False) as r:
        r.double.faults.on(Route.STOP, Stall())
        r.double.faults.on(Route.LIST, Answer.json(listed))
        r.backend.open()
        await until(lambda: len(r.double.sent(Route.STOP)) == REMOVALS)
        await r.beats(1)
        assert len(r.double.sent(Route.STOP)) == REMOVALS
        r.double.faults.clear()
        await r.beats(2)


@pytest.mark.parametrize("part", [b"[]", b"{}"])
async def test_an_answer_of_a_million_parts_is_not_read(part: bytes) -> None:
    body = b'{"boxes":[' + b",".join([part] * (LIST.bytes // 3 - 10)) + b"]}"
    async with rig(opened=False) as r:
        r.double.faults.on(Route.LIST, Answer.text(body, content_type="application/json"))
        r.backend.open()
        with pytest.raises(BackendUnavailable, match="is not JSON"):
            await r.backend.ready()
        r.double.faults.clear()
