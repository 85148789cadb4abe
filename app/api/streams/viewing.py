"""What every viewer gets, in this order: the start, output and gaps, the exit. The encoding decides how it looks on the
wire: frames of a WebSocket (`stream.py`) or Server-Sent Events (`events.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection

from app.api.context import context_of, visitor_of
from app.api.http.validation import invalid_request
from app.core.errors import RangeNotSatisfiable, WrongState
from app.core.executions import Execution
from app.core.fair_queue import FairQueue
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Channel, SandboxState
from app.core.output import OutputLog
from app.core.sandbox import Sandbox

Offsets = dict[Channel, int]


class StreamQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stdout_offset: Annotated[int, Field(ge=0)] = 0
    stderr_offset: Annotated[int, Field(ge=0)] = 0
    stdin: Annotated[
        Literal["false", "true", "take"],
        Field(description="`true`: feed stdin; `take`: take stdin over from another client"),
    ] = "false"

    ticket: Annotated[
        str | None,
        Field(description="in place of a key, for clients that cannot send headers; POST /stream-tickets gives one"),
    ] = None  # the access check has spent it by now

    @property
    def offsets(self) -> Offsets:
        return {Channel.STDOUT: self.stdout_offset, Channel.STDERR: self.stderr_offset}


_NO_QUERY = StreamQuery()


def query_of(connection: HTTPConnection) -> StreamQuery:
    """Raises InvalidRequest."""
    if not connection.scope["query_string"]:
        return _NO_QUERY
    try:
        return StreamQuery.model_validate(dict(connection.query_params))
    except ValidationError as error:
        raise invalid_request(error, StreamQuery, "query") from None


class Encoding(Protocol):
    """The encoding for one connection. Each call returns when the connection's buffer has room again. So a viewer that
    does not read waits here, and holds up nobody else."""

    async def start(self, execution: Execution, offsets: Offsets) -> None: ...
    async def output(self, item: OutputPiece) -> None: ...
    async def gap(self, gap: OutputGap) -> None: ...
    async def exit(self, execution: Execution) -> None: ...


def check_readable(sandbox: Sandbox) -> None:
    """Raises WrongState when the sandbox has ended, and its log with it."""
    if sandbox.state is SandboxState.DESTROYED:
        raise WrongState(sandbox.state, "the sandbox was destroyed, and its output with it")


def check_offset(log: OutputLog, offset: int, channel: Channel) -> None:
    if offset > log.total:
        raise RangeNotSatisfiable(f"{channel} has {log.total} bytes so far, the offset asked for is {offset}")


@dataclass(frozen=True, slots=True)
class View:
    """An execution that a client may view from `offsets` on."""

    execution: Execution
    offsets: Offsets
    count: Callable[[int], None]  # is told how many bytes were sent
    client: str  # whose turn each piece is
    turns: FairQueue
    only: bool = False  # who looks may not send signals and sizes

    async def send_to(self, encoding: Encoding) -> None:
        """Sends everything from the start to the exit."""
        await encoding.start(self.execution, self.offsets)
        await self._follow(encoding)
        await encoding.exit(self.execution)

    async def _follow(self, encoding: Encoding) -> None:
        """Sends output as it comes. The server's `send` suspends only when its buffer is full, and output wakes all
        viewers in one run through the loop. 200 viewers with 8 pieces each held the loop for seconds. So the pieces of
        all viewers go out in turn."""
        with self.execution.follow(self.offsets) as follower:
            while (item := follower.poll() or await follower.next()) is not None:
                await self.turns.enter(self.client)
                if isinstance(item, OutputGap):
                    await encoding.gap(item)
                else:
                    await encoding.output(item)
                    self.count(len(item.data))


@contextmanager
def admitted(connection: HTTPConnection, offsets: Offsets) -> Iterator[View]:
    """Counts as a viewer of the execution that the path names while the block runs. Raises NotFound, WrongState,
    RangeNotSatisfiable, CapacityExceeded."""
    context = context_of(connection)
    sandbox_id, execution_id = (connection.path_params[name] for name in ("sandbox_id", "execution_id"))
    sandbox = context.sandboxes.get(sandbox_id)
    execution = context.sandboxes.execution(sandbox_id, execution_id)
    check_readable(sandbox)
    for channel, offset in offsets.items():
        check_offset(execution.logs[channel], offset, channel)
    visitor = visitor_of(connection)
    with context.shares.streams.holding(visitor.client):
        execution.enter_view(context.sandboxes.capacity.viewers)
        try:
            count = partial(context.streamed, sandbox.spec.runtime)
            yield View(execution, offsets, count, visitor.client, context.shares.pieces, visitor.view_only)
        finally:
            execution.leave_view()
