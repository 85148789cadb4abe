"""The calls to a BoxLite server, with the time that each may take and the meaning of its answers.

Ids are the server's own and go into paths percent-encoded. A box is addressed by its id and never by its name: an
execution is bound to the exact spelling of the box in the request that made it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from app.backends.boxlite import RUNTIME
from app.backends.boxlite.attach import Attachment, Sockets
from app.backends.boxlite.box import Box, box_of, called, is_id, with_id
from app.backends.boxlite.client import LIST, BoxliteClient, Unanswered, Unreachable, upstream_of
from app.backends.boxlite.turns import TooManyPending, Turns
from app.core.errors import BackendFailure, BackendRefused, Upstream

WHITELIST = frozenset({1, 2, 3, 6, 10, 12, 15, 28})  # signals that the server passes on, to the first process only
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")
_PREFIX = re.compile(r"[A-Za-z0-9._~-]+(/[A-Za-z0-9._~-]+)*")


class SpawnFailed(Exception):
    """The box could not start the program; `str(error)` is the server's reason."""


class BoxliteServer:
    """`prefix` is the part between /v1/ and /boxes. With None the server is asked for it once."""

    def __init__(self, client: BoxliteClient, prefix: str | None) -> None:
        self.client, self.timeouts = client, client.timeouts
        self.sockets = Sockets(client.connections, client.timeouts)
        self._prefix = prefix
        self._finding = asyncio.Lock()
        self._turns = Turns()

    async def path(self, *segments: str) -> str:
        if self._prefix is None:
            async with self._finding:
                if self._prefix is None:
                    self._prefix = await self._discover()
        return self._known_path(*segments)

    def attach(self, box_id: str, execution_id: str) -> Attachment:
        """Raises AttachRefused and AttachCut, also inside the block."""
        return self.sockets.attached(self._known_path("boxes", box_id, "executions", execution_id, "attach"))

    def _known_path(self, *segments: str) -> str:
        """When something was asked of the server before."""
        prefix = f"/{self._prefix}" if self._prefix else ""
        return f"/v1{prefix}" + "".join([f"/{_in_path(segment)}" for segment in segments])

    async def _discover(self) -> str:
        """`path_prefix` of /v1/me; servers up to 0.9.5 have only `prefix` there, which others send without meaning."""
        try:
            found = (await self.client.request("GET", "/v1/me", seconds=self.timeouts.health_answer)).body
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
            await self.client.request("GET", path, seconds=self.timeouts.health_answer, limits=LIST)
        except BackendRefused as refused:
            if refused.upstream.status == 404:
                return False
            raise
        return True

    # --- boxes

    async def boxes(self) -> list[Box]:
        """All boxes that the key can see, as the server has neither pages nor filters."""
        path = await self.path("boxes")
        seconds = self.timeouts.health_answer
        found = (await self.client.request("GET", path, seconds=seconds, beat=True, limits=LIST)).body
        items = found.get("boxes") if isinstance(found, dict) else None
        if not isinstance(items, list):
            raise BackendRefused(RUNTIME, "the answer of the BoxLite server has no list of boxes", Upstream(200))
        return [box_of(item) for item in items]

    async def find(self, box_id: str) -> Box | None:
        """Finds a box by its id. Raises BackendRefused when the server answers with another box."""
        try:
            return with_id(await self._get(box_id), box_id)
        except BackendRefused as refused:
            if refused.upstream.status == 404:
                return None
            raise

    async def find_called(self, name: str) -> Box | None:
        """Finds a box by its name, as the server takes a name in place of an id."""
        try:
            return called(await self._get(name), name)
        except BackendRefused as refused:
            if refused.upstream.status == 404:
                return None
            raise

    async def _get(self, id_or_name: str) -> Box:
        return box_of((await self._call("GET", self.timeouts.control, "boxes", id_or_name)).body)

    async def create(self, body: Mapping[str, Any]) -> Box:
        """Makes only a record on the server. Nothing is pulled or booted. If the answer was lost, a box with the name
        may be this one, or one that an earlier life left. Nobody knows which, so it is removed and made once more."""
        name = str(body["name"])
        try:
            return await self._create(body, name)
        except Unanswered:
            found = await self.find_called(name)
            if found is None:
                raise
        await self.remove(found.id)
        return await self._create(body, name)

    async def _create(self, body: Mapping[str, Any], name: str) -> Box:
        return called(box_of((await self._call("POST", self.timeouts.control, "boxes", body=body)).body), name)

    async def start(self, box_id: str, seconds: float) -> Box:
        """Pulls the image and boots. Returns when the guest answers. Its main command starts a moment later."""
        return with_id(box_of((await self._call("POST", seconds, "boxes", box_id, "start")).body), box_id)

    async def remove(self, box_id: str) -> None:
        """Stops a box and then deletes it, as a DELETE alone may leave a detached VM behind where the server has no
        cgroup. Returns when there is no such box, or not any more."""
        if not await self._stop(box_id):
            return
        try:
            await self._delete(box_id)
        except Unanswered:  # mostly it was done all the same
            await self._delete(box_id)

    async def _stop(self, box_id: str) -> bool:
        """False when there is none. A refusal by the server is no reason not to delete it."""
        for _ in range(2):  # a stop that was broken off wedges the box until it is sent again; so may a start
            try:
                await self._call("POST", self.timeouts.stop, "boxes", box_id, "stop")
            except Unanswered as error:
                lost: BackendFailure | None = error
            except BackendFailure as error:
                status = upstream_of(error).status
                if status is None or status == 401:
                    raise
                if status == 404:
                    return False
                lost = None
            else:
                return True
        if lost is not None:
            raise lost
        return True

    async def _delete(self, box_id: str) -> None:
        try:
            await self._call("DELETE", self.timeouts.stop, "boxes", box_id, query={"force": "true"})
        except BackendRefused as refused:
            if refused.upstream.status != 404:
                raise

    # --- executions

    async def execute(self, box_id: str, body: Mapping[str, Any]) -> str:
        """Starts a command and returns the execution's id. Raises SpawnFailed."""
        try:
            found = (await self._talk("exec", "POST", self.timeouts.control, box_id, "exec", body=body)).body
        except BackendRefused as refused:
            _, mark, reason = str(refused).partition("spawn_failed: ")
            if refused.upstream.status == 500 and mark:
                raise SpawnFailed(reason) from refused
            raise
        execution_id = found.get("execution_id") if isinstance(found, dict) else None
        if not isinstance(execution_id, str) or not is_id(execution_id):
            raise BackendRefused(RUNTIME, "the answer of the BoxLite server has no execution", Upstream(201))
        return execution_id

    async def kill(self, box_id: str, execution_id: str) -> bool:
        """Sends SIGKILL to the first process. Returns False when there is none to kill, or not any more."""
        try:
            await self._talk("kill", "DELETE", self.timeouts.signal, box_id, "executions", execution_id)
        except BackendRefused as refused:
            if refused.upstream.status in {404, 500}:
                return False
            raise
        return True

    async def signal(self, box_id: str, execution_id: str, number: int) -> bool:
        """Signals the first process. Returns False when it has ended, or when the server does not pass that signal
        on."""
        return number in WHITELIST and await self._tell(box_id, execution_id, "signal", {"signal": number})

    async def resize(self, box_id: str, execution_id: str, rows: int, cols: int) -> bool:
        """Returns False when the execution has ended."""
        return await self._tell(box_id, execution_id, "resize", {"cols": cols, "rows": rows})

    async def _tell(self, box_id: str, execution_id: str, what: str, body: Mapping[str, Any]) -> bool:
        try:
            await self._talk(what, "POST", self.timeouts.signal, box_id, "executions", execution_id, what, body=body)
        except BackendRefused as refused:
            if refused.upstream.status in {404, 500}:  # 500: the guest knows no such process any more
                return False
            raise
        return True

    async def _talk(self, what: str, method: str, seconds: float, box_id: str, *segments: str, body: Any = None) -> Any:
        """With what is in the box, which may hang: so a few at a time of each kind (`what`)."""
        path, turns = await self.path("boxes", box_id, *segments), self._turns.of(box_id, what)
        return await self.client.request(method, path, seconds=seconds, body=body, turns=turns)

    async def _call(
        self, method: str, seconds: float, *segments: str, body: Any = None, query: Mapping[str, str] | None = None
    ) -> Any:
        return await self.client.request(method, await self.path(*segments), seconds=seconds, body=body, query=query)


@lru_cache(maxsize=1024)
def _in_path(segment: str) -> str:
    """`quote` returns most ids as they are, and takes ten times as long to find that out."""
    return segment if _UNRESERVED.fullmatch(segment) else quote(segment, safe="")


def _checked(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/"):
        raise BackendRefused(RUNTIME, "the BoxLite server names an invalid path prefix", Upstream(200))
    return prefix


def is_name_taken(error: BackendFailure) -> bool:
    """Whether the name of a box is taken: 400 and, in a race, 409."""
    return upstream_of(error).status in {400, 409} and "already exists" in str(error)


def is_slow_boot(error: BackendFailure) -> bool:
    """Whether a boot was only slow. 0.10.8 gives a guest 30 s to become ready, without a setting. On a busy host the
    second attempt often succeeds."""
    return upstream_of(error).code == "engine_unavailable" and "timed out" in str(error)


def is_silent(error: BaseException) -> bool:
    """Whether the error is about the server itself and not about a box: no connection, no answer, or no turn."""
    return isinstance(error, (Unreachable, Unanswered, TooManyPending))
