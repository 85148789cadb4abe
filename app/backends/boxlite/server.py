"""What we ask of a BoxLite server, call by call, with the time that each may take and what its answers mean.

Ids are the server's own and go into paths percent-encoded; a box is addressed by its id, never by its name: an
execution is bound to the exact spelling of the box in the request that made it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.client import Client, Unanswered, upstream_of
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable, Upstream

CONTROL_SECONDS = 30.0
STOP_SECONDS = 60.0  # up to 13 s by themselves; hanging up in the middle wedges the box
SIGNAL_SECONDS = 15.0  # the server gives up at 10 s
WHITELIST = frozenset({1, 2, 3, 6, 10, 12, 15, 28})  # signals that the server passes on, to the first process only
_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")


@dataclass(frozen=True, slots=True)
class Box:
    id: str
    name: str | None
    status: str
    said: Mapping[str, Any]  # as the server tells it

    @property
    def over(self) -> bool:
        return self.status in {"stopped", "failed"}


class SpawnFailed(Exception):
    """The box could not start the program; `str(error)` is the server's reason."""


def _box(found: Any) -> Box:
    if not isinstance(found, dict) or not isinstance(found.get("box_id"), str) or not found["box_id"]:
        raise BackendRefused(RUNTIME, "the BoxLite server answers with no box", Upstream())
    name = found.get("name")
    return Box(found["box_id"], name if isinstance(name, str) else None, str(found.get("status")), found)


class Server:
    """`prefix`: what stands between /v1/ and /boxes; None: asked of the server, once."""

    def __init__(self, client: Client, prefix: str | None) -> None:
        self.client = client
        self._prefix = prefix
        self._finding = asyncio.Lock()

    async def path(self, *segments: str) -> str:
        if self._prefix is None:
            async with self._finding:
                if self._prefix is None:
                    self._prefix = await self._discover()
        return self.known_path(*segments)

    def known_path(self, *segments: str) -> str:
        """When something was asked of the server before."""
        prefix = f"/{self._prefix}" if self._prefix else ""
        return f"/v1{prefix}" + "".join(f"/{quote(segment, safe='')}" for segment in segments)

    async def _discover(self) -> str:
        """`path_prefix` of /v1/me; servers up to 0.9.5 have only `prefix` there, which others send without meaning."""
        try:
            found = (await self.client.request("GET", "/v1/me", seconds=CONTROL_SECONDS)).body
        except BackendRefused as refused:
            if refused.upstream.status != 404:
                raise
            found = None
        found = found if isinstance(found, dict) else {}
        wanted, legacy = found.get("path_prefix"), found.get("prefix")
        if isinstance(wanted, str) and wanted:
            return _checked(wanted)
        if isinstance(legacy, str) and legacy and not await self._is_there("/v1/boxes"):
            legacy = _checked(legacy)
            if await self._is_there(f"/v1/{legacy}/boxes"):
                return legacy
        return ""

    async def _is_there(self, path: str) -> bool:
        try:
            await self.client.request("GET", path, seconds=CONTROL_SECONDS)
        except BackendRefused as refused:
            if refused.upstream.status == 404:
                return False
            raise
        return True

    # --- boxes

    async def boxes(self, seconds: float = CONTROL_SECONDS) -> list[Box]:
        """All that the key can see: the server knows no pages and no filter."""
        found = (await self.client.request("GET", await self.path("boxes"), seconds=seconds)).body
        items = found.get("boxes") if isinstance(found, dict) else None
        if not isinstance(items, list):
            raise BackendRefused(RUNTIME, "the BoxLite server answers with no list of boxes", Upstream(200))
        return [_box(item) for item in items]

    async def find(self, id_or_name: str) -> Box | None:
        try:
            return _box((await self._call("GET", CONTROL_SECONDS, "boxes", id_or_name)).body)
        except BackendRefused as refused:
            if refused.upstream.status == 404:
                return None
            raise

    async def create(self, body: Mapping[str, Any]) -> Box:
        """Only a record on the server; nothing is pulled or booted. An answer that got lost is looked up by name."""
        try:
            return _box((await self._call("POST", CONTROL_SECONDS, "boxes", body=body)).body)
        except Unanswered:
            found = await self.find(str(body["name"]))
            if found is None:
                raise
            return found

    async def start(self, box_id: str, seconds: float) -> Box:
        """Pulls the image, boots: returns when the guest answers. Its main command starts a moment later."""
        return _box((await self._call("POST", seconds, "boxes", box_id, "start")).body)

    async def remove(self, box_id: str) -> None:
        """Stops it, then deletes it: a DELETE alone may leave a detached VM behind where the server has no cgroup.
        Returns when there is no such box (any more)."""
        for attempt in (1, 2):
            try:
                await self._call("POST", STOP_SECONDS, "boxes", box_id, "stop")
            except Unanswered:  # a stop that was broken off wedges the box until it is sent again
                if attempt == 2:
                    raise
            except BackendRefused as refused:
                if refused.upstream.status == 404:
                    return
                if attempt == 2:  # DELETE does not need it to have stopped
                    break
            else:
                break
        try:
            await self._call("DELETE", STOP_SECONDS, "boxes", box_id, query={"force": "true"})
        except BackendRefused as refused:
            if refused.upstream.status != 404:
                raise

    # --- executions

    async def execute(self, box_id: str, body: Mapping[str, Any]) -> str:
        """The execution's id. Raises SpawnFailed."""
        try:
            found = (await self._call("POST", CONTROL_SECONDS, "boxes", box_id, "exec", body=body)).body
        except BackendRefused as refused:
            _, mark, reason = str(refused).partition("spawn_failed: ")
            if refused.upstream.status == 500 and mark:
                raise SpawnFailed(reason) from refused
            raise
        execution_id = found.get("execution_id") if isinstance(found, dict) else None
        if not isinstance(execution_id, str) or not execution_id:
            raise BackendRefused(RUNTIME, "the BoxLite server answers with no execution", Upstream(201))
        return execution_id

    async def kill(self, box_id: str, execution_id: str) -> bool:
        """SIGKILL to the first process. False when there is none to kill (any more)."""
        try:
            await self._call("DELETE", SIGNAL_SECONDS, "boxes", box_id, "executions", execution_id)
        except BackendRefused as refused:
            if refused.upstream.status in {404, 500}:
                return False
            raise
        return True

    async def signal(self, box_id: str, execution_id: str, number: int) -> bool:
        """To the first process. False when it has ended, or the server does not pass that signal on."""
        return number in WHITELIST and await self._tell(box_id, execution_id, "signal", {"signal": number})

    async def resize(self, box_id: str, execution_id: str, rows: int, cols: int) -> bool:
        """False when it has ended."""
        return await self._tell(box_id, execution_id, "resize", {"cols": cols, "rows": rows})

    async def _tell(self, box_id: str, execution_id: str, what: str, body: Mapping[str, Any]) -> bool:
        try:
            await self._call("POST", SIGNAL_SECONDS, "boxes", box_id, "executions", execution_id, what, body=body)
        except BackendRefused as refused:
            if refused.upstream.status in {404, 500}:  # 500: the guest knows no such process any more
                return False
            raise
        return True

    async def _call(
        self, method: str, seconds: float, *segments: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        return await self.client.request(method, await self.path(*segments), seconds=seconds, body=body, query=query)


def _checked(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/"):
        raise BackendRefused(RUNTIME, "the BoxLite server names a path prefix that cannot be one", Upstream(200))
    return prefix


def is_name_taken(error: BackendFailure) -> bool:
    """400 and, in a race, 409."""
    return upstream_of(error).status in {400, 409} and "already exists" in str(error)


def is_slow_boot(error: BackendFailure) -> bool:
    """0.10.8 gives a guest 30 s to become ready, with no setting: on a busy host the second attempt often makes it."""
    return upstream_of(error).code == "engine_unavailable" and "timed out" in str(error)


def is_unreachable(error: BaseException) -> bool:
    """The server itself, not something in it."""
    return isinstance(error, (BackendUnavailable, BackendTimeout)) and upstream_of(error).status is None


def main_command() -> Sequence[str]:
    """PID 1 of the box. It reaps orphans and ends on TERM, in 0.2 s where `sleep infinity` takes 3."""
    return ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"]
