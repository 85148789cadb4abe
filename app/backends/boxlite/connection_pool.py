"""The connections to the BoxLite server: some are kept for the next request, and there are never too many."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlsplit

from app.backends.boxlite.connection import ConnectionBroken, HttpResponse, ServerConnection
from app.backends.boxlite.turns import take

KEPT = 32  # connections without a request
KEPT_SECONDS = 20.0  # less than servers and proxies keep them; one that they end is noticed at once
_PATH = "/%:@!$&'()*+,;=~"  # what a path may have beside letters, digits and -._


class NotConnected(Exception):
    """There is no connection, so nothing was sent."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    host: str
    port: int
    tls: bool
    authority: str  # as in the header Host
    path: str  # before that of a request

    @classmethod
    def of(cls, url: str) -> Self:
        """`url` is scheme://host[:port][/path]. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("it must be http://host or https://host")
        tls = parts.scheme == "https"
        host = parts.hostname.encode("idna").decode()
        usual = 443 if tls else 80
        port = usual if parts.port is None else parts.port
        name = f"[{host}]" if ":" in host else host
        authority = name if port == usual else f"{name}:{port}"
        return cls(host, port, tls, authority, quote(parts.path.rstrip("/"), safe=_PATH))


class ConnectionPool:
    """At most `most` requests at one time. `key` is sent as a bearer token, and is in no error and no repr.

    For https the certificate must be one that this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` of OpenSSL), for
    the host of the address.
    """

    def __init__(self, address: ServerAddress, key: str | None, most: int, kept_seconds: float = KEPT_SECONDS) -> None:
        self._address, self._kept_seconds = address, kept_seconds
        self._tls = _trusting() if address.tls else None
        secret = f"authorization: Bearer {key}\r\n" if key else ""
        self._headers = f"host: {address.authority}\r\n{secret}"
        self._places = asyncio.Semaphore(most)
        self._idle: list[ServerConnection] = []  # the one used last at the end
        self._open: set[ServerConnection] = set()  # all of them
        self._over = asyncio.Event()  # all have ended, and no more are opened
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    def request(self, method: str, path: str, headers: str = "", body: bytes | None = None) -> bytes:
        """The bytes of a request. `headers` are lines, each with its end."""
        length = f"content-length: {len(body or b'')}\r\n" if body is not None or method != "GET" else ""
        head = f"{method} {self._address.path}{path} HTTP/1.1\r\n{self._headers}{headers}{length}\r\n"
        return head.encode("ascii") + (body or b"")

    async def acquire(self, seconds: float) -> None:
        """A place for one request, to be given back by `release`. Raises TooManyPending."""
        await take(self._places, seconds)

    def release(self) -> None:
        self._places.release()

    async def exchange(
        self, request: bytes, body_limit: int, connect_seconds: float, *, until: float, again: bool
    ) -> tuple[HttpResponse, ServerConnection]:
        """Sends a request on a connection that was kept, or on a new one. `again`: once more on a new one if the kept
        one ended before any answer, as when the server closes what is idle; only for a request that changes nothing.
        The caller gives the connection to `keep`, or upgrades it. Raises NotConnected, ConnectionBroken,
        ResponseTooLarge, and TimeoutError at `until`, a time of the loop."""
        kept = self._kept()
        if kept is not None:
            try:
                return await kept.exchange(request, body_limit, until), kept
            except ConnectionBroken as broken:
                if not again or broken.began:
                    raise
        connection = await self._connected(min(connect_seconds, until - asyncio.get_running_loop().time()))
        return await connection.exchange(request, body_limit, until), connection

    def keep(self, connection: ServerConnection) -> None:
        """For the next request, if the answer allows it."""
        self._expire()
        if self._closed or not connection.reusable or len(self._idle) >= KEPT:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.append(connection)

    def warm(self, connect_seconds: float) -> None:
        """Opens a connection for the next request, if none is there. Nobody waits for it."""
        if not self._idle and self._warming is None and not self._closed:
            self._warming = asyncio.get_running_loop().create_task(self._warm(connect_seconds))
            self._warming.add_done_callback(self._warmed)

    async def _warm(self, connect_seconds: float) -> None:
        try:
            self.keep(await self._connected(connect_seconds))
        except NotConnected:
            return  # whoever needs one finds out

    def _warmed(self, _: asyncio.Task[None]) -> None:
        self._warming = None

    def _kept(self) -> ServerConnection | None:
        self._expire()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    def _expire(self) -> None:
        before = asyncio.get_running_loop().time() - self._kept_seconds
        while self._idle and self._idle[0].idle_since < before:
            self._idle.pop(0).close()

    def _ended(self, connection: ServerConnection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._closed and not self._open:
            self._over.set()

    async def _connected(self, seconds: float) -> ServerConnection:
        """Raises NotConnected."""
        loop, address = asyncio.get_running_loop(), self._address
        connection = ServerConnection(self._ended)
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=self._tls)
        except TimeoutError as error:
            connection.close()
            raise NotConnected(f"no connection within {seconds:g} seconds") from error
        except OSError as error:
            raise NotConnected(str(error) or type(error).__name__) from error
        except BaseException:
            connection.close()
            raise
        self._open.add(connection)
        return connection

    async def aclose(self) -> None:
        """Ends all connections, but for those that were handed over. Requests that are under way are the caller's to
        wait for."""
        self._closed = True
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.wait([self._warming])
        for connection in tuple(self._open):
            connection.close()
        if self._open:
            await self._over.wait()


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
