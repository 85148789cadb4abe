"""Answers that are not held in memory. They go piece by piece to a client that may be slow or may leave at any
moment."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.context import context_of, request_id_of
from app.api.http.disconnect import ClientDisconnected, until_disconnect
from app.core.errors import BackendFailure
from app.core.transfers import closing

_EXTENSION = "bulkhead.cut"  # app/serving/http_bounds.py puts it into the scope


class DownloadWriter:
    """Sends an answer to one client. It sends nothing before the first piece is there. So an error until then becomes a
    problem body, and a later error can only cut the connection."""

    def __init__(self, send: Send, *, head: bool = False) -> None:
        """With `head` the client asked with HEAD, so nothing is read."""
        self.begun = False
        self._send = send
        self._head = head

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def deliver(self, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes]) -> None:
        async with closing(pieces):
            if self._head:
                return await self.begin(status, headers)
            async for piece in pieces:
                if not self.begun:
                    await self.begin(status, headers)
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            if not self.begun:
                await self.begin(status, headers)
        return None

    async def finish(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class Download(Response):
    """`work` sends an answer through the outlet, in the task of the request. It is cancelled when the client
    disconnects. An error that it raises before the first piece becomes a problem."""

    def __init__(self, request: Request, work: Callable[[DownloadWriter], Awaitable[None]]) -> None:
        super().__init__()
        self._request = request
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet = DownloadWriter(send, head=scope["method"] == "HEAD")
        try:
            await until_disconnect(receive, self._work(outlet))
            await outlet.finish()  # here, as a server calls a client gone once the answer is complete
        except ClientDisconnected:
            raise
        except Exception as error:  # whatever it is, what was sent must not look complete
            if not outlet.begun:
                raise
            if isinstance(error, BackendFailure):
                context_of(self._request).journal.failure(request_id=request_id_of(self._request), error=error)
            await _cut(scope, receive)
            raise ClientDisconnected from error


async def _cut(scope: Scope, receive: Receive) -> None:
    """Cuts the connection without a well-formed end. Another server than Bulkhead's cuts it when it sees an incomplete
    answer."""
    cut = scope.get("extensions", {}).get(_EXTENSION, {}).get("cut")
    if cut is None:
        return
    cut()
    while (await receive())["type"] != "http.disconnect":
        pass
