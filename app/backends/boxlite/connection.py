"""One HTTP/1.1 connection to the BoxLite server: one request at a time, and its answer within bounds.

Bulkhead speaks to one server with small JSON bodies, so this is all of HTTP that it needs: no redirects, cookies,
proxies or compression. The parser is llhttp, by httptools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

HEAD_BYTES = 64 * 1024  # of all that is no body: interim answers, the head, lengths of chunks, headers behind them
HEAD_LINES = 512  # status lines and headers, of these too
BODY_PIECES = 16 * 1024  # of a chunk or a read each, so a body of 4 MiB may come in reads of 256 bytes
SWITCHING, _INTERIM = 101, range(100, 200)


class ConnectionBroken(Exception):
    """The connection ended, or what came is no HTTP. `began`: some of the answer came."""

    def __init__(self, why: str, *, began: bool) -> None:
        super().__init__(why)
        self.began = began


class ResponseTooLarge(Exception):
    """The body is larger than the caller wants."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the body of an answer {status} is too large")
        self.status = status


@dataclass(slots=True)
class HttpResponse:
    """`raw_headers`: as they came. Of most answers nobody reads them. `rest`: what came behind an upgrade."""

    status: int = 0
    raw_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    rest: bytes = b""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """With names in small letters."""
        return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self.raw_headers]

    def header(self, name: str) -> str:
        """The first of that name, or nothing."""
        return next((value for known, value in self.headers if known == name), "")


class _ResponseReader:
    """Reads one answer. httptools calls the methods `on_…`."""

    def __init__(self, body_limit: int) -> None:
        self._parser = HttpResponseParser(self)
        self._body_limit = body_limit
        self._body = bytearray()
        self._response = HttpResponse()
        self._received = self._lines = self._pieces = 0
        self._head_is_over = self._ended = False
        self._excess: Exception | None = None
        self.reusable = False  # the connection, after this answer

    @property
    def began(self) -> bool:
        return self._received > 0

    def feed(self, data: bytes) -> HttpResponse | None:
        """The answer when it is complete. Raises ConnectionBroken and ResponseTooLarge."""
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._response.rest = data[upgrade.args[0] :]
        except HttpParserError as error:
            if self._excess is not None:
                raise self._excess from None
            if not self._ended:
                raise ConnectionBroken(f"it is no HTTP: {error}", began=True) from error
            self.reusable = False  # what follows a complete answer was not asked for
        if self._ended:
            return self._whole()
        if self._received - len(self._body) > HEAD_BYTES:
            raise self._too_large(f"{HEAD_BYTES} bytes")
        return None

    def _too_large(self, most: str) -> Exception:
        if self._head_is_over:
            return ResponseTooLarge(self._response.status)
        return ConnectionBroken(f"its head has more than {most}", began=True)

    def _stop(self, excess: Exception) -> NoReturn:
        """Ends the parsing of what came, as a read has room for tens of thousands of lines. The parser does not pass
        an error of a callback on."""
        self._excess = excess
        raise excess

    def _count_line(self) -> None:
        self._lines += 1
        if self._lines > HEAD_LINES:
            self._stop(self._too_large(f"{HEAD_LINES} lines"))

    def end(self) -> HttpResponse | None:
        """The server has ended the connection. The answer, when this is how its body ends."""
        names = {name for name, _ in self._response.headers}
        if self._head_is_over and not self._ended and not names & {"content-length", "transfer-encoding"}:
            return self._whole()
        return None

    def _whole(self) -> HttpResponse:
        self._response.body = bytes(self._body)
        del self._parser  # which refers to this object
        return self._response

    def on_message_begin(self) -> None:
        if self._ended:
            raise ConnectionBroken("nobody asked for a second answer", began=True)
        self._count_line()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_line()
        if not self._head_is_over:
            self._response.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()
        self._head_is_over = True

    def on_body(self, data: bytes) -> None:
        self._body += data
        self._pieces += 1
        if len(self._body) > self._body_limit or self._pieces > BODY_PIECES:
            self._stop(ResponseTooLarge(self._response.status))

    def on_message_complete(self) -> None:
        if self._response.status in _INTERIM and self._response.status != SWITCHING:
            self._response, self._head_is_over = HttpResponse(), False
            return
        self._ended = True
        self.reusable = self._parser.should_keep_alive() and self._response.status != SWITCHING


class ServerConnection(asyncio.Protocol):
    """`on_end` is called when it has ended, or was handed over."""

    def __init__(self, on_end: Callable[[ServerConnection], None]) -> None:
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._reader: _ResponseReader | None = None
        self._answer: asyncio.Future[HttpResponse] | None = None
        self._wanted = True  # nothing was wrong with it yet
        self.idle_since = 0.0

    @property
    def reusable(self) -> bool:
        return self._wanted and self._transport is not None and not self._transport.is_closing()

    async def exchange(self, request: bytes, body_limit: int, until: float) -> HttpResponse:
        """Raises ConnectionBroken and ResponseTooLarge, and TimeoutError at `until`, a time of the loop. After these,
        and when it is cancelled, the connection is closed."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionBroken("the connection was closed", began=False)
        self._wanted = False
        self._reader = _ResponseReader(body_limit)
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        deadline = loop.call_at(until, _expire, self._answer)
        self._transport.write(request)
        try:
            response = await self._answer
        except BaseException:
            self.close()
            raise
        finally:
            deadline.cancel()
            self._reader = self._answer = None
        return response

    def close(self) -> None:
        """At once: what was not sent yet is not sent."""
        self._wanted = False
        if self._transport is not None:
            self._transport.abort()

    def hand_over(self, protocol: asyncio.Protocol, rest: bytes) -> None:
        """After an upgrade another protocol goes on with the connection, and gets `rest` first. Raises
        ConnectionBroken."""
        transport, self._transport = self._transport, None
        if transport is None or transport.is_closing():
            raise ConnectionBroken("the connection was closed", began=True)
        self._on_end(self)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()  # before `rest`, which may be so much that the other protocol stops it again
        if rest:
            protocol.data_received(rest)

    # --- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._wanted:  # whoever wanted it has given up meanwhile
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._reader is None or self._answer is None or self._answer.done():
            self.close()  # nobody has asked for this
            return
        try:
            response = self._reader.feed(data)
        except (ConnectionBroken, ResponseTooLarge) as error:
            self._answer.set_exception(error)
            self.close()
            return
        if response is not None:
            self._wanted = self._reader.reusable
            if response.status == SWITCHING and self._transport is not None and not self._transport.is_closing():
                self._transport.pause_reading()  # what comes now is for another protocol
            self._answer.set_result(response)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wanted = False
        self._on_end(self)
        if self._answer is not None and not self._answer.done():
            response = self._reader.end() if self._reader is not None and exc is None else None
            if response is not None:
                self._answer.set_result(response)
            else:
                began = self._reader is not None and self._reader.began
                why = str(exc) if exc is not None else "the server closed the connection"
                self._answer.set_exception(ConnectionBroken(why, began=began))


def _expire(answer: asyncio.Future[HttpResponse]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())
