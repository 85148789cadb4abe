"""A command's three streams, on real pipes."""

from __future__ import annotations

import asyncio
import fcntl
import os

import pytest

from app.backends.process.pipes import BIG_PIPE, STDIN_BUFFER, OutputPump, PipeBudget, StdinPipe
from app.core.output import OutputLog

F_GETPIPE_SZ = 1032


def pump(budget: PipeBudget | None = None) -> tuple[OutputPump, OutputLog, int]:
    read, write = os.pipe()
    log = OutputLog(1 << 20)
    return OutputPump(read, log, budget or PipeBudget()), log, write


async def test_a_drain_takes_all_that_was_written_before_the_end() -> None:
    out, log, write = pump()
    data = os.urandom(60_000)
    os.write(write, data)
    os.close(write)
    await out.drain()
    assert (log.total, log.read(0, 100_000)) == (60_000, data)
    assert out.at_end


async def test_a_drain_of_a_silent_pipe_that_is_held_ends_soon() -> None:
    out, log, write = pump()
    os.write(write, b"mine")
    await asyncio.wait_for(out.drain(), 60)
    assert (log.total, out.at_end) == (4, False)
    log.close()
    os.write(write, b"left behind")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert log.total == 4
    out.close()
    out.close()
    os.close(write)


async def test_a_closed_log_goes_on_being_fed_so_that_nobody_gets_sigpipe() -> None:
    out, log, write = pump()
    log.close()
    os.set_blocking(write, False)
    for _ in range(20):
        assert os.write(write, bytes(60_000)) == 60_000
        while not await _empty(out):
            pass
    assert log.total == 0
    os.close(write)
    out.close()


async def _empty(out: OutputPump) -> bool:
    await asyncio.sleep(0)
    return int.from_bytes(fcntl.ioctl(out._fd, 0x541B, bytes(4)), "little") == 0


async def test_only_as_many_pipes_grow_as_the_budget_has() -> None:
    budget = PipeBudget(1)
    pumps = [pump(budget) for _ in range(2)]
    for out, log, write in pumps:
        for _ in range(20):
            os.write(write, bytes(65_536))
            while not await _empty(out):
                pass
        assert log.total == 20 * 65_536
    sizes = sorted(fcntl.fcntl(out._fd, F_GETPIPE_SZ) for out, _, _ in pumps)
    assert sizes == [65_536, BIG_PIPE]
    assert budget.left == 0
    for out, _, write in pumps:
        out.close()
        os.close(write)
    assert budget.left == 1


# --- stdin


async def test_what_is_written_arrives_in_order_and_then_the_end() -> None:
    read, write = os.pipe()
    pipe, data = StdinPipe(write), os.urandom(3 * STDIN_BUFFER)

    async def feed() -> None:
        for at in range(0, len(data), 100_000):
            await pipe.write(data[at : at + 100_000])
        pipe.end()

    feeding = asyncio.create_task(feed())
    got = b""
    os.set_blocking(read, False)
    while True:
        try:
            piece = os.read(read, 65_536)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        if not piece:
            break
        got += piece
    await feeding
    assert got == data
    os.close(read)


async def test_a_writer_waits_at_a_mebibyte_and_is_let_go_when_the_reader_ends() -> None:
    read, write = os.pipe()
    pipe = StdinPipe(write)
    writing = asyncio.create_task(pipe.write(bytes(2 * STDIN_BUFFER)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    os.close(read)
    await asyncio.wait_for(writing, 60)
    await pipe.write(b"discarded")


@pytest.mark.parametrize("order", ["end", "close", "write end", "end end", "end close", "close end", "close write end"])
async def test_ends_may_come_in_any_order_after_the_reader_is_gone(order: str) -> None:
    read, write = os.pipe()
    pipe = StdinPipe(write)
    os.close(read)
    await pipe.write(b"nobody reads this")
    for word in order.split():
        if word == "write":
            await pipe.write(b"nor this")
        elif word == "end":
            pipe.end()
        else:
            pipe.close()
    with pytest.raises(OSError):
        os.fstat(write)
