from __future__ import annotations

import hashlib
import logging

import pytest

from app.core.sandboxes import Capacity
from tests.unit.api.service import Service, frames_of, text_of
from tests.unit.api.streams import refusal, until


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("?stdout_offset=-1", "query/stdout_offset"),
        ("?stderr_offset=x", "query/stderr_offset"),
        ("?stdin=maybe", "query/stdin"),
        ("?token=abc", "query/token"),
    ],
)
async def test_a_bad_query_is_refused_before_the_upgrade(query: str, pointer: str) -> None:
    async with Service().served() as live:
        problem = await refusal(live, await live.start("sleep"), query)
        assert problem["status"] == 422
        assert problem["errors"][0]["pointer"] == pointer


async def test_an_offset_beyond_the_end_is_416_before_the_upgrade() -> None:
    async with Service().served() as live:
        path = await live.start("echo", "hi")
        await live.client.get(f"{path}?wait_seconds=60")
        assert (await refusal(live, path, "?stdout_offset=4"))["type"] == "/problems/range_not_satisfiable"
        assert (await refusal(live, path, "?stderr_offset=1"))["type"] == "/problems/range_not_satisfiable"
        async with live.stream(path, "?stdout_offset=3") as socket:
            assert (await frames_of(socket))[1][1] == b""


async def test_unknown_ids_are_404_before_the_upgrade() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        for wrong in ("/sandboxes/sbx_none/executions/exe_none", path + "x", "/sandboxes", "/nowhere"):
            assert (await refusal(live, wrong))["type"] == "/problems/not_found"


async def test_a_stream_of_a_destroyed_sandbox_is_409() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        await live.client.delete("/" + "/".join(path.split("/")[1:3]))
        problem = await refusal(live, path)
        assert problem["type"] == "/problems/wrong_state"
        assert problem["state"] == "destroyed"


async def test_viewers_over_the_limit_are_429_until_one_leaves() -> None:
    async with Service(capacity=Capacity(viewers=1)).served() as live:
        path = await live.start("sleep")
        async with live.stream(path):
            assert (await refusal(live, path))["type"] == "/problems/capacity_exceeded"
        await until(live, path, viewers=0)
        async with live.stream(path) as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_a_plain_get_is_426() -> None:
    async with Service().served() as live:
        answer = await live.client.get(f"{await live.start('sleep')}/stream")
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"
        assert answer.json()["type"] == "/problems/upgrade_required"


async def test_a_page_of_another_origin_cannot_open_a_stream() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        problem = await refusal(live, path, origin="https://evil.example")
        assert problem["type"] == "/problems/forbidden"
        async with live.stream(path, origin=f"http://127.0.0.1:{live.port}") as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_the_upgrade_needs_a_key_when_keys_are_configured() -> None:
    key = "k" * 43
    async with Service(key_hashes=(hashlib.sha256(key.encode()).hexdigest(),)).served() as live:
        live.client.headers["authorization"] = f"Bearer {key}"
        path = await live.start("sleep")
        assert (await refusal(live, path))["type"] == "/problems/unauthenticated"
        wrong = {"authorization": f"Bearer {'x' * 43}"}
        assert (await refusal(live, path, additional_headers=wrong))["type"] == "/problems/unauthenticated"
        async with live.stream(path, additional_headers={"authorization": f"Bearer {key}"}) as socket:
            assert (await text_of(socket))["type"] == "start"


async def test_a_refused_upgrade_leaves_no_line_of_the_server_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with Service().served() as live:
        caplog.set_level(logging.INFO, "uvicorn.error")
        await refusal(live, "/nowhere")
        logging.getLogger("uvicorn.error").error("something else")
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert messages == ["something else"]
