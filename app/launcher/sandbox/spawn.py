"""Starts one command from a process that is already confined: vfork and exec, and nothing in between."""

from __future__ import annotations

import _signal
import errno
import os

# A command starts with every signal as the kernel's default: CPython ignores SIGPIPE and SIGXFSZ, and whoever started
# the service may have made it ignore others (nohup, a shell's `trap`), which exec hands on.
_IGNORED = [number for number in range(1, _signal.NSIG) if _signal.getsignal(number) == _signal.SIG_IGN]
_DEFAULT_SIGNALS = {*_IGNORED, _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGCHLD}
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_and_spawn(argv: list[bytes], env: list[bytes], stdio: list[int]) -> int:
    """Searches along the command's own PATH and never the service's, like execvp(3) without its fall-back to a
    shell."""
    variables = dict(item.partition(b"=")[::2] for item in env)
    if b"/" in argv[0]:
        candidates = [argv[0]]
    else:
        folders = variables.get(b"PATH", _DEFAULT_PATH).split(b":")
        candidates = [(folder or b".") + b"/" + argv[0] for folder in folders]
    actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_DUP2, open_, target) for target, open_ in enumerate(stdio)]
    if os.isatty(stdio[0]):
        # Opened by the leader of a new session, it becomes the session's controlling terminal, tty_ioctl(4).
        actions.append((os.POSIX_SPAWN_OPEN, 0, b"/proc/self/fd/1", os.O_RDWR, 0))
        actions += [(os.POSIX_SPAWN_DUP2, 0, target) for target in (1, 2)]
    refused = errno.ENOENT
    for path in candidates:
        try:
            return os.posix_spawn(
                path, argv, variables, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
            )
        except OSError as error:
            if error.errno == errno.EACCES:
                refused = errno.EACCES
            elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
    raise OSError(refused, os.strerror(refused))
