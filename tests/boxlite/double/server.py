"""The double itself: listens, checks the key, records every request, and can crash and come back."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.boxlite.double import files, routes, system
from tests.boxlite.double.attach import attach, attach_main
from tests.boxlite.double.box import Box
from tests.boxlite.double.connection import Connection, Cut, Upgrade
from tests.boxlite.double.create import Options
from tests.boxlite.double.engine import Engine
from tests.boxlite.double.faults import Answer, Attach, Drop, Fault, Faults, Route, Stall
from tests.boxlite.double.housekeeping import keep_house
from tests.boxlite.double.http import Failure, Refused, Request, Response
from tests.boxlite.double.session import Frame
from tests.boxlite.double.settings import Settings

ROUTES = (files, system)  # imported for what they register


@dataclass(frozen=True)
class Recorded:
    """One request as it came in, whatever became of it. `route` is None where there is none."""

    route: Route | None
    method: str
    path: str
    query: dict[str, str]
    json: Any
    headers: dict[str, str] = field(repr=False)


class Double:
    """`async with Double() as double:` and then `double.url`, `double.key`, `double.requests`, `double.faults`.

    `prefix`: as of another server of the same contract; `/v1/me` tells it, and there is nothing without it.
    """

    def __init__(
        self, *, key: str = "test-key", settings: Settings | None = None, port: int = 0, prefix: str = ""
    ) -> None:
        self._prefix = prefix
        self.key = key
        self.port = port
        self.settings = settings or Settings()
        self.faults = Faults()
        self.requests: list[Recorded] = []
        self._folder = tempfile.TemporaryDirectory(prefix="boxlite-double-", ignore_cleanup_errors=True)
        self._arrival = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def boxes(self) -> list[Box]:
        """As the server knows them, newest first; for tests that look behind the wire."""
        return self._engine.boxes

    @property
    def frames(self) -> list[Frame]:
        """What clients have sent over their WebSockets."""
        return self._engine.frames

    @property
    def containers(self) -> set[str]:
        """The container ids of all boxes that there ever were. Every process in one has its own in its environment."""
        return self._engine.containers

    @property
    def folder(self) -> Path:
        """Where the boxes' disks are, one folder each."""
        return Path(self._folder.name)

    @property
    def attached_clients(self) -> int:
        return sum(execution.attached for execution in self._engine.executions.values())

    async def arrived(self, route: Route, times: int = 1) -> None:
        """Returns when so many requests of a route have come in, answered or not."""
        while len(self.sent(route)) < times:
            self._arrival.clear()
            await self._arrival.wait()

    def sent(self, route: Route) -> list[Recorded]:
        return [request for request in self.requests if request.route is route]

    async def __aenter__(self) -> Self:
        self._engine = Engine(self.folder, self.settings, self.faults, self._prefix)
        await self.restart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._disconnect()
        await self._engine.close()
        self._folder.cleanup()

    async def restart(self) -> None:
        """Listens, on the same port as before."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        if self._housekeeping is None:
            self._housekeeping = asyncio.get_running_loop().create_task(keep_house(self._engine, self.settings))

    async def refuse_connections(self) -> None:
        """New ones only; `restart` accepts them again."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def crash(self) -> None:
        """As by SIGKILL: every socket breaks without a Close, executions are forgotten, detached boxes live on."""
        await self._disconnect()
        await self._engine.forget()

    async def interrupt(self) -> None:
        """The clean stop, as by SIGINT: attached clients are told -1 and closed, and the processes live on."""
        await self.refuse_connections()
        for execution in self._engine.executions.values():
            execution.abandon()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.close_seconds):
                for execution in self._engine.executions.values():
                    await execution.free.wait()
        await self.crash()

    async def seed(self, name: str | None = None, *, start: bool = False, **options: Any) -> Box:
        """A box that somebody else made."""
        box = self._engine.create(Options(name=name, **options))
        if start:
            await box.start()
        return box

    def kill_box(self, box_id: str) -> None:
        """The box's machine dies; the server notices after `settle_seconds`."""
        self._engine.box(box_id).kill()

    async def _disconnect(self) -> None:
        await self.refuse_connections()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])
            self._housekeeping = None
        for box in self._engine.boxes:
            box.expect_crash()
        for writer in self._writers:
            writer.transport.abort()
        if self._connections:
            for task in self._connections:
                task.cancel()
            await asyncio.wait(self._connections)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        try:
            await Connection(reader, writer, self._answer).serve()
        except asyncio.CancelledError:  # the double crashes; the server's own callback would report it as an error
            pass
        finally:
            self._connections.discard(task)
            self._writers.discard(writer)

    async def _answer(self, request: Request) -> Response:
        request_id = ("x-request-id", request.headers.get("x-request-id") or str(uuid.uuid4()))
        try:
            response = await self._route(request)
        except Refused as refused:
            response = refused.response
        except Upgrade as upgrade:
            upgrade.headers.append(request_id)
            raise
        headers = [*response.headers, request_id]
        return Response(response.status, response.body, response.content_type, headers, response.verbatim)

    async def _route(self, request: Request) -> Response:
        found: tuple[Route, list[str]] | None = None
        problem: Refused | None = None
        try:
            found = routes.find(request, self._prefix)
        except Refused as refused:
            problem = refused
        self.requests.append(
            Recorded(
                found[0] if found else None,
                request.method,
                request.path,
                request.query,
                request.json,
                dict(request.headers),
            )
        )
        self._arrival.set()
        if request.path != "/v1/config" and request.headers.get("authorization", "") not in self._accepted():
            raise Failure("unauthenticated", "invalid or missing API key")
        if found is None:
            assert problem is not None
            raise problem
        route, args = found
        return await self._with_fault(route, request, args, self.faults.take(route))

    def _accepted(self) -> tuple[str, str]:
        return f"Bearer {self.key}", f"bearer {self.key}"

    async def _with_fault(self, route: Route, request: Request, args: list[str], fault: Fault | None) -> Response:
        async def work() -> Response:
            if route is Route.ATTACH:
                raise attach(self._engine, self.settings, request, args, fault if isinstance(fault, Attach) else None)
            if route is Route.ATTACH_MAIN:
                misbehaviour = fault if isinstance(fault, Attach) else None
                raise await attach_main(self._engine, self.settings, request, args, misbehaviour)
            return await routes.DEEDS[route](self._engine, request, args)

        match fault:
            case Answer(response):
                return response
            case Drop(done):
                if done:
                    await work()
                raise Cut
            case Stall(until, done, reached):
                done_already = await work() if done else None
                reached.set()
                await (until or asyncio.Event()).wait()
                return done_already or await work()
            case _:
                return await work()
