"""One command with everything around it: files and stdin go in; the exit, the output and files come out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.collecting import CollectedFile, Collection, Pattern
from app.core.commands import check_start, with_environment
from app.core.errors import BulkheadError, UnsupportedByRuntime, WrongState
from app.core.executions import Execution
from app.core.models import Channel, Command, Exit, ExitReason, OutputMode, SandboxSpec, Stdin, new_id
from app.core.network_log import RefusedHost
from app.core.output import OutputLog
from app.core.placing import PlacedFile, Placement, place
from app.core.sandboxes import Sandbox, Sandboxes
from app.core.timeslices import TimeSlices

STDIN_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """If `command.stdin` is open, `stdin` is everything that is fed."""

    command: Command
    files: Sequence[PlacedFile] = ()
    stdin: bytes = b""
    collect: Sequence[Pattern] = ()


@dataclass(frozen=True, slots=True)
class Captured:
    """The stored bytes of one channel, and where bytes are missing: before them, behind them, or somewhere inside."""

    data: bytes
    cut_begin: bool
    cut_end: bool
    has_gap: bool

    @property
    def truncated(self) -> bool:
        return self.cut_begin or self.cut_end or self.has_gap


# Waits for memory before the answer is read. It gets the number of stored bytes of both channels together.
Reserve = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    sandbox_id: str
    execution_id: str
    exit: Exit
    stdout: Captured
    stderr: Captured
    output_mode: OutputMode
    collected: Sequence[CollectedFile] = ()
    refused: Sequence[RefusedHost] = ()  # by its network, meanwhile


async def check_job(job: Job, spec: SandboxSpec, runtime: RuntimeInfo) -> Placement:
    """Checks a job before anything is begun. Raises InvalidRequest, CapabilityMissing and UnsupportedByRuntime."""
    check_start(with_environment(job.command, spec), runtime)
    if (job.files or job.collect) and Capability.FILES not in runtime.capabilities:
        raise UnsupportedByRuntime("files", runtime.name)
    return await place(job.files)


async def run_in(sandboxes: Sandboxes, sandbox: Sandbox, job: Job, reserve: Reserve | None = None) -> Outcome:
    """Runs a job in a sandbox that stays. The execution's record stays too. When it is cancelled or fails, it ends the
    command and everything that this started, and nothing else. Raises what files, a start and stdin raise."""
    sandbox.touch()
    runtime = sandboxes.registry.get(sandbox.spec.runtime).info
    begin = 0 if sandbox.network_log is None else sandbox.network_log.total
    outcome = await carry_out(sandboxes, sandbox, job, await check_job(job, sandbox.spec, runtime), reserve)
    return with_refused(outcome, sandbox, begin)


def with_refused(outcome: Outcome, sandbox: Sandbox, begin: int = 0) -> Outcome:
    """Adds the hosts that were refused from this network event on."""
    log = sandbox.network_log
    return outcome if log is None else replace(outcome, refused=log.refused(begin))


async def carry_out(
    sandboxes: Sandboxes, sandbox: Sandbox, job: Job, placement: Placement, reserve: Reserve | None = None
) -> Outcome:
    """`placement` is the result of `check_job` for the job's files."""
    if not placement.empty:
        async with sandboxes.transfers.files(sandbox.id) as files:
            await placement.put(files)
    execution_id = new_id("exe_")
    try:
        execution, _ = await sandbox.execute(job.command, execution_id)
        return await _see_through(sandboxes, sandbox, execution, job, reserve)
    except BaseException as error:  # nobody will hear of the exit: nothing of it goes on
        begun = sandbox.executions.get(execution_id)
        if begun is not None:
            begun.end_soon(ExitReason.KILLED, _why_ended(error))
        raise


def _why_ended(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "its client disconnected"
    return f"the run failed: {error if isinstance(error, BulkheadError) else type(error).__name__}"


async def _see_through(
    sandboxes: Sandboxes, sandbox: Sandbox, execution: Execution, job: Job, reserve: Reserve | None
) -> Outcome:
    execution.enter_view(sandboxes.capacity.viewers)  # whoever deletes the sandbox now leaves us the output
    try:
        if job.command.stdin is Stdin.OPEN:
            await _feed(execution, job.stdin)
        await execution.wait()
        if execution.exit is None:
            raise AssertionError("it has ended")
        logs = execution.logs[Channel.STDOUT], execution.logs[Channel.STDERR]
        if reserve is not None:
            await reserve(sum(log.total - log.start for log in logs))
        stdout, stderr = [await _capture(log) for log in logs]
    finally:
        execution.leave_view()
    collected = await _collect(sandboxes, sandbox, job.collect)
    return Outcome(sandbox.id, execution.id, execution.exit, stdout, stderr, execution.outputs.mode, collected)


async def _feed(execution: Execution, data: bytes) -> None:
    try:
        for begin in range(0, len(data), STDIN_PIECE):
            await execution.feed(data[begin : begin + STDIN_PIECE])
        await execution.end_stdin()
    except WrongState:
        return  # it ended, or closed its stdin, before it had read all: its exit is the answer


async def _capture(log: OutputLog) -> Captured:
    slices = TimeSlices.of_loop()
    pieces: list[bytes] = []
    begin = at = log.start
    while piece := log.read(at):
        pieces.append(piece)
        at += len(piece)
        if slices.over:
            await slices.next()
        if log.start > begin:  # the spill lost it meanwhile: only what is stored now is whole
            break
    if log.start > begin:
        pieces.clear()
        return await _capture(log)
    return Captured(b"".join(pieces), begin > 0, log.overflowed, bool(log.gaps))


async def _collect(sandboxes: Sandboxes, sandbox: Sandbox, patterns: Sequence[Pattern]) -> Sequence[CollectedFile]:
    """Collects files however the command ended. If the sandbox is gone by now, each pattern reports it."""
    collection = Collection(patterns)
    if patterns:
        try:
            async with sandboxes.transfers.files(sandbox.id) as files:
                await collection.run(files)
        except BulkheadError as error:
            collection.give_up(str(error))
    return collection.files
