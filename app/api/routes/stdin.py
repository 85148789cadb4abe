"""Stdin as the body of a request. It goes to the program as it arrives, and no faster than the program reads."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.context import context_of, waiting_request
from app.api.http.disconnect import ClientDisconnected
from app.api.http.strict_route import StrictRoute
from app.api.openapi.documents import problems
from app.core.backend import settle
from app.core.errors import Conflict, WrongState
from app.core.executions import Execution

router = APIRouter(
    prefix="/sandboxes/{sandbox_id}/executions/{execution_id}", tags=["executions"], route_class=StrictRoute
)

AHEAD = 64 * 1024  # beyond it the server's own bounded buffer fills, then the client's

_END_SECONDS = 1.0


class StdinQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    eof: Annotated[bool, Field(description="close stdin after the body")] = False


@router.put(
    "/stdin",
    operation_id="write_stdin",
    summary="Write to an execution's stdin",
    status_code=204,
    response_class=Response,
    responses=problems(
        "invalid_request",
        "not_found",
        "conflict",
        "wrong_state",
        "payload_too_large",
        "capacity_exceeded",
        "runtime_failed",
        "backend_error",
        "backend_unavailable",
        "backend_timeout",
    ),
    openapi_extra={
        "requestBody": {
            "description": "raw bytes, of any length and at any speed",
            "required": False,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def write_stdin(
    request: Request, sandbox_id: str, execution_id: str, query: Annotated[StdinQuery, Query()]
) -> Response:
    """The body may have any media type. It is passed on while it arrives, as fast as the program reads. The answer
    comes when all of it was accepted. If the client disconnects, stdin has what arrived and stays open."""
    context = context_of(request)
    # Refused before it was told to go on, a client may leave the body out: nobody knows what comes next then.
    request.scope["state"]["close_after_problem"] = "expect" in request.headers
    execution = context.sandboxes.execution(sandbox_id, execution_id)
    with waiting_request(request):
        await _Upload(execution, request, context.timeouts.close).run(eof=query.eof)
    return Response(status_code=204)


class _Upload:
    """Reads a little ahead of the program, so that a disconnect is noticed while the program does not read."""

    def __init__(self, execution: Execution, request: Request, close_seconds: float) -> None:
        """Raises Conflict, WrongState. `close_seconds` is the seconds for the program to read what a client that left
        has sent."""
        self._execution = execution
        self._lease = execution.lease_stdin(take=False)
        self._request = request
        self._close_seconds = close_seconds
        self._ahead = bytearray()
        self._whole = self._gone = False
        self._came, self._room = asyncio.Event(), asyncio.Event()

    async def run(self, *, eof: bool) -> None:
        """Raises WrongState, Conflict, what the runtime raised, and ClientDisconnected when the client disconnected
        before the end."""
        loop = asyncio.get_running_loop()
        feeding, reading = loop.create_task(self._feed(eof)), loop.create_task(self._read())
        taken = loop.create_task(self._lease.taken_over.wait())
        tasks: list[asyncio.Task[Any]] = [feeding, reading, taken]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                await asyncio.wait([feeding, taken], timeout=self._close_seconds, return_when=asyncio.FIRST_COMPLETED)
                if not feeding.done():
                    raise ClientDisconnected
            if taken.done():
                raise Conflict("a stream has taken stdin over; its `stdin_bytes` says how much was accepted before")
            feeding.result()
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                await settle(task)
                if not task.cancelled():
                    task.exception()  # looked at, or asyncio reports one that another task's outcome outweighs
            self._lease.release()

    async def _read(self) -> None:
        """Returns when the client has disconnected."""
        self._request.scope["state"]["close_after_problem"] = False
        while (message := await self._request.receive())["type"] != "http.disconnect":
            self._ahead += message.get("body", b"")
            self._whole = not message.get("more_body", False)
            self._came.set()
            while len(self._ahead) >= AHEAD:
                self._room.clear()
                await self._room.wait()
        self._gone = True
        self._came.set()

    async def _feed(self, eof: bool) -> None:
        while self._ahead or not (self._whole or self._gone):
            if self._ahead:
                data, self._ahead = bytes(self._ahead), bytearray()
                self._room.set()
                await self._lease.write(data)
                if not self._execution.reads_stdin:
                    await self._refuse_the_rest()
            else:
                self._came.clear()
                await self._came.wait()
        if not self._whole:
            raise ClientDisconnected
        if eof:
            await self._end()

    async def _refuse_the_rest(self) -> None:
        """The kernel closes the stdin of a program that ends a moment before the end itself is known."""
        await self._execution.wait(_END_SECONDS)
        ended = self._execution.exit is not None
        raise WrongState(
            self._execution.state, "the execution has ended" if ended else "the program does not read stdin any more"
        )

    async def _end(self) -> None:
        try:
            await self._lease.close()
        except WrongState:
            if self._execution.exit is None:  # else it took the whole body, and needs no end of it any more
                raise
