"""Executions on a terminal, and executions of a runtime whose output may have gaps."""

from __future__ import annotations

import asyncio

import pytest

from app.core.capabilities import Capability
from app.core.errors import WrongState
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Channel, Terminal
from tests.null_backend import CAPABILITIES, Gate, NullBackend
from tests.unit.core.support import Core, steps, text

SIZE = Terminal(24, 80)


async def test_the_new_size_reaches_the_program() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "trap", stdin=True, tty=SIZE)
        await execution.resize(Terminal(40, 120))
        assert text(execution) == b"ready\n40x120\n"


async def test_the_size_of_what_has_no_terminal_cannot_change() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "trap")
        with pytest.raises(WrongState, match="without a terminal") as refusal:
            await execution.resize(SIZE)
        assert refusal.value.state == "running"
        assert text(execution) == b"ready\n"


@pytest.mark.parametrize("argv", [("exit", "0"), ("missing",)])
async def test_the_size_of_an_ended_terminal_cannot_change(argv: tuple[str, ...]) -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), *argv, stdin=True, tty=SIZE)
        await execution.wait()
        with pytest.raises(WrongState, match="has ended") as refusal:
            await execution.resize(SIZE)
        assert refusal.value.state == "ended"


async def test_a_new_size_waits_until_the_command_was_started() -> None:
    async with Core() as core:
        sandbox = await core.create()
        gate = core.backend.execute_gate = Gate()
        starting = asyncio.create_task(core.start(sandbox, "trap", stdin=True, tty=SIZE))
        await gate.reached.wait()
        (execution,) = sandbox.executions.values()
        resizing = asyncio.create_task(execution.resize(Terminal(1, 2)))
        await steps(5)
        assert not resizing.done()
        gate.open()
        await resizing
        assert text(await starting) == b"ready\n1x2\n"


async def test_output_of_a_runtime_without_exact_output_is_followed_over_its_gaps() -> None:
    backend = NullBackend(capabilities=CAPABILITIES - {Capability.EXACT_OUTPUT})
    async with Core(backend=backend) as core:
        execution = await core.start(await core.create(), "torn", "8", "8")
        await execution.wait()
        found = []
        with execution.follow({Channel.STDOUT: 0, Channel.STDERR: 0}) as follower:
            while (item := await follower.next()) is not None:
                found.append(item)
        assert found == [
            OutputPiece(Channel.STDOUT, 0, b"0000000\n"),
            OutputGap(Channel.STDOUT, 8, None),
            OutputPiece(Channel.STDOUT, 8, b"0000001\n"),
        ]
        assert [log.dropped for log in execution.logs.values()] == [None, None]


async def test_output_of_a_runtime_with_exact_output_is_counted() -> None:
    async with Core() as core:
        execution = await core.start(await core.create(), "print", "8")
        await execution.wait()
        assert [log.dropped for log in execution.logs.values()] == [0, 0]
