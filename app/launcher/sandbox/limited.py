"""Starting a command with resource limits of its own: by fork, as posix_spawn sets none, and as the worker could not
raise its own again."""

from __future__ import annotations

import _signal
import errno
import os
import resource
import struct

from app.launcher.protocol import ExecutionPlan
from app.launcher.sandbox.spawn import DEFAULT_SIGNALS, along_path

_ERRNO = struct.Struct("<i?")


class LimitError(OSError):
    """The kernel refused a resource limit."""


def fork_and_exec(argv: list[bytes], env: list[bytes], stdio: list[int], limits: ExecutionPlan) -> int:
    """Returns when the command runs, or has been killed. Raises OSError with what fork or exec said, LimitError."""
    told, tells = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _become(argv, env, stdio, limits, tells)
        os.close(tells)
        tells = -1
        said = os.read(told, _ERRNO.size)  # nothing: exec has closed the other end
    finally:
        os.close(told)
        if tells >= 0:
            os.close(tells)
    if len(said) < _ERRNO.size:
        return pid
    os.waitpid(pid, 0)
    number, at_limits = _ERRNO.unpack(said)
    raise (LimitError if at_limits else OSError)(number, os.strerror(number))


def _become(argv: list[bytes], env: list[bytes], stdio: list[int], limits: ExecutionPlan, tells: int) -> None:
    """In the child. Never returns. What else the worker has open is closed by exec."""
    number, at_limits = errno.EIO, False
    try:
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
        at_limits = True
        for kind, value in limits.rlimits():
            resource.setrlimit(kind, (value, value))
        at_limits = False
        along_path(argv, env, lambda path, variables: os.execve(path, argv, variables))  # noqa: S606 - as it is asked for
    except OSError as error:
        number = error.errno or number
    except ValueError:  # a limit above the one that it has, which Python does not pass on
        number = errno.EPERM
    finally:
        os.write(tells, _ERRNO.pack(number, at_limits))
        os._exit(127)
