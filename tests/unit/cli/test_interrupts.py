"""Signals that reach `bulkhead run` while a program runs: what arrives at the program, and that the sandbox goes."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process

import pytest

from tests.unit.cli.fake_service import (
    BASE,
    EXECUTION,
    SANDBOX,
    Answer,
    FakeService,
    Request,
    Wire,
    fake_service,
    problem,
)
from tests.unit.cli.test_run import ending
from tests.unit.cli.typed import begin

EXECUTIONS = f"{BASE}/executions"
KILL = f"DELETE {EXECUTIONS}/{EXECUTION}"
DESTROY = f"DELETE {BASE}"


class Running:
    """A program that says `ready` and then does what the test tells it to do."""

    def __init__(self) -> None:
        self.exit: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def __call__(self, wire: Wire) -> None:
        await wire.start()
        await wire.output(b"ready\n")
        await wire.exit(**await self.exit.get())  # type: ignore[arg-type]  # as the test says


INTERRUPTED: dict[str, object] = {"reason": "signaled", "code": None, "exit_code": -2, "signal": "SIGINT"}
KILLED: dict[str, object] = {"reason": "killed", "code": None, "exit_code": -9, "detail": "the execution was deleted"}


async def ready(service: FakeService, *arguments: str) -> Process:
    process = await begin(service.url, *arguments)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
async def test_ctrl_c_goes_to_the_program_which_ends_as_it_likes(number: signal.Signals) -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "cmd")
        process.send_signal(number)
        assert await service.signals.get() == number.name
        program.exit.put_nowait({"code": 42})
        _, err = await process.communicate()
    assert (process.returncode, err) == (42, b"")
    assert KILL not in service.asked()
    assert service.asked()[-1] == DESTROY


async def test_program_that_dies_of_ctrl_c_gives_130() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "cmd")
        process.send_signal(signal.SIGINT)
        await service.signals.get()
        program.exit.put_nowait(INTERRUPTED)
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")


async def test_second_ctrl_c_kills() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "cmd")
        process.send_signal(signal.SIGINT)
        await service.signals.get()
        process.send_signal(signal.SIGINT)
        await service.killed.wait()
        program.exit.put_nowait(KILLED)
        _, err = await process.communicate()
    assert (process.returncode, err) == (137, b"bulkhead: killed: the execution was deleted\n")
    assert service.asked()[-1] == DESTROY


async def test_third_ctrl_c_gives_up_on_a_service_that_does_not_say_how_it_ended() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "cmd")
        process.send_signal(signal.SIGINT)
        await service.signals.get()
        process.send_signal(signal.SIGINT)
        await service.killed.wait()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        program.exit.put_nowait(KILLED)
    assert service.asked()[-1] == DESTROY


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_a_signal_to_end_kills_the_program_and_destroys_the_sandbox(number: signal.Signals, status: int) -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "cmd")
        process.send_signal(number)
        await service.killed.wait()
        program.exit.put_nowait(KILLED)
        assert await process.wait() == status
    assert service.asked()[-1] == DESTROY
    assert service.signals.empty()


async def test_ctrl_c_ends_the_wait_for_files_and_destroys_the_sandbox() -> None:
    collecting = asyncio.Event()

    class Slow(FakeService):
        async def _answer(self, request: Request) -> Answer:
            if request.path.endswith("/run"):
                collecting.set()
                await asyncio.Event().wait()
            return await super()._answer(request)

    async with fake_service(ending(), kind=Slow) as service:
        process = await begin(service.url, "run", "--collect", "a", "cmd")
        await collecting.wait()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"")
        assert service.asked()[-1] == DESTROY


async def test_files_are_not_asked_for_after_a_signal_to_end() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "run", "--collect", "a", "cmd")
        process.send_signal(signal.SIGTERM)
        await service.killed.wait()
        program.exit.put_nowait(KILLED)
        assert await process.wait() == 143
    assert f"POST {BASE}/run" not in service.asked()


async def test_sandbox_that_was_being_created_is_destroyed() -> None:
    async with fake_service(Running()) as service:
        service.create_gate = asyncio.Event()
        process = await begin(service.url, "run", "cmd")
        await service.create_reached.wait()
        process.send_signal(signal.SIGINT)
        service.create_gate.set()
        _, err = await process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert service.asked() == ["POST /sandboxes", DESTROY]


async def test_second_ctrl_c_disconnects_from_a_create_that_does_not_end() -> None:
    async with fake_service(Running()) as service:
        service.create_gate = asyncio.Event()
        process = await begin(service.url, "run", "cmd")
        await service.create_reached.wait()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() in {130, 143}  # the kernel delivers two pending signals in its own order
        service.create_gate.set()
    assert service.asked() == ["POST /sandboxes"]


async def test_ignored_interrupt_stays_ignored() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await begin(
            service.url, "run", "cmd", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        program.exit.put_nowait({"code": 0})
        assert await process.wait() == 0
    assert service.signals.empty()


async def test_one_interrupt_ends_a_run_that_waits_only_for_its_reader() -> None:
    all_received = asyncio.Event()

    async def program(wire: Wire) -> None:
        await wire.start()
        for _ in range(10):  # more than a pipe holds, less than we keep for a slow reader
            await wire.output(b"x" * 60_000)
        await wire.exit(code=0)
        assert await wire.read() is None  # its goodbye
        all_received.set()

    read_end, write_end = os.pipe()
    try:
        async with fake_service(program) as service:
            process = await begin(service.url, "run", "cmd", stdout=write_end)
            await all_received.wait()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
        assert service.asked()[-1] == DESTROY
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_interrupts_end_a_run_whose_reader_is_stuck() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        while True:
            await wire.output(b"x" * 60_000)

    read_end, write_end = os.pipe()
    try:
        async with fake_service(program) as service:
            process = await begin(service.url, "run", "cmd", stdout=write_end)
            await asyncio.to_thread(os.read, read_end, 1)
            process.send_signal(signal.SIGTERM)
            await service.killed.wait()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 143
        assert service.asked()[-1] == DESTROY
    finally:
        os.close(read_end)
        os.close(write_end)


async def test_sandbox_is_destroyed_when_the_command_is_refused() -> None:
    async with fake_service() as service:
        service.answers[f"POST {EXECUTIONS}"] = problem(
            422, "invalid_request", "invalid request", errors=[{"pointer": "/command/0", "detail": "is empty"}]
        )
        process = await begin(service.url, "run", "")
        _, err = await process.communicate()
    assert (process.returncode, err) == (125, b"bulkhead: invalid request: the command: is empty\n")
    assert service.asked()[-1] == DESTROY


async def test_exec_that_is_told_to_end_kills_what_it_started() -> None:
    program = Running()
    async with fake_service(program) as service:
        process = await ready(service, "exec", SANDBOX, "cmd")
        process.send_signal(signal.SIGTERM)
        await service.killed.wait()
        program.exit.put_nowait(KILLED)
        assert await process.wait() == 143
    assert DESTROY not in service.asked()


@pytest.mark.parametrize(("detail", "told"), [("the service is stopping", False), ("the sandbox was deleted", True)])
async def test_sandbox_is_not_said_to_exist_when_its_service_has_stopped(detail: str, told: bool) -> None:
    class Gone(FakeService):
        async def _answer(self, request: Request) -> Answer:
            if request.method == "DELETE":
                raise ConnectionResetError
            return await super()._answer(request)

    async with fake_service(ending(reason="killed", code=None, exit_code=-9, detail=detail), kind=Gone) as service:
        process = await begin(service.url, "run", "cmd")
        _, err = await process.communicate()
    first, *more = err.decode().splitlines()
    assert (process.returncode, first) == (137, f"bulkhead: killed: {detail}")
    assert ["may still exist" in line for line in more] == [True] * told
