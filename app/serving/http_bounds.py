"""uvicorn's HTTP/1.1 with the bounds that it lacks. A client without a key must not lock others out by silent
connections, by a head without end, or by a thousand requests at once."""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import termios
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.serving.http_slices import SlicedHttp
from app.serving.joined_writes import JoinedWrites

HEAD_SECONDS = 10.0
HEAD_BYTES = 64 * 1024
TARGET_BYTES = 16 * 1024  # the path of a file has 4,095 bytes, which are three times as many percent-encoded
HEADERS = 128
WAITING_SECONDS = 5.0
PIPELINED = 16
_TOO_LARGE, _TOO_SLOW, _NOT_HTTP = "431 Request Header Fields Too Large", "408 Request Timeout", "400 Bad Request"
_TARGET_TOO_LONG = "414 URI Too Long"
_WHY = {
    _TOO_LARGE: f"the head of a request takes at most {HEAD_BYTES} bytes",
    _TARGET_TOO_LONG: f"the target of a request, which is its path and its query, takes at most {TARGET_BYTES} bytes",
    _TOO_SLOW: f"the head of a request has to arrive within {HEAD_SECONDS:g} seconds",
    _NOT_HTTP: "this is not a request of HTTP/1.1: it has an unknown method, a byte in its target that is not "
    "percent-encoded, or headers that contradict each other",
}


_NO_LINGER = struct.pack("ii", 1, 0)  # socket(7): what the kernel still holds for the client is dropped, with a reset


class BoundedHttp(SlicedHttp):
    """A request's head arrives within 10 s of the connection (or of its first byte), in 64 KiB, of which its path and
    query take at most 16: to read a query of 64 KiB takes 21 ms, before a key is looked at. 16 more may wait behind
    one, but a large body among them for 5 s only. A client that takes nothing of its answer for `stall_seconds` is cut
    off."""

    stall_seconds = 60.0

    @classmethod
    def with_stall(cls, seconds: float) -> type[BoundedHttp]:
        """Returns a class with the settings, as uvicorn takes a class and passes it no settings."""
        return type(cls.__name__, (cls,), {"stall_seconds": seconds})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes, self._piece, self._in_head = 0, 0, True
        self._frame_bytes = 0  # since the last of the body: chunk sizes, extensions, trailers
        self._deadline: asyncio.TimerHandle | None = None
        self._waiting: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._lost = self._is_target_long = False

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(cast(asyncio.Transport, self._writes))
        self._expect_a_head()
        self._entry = self.bounds.connections.enter(self, self.client[0] if self.client else "")
        self.app_state = {**self.app_state, "connection": self._entry}  # uvicorn puts it into each scope, as `state`

    def give_up(self) -> None:
        if self.transport.get_write_buffer_size():
            self.cut()  # to close it would wait for a client that takes nothing
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking = self.loop.call_later(self.stall_seconds, self._check_taking, self._untaken())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_checking()

    def _check_taking(self, before: int) -> None:
        left = self._untaken()
        if left >= before:
            self.cut()
        else:
            self._taking = self.loop.call_later(self.stall_seconds, self._check_taking, left)

    def _untaken(self) -> int:
        """Bytes that wait for the client, here and in the kernel, whose buffer alone lasts a slow one for minutes."""
        descriptor = self.transport.get_extra_info("socket").fileno()
        (queued,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))  # tcp(7): SIOCOUTQ
        return self.transport.get_write_buffer_size() + int(queued)

    def cut(self) -> None:
        """Ends the connection at once, so that what was sent does not look complete. A close would wait for a client
        that reads nothing."""
        if not self._lost:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _stop_checking(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._entry.leave()
        self._head_is_there()
        self._stop_waiting()
        self._stop_checking()
        # uvicorn tells the request that came last. The one that is being answered waits for a disconnect too, or what
        # it has begun for its client would be left.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def parse(self, data: bytes) -> None:
        self._piece = len(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES + len(data):  # this piece may hold the end of the head, and a body
                return self._refuse(_TOO_LARGE)
        else:
            self._frame_bytes += len(data)
            if self._frame_bytes > HEAD_BYTES + len(data):
                return self._refuse(_TOO_LARGE)
        super().parse(data)
        return None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_a_head()
        self._head_bytes, self._frame_bytes = self._piece, 0
        self.scope["extensions"] = {"bulkhead.cut": {"cut": self.cut}}  # ASGI itself knows no way

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > TARGET_BYTES:
            self._is_target_long = True
            raise ValueError("the target is too long")  # the parser stops

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: never taken for a header (RFC 9110, 6.5.1)
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            raise ValueError("too many headers")  # the parser stops, and the connection ends with a 400

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED:
            self.pipeline.clear()
            raise ValueError("too many requests at once")
        if self.pipeline:
            self.flow.resume_reading()  # uvicorn stops here, and would not see the client disconnect

    def on_body(self, body: bytes) -> None:
        """Passes a piece on without a copy when nothing waits before it. uvicorn would gather the body in a bytearray
        and pass a copy on. For an upload, which comes in 250 KiB at a time, this saves half of the processor time."""
        self._frame_bytes = 0
        cycle = self.cycle
        if cycle is None or self.parser.should_upgrade():
            return super().on_body(body)
        if self.pipeline and len(cycle.body) + len(body) > HEAD_BYTES:
            self._wait_for_its_turn()
        if cycle.response_complete:
            return super().on_body(body)
        if not cycle.body:
            cycle.body = body  # type: ignore[assignment]  # it is only added to, measured, and made to bytes
            return super().on_body(b"")
        if isinstance(cycle.body, bytes):  # which would be copied for each of many small chunks
            cycle.body = bytearray(cycle.body)
        return super().on_body(body)

    def _wait_for_its_turn(self) -> None:
        """A client may send a large body as soon as it has all of the answer before, while that request is still being
        put away here. So the body is not read on until then; nor would a disconnect be seen, and so it is not for
        long."""
        self.flow.pause_reading()
        if self._waiting is None:
            self._waiting = self.loop.call_later(WAITING_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        self._writes.flush()
        self._stop_waiting()
        super().on_response_complete()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _expect_a_head(self) -> None:
        self._head_bytes, self._in_head = 0, True
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._refuse, _TOO_SLOW)

    def _head_is_there(self) -> None:
        self._in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def send_400_response(self, msg: str) -> None:
        del msg
        self._refuse(_TARGET_TOO_LONG if self._is_target_long else _NOT_HTTP)

    def _refuse(self, status: str) -> None:
        """A connection on which nothing was said is closed without a word."""
        self._head_is_there()
        if not self.transport.is_closing():
            if self._head_bytes:
                self.transport.write(_refusal(status))
            self.transport.close()


def _refusal(status: str) -> bytes:
    """A problem of RFC 9457. The input was not a valid request, so the problem has no id and no page."""
    code, _, title = status.partition(" ")
    problem = {"type": "about:blank", "title": title, "status": int(code), "detail": _WHY[status]}
    body = json.dumps(problem)
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n{body}".encode()
