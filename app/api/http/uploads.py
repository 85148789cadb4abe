"""Bodies that are not read into memory. They go to their destination piece by piece, as the server receives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.types import Message

from app.api.context import context_of
from app.api.http.bodies import check_content_length
from app.api.http.disconnect import ClientDisconnected
from app.api.http.errors import BodyTooSlow, UnsupportedMediaType
from app.core.errors import FieldError, InvalidRequest, PayloadTooLarge


class Upload(AsyncIterator[bytes]):
    """The body of a request, which can be read once. A piece is what has arrived since the last one, some 250 KiB at
    most. Raises PayloadTooLarge and BodyTooSlow. Raises ClientDisconnected when the client disconnects, so that a part
    is never taken for the whole.
    """

    def __init__(self, request: Request) -> None:
        """Raises PayloadTooLarge, UnsupportedMediaType, InvalidRequest."""
        self._receive = request.receive
        self._bounds = context_of(request).transfers
        self._state = request.scope["state"]
        self._taken = 0
        self._ended = False
        headers = request.headers
        # Refused before it was told to go on, a client may leave the body out: nobody knows what comes next then.
        self._state["close_after_problem"] = "expect" in headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Content-Encoding: files are stored as they are sent; send them unencoded")
        if "content-range" in headers:
            raise InvalidRequest.at("header/content-range", "is not allowed: a file is replaced as a whole")
        check_content_length(headers, self._bounds.ceiling)

    async def __anext__(self) -> bytes:
        while not self._ended:
            message = await self._next_message()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body: bytes = message.get("body", b"")
            self._taken += len(body)
            if self._taken > self._bounds.ceiling:
                raise PayloadTooLarge(self._bounds.ceiling)
            self._ended = not message.get("more_body", False)
            if body:
                return body
        raise StopAsyncIteration

    async def _next_message(self) -> Message:
        seconds = self._bounds.stall_seconds
        self._state["close_after_problem"] = False
        try:
            async with asyncio.timeout(seconds):
                return await self._receive()
        except TimeoutError:
            sentence = f"no byte of the body arrived for {seconds:g} seconds"
            raise BodyTooSlow([FieldError("", sentence)]) from None
