"""HTTP/1.1 for one connection of a program, plain or in TLS that ends here. Requests and answers are parsed and written
anew, never copied, so that both sides read the same messages.

A refusal is `application/problem+json`. The connection goes on after one, unless it was unclear where the request ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

import h11

from app.egress.dialling import NotDialled
from app.egress.judging import SWITCH, Judge, RequestRefused, answer_for_program
from app.egress.placeholders import SecretRefused
from app.egress.problems import problem
from app.egress.reasons import Reason
from app.egress.splice import KeptBytes
from app.egress.streams import LARGE, SMALL, ByteStream, relay, send_counted
from app.egress.turns import SandboxTurns

HEAD = 32 * 1024  # bytes of a message's head
DISCARDED = 256 * 1024  # bytes of a refused request's body that are read so that the connection can go on

HttpAnswer = h11.Response | h11.InformationalResponse


class HttpSide:
    """One side of the connection: a stream, and what h11 knows of it. `kept` counts what the stream does not take."""

    def __init__(
        self, turns: SandboxTurns, kept: KeptBytes, stream: ByteStream, role: type[h11.CLIENT] | type[h11.SERVER]
    ) -> None:
        self.stream, self.http = stream, h11.Connection(role, max_incomplete_event_size=HEAD)
        self._turns, self._kept = turns, kept

    async def next(self) -> h11.Event | type[h11.PAUSED]:
        """Raises h11.RemoteProtocolError, OSError, and what the stream's `count` raises."""
        while True:
            event = self.http.next_event()
            if self._turns.over:
                await self._turns.next()
            if event is not h11.NEED_DATA:
                return cast("h11.Event | type[h11.PAUSED]", event)
            self.http.receive_data(await self.stream.receive(SMALL if self._kept.is_much else LARGE))

    async def send(self, event: h11.Event) -> None:
        """Raises h11.LocalProtocolError and OSError."""
        await send_counted(self.stream, self.http.send(event) or b"", self._kept)

    @property
    def is_idle(self) -> bool:
        """Whether another request can be sent. A host that has said more than its answer is not trusted with one."""
        if (self.http.our_state, self.http.their_state) != (h11.IDLE, h11.IDLE) or self.http.trailing_data[0]:
            return False
        return self.stream.is_quiet()


class HttpConnection:
    """`judge` returns the request for the host, and `put` the same with secrets, or it raises SecretRefused. `dial`
    connects to the host and raises NotDialled. `heard` is called when the first request has come, `refused` for each
    request that is refused: with the reason, and the request if it could be read."""

    def __init__(
        self,
        turns: SandboxTurns,
        program: ByteStream,
        kept: KeptBytes,
        answer_seconds: float,
        *,
        judge: Judge,
        put: Callable[[h11.Request], h11.Request],
        dial: Callable[[], Awaitable[ByteStream]],
        heard: Callable[[], None],
        refused: Callable[[str, h11.Request | None], None],
    ) -> None:
        self._turns, self._kept, self._answer_seconds = turns, kept, answer_seconds
        self._judge, self._put, self._dial, self._heard, self._refused = judge, put, dial, heard, refused
        self._program = HttpSide(turns, kept, program, h11.SERVER)
        self._upstream: HttpSide | None = None
        self._method = b""
        self._current: h11.Request | None = None

    async def run(self, first: bytes) -> None:
        """`first` was received before. Returns when the connection is over and has to be closed. Raises OSError, and
        what the streams' `count` raises."""
        if first:  # nothing would be the end
            self._program.http.receive_data(first)
        while await self._serve_one():
            self._program.http.start_next_cycle()

    async def is_permitted(self) -> bool:
        """Judges the request that is under way anew, also one that has become a WebSocket."""
        if self._current is not None:
            try:
                await self._judge.judge(self._current)
            except RequestRefused:
                return False
        return True

    async def _serve_one(self) -> bool:
        """Serves one request. Returns whether another one may follow."""
        self._current = None
        try:
            request = await self._program.next()
            self._heard()
            if not isinstance(request, h11.Request):
                return False
            self._method, self._current = request.method, request
            upstream_request = self._put(await self._judge.judge(request))
            upstream = await self._reach()
        except h11.RemoteProtocolError:
            return await self._refuse(Reason.HTTP)
        except SecretRefused as refusal:
            return await self._refuse(refusal.reason)
        except (RequestRefused, NotDialled) as refusal:
            return await self._refuse(refusal.reason, refusal.detail)
        return await self._exchange(upstream_request, upstream)

    async def _reach(self) -> HttpSide:
        """Raises NotDialled."""
        if self._upstream is None or not self._upstream.is_idle:
            self._upstream = HttpSide(self._turns, self._kept, await self._dial(), h11.CLIENT)
        return self._upstream

    async def _refuse(self, reason: str, detail: str = "") -> bool:
        """Tells the program why. Returns whether the connection can go on."""
        self._refused(reason, self._current)
        http = self._program.http
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return False
        status, headers, body = problem(reason, detail)
        is_clear = reason != Reason.HTTP and self._method.upper() != b"CONNECT"
        goes_on = is_clear and not http.they_are_waiting_for_100_continue
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
                await self._program.send(answer_for_program(answer))
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
                await self._program.send(answer_for_program(event))

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
        await self._program.send(answer_for_program(answer, SWITCH))
        await self._program.stream.send(upstream.http.trailing_data[0])
        await upstream.stream.send(self._program.http.trailing_data[0])
        await relay(self._turns, self._kept, self._program.stream, upstream.stream)
