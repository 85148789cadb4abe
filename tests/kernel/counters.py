"""What the kernel counts for each user, taken one by one until it refuses. Runs by itself, in a sandbox too:
`python3 counters.py NAME MOST...` prints `NAME COUNT ERRNO` for each, and then holds everything until its stdin ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_SIGNAL = 40
_PR_SET_PDEATHSIG = 1


def _check(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _file(name: str) -> bytes:
    descriptor, path = tempfile.mkstemp(prefix=name)
    os.close(descriptor)
    return path.encode()


def _inotify_instance(_: int) -> None:
    _check(_LIBC.inotify_init1(0))


_watching: list[int] = []


def _inotify_watch(number: int) -> None:
    if not _watching:
        _watching.append(_check(_LIBC.inotify_init1(0)))
    _check(_LIBC.inotify_add_watch(_watching[0], _file(f"w{number}"), 0x100))


def _fanotify_group(_: int = 0) -> int:
    return _check(_LIBC.fanotify_init(0x200, 0))  # FAN_REPORT_FID: the kind that needs no privilege


_marking: list[int] = []


def _fanotify_mark(number: int) -> None:
    if not _marking:
        _marking.append(_fanotify_group())
    _check(_LIBC.fanotify_mark(_marking[0], 1, ctypes.c_uint64(0x20), -100, _file(f"m{number}")))


def _child(attempt: Callable[[], object]) -> None:
    """One more process, which does that and stays until this one ends."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = 0
        try:
            attempt()
        except OSError as error:
            said = error.errno or 255
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.write(write, bytes((said,)))
        if not said:
            signal.pause()
        os._exit(0)
    os.close(write)
    number = os.read(read, 1)[0]
    os.close(read)
    if number:
        os.waitpid(pid, 0)
        raise OSError(number, os.strerror(number))


def _namespace(flag: int) -> Callable[[int], None]:
    return lambda _: _child(lambda: _check(_LIBC.unshare(flag)))


def _timer(_: int) -> None:
    create = getattr(_LIBC, "timer_create", None) or ctypes.CDLL("librt.so.1", use_errno=True).timer_create
    event = (ctypes.c_int * 16)()
    event[3] = 1  # SIGEV_NONE
    _check(create(1, event, ctypes.byref(ctypes.c_void_p())))


def _queued_signal(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [_SIGNAL])
    _check(_LIBC.sigqueue(os.getpid(), _SIGNAL, ctypes.c_void_p(0)))


def _message_queue(number: int) -> None:
    """Without a name it is there, and counted, until its descriptor is closed; with one it outlives this program."""
    name = b"/q%d-%d" % (os.getpid(), number)
    _check(_LIBC.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, None))
    _check(_LIBC.mq_unlink(name))


def _locked_segment(_: int) -> None:
    """Removed at once, it is there until this program, which has it in its memory, ends."""
    segment = _check(_LIBC.shmget(0, 4096, 0o600))
    try:
        _check(_LIBC.shmat(segment, None, 0))
        _check(_LIBC.shmctl(segment, 11, None))  # SHM_LOCK
    finally:
        _LIBC.shmctl(segment, 0, None)


TAKE: dict[str, Callable[[int], object]] = {
    "inotify_instances": _inotify_instance,
    "inotify_watches": _inotify_watch,
    "fanotify_groups": _fanotify_group,
    "fanotify_marks": _fanotify_mark,
    "mnt_namespaces": _namespace(0x20000),
    "cgroup_namespaces": _namespace(0x02000000),
    "uts_namespaces": _namespace(0x04000000),
    "ipc_namespaces": _namespace(0x08000000),
    "user_namespaces": _namespace(0x10000000),
    "pid_namespaces": _namespace(0x20000000),
    "net_namespaces": _namespace(0x40000000),
    "time_namespaces": _namespace(0x80),
    "timers": _timer,
    "queued_signals": _queued_signal,
    "message_queues": _message_queue,
    "locked_segments": _locked_segment,
    "processes": lambda _: _child(lambda: None),
}


def take(name: str, most: int) -> tuple[int, int]:
    """(how many it got, the errno of the refusal, or 0)."""
    for count in range(most):
        try:
            TAKE[name](count)
        except OSError as error:
            return count, error.errno or 255
    return most, 0


if __name__ == "__main__":
    for name, most in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(name, *take(name, int(most)), flush=True)
    print("full", flush=True)
    sys.stdin.read()
