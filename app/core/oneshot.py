"""The one shot: create, put files, execute, collect, destroy, as one use case. Its sandbox never outlives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.core.backend import Capability
from app.core.commands import check_start, with_environment
from app.core.errors import UnsupportedByRuntime, WrongState
from app.core.executions import Execution
from app.core.models import Channel, Command, Exit, SandboxSpec, Stdin
from app.core.output import OutputLog
from app.core.placing import PlacedFile, Placement, place
from app.core.sandboxes import Sandbox, Sandboxes

STDIN_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OneShot:
    """Where `command.stdin` is open, `stdin` is all that comes."""

    spec: SandboxSpec
    command: Command
    files: Sequence[PlacedFile] = ()
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Captured:
    """What is stored of one channel, and where bytes of it are missing: before it, behind it, or somewhere inside."""

    data: bytes
    cut_begin: bool
    cut_end: bool
    torn: bool

    @property
    def truncated(self) -> bool:
        return self.cut_begin or self.cut_end or self.torn


@dataclass(frozen=True, slots=True)
class Outcome:
    sandbox_id: str
    exit: Exit
    stdout: Captured
    stderr: Captured


async def run_once(sandboxes: Sandboxes, shot: OneShot, client: str = "") -> Outcome:
    """No process of the sandbox exists when this returns or raises, and no record of it is kept. Cancelled, it ends at
    once, and the sandbox with it. Raises what a create, its files and a start raise; InvalidRequest, CapabilityMissing
    and UnsupportedByRuntime before anything is begun."""
    info = sandboxes.registry.get(shot.spec.runtime).info
    check_start(with_environment(shot.command, shot.spec), info)
    if shot.files and Capability.FILES not in info.capabilities:
        raise UnsupportedByRuntime("files", info.name)
    placement = await place(shot.files)
    sandbox, _ = sandboxes.create(shot.spec, client=client, ephemeral=True)
    try:
        await sandboxes.wait_created(sandbox, shot.spec.ttl_seconds)
        await _put(sandboxes, sandbox, placement)
        return await _execute(sandboxes, sandbox, shot)
    finally:
        await sandboxes.destroy(sandbox, "its run is over")


async def _put(sandboxes: Sandboxes, sandbox: Sandbox, placement: Placement) -> None:
    if placement.empty:
        return
    sandbox.check_running()  # perhaps somebody deleted it, and with it its record
    async with sandboxes.transfers.files(sandbox.id) as files:
        await placement.put(files)


async def _execute(sandboxes: Sandboxes, sandbox: Sandbox, shot: OneShot) -> Outcome:
    execution, _ = await sandboxes.execute(sandbox, shot.command)
    execution.enter_view(sandboxes.capacity.viewers)  # whoever deletes the sandbox now leaves us the output
    try:
        if shot.command.stdin is Stdin.OPEN:
            await _feed(execution, shot.stdin)
        await execution.wait()
        if execution.exit is None:
            raise AssertionError("it has ended")
        stdout, stderr = (_capture(execution.logs[channel]) for channel in (Channel.STDOUT, Channel.STDERR))
        return Outcome(sandbox.id, execution.exit, stdout, stderr)
    finally:
        execution.leave_view()


async def _feed(execution: Execution, data: bytes) -> None:
    try:
        for begin in range(0, len(data), STDIN_PIECE):
            await execution.feed(data[begin : begin + STDIN_PIECE])
        await execution.end_stdin()
    except WrongState:
        return  # it ended, or closed its stdin, before it had read all: its exit is the answer


def _capture(log: OutputLog) -> Captured:
    pieces: list[bytes] = []
    begin = at = log.start
    while piece := log.read(at):
        pieces.append(piece)
        at += len(piece)
    if log.start > begin:  # the spill became unreadable meanwhile: only what memory still has is whole
        return _capture(log)
    return Captured(b"".join(pieces), begin > 0, log.overflowed, bool(log.holes))
