"""PID 1 of a sandbox: starts commands, passes signals on, reports how they ended, and reaps every orphan.

It is confined exactly as its commands are, so a command needs only vfork and exec. It has two sockets: the launcher's,
from which commands come (with the descriptors that lead into their control groups), and the owner's, to the gateway.
When either is closed the worker ends, and the kernel ends every process of the namespace with it.
"""

from __future__ import annotations

import _signal
import errno
import os
import select
import time

from app.launcher.kernel.syscalls import signalfd
from app.launcher.protocol import (
    EXITED,
    HELD,
    HOLD,
    MAX_COMMAND,
    RECORD,
    RUN,
    RUN_AGENT,
    SIGNAL,
    START_FAILED,
    STARTED,
    STREAMS,
    ExecutionPlan,
    ProtocolError,
    Reader,
    unpack_command,
)
from app.launcher.protocol.packets import close, receive
from app.launcher.sandbox.file_agent import become_agent
from app.launcher.sandbox.forked import Room, exec_limited, fork_into, move_into, step_of
from app.launcher.sandbox.setup import SandboxSetup
from app.launcher.sandbox.spawn import search_and_spawn
from app.launcher.sandbox.workdir import enter

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable

# The worker is outside of the sandbox's cpu limit, and any command may send it SIGCHLD, or leave it children to reap.
# So after each look at its children it does not look again for nine times as long as that took: a tenth of a processor.
_REST = 9
_REAPED_AT_ONCE = 64
# Bytes that the sandbox must still have when the worker enters its groups, which it does for a vfork. If they run out
# meanwhile, the kernel kills the largest process: the new command and not the worker, whose pages are 10 MiB.
_AMPLE = 16 << 20


class Worker:
    def __init__(self, setup: SandboxSetup) -> None:
        self._channel, self._owner = setup.channel, setup.owner
        self._worker_group, self._processes_file = setup.worker_group, setup.processes_file
        self._processes_count = setup.processes_count
        self._most_processes = setup.plan.processes
        self._memory = setup.memory
        self._alone = True  # no other process is in the sandbox
        self._leaders: dict[int, int] = {}  # pid of a command's first process -> its execution's number
        self._on_terminals: set[int] = set()  # those of them that lead the session of a terminal
        # Blocked, one SIGCHLD is pending however many come, and wakes nobody who does not poll for it: with a handler
        # each would interrupt the worker wherever it waits.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (_signal.SIGCHLD,))
        self._children = signalfd(_signal.SIGCHLD)

    def serve(self) -> None:
        """Serves until the launcher or the owner is gone."""
        commands, all_ = select.poll(), select.poll()
        for descriptor in (self._channel.fileno(), self._owner.fileno()):
            commands.register(descriptor, select.POLLIN)
            all_.register(descriptor, select.POLLIN)
        all_.register(self._children, select.POLLIN)
        rested = 0.0
        while True:
            left = rested - time.monotonic()
            for descriptor, _ in commands.poll(left * 1000) if left > 0 else all_.poll(self._look_at_memory()):
                if descriptor == self._children:
                    began = time.thread_time()
                    self._reap()
                    rested = time.monotonic() + _REST * (time.thread_time() - began)
                elif descriptor == self._channel.fileno():
                    if not self._take_command():
                        return
                elif not self._take_signal():
                    return

    def _look_at_memory(self) -> float | None:
        """Brings /proc/meminfo up to date when it is due. Returns the milliseconds until it is due again; None while
        nobody is there to read it."""
        if self._memory is None or self._alone:
            return None
        self._memory.refresh()
        return self._memory.seconds_left * 1000 + 1

    def _tell(self, kind: int, number: int, first: int, second: int) -> None:
        self._owner.send(RECORD.pack(kind, number, first, second))

    # --- commands

    def _take_command(self) -> bool:
        data, descriptors = receive(self._channel)
        if not data:
            return False
        if data == bytes((HOLD,)):  # all that came before was started, and no start is under way
            self._channel.send(bytes((HELD,)))
            return True
        try:
            source = Reader(data)
            kind, number, in_memfd = source.u8(), source.u32(), source.u8()
            streams = STREAMS.get(kind, 0)
            if kind not in (RUN, RUN_AGENT) or len(descriptors) < streams + in_memfd:
                raise ProtocolError("not a command")
            limits = ExecutionPlan.read(source) if kind == RUN else ExecutionPlan()
            body = _read_memfd(descriptors.pop(streams)) if in_memfd else source.rest()
            if kind == RUN:
                self._run(number, unpack_command(body), limits, descriptors[:streams], descriptors[streams:])
            else:
                self._run_agent(number, body, descriptors[:streams], descriptors[streams:])
        finally:
            close(descriptors)
        return True

    def _run(
        self,
        number: int,
        command: tuple[list[bytes], list[bytes], bytes],
        limits: ExecutionPlan,
        stdio: list[int],
        groups: list[int],
    ) -> None:
        argv, env, workdir = command

        def become(tells: int) -> None:
            enter(workdir)
            exec_limited(argv, env, stdio, limits)

        def spawn() -> int:
            enter(workdir)
            return search_and_spawn(argv, env, stdio)

        if limits.rlimits() or (self._memory is not None and not self._memory.has(_AMPLE)):
            self._begin(number, lambda: fork_into(self._room(groups), become), on_terminal=os.isatty(stdio[0]))
        else:
            self._begin(number, lambda: self._spawn(groups, spawn), on_terminal=os.isatty(stdio[0]))

    def _run_agent(self, number: int, body: bytes, sockets: list[int], groups: list[int]) -> None:
        def become(tells: int) -> None:
            os.close(tells)
            become_agent(sockets[0], sockets[1], body)

        self._begin(number, lambda: fork_into(self._room(groups), become))

    def _begin(self, number: int, start: Callable[[], int], *, on_terminal: bool = False) -> None:
        if self._memory is not None:
            self._memory.refresh()
        try:
            pid = start()
        except OSError as error:
            return self._tell(START_FAILED, number, error.errno or 0, step_of(error))
        self._leaders[pid], self._alone = number, False
        if on_terminal:
            self._on_terminals.add(pid)
        self._tell(STARTED, number, pid, 0)
        return None

    def _room(self, groups: list[int]) -> Room:
        return Room(groups, self._processes_count, self._most_processes)

    def _spawn(self, groups: list[int], spawn: Callable[[], int]) -> int:
        """By vfork. The worker enters the groups, as the child can do nothing between vfork and exec."""
        try:
            move_into(groups)
            return self._past_own_count(spawn)
        finally:
            move_into(self._worker_group)

    def _past_own_count(self, start: Callable[[], int]) -> int:
        """Raises OSError with what fork or exec said."""
        try:
            return start()
        except OSError as error:
            if error.errno != errno.EAGAIN or self._processes_file < 0:
                raise
        # Version 2: while it spawns, the worker itself counts in the sandbox's pids. Where that made the limit too
        # small, it is one larger until the command runs; at no moment can more than the limit of other processes exist.
        os.pwrite(self._processes_file, str(self._most_processes + 1).encode(), 0)
        try:
            return start()
        finally:
            os.pwrite(self._processes_file, str(self._most_processes).encode(), 0)

    # --- signals and endings

    def _take_signal(self) -> bool:
        data, descriptors = receive(self._owner)
        close(descriptors)
        if not data:
            return False
        if len(data) == RECORD.size:
            kind, number, signal_number, _ = RECORD.unpack(data)
            for pid, execution in self._leaders.items():
                if kind == SIGNAL and execution == number:
                    _signal_group(pid, signal_number)
        return True

    def _reap(self) -> None:
        os.read(self._children, 4096)
        for _ in range(_REAPED_AT_ONCE):
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                self._alone = True
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid in self._on_terminals:
                self._on_terminals.discard(pid)
                _hang_up(pid)  # while its number, which is that of the session, can be no other's
            _, status = os.waitpid(pid, 0)
            number = self._leaders.pop(pid, None)
            if number is not None:
                self._tell(EXITED, number, status, 0)
        os.kill(os.getpid(), _signal.SIGCHLD)  # there may be more, and the next look comes after a rest


def _signal_group(leader: int, number: int) -> None:
    """A leader that is not reaped yet keeps the number for its group."""
    try:
        os.killpg(leader, number)
    except OSError:
        return  # it has just ended, or the number is no signal: the gateway checks both, and is told the ending


def _hang_up(session: int) -> None:
    """SIGHUP to what a terminal's first process left behind. The kernel sends it to the foreground group alone, and the
    end of a terminal does not find the others any more. Whole groups: none of them can fork its way out.

    Call it before the first process is reaped. A group whose own leader was reaped can end between the look and the
    signal, and only then can another group of this sandbox have its number."""
    groups: dict[int, None] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == session:
                    groups[os.getpgid(int(name))] = None
            except ProcessLookupError:
                continue
    for group in groups:
        _signal_group(group, _signal.SIGHUP)
        _signal_group(group, _signal.SIGCONT)  # what is stopped would never hear of it


def _read_memfd(descriptor: int) -> bytes:
    """A command too long for a packet. One read is one copy, so nobody can change it between check and use."""
    try:
        return os.pread(descriptor, MAX_COMMAND, 0)
    except OSError:
        raise ProtocolError("not a memfd") from None
    finally:
        os.close(descriptor)
