"""Small writes of one run through the event loop leave together. Nothing else about a connection changes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from app.serving.http_bounds import BoundedHttp
from app.serving.joined_writes import AT_ONCE_BYTES, JoinedWrites


class RecordingTransport(asyncio.Transport):
    """`packets`: what each call hands to the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: list[bytes] = []
        self.closed = ""

    def write(self, data: Any) -> None:
        if self.closed:
            raise RuntimeError("the handle is closed")
        self.packets.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return 1000

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = "close"

    def abort(self) -> None:
        self.closed = "abort"


def joined() -> tuple[RecordingTransport, JoinedWrites]:
    transport = RecordingTransport()
    return transport, JoinedWrites(transport, asyncio.get_running_loop())


async def test_small_writes_leave_together_in_the_next_run_through_the_loop() -> None:
    transport, writes = joined()
    writes.write(b"one")
    writes.write(b"two")
    assert transport.packets == []
    assert writes.get_write_buffer_size() == 1006
    await asyncio.sleep(0)
    writes.write(b"three")
    await asyncio.sleep(0)
    assert transport.packets == [b"onetwo", b"three"]
    assert writes.get_write_buffer_size() == 1000


async def test_a_large_write_goes_at_once_behind_what_is_held() -> None:
    transport, writes = joined()
    writes.write(b"head")
    writes.write(bytes(AT_ONCE_BYTES))
    assert transport.packets == [b"head", bytes(AT_ONCE_BYTES)]


async def test_no_more_is_held_than_the_bound() -> None:
    transport, writes = joined()
    for _ in range(100):
        writes.write(bytes(1024))
        assert writes.get_write_buffer_size() <= 1000 + AT_ONCE_BYTES
    await asyncio.sleep(0)
    assert sum(map(len, transport.packets)) == 100 * 1024


async def test_a_close_sends_what_is_held_and_an_abort_does_not() -> None:
    transport, writes = joined()
    writes.write(b"last")
    writes.close()
    assert (transport.packets, transport.closed) == ([b"last"], "close")
    other, cut = joined()
    cut.write(b"unwanted")
    cut.abort()
    await asyncio.sleep(0)
    assert (other.packets, other.closed) == ([], "abort")


async def test_a_write_to_a_closed_connection_raises_as_before() -> None:
    _, writes = joined()
    writes.close()
    with pytest.raises(RuntimeError, match="the handle is closed"):
        writes.write(b"late")


async def test_an_answer_is_one_packet() -> None:
    transport = RecordingTransport()
    answered = asyncio.Event()

    async def application(_: object, __: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        answered.set()

    config = uvicorn.Config(application, http=BoundedHttp, lifespan="off", log_config=None, ws="none")
    config.load()
    protocol = BoundedHttp(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(cast(asyncio.Transport, transport))
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    await answered.wait()
    (packet,) = transport.packets
    assert packet.startswith(b"HTTP/1.1 200 OK\r\n")
    assert packet.endswith(b"\r\n\r\nok")
    protocol.connection_lost(None)
