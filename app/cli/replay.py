"""`bulkhead logs`: stored output, and what comes after it."""

from __future__ import annotations

from app.cli.pipes import OutputClosed, Sink
from app.cli.session import DESCRIPTORS, gap_warning
from app.cli.show import message
from app.client import Client, ClientError
from app.client.stream import Gap, Output

PAGE = 1024 * 1024


async def replay(client: Client, sandbox_id: str, execution_id: str, *, follow: bool) -> None:
    """Raises BrokenPipeError, ClientError."""
    try:
        async with Sink() as sink:
            if follow:
                await _follow(client, sandbox_id, execution_id, sink)
            else:
                for channel in DESCRIPTORS:
                    await _stored(client, sandbox_id, execution_id, channel, sink)
    except OutputClosed as closed:
        if closed.quiet:
            raise BrokenPipeError from closed
        raise ClientError(str(closed)) from closed


async def _follow(client: Client, sandbox_id: str, execution_id: str, sink: Sink) -> None:
    async with client.stream(sandbox_id, execution_id) as stream:
        async for event in stream:
            match event:
                case Output():
                    await sink.write(DESCRIPTORS[event.channel], event.data)
                case Gap():
                    await sink.write(2, message(gap_warning(event)))


async def _stored(client: Client, sandbox_id: str, execution_id: str, channel: str, sink: Sink) -> None:
    """What is there now; a running program may print for ever."""
    offset = 0
    total: int | None = None
    while total is None or offset < total:
        piece = await client.output(sandbox_id, execution_id, channel, offset, PAGE)
        total = piece.total if total is None else total
        if piece.offset > offset:
            await sink.write(2, message(gap_warning(Gap(channel, offset, piece.offset))))
        if not piece.data:
            return
        await sink.write(DESCRIPTORS[channel], piece.data)
        offset = piece.next_offset
