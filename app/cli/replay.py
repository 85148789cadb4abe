"""`bulkhead logs`: prints the stored output, and with --follow what comes after it."""

from __future__ import annotations

from app.cli import FAILED
from app.cli.endings import status_of
from app.cli.gaps import Gaps
from app.cli.pipes import DESCRIPTORS, OutputClosed, Sink
from app.client import Client, ClientError
from app.client.stream import Exited, Gap, Output

PAGE = 1024 * 1024


async def replay(client: Client, sandbox_id: str, execution_id: str, *, follow: bool) -> int:
    """Returns the exit status. With `follow` it is that of the execution. Raises BrokenPipeError, ClientError."""
    gaps = Gaps()
    try:
        async with Sink() as sink:
            if follow:
                return await _follow(client, sandbox_id, execution_id, sink, gaps)
            for channel in DESCRIPTORS:
                await _stored(client, sandbox_id, execution_id, channel, sink, gaps)
            await _sum_up(sink, gaps)
            return 0
    except OutputClosed as closed:
        if closed.quiet:
            raise BrokenPipeError from closed
        raise ClientError(str(closed)) from closed


async def _warn(sink: Sink, gaps: Gaps, gap: Gap) -> None:
    if (warning := gaps.add(gap)) is not None:
        await sink.say(warning)


async def _sum_up(sink: Sink, gaps: Gaps) -> None:
    for line in gaps.summary():
        await sink.say(line)


async def _follow(client: Client, sandbox_id: str, execution_id: str, sink: Sink, gaps: Gaps) -> int:
    async with client.stream(sandbox_id, execution_id) as stream:
        async for event in stream:
            match event:
                case Output():
                    await sink.write(DESCRIPTORS[event.channel], event.data)
                case Gap():
                    await _warn(sink, gaps, event)
                case Exited():
                    await _sum_up(sink, gaps)
                    status, sentence = status_of(event.exit, event.exit_code)
                    if sentence is not None:
                        await sink.say(sentence)
                    return status
    return FAILED


async def _stored(client: Client, sandbox_id: str, execution_id: str, channel: str, sink: Sink, gaps: Gaps) -> None:
    """What is there now; a running program may print for ever."""
    offset = 0
    total: int | None = None
    while total is None or offset < total:
        piece = await client.output(sandbox_id, execution_id, channel, offset, PAGE)
        total = piece.total if total is None else total
        if piece.offset > offset:
            await _warn(sink, gaps, Gap(channel, offset, piece.offset))
        if not piece.data:
            return
        await sink.write(DESCRIPTORS[channel], piece.data)
        offset = piece.next_offset
