"""NullBackend: the contract of `app/core/backend.py` without a kernel. Programs are small scripts chosen by argv[0].

::

    echo TEXT...         prints the words and a newline            exit CODE        ends with that code
    err TEXT...          the same on stderr                        missing          cannot be started: not found
    cat                  stdin to stdout, until end of file        refused STEP     cannot be started: the step failed
    print N              N bytes (`pattern`) on stdout             env              prints the environment, sorted
    both N               N bytes on each channel, in turns         pwd              prints the working directory
    sleep                until a signal or a kill                  oom              killed for its memory
    spew                 prints without end                        close-stdin      closes its stdin, then sleeps
    torn A B             A bytes, then some are lost, then B more
    trap SIGNAL...       prints the names of signals, goes on      daemon ARGV...   leaves a process, then is ARGV
    silent-then ARGV...  waits for `backend.release`, then is ARGV
    ln TARGET PATH       makes a symbolic link                     mkfifo PATH      makes a FIFO
    read-file PATH       prints a file                             dial NAME PORT   connects, if a rule permits it

A test steers it through attributes: a `Gate` in `create_gate`, `execute_gate`, `kill_gate`, `pause_gate`,
`network_gate`, `usage_gate` or `destroy_gate` holds that call; an error in `create_error`, `execute_error`,
`kill_error`, `pause_error`, `network_error`, `usage_error`, `destroy_error` or `ready_error` is raised by it. `lose`
ends a sandbox from outside. `alive` names everything that was not given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from app.core.backend import CommandLimits, Logs, RuntimeInfo, settle
from app.core.capabilities import Capability
from app.core.commands import signal_name, signal_number
from app.core.errors import BackendTimeout, BulkheadError, InvalidRequest, UnsupportedByRuntime, WrongState
from app.core.files import FileKind
from app.core.models import Command, Exit, ExitReason, ResourceUsage, SandboxSpec, Stderr, Stdin
from app.core.network_log import NetworkEvent, NetworkLog
from app.core.network_rules import NetworkRule, rule_for
from app.core.workdirs import prepare_workdir
from tests.null_files import NullFiles
from tests.stopping import Ice

STDIN_BUFFER = 1024 * 1024
PIECE = 64 * 1024
IGNORED_BY_DEFAULT = frozenset({17, 18, 23, 28})  # CHLD, CONT, URG, WINCH: signal(7)
CAPABILITIES = frozenset(Capability) - {
    Capability.NETWORK_DIRECT,
    Capability.NETWORK_PROXY,
    Capability.SECRETS,
}


def pattern(size: int, begin: int = 0) -> bytes:
    """What `print` prints: bytes that tell their own place, so that a gap or a repetition shows."""
    first = begin // 8
    return b"".join(b"%07d\n" % (n % 10_000_000) for n in range(first, (begin + size) // 8 + 1))[
        begin - first * 8 : begin - first * 8 + size
    ]


class Gate:
    """Holds a call: `reached` is set when one waits, `open` lets it and all later ones pass."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._opened.wait()


class NullExecution:
    def __init__(self, room: NullSandbox, execution_id: str, command: Command, logs: Logs) -> None:
        self.id = execution_id
        self.command = command
        self.logs = Logs(logs.stdout, logs.stdout) if command.stderr is Stderr.STDOUT else logs
        self.released = asyncio.Event()
        self._room = room
        self._began = asyncio.get_running_loop().time()
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._first: asyncio.Task[int] | None = None
        self._processes: set[asyncio.Task[int]] = set()
        self._changed = asyncio.Event()
        self._stdin = bytearray()
        self._eof = command.stdin is Stdin.NONE
        self._reads = True
        self._trapped: frozenset[int] = frozenset()
        self._ended_by = 9
        self._end: Exit | None = None

    # --- the contract

    async def write(self, data: bytes) -> bool:
        await asyncio.sleep(0)
        if self._eof or not self._reads:
            return False
        self._stdin += data
        self._touch()
        while len(self._stdin) >= STDIN_BUFFER and self._reads:
            await self._wait_change()
        return self._reads

    async def close_stdin(self) -> None:
        await asyncio.sleep(0)
        self._eof = True
        self._touch()

    async def signal(self, number: int) -> None:
        await asyncio.sleep(0)
        if self._first is None or self._first.done():
            raise WrongState("ended", "the execution has ended")
        if self._room.ice.frozen:
            self._room.kept.append((self, number))
        else:
            self.take_signal(number)

    def take_signal(self, number: int) -> None:
        if self._first is None or self._first.done():
            return
        if number in self._trapped and number not in {9, 19}:
            self.logs.stdout.append(signal_name(number).encode() + b"\n")
        elif number not in IGNORED_BY_DEFAULT:
            self._ended_by = number
            self._first.cancel()

    async def resize(self, rows: int, cols: int) -> None:
        """Prints the new size: a program that is told by SIGWINCH."""
        await asyncio.sleep(0)
        if self._first is None or self._first.done():
            raise WrongState("ended", "the execution has ended")
        self.logs.stdout.append(b"%dx%d\n" % (rows, cols))

    async def kill(self) -> None:
        backend = self._room.backend
        await backend.at(backend.kill_gate, backend.kill_error)
        await self.end_all(None)

    async def usage(self) -> ResourceUsage:
        await asyncio.sleep(0)
        return ResourceUsage(0, 0, 0.0, processes=len(self._processes))

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    async def output_ended(self) -> None:
        await self.wait()
        while self._processes:
            await asyncio.wait(self._processes)
            await asyncio.sleep(0)  # they are taken out by a callback

    # --- its life

    def start(self, no_workdir: str = "") -> None:
        name, *arguments = self.command.argv
        if no_workdir:
            self._finish(Exit(ExitReason.START_FAILED, detail=no_workdir))
        elif name == "refused":
            self._finish(Exit(ExitReason.START_FAILED, detail=f"step {arguments[0]} failed: EPERM"))
        elif name not in PROGRAMS:
            self._finish(Exit(ExitReason.START_FAILED, detail=f"exec {name}: ENOENT", not_found=True))
        else:
            self._first = self._spawn(PROGRAMS[name](self, arguments))
            self._first.add_done_callback(self._first_ended)

    async def end_all(self, exit_: Exit | None) -> None:
        """Ends every process; `exit_` is the first one's ending, None for a SIGKILL."""
        self.doom(exit_)
        processes = tuple(self._processes)
        for process in processes:
            process.cancel()
        for process in processes:
            await settle(process)

    def doom(self, exit_: Exit | None) -> None:
        """What the ending will say; the first cause counts."""
        if self._first is not None and not self._first.done():
            self._ended_by, self._end = 9, self._end or exit_

    def _spawn(self, coroutine: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
        process = asyncio.create_task(self._room.ice.stoppable(coroutine))
        self._processes.add(process)
        name = f"{self._room.id}/{self.id}"
        self._room.backend.add(name)

        def gone(process: asyncio.Task[int]) -> None:
            coroutine.close()  # cancelled before its first turn it never began
            self._processes.discard(process)
            self._room.backend.remove(name)

        process.add_done_callback(gone)
        return process

    def _first_ended(self, process: asyncio.Task[int]) -> None:
        if not process.cancelled():
            exit_ = self._end or Exit(ExitReason.EXITED, code=process.result())
        else:
            exit_ = self._end or Exit(ExitReason.SIGNALED, signal=signal_name(self._ended_by))
        self._finish(exit_)

    def _finish(self, exit_: Exit) -> None:
        if exit_.reason is not ExitReason.START_FAILED:
            duration = asyncio.get_running_loop().time() - self._began
            exit_ = Exit(exit_.reason, exit_.code, exit_.signal, exit_.detail, duration, 0.0, 0)
        self._reads = False
        self._stdin.clear()
        self._touch()
        if not self._exit.done():
            self._exit.set_result(exit_)

    def _touch(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _wait_change(self) -> None:
        await self._changed.wait()

    # --- the programs

    async def _echo(self, arguments: list[str]) -> int:
        self.logs.stdout.append(" ".join(arguments).encode() + b"\n")
        return 0

    async def _err(self, arguments: list[str]) -> int:
        self.logs.stderr.append(" ".join(arguments).encode() + b"\n")
        return 0

    async def _exit_with(self, arguments: list[str]) -> int:
        return int(arguments[0])

    async def _env(self, arguments: list[str]) -> int:
        for name, value in sorted(self.command.env.items()):
            self.logs.stdout.append(f"{name}={value}\n".encode())
        return 0

    async def _pwd(self, arguments: list[str]) -> int:
        self.logs.stdout.append(self.command.workdir.encode() + b"\n")
        return 0

    async def _cat(self, arguments: list[str]) -> int:
        while True:
            if self._stdin:
                data = bytes(self._stdin[:PIECE])
                del self._stdin[: len(data)]
                self._touch()
                self.logs.stdout.append(data)
                await asyncio.sleep(0)
            elif self._eof:
                return 0
            else:
                await self._wait_change()

    async def _print(self, arguments: list[str]) -> int:
        size = int(arguments[0])
        for begin in range(0, size, PIECE):
            self.logs.stdout.append(pattern(min(PIECE, size - begin), begin))
            await asyncio.sleep(0)
        return 0

    async def _torn(self, arguments: list[str]) -> int:
        before, after = (int(argument) for argument in arguments)
        self.logs.stdout.append(pattern(before))
        self.logs.stdout.add_gap()
        await asyncio.sleep(0)
        self.logs.stdout.append(pattern(after, before))
        return 0

    async def _both(self, arguments: list[str]) -> int:
        size = int(arguments[0])
        for begin in range(0, size, PIECE):
            for log in (self.logs.stdout, self.logs.stderr):
                log.append(pattern(min(PIECE, size - begin), begin))
                await asyncio.sleep(0)
        return 0

    async def _sleep(self, arguments: list[str]) -> int:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _spew(self, arguments: list[str]) -> int:
        begin = 0
        while True:
            self.logs.stdout.append(pattern(PIECE, begin))
            begin += PIECE
            await asyncio.sleep(0)

    async def _oom(self, arguments: list[str]) -> int:
        self._end = Exit(ExitReason.OOM, signal="SIGKILL", detail="the memory limit was reached")
        return 0

    async def _close_stdin(self, arguments: list[str]) -> int:
        self._reads = False
        self._stdin.clear()
        self._touch()
        return await self._sleep([])

    async def _trap(self, arguments: list[str]) -> int:
        self._trapped = frozenset(n for a in arguments if (n := signal_number(a)) is not None)
        self.logs.stdout.append(b"ready\n")
        return await self._sleep([])

    async def _daemon(self, arguments: list[str]) -> int:
        self._spawn(self._sleep([]))
        return await PROGRAMS[arguments[0]](self, arguments[1:]) if arguments else 0

    async def _silent_then(self, arguments: list[str]) -> int:
        await self.released.wait()
        return await PROGRAMS[arguments[0]](self, arguments[1:]) if arguments else 0

    async def _ln(self, arguments: list[str]) -> int:
        target, path = (argument.encode() for argument in arguments)
        self._room.files.link(path, target)
        return 0

    async def _mkfifo(self, arguments: list[str]) -> int:
        self._room.files.special(arguments[0].encode(), FileKind.FIFO)
        return 0

    async def _read_file(self, arguments: list[str]) -> int:
        self.logs.stdout.append(bytes(self._room.files.tree.at(arguments[0].encode()).content))
        return 0

    async def _dial(self, arguments: list[str]) -> int:
        return 0 if self._room.dial(arguments[0], int(arguments[1])) else 1


PROGRAMS: dict[str, Callable[[NullExecution, list[str]], Coroutine[Any, Any, int]]] = {
    "echo": NullExecution._echo,
    "err": NullExecution._err,
    "cat": NullExecution._cat,
    "print": NullExecution._print,
    "both": NullExecution._both,
    "torn": NullExecution._torn,
    "sleep": NullExecution._sleep,
    "spew": NullExecution._spew,
    "trap": NullExecution._trap,
    "exit": NullExecution._exit_with,
    "env": NullExecution._env,
    "pwd": NullExecution._pwd,
    "oom": NullExecution._oom,
    "close-stdin": NullExecution._close_stdin,
    "daemon": NullExecution._daemon,
    "silent-then": NullExecution._silent_then,
    "ln": NullExecution._ln,
    "mkfifo": NullExecution._mkfifo,
    "read-file": NullExecution._read_file,
    "dial": NullExecution._dial,
}


class NullSandbox:
    def __init__(self, backend: NullBackend, sandbox_id: str, spec: SandboxSpec) -> None:
        self.backend = backend
        self.id = sandbox_id
        self.spec = spec
        self.executions: dict[str, NullExecution] = {}
        self.destroyed = False
        self.ice = Ice()
        self.kept: list[tuple[NullExecution, int]] = []  # signals that came while it was paused
        self.loss: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.network_log = NetworkLog() if spec.policy.network.mode == "proxy" else None
        self.rules = spec.policy.network.rules
        self._files = NullFiles(self)
        self._ending: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    @property
    def files(self) -> NullFiles:
        return self._files

    @property
    def receipt(self) -> Mapping[str, Any]:
        return {
            "tier": self.backend.info.tier,
            "namespaces": [],
            "storage": {"kind": self.spec.storage, "file_system": "none", "bytes": self.files.limit},
            "network": {
                "mode": self.spec.policy.network.mode,
                "allow": [rule.as_dict() for rule in self.rules],
            },
        }

    def dial(self, name: str, port: int) -> bool:
        if self.network_log is None:
            return False
        rule = rule_for(self.rules, name, port)
        event = NetworkEvent(
            time.time(), "connection", name, "203.0.113.1", port, "allowed", str(rule), None, 9, 99, 0.5
        )
        if rule is None:
            event = NetworkEvent(time.time(), "name", name, None, None, "refused", None, "name")
        self.network_log.add(event)
        return rule is not None

    async def change_network(self, rules: Sequence[NetworkRule]) -> None:
        self.check_alive()
        try:
            await self._unless_ended(self.backend.at(self.backend.network_gate, self.backend.network_error))
        except BackendTimeout:
            self.rules = tuple(rules)
            raise
        self.check_alive()
        self.rules = tuple(rules)

    async def execute(self, execution_id: str, command: Command, logs: Logs) -> NullExecution:
        self.check_alive()
        if self.ice.frozen:
            raise WrongState("paused", "the sandbox is paused")
        await self._unless_ended(self.backend.at(self.backend.execute_gate, self.backend.execute_error))
        no_workdir = await self._enter(command.workdir)
        self.check_alive()
        execution = NullExecution(self, execution_id, command, logs)
        self.executions[execution_id] = execution
        self.backend.commands.append(command)
        execution.start(no_workdir)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            await execution.end_all(None)
            raise
        return execution

    async def _enter(self, workdir: str) -> str:
        """Why it cannot be, or nothing."""
        try:
            await prepare_workdir(self.files, workdir)
        except InvalidRequest as error:
            return f"{workdir} {error}"
        return ""

    async def _unless_ended(self, call: Coroutine[Any, Any, None]) -> None:
        """The end of the sandbox ends what waits in it."""
        waiting = asyncio.create_task(call)
        ended = asyncio.create_task(self._ended.wait())
        try:
            futures: list[asyncio.Future[Any]] = [waiting, ended, self.loss]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            ended.cancel()
            await asyncio.wait([waiting, ended])
        if not waiting.cancelled() and (error := waiting.exception()) is not None:
            raise error

    def check_alive(self) -> None:
        if self.destroyed or self._ending is not None:
            raise WrongState("destroyed", "the sandbox is gone")
        if self.loss.done():
            raise WrongState("failed", f"the sandbox is gone: {self.loss.result()}")

    async def usage(self) -> ResourceUsage:
        await self._unless_ended(self.backend.at(self.backend.usage_gate, self.backend.usage_error))
        self.check_alive()
        used = [await execution.usage() for execution in self.executions.values()]
        return ResourceUsage(0, 0, 0.0, processes=sum(figures.processes or 0 for figures in used), disk_bytes=0)

    async def pause(self) -> None:
        self._check_pausable()
        frozen = self.ice.frozen
        self.ice.freeze()
        try:
            await self._unless_ended(self.backend.at(self.backend.pause_gate, self.backend.pause_error))
        except BaseException:
            if not frozen:
                self.ice.thaw()
            raise
        self.check_alive()

    async def resume(self) -> None:
        self._check_pausable()
        await self._unless_ended(self.backend.at(self.backend.pause_gate, self.backend.pause_error))
        self.check_alive()
        self.ice.thaw()
        kept, self.kept = self.kept, []
        for execution, number in kept:
            execution.take_signal(number)

    def _check_pausable(self) -> None:
        if Capability.PAUSE not in self.backend.info.capabilities:
            raise UnsupportedByRuntime(Capability.PAUSE, self.backend.info.name)
        self.check_alive()

    async def destroy(self) -> None:
        if self.destroyed:
            return
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        try:
            await self.backend.at(self.backend.destroy_gate, self.backend.destroy_error)
            self._ended.set()
            for execution in tuple(self.executions.values()):
                await execution.end_all(None)
            await asyncio.sleep(0)
        except BulkheadError:
            self._ending = None
            raise
        self.destroyed = True
        self.backend.sandboxes.pop(self.id, None)
        self.backend.remove(self.id)

    async def lost(self) -> str:
        why = await asyncio.shield(self.loss)
        if self.destroyed:
            await asyncio.Event().wait()
        return why


class NullBackend:
    def __init__(
        self,
        name: str = "process",
        *,
        aliases: tuple[str, ...] = ("linux", "kernel"),
        tier: str = "kernel",
        capabilities: frozenset[Capability] = CAPABILITIES,
        command_limits: CommandLimits | None = None,
        ceilings: Mapping[str, float] | None = None,
    ) -> None:
        own = command_limits or CommandLimits()
        self._info = RuntimeInfo(name, tier, "0", capabilities, aliases, own, ceilings or {})
        self.sandboxes: dict[str, NullSandbox] = {}
        self.created: list[str] = []
        self.commands: list[Command] = []
        self.create_gate: Gate | None = None
        self.execute_gate: Gate | None = None
        self.kill_gate: Gate | None = None
        self.pause_gate: Gate | None = None
        self.network_gate: Gate | None = None
        self.usage_gate: Gate | None = None
        self.destroy_gate: Gate | None = None
        self.create_error: BulkheadError | None = None
        self.execute_error: BulkheadError | None = None
        self.kill_error: BulkheadError | None = None
        self.pause_error: BulkheadError | None = None
        self.network_error: BulkheadError | None = None
        self.usage_error: BulkheadError | None = None
        self.destroy_error: BulkheadError | None = None
        self.ready_error: BulkheadError | None = None
        self.opened = 0  # how often
        self.image: str | None = None  # what a create without an image gets
        self._alive: list[str] = []

    # --- the contract

    @property
    def info(self) -> RuntimeInfo:
        return self._info

    def open(self) -> None:
        self.opened += 1

    def fit(self, spec: SandboxSpec) -> SandboxSpec:
        return spec if self.image is None else replace(spec, image=spec.image or self.image)

    async def ready(self) -> None:
        if self.ready_error is not None:
            raise self.ready_error

    async def create(self, sandbox_id: str, spec: SandboxSpec) -> NullSandbox:
        self.created.append(sandbox_id)
        self.add(sandbox_id)
        try:
            await self.at(self.create_gate, self.create_error)
            room = NullSandbox(self, sandbox_id, spec)
            await prepare_workdir(room.files, spec.workdir)
            await asyncio.sleep(0)
        except BaseException:
            self.remove(sandbox_id)
            raise
        self.sandboxes[sandbox_id] = room
        return room

    async def aclose(self) -> None:
        for room in tuple(self.sandboxes.values()):
            await room.destroy()

    # --- what tests do to it

    @property
    def alive(self) -> list[str]:
        """A sandbox as its id, a process as `sandbox/execution`; empty when nothing leaked."""
        return sorted(self._alive)

    async def lose(self, sandbox_id: str, why: str = "the worker was killed") -> None:
        """The sandbox ends without us; its handle is still to be destroyed."""
        room = self.sandboxes[sandbox_id]
        executions = tuple(room.executions.values())
        for execution in executions:
            execution.doom(Exit(ExitReason.LOST, detail=why))
        if not room.loss.done():
            room.loss.set_result(why)
        for execution in executions:
            await execution.end_all(None)

    def release(self, execution_id: str) -> None:
        """Lets `silent-then` go on."""
        next(r.executions[execution_id] for r in self.sandboxes.values() if execution_id in r.executions).released.set()

    async def at(self, gate: Gate | None, error: BulkheadError | None) -> None:
        await asyncio.sleep(0)
        if gate is not None:
            await gate.pass_through()
        if error is not None:
            raise error

    def add(self, name: str) -> None:
        self._alive.append(name)

    def remove(self, name: str) -> None:
        if name in self._alive:
            self._alive.remove(name)
