"""Executions are processes: their groups, their terminals, their limits, and what the server does with them."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.boxlite.client import Client, CommandResult, box_double, until
from tests.boxlite.double import Route, Settings, Stall
from tests.boxlite.processes import alive, gone, some_seconds

SPAWN = "internal error: spawn_failed:"


async def test_the_leader_has_its_own_session_and_a_second_execution_ends_its_group() -> None:
    mark = some_seconds()
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        script = f"sleep {mark} & cut -d' ' -f1,4,5,6 /proc/$$/stat; wait"
        path = await client.execute(box, "sh", "-c", script)
        async with client.attached(path) as socket:
            pid, parent, group, session = str((await socket.recv())[1:], "ascii").split()  # type: ignore[arg-type]
            assert (parent, group, session) == ("0", pid, pid)
            assert (await client.run(box, "kill", "-9", "--", f"-{pid}")).exit_code == 0
            assert await socket.recv() == '{"exit_code":-9,"type":"exit"}'
        await gone(mark)


async def test_a_daemon_outlives_its_execution_and_ends_with_the_box() -> None:
    mark = some_seconds()
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        said = await client.run(box, "sh", "-c", f"setsid sleep {mark} >/dev/null 2>&1 </dev/null & echo left")
        assert (said.stdout, said.exit_code) == (b"left\n", 0)
        assert alive(mark)
        await client.ok("POST", f"/v1/boxes/{box}/stop")
        assert not alive(mark)


async def test_environment_and_arguments_of_the_others_can_be_read() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box(env={"OF_THE_BOX": "1"})
        await client.execute(box, "sleep", "60", env={"SECRET": "word"})
        said = await client.run(box, "sh", "-c", "cat /proc/[0-9]*/environ; true", env={"OWN": "2"})
        assert b"SECRET=word\0" in said.stdout
        assert said.stdout.count(b"OF_THE_BOX=1\0") == 3  # main command, sleep, sh
        assert said.stdout.count(b"BOXLITE_EXECUTOR=container=") == 3


async def test_a_terminal() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "sh", tty=True, env={"PS1": "$ "})
        async with client.attached(path) as socket:
            await socket.send(b"stty size; tty\n")
            said = CommandResult()
            while not said.stdout.endswith(b"24 80\r\n/dev/pts/0\r\n$ "):
                said.frames.append(await asyncio.wait_for(socket.recv(), 60))
            await socket.send('{"type":"resize","cols":120,"rows":40}')
            await socket.send(b"stty size\n")
            while not said.stdout.endswith(b"40 120\r\n$ "):
                said.frames.append(await asyncio.wait_for(socket.recv(), 60))
            assert (await client.ask("POST", f"{path}/resize", {"cols": 200, "rows": 50})).status_code == 204
            assert (await client.ask("POST", f"{path}/resize", {"cols": 100_000, "rows": 1})).status_code == 503
            await socket.send(b"stty size; sh -c 'echo sleeps; exec sleep 60'\n")
            while not said.stdout.endswith(b"50 200\r\nsleeps\r\n"):
                said.frames.append(await asyncio.wait_for(socket.recv(), 60))
            await socket.send(b"\x03")
            while not said.stdout.endswith(b"$ "):
                said.frames.append(await asyncio.wait_for(socket.recv(), 60))
            await socket.send(b"exit 6\n")
            said.frames += [frame async for frame in socket]
        assert said.exit_code == 6
        assert not said.stderr


async def test_of_two_clients_at_once_one_is_refused() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "sleep", "0.3")
        said = await asyncio.gather(client.follow(path), client.follow(path), return_exceptions=True)
        refused = [found for found in said if isinstance(found, InvalidStatus)]
        assert [found.response.status_code for found in refused] == [409]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"args": ["b" * 10_000] * 30}, f"{SPAWN} internal error: sendmsg with fds: EMSGSIZE: Message too long"),
        ({"env": {"BIG": "a" * 131_072}}, f"{SPAWN} internal error: build failed: failed to execute workload\0"),
        ({"env": {"": "x"}}, "BrokenChannel"),
        ({"env": {"X": "nul\0"}}, "BrokenChannel"),
        ({"env": {"BOXLITE_EXECUTOR": "guest"}}, f"{SPAWN} internal error: Failed to spawn 'true'"),
        ({"env": {"BOXLITE_EXECUTOR": "moon"}}, f"{SPAWN} Unknown BOXLITE_EXECUTOR value: 'moon'"),
    ],
)
async def test_commands_that_are_too_much(body: dict[str, object], message: str) -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        answer = await client.ask("POST", f"/v1/boxes/{box}/exec", {"command": "true", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert message in answer.json()["error"]["message"]


async def test_strings_up_to_their_limit_and_one_more_that_hangs_for_ever() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        assert (await client.run(box, "sh", "-c", "echo ${#1}", "x", "a" * 131_071)).stdout == b"131071\n"
        assert (await client.run(box, "echo", "nul\0nul")).stdout == b"\n"
        assert (await client.run(box, "sh", "-c", "echo ${#BIG}", env={"BIG": "c" * 100_000})).stdout == b"100000\n"
        with pytest.raises(httpx.ReadTimeout):
            await client.ask("POST", f"/v1/boxes/{box}/exec", {"command": "echo", "args": ["a" * 131_072]}, timeout=0.3)
        assert (await client.run(box, "true")).exit_code == 0


async def test_a_stdin_frame_over_4_mib_ends_stdin_for_good_and_one_over_16_the_connection() -> None:
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        assert (await client.run(box, "wc", "-c", stdin=b"x" * (3 << 20))).stdout == b"3145728\n"
        dead = await client.execute(box, "wc", "-c")
        async with client.attached(dead) as socket:
            await socket.send(b"x" * (5 << 20))
            await socket.send('{"type":"stdin_eof"}')
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.3)
        broken = await client.execute(box, "wc", "-c")
        async with client.attached(broken) as socket:
            with pytest.raises(ConnectionClosed) as closed:
                await socket.send(b"x" * (17 << 20))
                await socket.recv()
        assert closed.value.rcvd is None
        for path in (dead, broken):
            assert (await client.ok("GET", path))["status"] == "running"


async def test_completed_executions_are_forgotten_after_a_while() -> None:
    async with box_double(Settings(tick_seconds=0.05, evict_seconds=0.1)) as double, Client(double) as client:
        path = await client.execute(await client.box(), "true")
        assert (await client.follow(path)).exit_code == 0
        await client.becomes(path, 404)


async def test_what_nobody_attaches_to_is_ended_step_by_step() -> None:
    timeouts = Settings(tick_seconds=0.05, reconnect_grace=1, shutdown_grace=1)
    mark = some_seconds()
    async with box_double(timeouts) as double, Client(double) as client:
        box = await client.box()
        script = f"trap 'echo >>/root/told' HUP TERM; while :; do sleep 0.05; done # {mark}"
        watched = await client.execute(box, "sleep", "60")
        async with client.attached(watched):
            mild = await client.execute(box, "sleep", "60")
            stubborn = await client.execute(box, "sh", "-c", script)
            await client.becomes(stubborn, 404)
            assert (await client.ok("GET", mild))["exit_code"] == -1  # by SIGHUP
            assert (await client.ok("GET", watched))["status"] == "running"
        await gone(mark)
        assert (await client.run(box, "cat", "/root/told")).stdout == b"\n\n"


async def test_a_client_that_disconnects_during_exec_leaves_a_process_without_an_execution() -> None:
    mark = some_seconds()
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        double.faults.on(Route.EXEC, Stall(done=True), times=1)
        request = client.ask("POST", f"/v1/boxes/{box}/exec", {"command": "sleep", "args": [mark]})
        asking = asyncio.create_task(request)
        await until(lambda: bool(alive(mark)))
        asking.cancel()
        await asyncio.wait([asking])
        assert alive(mark)
        assert (await client.ask("DELETE", f"/v1/boxes/{box}")).status_code == 204
        assert not alive(mark)
