"""Starts one command from a process that is already confined: vfork and exec, and nothing in between."""

from __future__ import annotations

import _signal
import errno
import os

# A command starts with every signal as the kernel's default: CPython ignores SIGPIPE and SIGXFSZ, and whoever started
# the service may have made it ignore others (nohup, a shell's `trap`), which exec hands on.
_IGNORED = [number for number in range(1, _signal.NSIG) if _signal.getsignal(number) == _signal.SIG_IGN]
DEFAULT_SIGNALS = {*_IGNORED, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGCHLD}
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def along_path(argv: list[bytes], env: list[bytes], attempt: Callable[[bytes, dict[bytes, bytes]], T]) -> T:
    """Calls `attempt` with each file that the program's name may mean, and the environment, until one can be executed:
    along the command's own PATH, never the service's, as execvp(3), but without its fall-back to a shell. Raises
    OSError."""
    variables = dict(item.partition(b"=")[::2] for item in env)
    if b"/" in argv[0]:
        candidates = [argv[0]]
    else:
        folders = variables.get(b"PATH", _DEFAULT_PATH).split(b":")
        candidates = [(folder or b".") + b"/" + argv[0] for folder in folders]
    refused = errno.ENOENT
    for path in candidates:
        try:
            return attempt(path, variables)
        except OSError as error:
            if error.errno == errno.EACCES:
                refused = errno.EACCES
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
    raise OSError(refused, os.strerror(refused))


def search_and_spawn(argv: list[bytes], env: list[bytes], stdio: list[int]) -> int:
    """Raises OSError."""
    actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_DUP2, open_, target) for target, open_ in enumerate(stdio)]
    if os.isatty(stdio[0]):
        # Opened by the leader of a new session, it becomes the session's controlling terminal, tty_ioctl(4).
        actions.append((os.POSIX_SPAWN_OPEN, 0, b"/proc/self/fd/1", os.O_RDWR, 0))
        actions += [(os.POSIX_SPAWN_DUP2, 0, target) for target in (1, 2)]

    def spawn(path: bytes, variables: dict[bytes, bytes]) -> int:
        return os.posix_spawn(
            path, argv, variables, file_actions=actions, setsid=True, setsigmask=(), setsigdef=DEFAULT_SIGNALS
        )

    return along_path(argv, env, spawn)
