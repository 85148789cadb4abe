"""The header Idempotency-Key on every POST: the first answer is repeated, and the work behind it is done once."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.context import context_of, request_id_of, visitor_of, waiting_request
from app.api.http.bodies import read_body
from app.api.http.disconnect import until_disconnect
from app.api.http.paced import COUNTED
from app.api.http.problems import problem_of
from app.core.errors import BulkheadError, InvalidRequest
from app.core.idempotency import IdempotencyStore, StoredAnswer

HEADER, REPLAYED = b"idempotency-key", b"idempotency-replayed"
PATTERN = r"[ -~]{1,255}"
TOO_MANY_REQUESTS, SERVER_ERROR = 429, 500
_KEY = re.compile(PATTERN.encode())
_OVERHEAD = 1024  # bytes that a stored answer takes beside its body, headers included


@dataclass(frozen=True, slots=True)
class Recorded:
    """An answer as the routes gave it. Request ids and the like are added outside, anew for each request."""

    start: Message
    body: bytes

    async def send(self, send: Send, *, repeated: bool) -> None:
        headers = [*self.start["headers"], *([(REPLAYED, b"true")] if repeated else ())]
        await send({**self.start, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Idempotency:
    """Pure ASGI, between the access check and the routes. A task of the store carries out a request with a key, and no
    disconnect ends that task. All clients that send the request only wait for it."""

    def __init__(self, app: ASGIApp, answers: IdempotencyStore[Recorded]) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        keys = [value for name, value in scope["headers"] if name == HEADER] if _is_post(scope) else []
        if not keys:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer, repeated = await self._answer(request, keys)
        except BulkheadError as error:
            context_of(request).journal.refused(error)
            await problem_of(error).response(request_id_of(request))(scope, receive, send)
            return
        await answer.content.send(send, repeated=repeated)

    async def _answer(self, request: Request, keys: list[bytes]) -> tuple[StoredAnswer[Recorded], bool]:
        if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
            raise InvalidRequest.at("header/Idempotency-Key", "must be one of 1 to 255 printable ASCII characters")
        scope = request.scope
        body = await read_body(request)
        key = _digest(scope["method"].encode(), scope["path"].encode(errors="surrogatepass"), keys[0])
        digest = _digest(scope["query_string"], body)
        client = visitor_of(request).client
        with waiting_request(request), context_of(request).shares.bodies.taking(client) as take:
            take(len(body))  # whoever waits for the answer of another holds its own body meanwhile
            return await until_disconnect(
                request.receive, self._answers.once(key, digest, lambda: self._work(dict(scope), [body]), client)
            )

    async def _work(self, scope: Scope, bodies: list[bytes]) -> StoredAnswer[Recorded]:
        """`bodies` holds the one body until it is read: what is kept for long must not hold 8 MiB."""

        async def receive() -> Message:
            if bodies:
                return {"type": "http.request", "body": bodies.pop(), "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

        recorder = _Recorder()
        try:
            await self._app(scope, receive, recorder)
        except Exception as error:  # nobody else may be there to tell it
            request = Request(scope)
            context_of(request).journal.failure(request_id=request_id_of(request), error=error)
            recorder = _Recorder()
            await problem_of(error).response(request_id_of(request))(scope, receive, recorder)
        return recorder.answer()


class _Recorder:
    def __init__(self) -> None:
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = {key: value for key, value in message.items() if key != COUNTED}  # it counts when it is sent
        else:
            piece = message.get("body", b"")
            self._body = self._body + piece if self._body else piece  # one that comes as a whole is not copied

    def answer(self) -> StoredAnswer[Recorded]:
        status = self._start["status"]
        lasting = status < SERVER_ERROR and status != TOO_MANY_REQUESTS
        return StoredAnswer(Recorded(self._start, self._body), len(self._body) + _OVERHEAD, lasting)


def _is_post(scope: Scope) -> bool:
    return scope["type"] == "http" and bool(scope["method"] == "POST")


def _digest(*parts: bytes) -> bytes:
    """A digest of the digests of the parts, so that bytes cannot be moved from one part to the next."""
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
