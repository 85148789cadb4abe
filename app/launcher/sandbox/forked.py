"""Starting a process by fork. The child enters the control groups by itself, so the worker stays outside of them."""

from __future__ import annotations

import _signal
import errno
import os
import resource
import struct

from app.launcher.protocol import STEP_CGROUP, STEP_EXEC, STEP_LIMITS, STEP_WORKDIR, ExecutionPlan
from app.launcher.sandbox.spawn import DEFAULT_SIGNALS, along_path
from app.launcher.sandbox.workdir import WorkdirError

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable

_FAILURE = struct.Struct("<iB")


class GroupError(OSError):
    """The kernel refused a move between control groups."""


class LimitError(OSError):
    """The kernel refused a resource limit."""


_BY_STEP: dict[int, type[OSError]] = {
    STEP_CGROUP: GroupError,
    STEP_EXEC: OSError,
    STEP_LIMITS: LimitError,
    STEP_WORKDIR: WorkdirError,
}


def step_of(error: OSError) -> int:
    """Which step of a start failed, as START_FAILED tells it."""
    if isinstance(error, GroupError):
        return STEP_CGROUP
    if isinstance(error, LimitError):
        return STEP_LIMITS
    return STEP_WORKDIR if isinstance(error, WorkdirError) else STEP_EXEC


def move_into(groups: list[int]) -> None:
    """Raises GroupError."""
    try:
        for descriptor in groups:
            os.write(descriptor, b"0")
    except OSError as error:
        raise GroupError(error.errno, error.strerror) from error


class Room:
    """Into which groups a child goes, and whether the sandbox has room for it there.

    `count`: pids.current of version 2, or -1. The kernel lets a process into a group that is full, so the child counts
    itself. On version 1 the fork is refused, as the worker lives in the sandbox's group of pids.
    """

    __slots__ = ("_count", "_groups", "_most")

    def __init__(self, groups: list[int], count: int, most: int) -> None:
        self._groups, self._count, self._most = groups, count, most

    def enter(self) -> None:
        """Raises GroupError; OSError (EAGAIN) when the sandbox has too many processes."""
        move_into(self._groups)
        if self._count >= 0 and int(os.pread(self._count, 32, 0)) > self._most:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def fork_into(room: Room, become: Callable[[int], None]) -> int:
    """`become` runs in the child, in its groups. It gets a descriptor, which is closed when the start has succeeded.
    Then, or when the child was killed, this returns the pid. Raises OSError with what the child met, and then no child
    is left."""
    told, tells = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _in_child(room, become, tells)
        os.close(tells)
        tells = -1
        said = os.read(told, _FAILURE.size)  # nothing: the other end is closed
    finally:
        os.close(told)
        if tells >= 0:
            os.close(tells)
    if len(said) < _FAILURE.size:
        return pid
    os.waitpid(pid, 0)
    number, step = _FAILURE.unpack(said)
    raise _BY_STEP[step](number, os.strerror(number))


def _in_child(room: Room, become: Callable[[int], None], tells: int) -> None:
    """Never returns. What else the worker has open is closed by exec, or by `become`."""
    number, step = errno.EIO, STEP_EXEC
    try:
        room.enter()
        become(tells)
    except OSError as error:
        number, step = error.errno or number, step_of(error)
    finally:
        os.write(tells, _FAILURE.pack(number, step))
        os._exit(127)


def exec_limited(argv: list[bytes], env: list[bytes], stdio: list[int], limits: ExecutionPlan) -> None:
    """In a child. Sets the limits, which posix_spawn cannot, and which the worker could not raise again in itself.
    Returns never. Raises OSError with what the kernel said, LimitError."""
    os.setsid()
    for target, descriptor in enumerate(stdio):
        os.dup2(descriptor, target)
    if os.isatty(0):  # as `search_and_spawn` does
        terminal = os.open("/proc/self/fd/0", os.O_RDWR)
        for target in range(3):
            os.dup2(terminal, target)
        os.close(terminal)
    for signal in DEFAULT_SIGNALS:
        _signal.signal(signal, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    try:
        for kind, value in limits.rlimits():
            resource.setrlimit(kind, (value, value))
    except OSError as error:
        raise LimitError(error.errno, error.strerror) from error
    except ValueError:  # a limit above the one that it has, which Python does not pass on
        raise LimitError(errno.EPERM, os.strerror(errno.EPERM)) from None
    along_path(argv, env, lambda path, variables: os.execve(path, argv, variables))  # noqa: S606 - as it is asked for
