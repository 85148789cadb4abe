"""A server that crashes, stops, comes back or stays away; a box that dies; sockets that break."""

from __future__ import annotations

import asyncio
import itertools
import re
import time

import pytest

from app.core.errors import BackendFailure, BackendUnavailable, WrongState
from app.core.models import ExitReason
from tests.boxlite.double import Attach, Route, Settings, Stall
from tests.boxlite.rig import PLAIN, quick, rig, start, until

TALK = "echo up; n=0; while :; do echo $((n+=1)); sleep 0.01; done"


def script(text: str) -> tuple[str, str, str]:
    return "sh", "-c", text


# --- sockets


@pytest.mark.parametrize("cut_after", [1, 2, 17, 40])
async def test_output_over_a_cut_is_whole(cut_after: int) -> None:
    """100 KiB fit into the backlog, so nothing may be missing, and nothing be there twice."""
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=cut_after), times=3)
        text = 'i=0; while [ $i -lt 100 ]; do i=$((i+1)); printf "%01023d\\n" $i; done; echo error >&2'
        run = await start(sandbox, *script(text), **PLAIN)
        assert (await run.end()).code == 0
        assert run.out == b"".join(b"%01023d\n" % n for n in range(1, 101)) and run.err == b"error\n"
        assert not run.logs.stdout.gaps and not run.logs.stderr.gaps


async def test_a_cut_that_is_longer_than_the_backlog_leaves_a_gap_and_no_byte_twice() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=100), times=1)
        r.double.faults.on(Route.ATTACH, away := Stall(until=asyncio.Event()), times=1)
        text = 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); printf "%07d\\n" $i; done'
        run = await start(sandbox, *script(text), **PLAIN)
        await away.reached.wait()
        await until(lambda: not r.marked())
        assert away.until is not None
        away.until.set()
        assert (await run.end()).code == 0
        lines = run.out.split(b"\n")[1:-1]
        assert lines == sorted(set(lines)) and lines[-1] == b"0100000"
        assert len(lines) < 99_999 and len(run.logs.stdout.gaps) == 1


async def test_a_server_that_cuts_every_socket_is_not_hammered() -> None:
    async with rig(timeouts=quick(backoff=(0.05, 0.1, 0.5))) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(cut_after=1))
        began = time.monotonic()
        run = await start(sandbox, *script(TALK), **PLAIN)
        await run.saw(b"up")
        await until(lambda: len(r.double.sent(Route.ATTACH)) >= 5)
        assert time.monotonic() - began > 0.5, "the third attempt and each one after it wait so long"
        await sandbox.destroy()
        assert (await run.end()).signal == "SIGKILL"


async def test_who_was_behind_at_the_end_is_shown_the_rest() -> None:
    """The server drops what a reader is behind with, and says exit as if all was well."""
    async with rig() as r:
        sandbox = await r.sandbox()
        text = 'i=0; while [ $i -lt 200 ]; do i=$((i+1)); printf "%01023d\\n" $i; done'
        frames = tuple(b"\x01" + b"%01023d\n" % n for n in range(1, 101))
        lagging = Attach(first=(*frames, '{"type":"exit","exit_code":0}'))
        r.double.faults.on(Route.ATTACH, lagging, times=1)
        run = await start(sandbox, *script(text), **PLAIN)
        assert (await run.end()).code == 0
        assert run.out == b"".join(b"%01023d\n" % n for n in range(1, 201)) and not run.logs.stdout.gaps


async def test_a_quiet_end_is_not_looked_at_again() -> None:
    async with rig() as r:
        run = await start(await r.sandbox(), *script("echo x"))
        await run.end()
        assert len(r.double.sent(Route.ATTACH)) == 2


async def test_a_second_look_that_stalls_does_not_hold_the_end() -> None:
    async with rig(timeouts=quick(backlog_after_end=0.3)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(), times=1)
        r.double.faults.on(Route.ATTACH, Attach(output=False, exit=False, close=False))
        run = await start(sandbox, "head", "-c", "100000", "/dev/zero", **PLAIN)
        assert (await run.end()).code == 0 and len(run.out) == 100_000


async def test_a_large_output_is_in_order_to_its_end_whatever_is_missing() -> None:
    """Mostly nothing is. Of its loss a busy server does not always tell."""
    async with rig() as r:
        run = await start(await r.sandbox(), *script("seq -w 1 100000"), **PLAIN)
        assert (await run.end()).code == 0
        bounds = [0, *run.logs.stdout.gaps, len(run.out)]
        pieces = [run.out[begin:end] for begin, end in itertools.pairwise(bounds)]
        lines = [line for piece in pieces for line in re.findall(rb"(?<![0-9])[0-9]{6}(?=\n)", piece)]
        assert lines == sorted(set(lines)) and lines[-1] == b"100000"


# --- the server


async def test_a_crash_and_restart_while_a_command_runs() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script(f"setsid sleep 1000 & {TALK}"))
        await run.saw(b"up")
        assert r.marked()
        await r.double.crash()
        await r.double.restart()
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.code is None
        assert "started again and does not know the execution any more" in (end.detail or "")
        assert not r.marked(), "it would run on for ever, out of everybody's reach"
        assert (await (await start(sandbox, "true", execution_id="exe_2")).end()).code == 0
        assert not sandbox._lost.done()


async def test_a_server_that_stops_says_minus_one_of_what_lives_on() -> None:
    """As on SIGINT: exit -1, Close, and then nobody is there. It is killed when the server is back."""
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=(b"\x01up", '{"type":"exit","exit_code":-1}')), times=1)
        asked = Stall()
        r.double.faults.on(Route.GET, asked, times=1)
        run = await start(sandbox, *script("sleep 1000"), **PLAIN)
        await asked.reached.wait()
        await r.double.crash()
        assert r.marked() and run.out == b"up"
        await r.double.restart()
        end = await run.end()
        assert end.reason is ExitReason.LOST and not r.marked()
        assert (await (await start(sandbox, "true", execution_id="exe_2", **PLAIN)).end()).code == 0


async def test_a_server_that_is_gone_for_long_fails_its_sandboxes_and_their_boxes_go_when_it_is_back() -> None:
    async with rig(grace_seconds=0.5) as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script("sleep 1000"))
        await r.double.crash()
        async with asyncio.timeout(60):
            why = await sandbox.lost()
        assert "has not worked for" in why and "cannot be reached" in why
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.detail == why
        with pytest.raises(WrongState, match="has not worked"):
            await start(sandbox, "true")
        await sandbox.destroy()  # nobody is there to ask, and nothing of it is held
        assert r.double.boxes
        await r.double.restart()
        await until(lambda: not r.double.boxes)
        await r.sandbox("sbx_1")


async def test_a_server_that_is_back_in_time_fails_nothing() -> None:
    async with rig(grace_seconds=30) as r:
        sandbox = await r.sandbox()
        await r.double.crash()
        await until(lambda: r.backend._health_check._failure is not None)
        await r.double.restart()
        await r.beats(2)
        assert (await (await start(sandbox, "true")).end()).code == 0


async def test_a_destroy_without_a_server_is_an_error_and_can_be_repeated() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        await r.double.crash()
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await sandbox.destroy()
        await r.double.restart()
        await sandbox.destroy()
        assert not r.double.boxes


async def test_a_start_without_a_server_is_unavailable_and_no_wrong_state() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        await r.double.crash()
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await start(sandbox, "true")
        await r.double.restart()
        assert (await (await start(sandbox, "true")).end()).code == 0


async def test_a_server_that_dies_in_the_middle_of_a_boot() -> None:
    """Its box comes back and says that it runs, and cannot run anything: it is stopped and deleted."""
    async with rig(Settings(boot_seconds=5)) as r:
        creating = asyncio.get_running_loop().create_task(r.sandbox())
        await until(lambda: r.double.sent(Route.START))
        await r.double.crash()
        with pytest.raises(BackendFailure):
            await creating
        await r.double.restart()
        await until(lambda: not r.double.boxes)


async def test_output_goes_on_after_an_outage_of_the_network() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script(TALK))
        await run.saw(b"\n20\n")
        await r.double.refuse_connections()
        for writer in tuple(r.double._writers):
            writer.transport.abort()
        await until(lambda: r.backend._health_check._failure is not None)
        await r.double.restart()
        await run.saw(b"\n200\n")
        numbers = run.out.split()[1:]
        assert [int(n) for n in numbers] == list(range(1, len(numbers) + 1)) and not run.logs.stdout.gaps
        await run.handle.kill()


# --- the box


async def test_a_box_that_is_killed_from_outside() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, *script(TALK))
        await run.saw(b"up")
        r.double.kill_box(sandbox.box_id)
        end = await run.end()
        assert end.reason is ExitReason.LOST and end.code is None
        assert await sandbox.lost() == end.detail == "its box is stopped"
        with pytest.raises(WrongState, match="its box is stopped"):
            await start(sandbox, "true")
        await sandbox.destroy()
        assert not r.double.boxes


async def test_a_box_that_is_deleted_by_somebody_else() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        await r.double._engine.delete(r.double.boxes[0], force=True)
        async with asyncio.timeout(60):
            assert await sandbox.lost() == "its box is gone"
        await sandbox.destroy()


async def test_a_start_in_a_box_that_has_just_died_says_so() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.kill_box(sandbox.box_id)
        with pytest.raises(WrongState, match="its box is stopped"):
            await start(sandbox, "true")
        await sandbox.destroy()


async def test_a_list_that_was_made_before_the_box_does_not_fail_its_sandbox() -> None:
    async with rig() as r:
        await r.backend.ready()
        old = Stall(until=asyncio.Event(), done=True)
        r.double.faults.on(Route.LIST, old, times=1)
        await old.reached.wait()
        sandbox = await r.sandbox()
        assert old.until is not None
        old.until.set()
        await r.beats(2)
        assert not sandbox._lost.done()
