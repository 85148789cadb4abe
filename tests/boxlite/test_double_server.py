"""The server around the boxes: what it writes down, its prefix, its clean stop, and the double as a program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.boxlite.client import Client, box_double, until
from tests.boxlite.double import Route
from tests.boxlite.processes import alive, environments, gone, some_seconds

ROOT = Path(__file__).resolve().parents[2]


async def test_every_request_is_written_down() -> None:
    async with box_double() as double, Client(double) as client:
        await client.ask("POST", "/v1/boxes?x=1", {"name": "a/b"})
        await client.ask("GET", "/v1/boxes/a%2Fb")
        await client.ask("GET", "/v1/nothing")
        assert [(found.route, found.path, found.query) for found in double.requests] == [
            (Route.CREATE, "/v1/boxes", {"x": "1"}),
            (Route.GET, "/v1/boxes/a%2Fb", {}),
            (None, "/v1/nothing", {}),
        ]
        assert double.sent(Route.CREATE)[0].json == {"name": "a/b"}


def started(folder: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.boxlite.double", "--port", "0", "--key", "program-key"]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": folder}, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
async def test_the_double_as_a_program_leaves_nothing(number: int, code: int) -> None:
    mark = some_seconds()
    async with box_double():  # or skip
        pass
    with tempfile.TemporaryDirectory() as folder, started(folder) as child:
        try:
            assert child.stdout is not None
            ready, url = (await asyncio.to_thread(child.stdout.readline)).split()
            assert ready == "ready"
            headers = {"authorization": "Bearer program-key"}
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
                made = (await http.post("/v1/boxes", json={"cmd": ["sleep", mark]})).json()
                assert (await http.post(f"/v1/boxes/{made['box_id']}/start")).status_code == 200
            await until(lambda: bool(alive(mark)))
            child.send_signal(number)
            assert await asyncio.to_thread(child.wait, 20) == code
            await gone(mark)
        finally:
            child.kill()


async def test_frames_of_clients_are_written_down() -> None:
    async with box_double() as double, Client(double) as client:
        path = await client.execute(await client.box(), "cat")
        assert (await client.follow(path, stdin=b"typed")).stdout == b"typed"
        assert [(frame.text, frame.size) for frame in double.frames] == [(None, 5), ('{"type":"stdin_eof"}', 20)]
        assert path.endswith(double.frames[0].execution_id)


async def test_a_server_with_a_prefix_has_nothing_without_it() -> None:
    async with box_double(prefix="org/one") as double, Client(double) as client:
        assert (await client.ok("GET", "/v1/me"))["path_prefix"] == "org/one"
        assert (await client.ask("GET", "/v1/boxes")).status_code == 404
        assert await client.ok("GET", "/v1/org/one/boxes") == {"boxes": []}
        assert [request.route for request in double.requests] == [Route.ME, None, Route.LIST]


async def test_a_clean_stop_says_minus_one_of_what_lives_on() -> None:
    mark = some_seconds()
    async with box_double() as double, Client(double) as client:
        box = await client.box()
        following = asyncio.create_task(client.follow(await client.execute(box, "sleep", mark)))
        await until(lambda: double.attached_clients == 1)
        await double.interrupt()
        said = await following
        assert (said.exit_code, said.close_code) == (-1, 1005)
        await double.restart()
        assert alive(mark)
        assert set(alive(mark)) < set(environments(double))  # and the main command
        assert (await client.run(box, "true")).exit_code == 0
    assert not alive(mark)
    assert not environments(double)
