"""HTTP to the BoxLite server: one connection pool, one bound on everything, one place where its errors become
Bulkhead's.

The server cancels the work of a client that disconnects, and that breaks a box (a boot becomes `failed`, a stop is left
half way). So no request here is ever cancelled from outside: every request is a task of its own, which goes on to its
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlencode

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.connection import ConnectionBroken, HttpResponse, ResponseTooLarge
from app.backends.boxlite.connection_pool import ConnectionPool, NotConnected, ServerAddress
from app.backends.boxlite.timeouts import ServerTimeouts
from app.backends.boxlite.turns import take
from app.core.backend import settle
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable, Upstream
from app.core.tasks import hand_over
from app.core.timeslices import TimeSlices


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """`parts` are objects, lists and commas. What is more in number or size would keep everybody waiting while it is
    parsed, which nothing can interrupt: 4 MiB of keys take 0.2 to 0.7 s."""

    bytes: int
    parts: int


# The list has all boxes of all who have the key. A box has 470 bytes or more, 7 objects and lists, and 17 commas. The
# worst list takes 0.15 s. All other answers are about one thing. The worst takes 5 ms.
LIST, ONE_THING = AnswerLimits(4 * 1024 * 1024, 220_000), AnswerLimits(256 * 1024, 10_000)
AT_ONCE_BYTES = 16 * 1024  # a longer answer is parsed in its turn, as many may come together
# What comes is counted as it comes, so nothing may be packed.
_HEADERS = "accept: application/json\r\naccept-encoding: identity\r\n"
_HEADERS_OF_JSON = f"{_HEADERS}content-type: application/json\r\n"
SHOWN = 300  # characters of the server's own words in our sentences
_UNAVAILABLE = frozenset({"engine_unavailable", "network_unavailable", "resource_exhausted", "upstream_unavailable"})


class Unreachable(BackendUnavailable):
    """There is no connection, so nothing was sent."""


class Unanswered(BackendTimeout):
    """The request was sent and no answer came. Its effect has to be looked up."""


@dataclass(frozen=True, slots=True)
class ServerReply:
    status: int
    body: Any  # JSON, or None when there is none


def shown(text: str) -> str:
    """Makes text of a server or an image safe for a sentence: one line, without control characters. Of a long text it
    keeps both ends: the beginning says what went wrong, the end says how."""
    if len(text) > 8 * SHOWN:
        text = f"{text[: 4 * SHOWN]} {text[-4 * SHOWN :]}"
    line = " ".join(text.split())
    if len(line) > SHOWN:
        line = f"{line[: SHOWN // 2]} … {line[-SHOWN // 2 :]}"
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def seen(task: asyncio.Task[Any]) -> None:
    """Reads a task's error, as nobody may be left to read it."""
    if not task.cancelled():
        task.exception()


class BoxliteClient:
    """`url` is scheme://host[:port][/path]. `key` is sent as a bearer token and never logged."""

    def __init__(
        self, url: str, key: str | None, timeouts: ServerTimeouts | None = None, *, connections: int = 256
    ) -> None:
        self.timeouts = timeouts or ServerTimeouts()
        self._key = key
        self._requests: set[asyncio.Task[None]] = set()
        self._closed = False
        address = ServerAddress.of(url)
        self.connections = ConnectionPool(address, key, connections)
        self._beats = ConnectionPool(address, key, 2)  # what tells whether the server is there waits for no hung box

    async def request(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        turns: asyncio.Semaphore | None = None,
        beat: bool = False,
        limits: AnswerLimits = ONE_THING,
    ) -> ServerReply:
        """Returns the answer of a 2xx. Raises BackendRefused, BackendUnavailable (Unreachable, TooManyPending),
        BackendTimeout (Unanswered). `seconds` bounds the whole exchange, however slowly the bytes come. Before that the
        request may wait as long for one of `turns`, which it holds until the answer is there. With `beat` it uses
        connections of its own."""
        if turns is not None:
            await take(turns, seconds)
        if self._closed:
            if turns is not None:
                turns.release()
            raise Unreachable(RUNTIME, "the service is stopping")
        pool = self._beats if beat else self.connections
        path = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        sent = pool.request(method, path, _HEADERS if data is None else _HEADERS_OF_JSON, data)
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[ServerReply] = loop.create_future()
        task = hand_over(self._send(pool, method, sent, seconds, limits), reply, loop.create_task)
        if turns is not None:
            task.add_done_callback(lambda _: turns.release())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        task.add_done_callback(seen)
        return await reply

    async def _send(
        self, pool: ConnectionPool, method: str, request: bytes, seconds: float, limits: AnswerLimits
    ) -> ServerReply:
        until = asyncio.get_running_loop().time() + seconds
        await pool.acquire(seconds)
        try:
            response, connection = await pool.exchange(
                request, limits.bytes, self.timeouts.connect, until=until, again=method == "GET"
            )
            pool.keep(connection)
            if len(response.body) > AT_ONCE_BYTES:
                await TimeSlices.of_loop().next()
            return self._understood(response, limits.parts)
        except NotConnected as error:
            raise Unreachable(RUNTIME, f"the BoxLite server cannot be reached: {self._shown(str(error))}") from error
        except TimeoutError as error:
            detail = f"the BoxLite server did not answer {method} within {seconds:g} seconds"
            raise Unanswered(RUNTIME, detail) from error
        except ConnectionBroken as error:
            detail = f"the BoxLite server's answer to {method} is incomplete: {self._shown(str(error))}"
            raise Unanswered(RUNTIME, detail) from error
        except ResponseTooLarge as error:
            detail = f"the BoxLite server answers with more than {limits.bytes} bytes"
            raise BackendRefused(RUNTIME, detail, Upstream(error.status)) from error
        finally:
            pool.release()

    async def aclose(self) -> None:
        """Waits for requests that are under way, as a disconnect would break boxes."""
        self._closed = True
        for task in tuple(self._requests):
            with contextlib.suppress(BackendFailure):
                await settle(task)
        await self.connections.aclose()
        await self._beats.aclose()

    # --- what the server says

    def _shown(self, text: str) -> str:
        """And not the key, which a server may repeat."""
        return shown(text.replace(self._key, "…") if self._key else text)

    def _understood(self, response: HttpResponse, parts: int) -> ServerReply:
        status, raw = response.status, response.body
        if 200 <= status < 300:
            if not raw:
                return ServerReply(status, None)
            try:
                return ServerReply(status, _parsed(raw, parts))
            except (ValueError, RecursionError):
                raise BackendRefused(
                    RUNTIME, "the answer of the BoxLite server is not JSON", Upstream(status)
                ) from None
        found: Any = None
        if response.header("content-type").startswith("application/json"):
            with contextlib.suppress(ValueError, RecursionError):
                found = _parsed(raw, ONE_THING.parts)
        self._refuse(status, found, raw, response.header("x-request-id"))

    def _refuse(self, status: int, found: Any, raw: bytes, request_id: str) -> NoReturn:
        """The envelope, the cloud's flat body, or plain text; `code` beats the status."""
        code: Any = None
        message: Any = None
        if isinstance(found, dict):
            inner = found.get("error")
            envelope = inner if isinstance(inner, dict) else found
            code, message = envelope.get("code"), envelope.get("message")
        code = self._shown(code)[:64] or None if isinstance(code, str) else None  # up to 0.9.0 the status stands there
        text = message if isinstance(message, str) else raw.decode(errors="replace")
        upstream = Upstream(status, code)
        if status == 401 or code == "unauthenticated":
            raise BackendUnavailable(RUNTIME, "the BoxLite server refuses the key", 60, upstream)
        said = self._shown(text) or "nothing more"
        request = f" (its request {self._shown(request_id)[:64]})" if request_id else ""
        detail = f"the BoxLite server answers {status} {code or ''}".rstrip() + f": {said}{request}"
        if status == 504 or code == "timeout":
            raise BackendTimeout(RUNTIME, detail, upstream)
        if code in _UNAVAILABLE or (code is None and status in {429, 502, 503}):
            raise BackendUnavailable(RUNTIME, detail, 5, upstream)
        raise BackendRefused(RUNTIME, detail, upstream)


def _parsed(raw: bytes, parts: int) -> Any:
    """Raises ValueError, RecursionError."""
    if sum(map(raw.count, (b"[", b"{", b","))) > parts:
        raise ValueError("too many parts")
    return json.loads(raw.decode())  # of bytes it would guess the encoding


def upstream_of(error: BackendFailure) -> Upstream:
    """The server's status and code, if it sent any."""
    found = getattr(error, "upstream", None)
    return found if isinstance(found, Upstream) else Upstream()
