"""Plain HTTP/1.1 for one connection of a program. Requests and answers are parsed and written anew, never copied, so
that both sides read the same messages.

Every request must name the host of the connection. A refusal is `application/problem+json`. The connection goes on
after one, unless it was unclear where the request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import cast

import h11

from app.egress.dialling import NotDialled
from app.egress.problems import Headers, problem
from app.egress.reasons import Reason
from app.egress.splice import KeptBytes, Splice
from app.egress.turns import SandboxTurns

HEAD = 32 * 1024  # bytes of a message's head
PIECE = 64 * 1024
DISCARDED = 256 * 1024  # bytes of a refused request's body that are read so that the connection can go on
# RFC 9110, 7.6.1, and the framing, which each side has for itself. Trailers are not passed on.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade".split()
)
_VERSIONS = (b"1.0", b"1.1")
_REFUSED_METHODS = frozenset((b"CONNECT", b"TRACE", b"TRACK"))
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"
_SWITCH = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]

HttpAnswer = h11.Response | h11.InformationalResponse


class RequestRefused(Exception):
    """`reason` is a Reason, or one of `core.addresses`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HttpSide:
    """One side of the connection: a socket, and what h11 knows of it. `count` gets the bytes that are received."""

    def __init__(
        self,
        turns: SandboxTurns,
        connection: socket.socket,
        role: type[h11.CLIENT] | type[h11.SERVER],
        count: Callable[[int], None],
    ) -> None:
        self.connection, self.http = connection, h11.Connection(role, max_incomplete_event_size=HEAD)
        self._turns, self._count = turns, count

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        """Raises h11.RemoteProtocolError, OSError, and what `count` raises."""
        while True:
            event = self.http.next_event()
            if self._turns.over:
                await self._turns.next()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            data = await self._turns.receive(self.connection, PIECE)
            self._count(len(data))
            self.http.receive_data(data)

    async def send(self, event: h11.Event) -> None:
        """Raises h11.LocalProtocolError and OSError."""
        await self._turns.send(self.connection, self.http.send(event) or b"")

    @property
    def is_idle(self) -> bool:
        """Whether another request can be sent. A host that has said more than its answer is not trusted with one."""
        if (self.http.our_state, self.http.their_state) != (h11.IDLE, h11.IDLE) or self.http.trailing_data[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            self.connection.recv(1, socket.MSG_PEEK)
            return False  # it has ended, or has said something before it was asked
        return True


class PlainHttp:
    """`dial` connects to the host and raises NotDialled. `heard` is called when the first request has come, `refused`
    for each request that is refused. `count` gets bytes sent by the program, and sent by the host; it may raise."""

    def __init__(
        self,
        turns: SandboxTurns,
        inside: socket.socket,
        host: str,
        port: int,
        kept: KeptBytes,
        answer_seconds: float,
        *,
        dial: Callable[[], Awaitable[socket.socket]],
        heard: Callable[[], None],
        refused: Callable[[str], None],
        count: Callable[[int, int], None],
    ) -> None:
        self._turns, self._kept, self._answer_seconds = turns, kept, answer_seconds
        self._host, self._port = host.encode(), port
        self._dial, self._heard, self._refused, self._count = dial, heard, refused, count
        self._program = HttpSide(turns, inside, h11.SERVER, lambda size: count(size, 0))
        self._upstream: HttpSide | None = None
        self._method = b""

    async def run(self, first: bytes) -> None:
        """Returns when the connection is over and has to be closed. Raises OSError, and what `count` raises."""
        self._program.http.receive_data(first)
        while await self._serve_one():
            self._program.http.start_next_cycle()

    async def _serve_one(self) -> bool:
        """Serves one request. Returns whether another one may follow."""
        try:
            request = await self._program.next()
            self._heard()
            if not isinstance(request, h11.Request):
                return False
            self._method = request.method
            upstream_request = self._judge(request)
            upstream = await self._reach()
        except h11.RemoteProtocolError:
            return await self._refuse(Reason.HTTP)
        except RequestRefused as refusal:
            return await self._refuse(refusal.reason)
        except NotDialled as failure:
            return await self._refuse(failure.reason)
        return await self._exchange(upstream_request, upstream)

    # --- the request

    def _judge(self, request: h11.Request) -> h11.Request:
        """Returns the request for the host. Raises RequestRefused."""
        given = list(request.headers)
        has_length, is_chunked = (any(name == header for name, _ in given) for header in (_LENGTH, _ENCODING))
        # With both, two readers could find two ends of the request.
        if request.http_version not in _VERSIONS or (is_chunked and (has_length or request.http_version != b"1.1")):
            raise RequestRefused(Reason.HTTP)
        if request.method.upper() in _REFUSED_METHODS:
            raise RequestRefused(Reason.HTTP_METHOD)
        target = self._target(request.target)
        named = [value for name, value in given if name == b"host"]
        if len(named) != 1 or not self._is_host(named[0]):
            raise RequestRefused(Reason.HTTP_HOST)
        authority = self._host if self._port == 80 else b"%s:%d" % (self._host, self._port)
        headers = [(b"Host", authority), *_passed_on(request.headers.raw_items(), _is_host_header)]
        if is_chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if _asks_for_websocket(request):
            headers += _SWITCH
        return h11.Request(method=request.method, target=target, headers=headers)

    def _target(self, target: bytes) -> bytes:
        """The path and query. Raises RequestRefused."""
        if target.startswith(b"/") or target == b"*":
            return target
        scheme, _, rest = target.partition(b"://")
        authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
        if scheme.lower() != b"http" or not self._is_host(authority):
            raise RequestRefused(Reason.HTTP_HOST)
        path = rest[len(authority) :]
        return path if path.startswith(b"/") else b"/" + path

    def _is_host(self, authority: bytes) -> bool:
        host, colon, port = authority.lower().partition(b":")
        return host.removesuffix(b".") == self._host and (not colon or port == str(self._port).encode())

    async def _reach(self) -> HttpSide:
        """Raises NotDialled."""
        if self._upstream is None or not self._upstream.is_idle:
            connection = await self._dial()
            self._upstream = HttpSide(self._turns, connection, h11.CLIENT, lambda size: self._count(0, size))
        return self._upstream

    async def _refuse(self, reason: str) -> bool:
        """Tells the program why. Returns whether the connection can go on."""
        self._refused(reason)
        http = self._program.http
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        status, headers, body = problem(reason)
        goes_on = reason not in (Reason.HTTP, Reason.HTTP_METHOD) and not http.they_are_waiting_for_100_continue
        if not goes_on:
            headers.append((b"Connection", b"close"))
        await self._program.send(h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()))
        if self._method != b"HEAD":
            await self._program.send(h11.Data(data=body))
        await self._program.send(h11.EndOfMessage())
        return goes_on and await self._discard()

    async def _discard(self) -> bool:
        """Reads what is left of a request, if it is not much."""
        size = 0
        try:
            while isinstance(event := await self._program.next(), h11.Data) and size <= DISCARDED:
                size += len(event.data)
        except h11.RemoteProtocolError:
            return False
        return self._program.http.our_state is h11.DONE and self._program.http.their_state is h11.DONE

    # --- the exchange

    async def _exchange(self, request: h11.Request, upstream: HttpSide) -> bool:
        """Passes a request and its answer on, both at once. Returns whether another request may follow."""
        body = asyncio.ensure_future(self._pass_body(request, upstream))
        answer = asyncio.ensure_future(self._pass_answer(request, upstream, body))
        try:
            await asyncio.wait((body, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                body.result()
                await asyncio.wait((answer,))
            return answer.result() and self._begin_next(upstream)
        except h11.RemoteProtocolError:
            return await self._refuse(Reason.HTTP)  # of the body: the answer has no such error
        except RequestRefused as refusal:
            await self._refuse(refusal.reason)
            return False
        finally:
            for part in (body, answer):
                part.cancel()
            await asyncio.gather(body, answer, return_exceptions=True)

    def _begin_next(self, upstream: HttpSide) -> bool:
        if upstream.http.our_state is h11.DONE and upstream.http.their_state is h11.DONE:
            upstream.http.start_next_cycle()
        return self._program.http.our_state is h11.DONE and self._program.http.their_state is h11.DONE

    async def _pass_body(self, request: h11.Request, upstream: HttpSide) -> None:
        """Raises h11.RemoteProtocolError and OSError for what the program sent."""
        with contextlib.suppress(OSError):  # a host that reads no more may have answered
            await upstream.send(request)
        while True:
            event = await self._program.next()
            if not isinstance(event, h11.Data | h11.EndOfMessage):
                return
            passed = h11.Data(data=event.data) if isinstance(event, h11.Data) else h11.EndOfMessage()
            try:
                await upstream.send(passed)
            except (OSError, h11.LocalProtocolError):  # it has ended
                return
            if isinstance(event, h11.EndOfMessage):
                return

    async def _pass_answer(self, request: h11.Request, upstream: HttpSide, body: asyncio.Future[None]) -> bool:
        """Returns False when the connection has to end. Raises RequestRefused while the program can still be told why,
        and OSError."""
        try:
            async with asyncio.timeout(self._answer_seconds) as patience:
                answer = await self._head(upstream)
                patience.reschedule(None)
                if answer.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                    await self._switch(answer, upstream, body)
                    return False
                await self._program.send(_answer(answer))
                return await self._rest(upstream)
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            self._give_up(Reason.UPSTREAM)
        except TimeoutError:
            if not patience.expired():
                raise
            self._give_up(Reason.TIMEOUT)
        return False

    def _give_up(self, reason: Reason) -> None:
        """Raises RequestRefused, or OSError when an answer has begun: then only a reset tells that it is not whole."""
        if self._program.http.our_state is h11.SEND_RESPONSE:
            raise RequestRefused(reason)
        raise ConnectionResetError

    async def _head(self, upstream: HttpSide) -> HttpAnswer:
        """Passes what comes before on: 100, 103. Raises h11.RemoteProtocolError and OSError."""
        while True:
            try:
                event = await upstream.next()
            except OSError as error:
                raise h11.RemoteProtocolError("the host has reset the connection") from error
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("the host has closed the connection")
            if event.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                return event
            if (self._program.http.their_http_version or b"") >= b"1.1":
                await self._program.send(_answer(event))

    async def _rest(self, upstream: HttpSide) -> bool:
        """Passes the body of an answer on."""
        while True:
            event = await upstream.next()
            if isinstance(event, h11.Data):
                await self._program.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._program.send(h11.EndOfMessage())
                return True
            else:
                raise h11.RemoteProtocolError("the host has closed the connection")

    async def _switch(self, answer: HttpAnswer, upstream: HttpSide, body: asyncio.Future[None]) -> None:
        """To WebSocket, whose bytes pass unread."""
        await body
        await self._program.send(_answer(answer, _SWITCH))
        await self._turns.send(self._program.connection, upstream.http.trailing_data[0])
        await self._turns.send(upstream.connection, self._program.http.trailing_data[0])
        await Splice(self._turns, self._program.connection, upstream.connection, self._kept, self._count).run()


def _answer(answer: HttpAnswer, more: Sequence[tuple[bytes, bytes]] = ()) -> HttpAnswer:
    """The answer for the program, which h11 frames anew."""
    is_chunked = any(name == _ENCODING for name, _ in answer.headers)
    headers = _passed_on(answer.headers.raw_items(), lambda name: is_chunked and name == _LENGTH)
    return type(answer)(status_code=answer.status_code, headers=[*headers, *more], reason=answer.reason)


def _passed_on(headers: Headers, is_left_out: Callable[[bytes], bool]) -> Headers:
    """Without what is for one side only: RFC 9110, 7.6.1. The length stays, whatever `Connection` says of it."""
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    left_out = (_HOP_BY_HOP | named) - {_LENGTH}
    return [(name, value) for name, value in headers if name.lower() not in left_out and not is_left_out(name.lower())]


def _is_host_header(name: bytes) -> bool:
    return name == b"host"


def _asks_for_websocket(request: h11.Request) -> bool:
    fields = {name: value.lower() for name, value in request.headers if name in (b"upgrade", b"connection")}
    tokens = [token.strip() for token in fields.get(b"connection", b"").split(b",")]
    return request.method == b"GET" and fields.get(b"upgrade") == b"websocket" and b"upgrade" in tokens
