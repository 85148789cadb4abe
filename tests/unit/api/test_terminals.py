"""Executions on a terminal: start and resize, by POST and by frame."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.capabilities import Capability
from tests.unit.api.service import Service, create, frames_of, kernel, start, text_of
from tests.unit.api.streams import refusal

TTY = {"rows": 24, "cols": 80}


async def test_a_terminal_is_given_to_the_runtime_and_opens_stdin() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        for body in ({}, {"stdin": "none"}, {"stdin": "open"}):
            path = await start(client, sandbox, "sleep", tty=TTY, **body)
            given = service.backend.sandboxes[sandbox].executions[path.rsplit("/", 1)[1]].command
            assert given.tty is not None
            assert (given.stdin, given.tty.rows, given.tty.cols) == ("open", 24, 80)


async def test_true_is_a_terminal_of_24_by_80_and_false_is_none() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        for tty in (True, False, None):
            await start(client, sandbox, "sleep", tty=tty)
    first, *others = service.backend.commands
    assert first.tty is not None
    assert (first.tty.rows, first.tty.cols) == (24, 80)
    assert [command.tty for command in others] == [None, None]


@pytest.mark.parametrize(
    ("above", "own", "term"), [({}, {}, "xterm"), ({"TERM": "a"}, {}, "a"), ({"TERM": "a"}, {"TERM": "b"}, "b")]
)
async def test_kind_of_terminal_is_xterm_unless_it_is_set(
    above: dict[str, str], own: dict[str, str], term: str
) -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client, env=above)
        for tty in (True, False):
            await start(client, sandbox, "sleep", tty=tty, env=own)
    assert [command.env for command in service.backend.commands] == [{"TERM": term}, {**above, **own}]


async def test_a_terminal_on_a_runtime_without_one_is_refused_and_nothing_is_started() -> None:
    async with Service([kernel(lacks=[Capability.PTY])]).client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        answer = await client.post(path, json={"command": ["sleep"], "tty": TTY})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/capability_missing")
        assert (answer.json()["missing"], answer.json()["runtime"]) == (["pty"], "process")
        assert (await client.get(path)).json()["items"] == []


async def test_the_terminal_is_part_of_the_command_that_an_id_repeats() -> None:
    async with Service().client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        answers = [
            await client.post(path, json={"id": "job", "command": ["sleep"], **body})
            for body in (
                {"tty": TTY},
                {"tty": TTY, "stdin": "open"},
                {"tty": {"rows": 1, "cols": 80}},
                {"stdin": "open"},
            )
        ]
        assert [answer.status_code for answer in answers] == [201, 200, 409, 409]


async def test_what_is_typed_reaches_the_program() -> None:
    async with Service().served() as live:
        path = await live.start("cat", tty=TTY)
        async with live.stream(path, "?stdin=true") as socket:
            await socket.send(b"typed")
            await socket.send('{"type":"stdin_eof"}')
            _, channels = await frames_of(socket)
        assert channels[1] == b"typed"


WRONG = [
    ({"rows": 0, "cols": 80}, "rows"),
    ({"rows": -1, "cols": 80}, "rows"),
    ({"rows": 65_536, "cols": 80}, "rows"),
    ({"rows": 24, "cols": 0}, "cols"),
    ({"rows": 24, "cols": 65_536}, "cols"),
    ({"rows": 24}, "cols"),
    ({"cols": 80}, "rows"),
    ({"rows": "24", "cols": 80}, "rows"),
    ({"rows": 24.5, "cols": 80}, "rows"),
    ({"rows": True, "cols": 80}, "rows"),
    ({"rows": 24, "cols": None}, "cols"),
    ({"rows": 24, "cols": 80, "depth": 1}, "depth"),
]


@pytest.mark.parametrize(("size", "field"), WRONG, ids=repr)
async def test_a_size_that_is_none_is_refused(size: dict[str, Any], field: str) -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["sleep"], "tty": size})
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid_request")
        assert answer.json()["errors"][0]["pointer"] == f"/tty/{field}"
        path = await start(client, sandbox, "trap", tty=TTY)
        answer = await client.post(f"{path}/resize", json=size)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/invalid_request")
        assert answer.json()["errors"][0]["pointer"] == f"/{field}"
        assert (await client.get(f"{path}/output")).text == "ready\n", "nothing reached the program"


@pytest.mark.parametrize(
    ("size", "seen"), [({"rows": 40, "cols": 120}, "40x120"), ({"rows": 1, "cols": 65_535}, "1x65535")]
)
async def test_resize_gives_the_terminal_another_size(size: dict[str, int], seen: str) -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "trap", tty=TTY)
        answer = await client.post(f"{path}/resize", json=size)
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await client.get(f"{path}/output")).text == f"ready\n{seen}\n"


async def test_resize_without_a_terminal_is_409() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "sleep", stdin="open")
        answer = await client.post(f"{path}/resize", json=TTY)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/wrong_state")
        assert answer.json()["state"] == "running"


async def test_resize_after_the_end_is_409() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "echo", tty=TTY)
        await client.get(f"{path}?wait_seconds=60")
        answer = await client.post(f"{path}/resize", json=TTY)
        assert (answer.status_code, answer.json()["state"]) == (409, "ended")


async def test_resize_of_an_unknown_execution_is_404() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        assert (await client.post(f"/sandboxes/{sandbox}/executions/exe_x/resize", json=TTY)).status_code == 404


async def test_a_resize_frame_gives_the_terminal_another_size_from_any_viewer() -> None:
    async with Service().served() as live:
        path = await live.start("trap", tty=TTY)
        async with live.stream(path) as socket:
            await socket.send('{"type":"resize","rows":40,"cols":120}')
            await socket.send('{"type":"signal","signal":"SIGKILL"}')
            texts, channels = await frames_of(socket)
        assert channels[1] == b"ready\n40x120\n"
        assert [text["type"] for text in texts] == ["start", "exit"]


async def test_a_resize_frame_without_a_terminal_gets_a_problem_frame_and_the_stream_goes_on() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        async with live.stream(path) as socket:
            await text_of(socket)
            await socket.send('{"type":"resize","rows":40,"cols":120}')
            problem = (await text_of(socket))["problem"]
            assert (problem["type"], problem["state"]) == ("/problems/wrong_state", "running")
            await socket.send('{"type":"signal","signal":"SIGINT"}')
            texts, _ = await frames_of(socket)
        assert texts[-1]["exit_code"] == -2


async def test_stdin_of_a_terminal_has_one_holder_too() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", tty=TTY)
        async with live.stream(path, "?stdin=true"):
            assert (await refusal(live, path, "?stdin=true"))["type"] == "/problems/conflict"
