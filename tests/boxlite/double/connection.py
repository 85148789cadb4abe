"""One connection of a client: HTTP/1.1 by h11, a watch for the client that hangs up, the upgrade to a WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import h11

from tests.boxlite.double.http import BODY_LIMIT, Request, Response
from tests.boxlite.double.websocket import WebSocket, accept_key


class Cut(Exception):
    """The connection is to end here and now, without an answer."""


class Upgrade(Exception):
    """The answer is a WebSocket, with which `talk` goes on."""

    def __init__(self, talk: Callable[[WebSocket], Awaitable[None]], headers: list[tuple[str, str]]) -> None:
        super().__init__("upgrade")
        self.talk, self.headers = talk, headers


class Connection:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Request], Awaitable[Response]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Requests one after the other, until either side ends it."""
        try:
            while (request := await self._next_request()) is not None:
                await self._exchange(request)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except (Cut, ConnectionError, h11.RemoteProtocolError):
            self._writer.transport.abort()
        finally:
            self._writer.close()

    async def _next_request(self) -> Request | None:
        event = await self._event()
        if not isinstance(event, h11.Request):
            return None
        body = bytearray()
        size = 0
        while isinstance(data := await self._event(), h11.Data):
            size += len(data.data)
            if size <= BODY_LIMIT:
                body += data.data
        if not isinstance(data, h11.EndOfMessage):
            return None
        headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        return Request(event.method.decode(), event.target.decode(), headers, bytes(body), size > BODY_LIMIT)

    async def _event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            self._http.receive_data(await self._reader.read(1 << 16))
        return event

    async def _exchange(self, request: Request) -> None:
        """Answers, or stops in the middle when the client disconnects: that cancels the work, as in the server."""
        work = asyncio.get_running_loop().create_task(self._work(request))
        early = bytearray()
        watch = asyncio.get_running_loop().create_task(self._watch(early))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cut
            watch.cancel()
            await asyncio.wait({watch})
            upgrade = work.result()
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.wait({work, watch})
            if not work.cancelled():
                work.exception()
        if early:
            self._http.receive_data(bytes(early))
        if upgrade is not None:
            first, _ = self._http.trailing_data
            await upgrade.talk(WebSocket(self._reader, self._writer, first))
            raise Cut

    async def _watch(self, early: bytearray) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 16):
                early += data

    async def _work(self, request: Request) -> Upgrade | None:
        try:
            response = await self._answer(request)
        except Upgrade as upgrade:
            key = accept_key(request.headers.get("sec-websocket-key", ""))
            headers = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", key)]
            self._write(h11.InformationalResponse(status_code=101, headers=[*headers, *upgrade.headers]))
            await self._writer.drain()
            return upgrade
        if response.verbatim is not None:
            async for piece in response.verbatim:
                self._writer.write(piece)
                await self._writer.drain()
            self._writer.write_eof()
            raise Cut
        await self._send(response)
        return None

    async def _send(self, response: Response) -> None:
        headers = list(response.headers)
        if response.content_type is not None:
            headers.append(("content-type", response.content_type))
        if isinstance(response.body, bytes):
            if response.status != 204:
                headers.append(("content-length", str(len(response.body))))
            self._write(h11.Response(status_code=response.status, headers=headers))
            self._write(h11.Data(data=response.body))
        else:
            self._write(h11.Response(status_code=response.status, headers=headers))
            async for piece in response.body:
                self._write(h11.Data(data=piece))
                await self._writer.drain()
        self._write(h11.EndOfMessage())
        await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)
