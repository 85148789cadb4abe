"""Lines of requests, which are written a moment after the answer."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import socket
from datetime import UTC, datetime
from typing import Any

import pytest
import uvicorn

from app import log_buffer
from app.log_buffer import MOST_LINES, LogBuffer
from app.serving.gateway import AnnouncedServer
from app.telemetry import Telemetry


def begun() -> tuple[LogBuffer, list[str]]:
    """One that holds lines, and what it has written."""
    buffer = LogBuffer()
    buffer.start()
    return buffer, []


async def test_lines_are_written_together_and_in_order() -> None:
    buffer, written = begun()
    done = asyncio.Event()
    for text in ("one", "two"):
        buffer.add(written.append, text)
    buffer.add(lambda _: done.set(), "three")
    assert written == []
    async with asyncio.timeout(60):
        await done.wait()
    assert written == ["one", "two"]


async def test_no_more_lines_are_held_than_a_slice_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_buffer, "SECONDS", 3600)
    buffer, written = begun()
    for number in range(MOST_LINES + 1):
        buffer.add(written.append, str(number))
    assert len(written) == MOST_LINES


async def test_line_that_cannot_be_written_takes_no_other_with_it() -> None:
    buffer, written = begun()

    def fail(_: str) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    buffer.add(fail, "one")
    buffer.add(written.append, "two")
    buffer.stop()
    assert written == ["two"]


async def test_lines_are_written_at_the_end_of_the_service_and_at_once_from_then_on() -> None:
    buffer, written = begun()
    buffer.add(written.append, "held")
    buffer.stop()
    assert written == ["held"]
    buffer.add(written.append, "late")
    assert written == ["held", "late"]


async def test_line_of_a_request_has_the_time_of_its_answer() -> None:
    stream = io.StringIO()
    telemetry = Telemetry(stream=stream)
    telemetry.request_lines.start()
    telemetry.request(request_id="r", method="GET", path="/", status=200, seconds=0.1, client=None, key="")
    answered = datetime.now(UTC)
    assert stream.getvalue() == ""
    telemetry.request_lines.flush()
    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["ms"]) == ("request", "info", 100.0)
    assert datetime.fromisoformat(line["timestamp"]) <= answered


async def test_gateway_that_ends_writes_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_buffer, "SECONDS", 3600)
    buffer, written = LogBuffer(), list[str]()

    async def app(_: Any, __: Any, send: Any) -> None:
        buffer.add(written.append, "answered")
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def farewell() -> None: ...

    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=2)
        server = AnnouncedServer(config, farewell, [buffer])
        serving = asyncio.create_task(server.serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            assert b" 204 " in await reader.read()
        writer.close()
        assert written == []
        server.should_exit = True
        await serving
    assert written == ["answered"]
