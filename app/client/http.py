"""The calls of the client, one method each."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from app import __version__
from app.client.errors import ClientError, ServiceUnreachable, problem_of, reason_of

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from app.client.events import ServerEvent
    from app.client.stream import Stream

DEFAULT_URL = "http://127.0.0.1:8000"
USER_AGENT = f"bulkhead/{__version__}"
READ_SECONDS = 30.0
CREATING_SECONDS = 60.0  # the service waits so long for a sandbox that is to run a command
GOODBYE_SECONDS = 0.05  # a WebSocket's goodbye is a courtesy: it must not cost the user a wait
PAGE = 1000
SILENCE_SECONDS = 60.0  # the service sends a comment every 15 seconds
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A piece of stored output. `offset` is later than the one asked for if bytes were dropped."""

    offset: int
    data: bytes
    next_offset: int
    total: int
    complete: bool


def segment(text: str) -> str:
    """Encodes one component of a path. The rules of URLs would remove `.` and `..`."""
    if text in {"", ".", ".."}:
        raise ClientError(f"{text!r} is not an id")
    return quote(text, safe="")


def _checked_key(key: str | None) -> str | None:
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientError("the key has characters that a header cannot have (a line break?)")
    return key or None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client:
    """One connection to one service, kept alive between the calls. Use it as an async context manager."""

    def __init__(self, url: str = DEFAULT_URL, key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ClientError("the service's URL must begin with http:// or https:// and name a host")
        if parts.username is not None:
            raise ClientError("the service's URL must not hold a key or password: use BULKHEAD_CLIENT_KEY")
        self.url = url.rstrip("/")
        self.key = _checked_key(key)
        self.direct = _is_loopback(parts.hostname)  # a proxy of the environment cannot reach our loopback
        # Reading the certificate store takes 20 ms; plain HTTP has no use for it, and redirects are not followed.
        verify = True if parts.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._goodbyes: dict[asyncio.Task[None], ClientConnection] = {}
        self._http = httpx.AsyncClient(headers=self.headers(), verify=verify, trust_env=not self.direct)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        return cls(environ.get("BULKHEAD_CLIENT_URL") or DEFAULT_URL, environ.get("BULKHEAD_CLIENT_KEY"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._goodbyes:
            await asyncio.wait(self._goodbyes, timeout=GOODBYE_SECONDS)
            for task, connection in self._goodbyes.items():
                task.cancel()
                connection.transport.abort()
        await self._http.aclose()

    def headers(self) -> dict[str, str]:
        return {"User-Agent": USER_AGENT} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Json | None = None,
        params: Iterable[tuple[str, str | int]] = (),
        wait_seconds: float = 0,
    ) -> httpx.Response:
        """One call. Raises Problem for anything but 2xx, ServiceUnreachable, ClientError."""
        limits = httpx.Timeout(READ_SECONDS, read=READ_SECONDS + wait_seconds, connect=10)
        query: list[tuple[str, str | int | float | bool | None]] = [*params]  # a name may come twice: `label` does
        repeatable = method in {"GET", "DELETE"}
        while True:
            try:
                response = await self._http.request(method, self.url + path, json=json, params=query, timeout=limits)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise ServiceUnreachable(self.url, reason_of(error)) from error
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if not repeatable:
                    raise ClientError(f"the connection to {self.url} was cut ({reason_of(error)})") from error
                repeatable = False  # a kept connection that was closed while idle shows itself only here
            except httpx.TimeoutException as error:
                raise ClientError(f"{self.url} did not answer in {READ_SECONDS + wait_seconds:g} seconds") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ClientError(f"{self.url}: {reason_of(error)}") from error
            else:
                if not response.is_success:
                    raise problem_of(response.status_code, response.reason_phrase, response.content)
                return response

    async def _json(self, method: str, path: str, **arguments: Any) -> Json:
        response = await self.request(method, path, **arguments)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ClientError(f"the answer of {self.url} is not that of a Bulkhead service")
        return answer

    async def _items(self, path: str, params: list[tuple[str, str]]) -> AsyncIterator[Json]:
        cursor: list[tuple[str, str]] = []
        while True:
            page = await self._json("GET", path, params=[*params, ("limit", str(PAGE)), *cursor])
            for item in page.get("items", ()):
                yield item
            if not page.get("next_cursor"):
                return
            cursor = [("cursor", page["next_cursor"])]

    # --- sandboxes

    async def create_sandbox(self, body: Json, wait_seconds: int = 300) -> Json:
        """Creates a sandbox. It is `creating` if its boot takes longer than `wait_seconds`."""
        params = [("wait_seconds", wait_seconds)]
        return await self._json("POST", "/sandboxes", json=body, params=params, wait_seconds=wait_seconds)

    async def sandbox(self, sandbox_id: str, wait_seconds: int = 0) -> Json:
        """Shows a sandbox. The answer is held while it is `creating`, for at most `wait_seconds`."""
        path, params = f"/sandboxes/{segment(sandbox_id)}", [("wait_seconds", wait_seconds)]
        return await self._json("GET", path, params=params, wait_seconds=wait_seconds)

    def sandboxes(self, labels: Mapping[str, str] | None = None) -> AsyncIterator[Json]:
        """Oldest first."""
        return self._items("/sandboxes", [("label", f"{k}:{v}") for k, v in (labels or {}).items()])

    async def update_sandbox(self, sandbox_id: str, body: Json) -> Json:
        """Changes what the body names."""
        return await self._json("PATCH", f"/sandboxes/{segment(sandbox_id)}", json=body)

    async def destroy_sandbox(self, sandbox_id: str) -> None:
        await self.request("DELETE", f"/sandboxes/{segment(sandbox_id)}")

    async def runtimes(self) -> list[Json]:
        answer = await self._json("GET", "/runtimes")
        return list(answer.get("items", ()))

    # --- its network

    def network_events(self, sandbox_id: str, verdict: str | None = None) -> AsyncIterator[Json]:
        """Oldest first. `verdict`: `allowed` or `refused` only."""
        return self._items(f"/sandboxes/{segment(sandbox_id)}/network", [("verdict", verdict)] if verdict else [])

    def follow_network(self, sandbox_id: str, verdict: str | None = None) -> AsyncIterator[ServerEvent]:
        """What is kept, then what comes, until the sandbox ends: `network`, and `gap` where events are missing."""
        from app.client.events import follow

        path = f"{self.url}/sandboxes/{segment(sandbox_id)}/network"
        query = {"verdict": verdict} if verdict else {}

        def ask(headers: dict[str, str]) -> AbstractAsyncContextManager[httpx.Response]:
            return self._http.stream("GET", path, params=query, headers=headers, timeout=SILENCE_SECONDS)

        return follow(self.url, ask)

    # --- executions

    def executions(self, sandbox_id: str) -> AsyncIterator[Json]:
        """Oldest first."""
        return self._items(f"/sandboxes/{segment(sandbox_id)}/executions", [])

    async def start(self, sandbox_id: str, body: Json) -> Json:
        """Starts a command and returns when it runs. The service waits for a sandbox that is `creating`."""
        path = f"/sandboxes/{segment(sandbox_id)}/executions"
        return await self._json("POST", path, json=body, wait_seconds=CREATING_SECONDS)

    async def run(self, sandbox_id: str, body: Json) -> Json:
        """One command to its end. The client waits for a minute beyond what it waits for a sandbox."""
        path = f"/sandboxes/{segment(sandbox_id)}/run"
        return await self._json("POST", path, json=body, wait_seconds=2 * CREATING_SECONDS)

    async def usage(self, sandbox_id: str, execution_id: str | None = None) -> Json:
        """Of one execution, or of the whole sandbox."""
        path = execution_path(sandbox_id, execution_id) if execution_id else f"/sandboxes/{segment(sandbox_id)}"
        return await self._json("GET", f"{path}/usage")

    async def execution(self, sandbox_id: str, execution_id: str) -> Json:
        return await self._json("GET", execution_path(sandbox_id, execution_id))

    async def resize(self, sandbox_id: str, execution_id: str, rows: int, cols: int) -> None:
        """Gives the terminal of an execution another size."""
        path = execution_path(sandbox_id, execution_id) + "/resize"
        await self.request("POST", path, json={"rows": rows, "cols": cols})

    async def signal(self, sandbox_id: str, execution_id: str, signal: str) -> None:
        await self.request("POST", execution_path(sandbox_id, execution_id) + "/signal", json={"signal": signal})

    async def kill(self, sandbox_id: str, execution_id: str) -> None:
        """When this returns, everything that the execution started is gone."""
        await self.request("DELETE", execution_path(sandbox_id, execution_id))

    async def output(self, sandbox_id: str, execution_id: str, channel: str, offset: int, limit: int) -> Stored:
        """Reads the stored output of one channel, from `offset`."""
        path = execution_path(sandbox_id, execution_id) + "/output"
        params: list[tuple[str, str | int]] = [("channel", channel), ("offset", offset), ("limit", limit)]
        answer = await self.request("GET", path, params=params)
        begin = int(answer.headers.get("Output-Offset", offset))
        after = int(answer.headers.get("Output-Next-Offset", begin + len(answer.content)))
        total = int(answer.headers.get("Output-Total", after))
        return Stored(begin, answer.content, after, total, answer.headers.get("Output-Complete") == "true")

    def stream(
        self,
        sandbox_id: str,
        execution_id: str,
        *,
        stdin: bool = False,
        take: bool = False,
        offsets: Mapping[str, int] | None = None,
    ) -> Stream:
        """Everything that the execution prints, from its first byte to its exit; with `offsets`, by channel, from there
        on. `take` takes stdin over from whoever holds it."""
        from app.client.stream import Connector, Stream

        path = execution_path(sandbox_id, execution_id) + "/stream"
        dial = Connector(self.url, path, self.headers(), self.direct)
        return Stream(dial, self._say_goodbye, stdin=stdin, take=take, offsets=offsets)

    def _say_goodbye(self, connection: ClientConnection) -> None:
        self._goodbyes[asyncio.create_task(connection.close())] = connection


def execution_path(sandbox_id: str, execution_id: str) -> str:
    return f"/sandboxes/{segment(sandbox_id)}/executions/{segment(execution_id)}"
