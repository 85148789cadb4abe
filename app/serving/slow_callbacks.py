"""Finds callbacks that hold the event loop, in production: a thread looks at the loop's thread a few times per limit.

A callback is one run of a handle by the loop. What counts is processor time of the loop's thread, so a busy host does
not make a callback slow. The thread sleeps nearly always. While the loop is idle, it only reads a clock. When the loop
was busy since the last look, it leaves a mark in the loop's queue. The queue is in order. So until the mark is reached,
every task runs at most once, and a task that is seen at both ends of the limit is in one and the same callback.

A call into C may hold the interpreter's lock. Then this thread cannot look. It takes that as a sign of a slow callback,
unless the kernel says that the thread waited for a processor. Callbacks between the limit and one and a half times the
limit may be missed.

There are false alarms. Callbacks that give the lock back at each read, and have it again at once, kept this thread away
for 30 to 170 ms while the loop served others within 12 ms (measured with an archive of 20,000 files).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

_LOOKS = 4  # in the time of the limit
_FRAMES = 6


class SlowCallbacks:
    """`tell` is called on the thread with milliseconds of processor time, at least so many, and where the callback was,
    innermost call first."""

    def __init__(self, limit_ms: float, tell: Callable[[float, list[str]], None]) -> None:
        self._limit = limit_ms / 1000
        self._tell = tell
        self._stop = threading.Event()
        self._marked = False
        self._below: int | None = None  # frames below a callback's first

    def start(self) -> None:
        """Call it in the loop's own thread, while the loop runs."""
        self._loop, self._ident = asyncio.get_running_loop(), threading.get_ident()
        self._loop.call_soon(self._mark)
        threading.Thread(target=self._watch, name="slow-callbacks", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _mark(self) -> None:
        if self._below is None:
            self._below = len(_stack(sys._getframe(1)))
        self._marked = False

    def _watch(self) -> None:
        delays = _Delays()
        try:
            self._look(delays)
        finally:
            delays.close()

    def _look(self, delays: _Delays) -> None:
        clock = time.pthread_getcpuclockid(self._ident)
        period = self._limit / _LOOKS
        used = time.clock_gettime(clock)
        first: FrameType | None = None
        since = used
        told = False
        while not self._stop.wait(period):
            before = used
            used, delayed = time.clock_gettime(clock), delays.since_last()
            if not self._marked:
                first, told = None, False
                if used - before > period / 2:
                    self._marked = True
                    with contextlib.suppress(RuntimeError):  # the loop is closed
                        self._loop.call_soon_threadsafe(self._mark)
            stack = _stack(sys._current_frames().get(self._ident))
            seen = stack[self._below] if self._below is not None and len(stack) > self._below else None
            if seen is None or seen is not first:
                first, since, told = seen, used, False
                held = used - before
                if seen is None or held <= self._limit or delayed > held / 2:
                    continue
                since = before
            if used - since > self._limit and not told:
                told = True
                self._tell(round((used - since) * 1000, 1), [_place(frame) for frame in stack[: -_FRAMES - 1 : -1]])


def _stack(frame: FrameType | None) -> list[FrameType]:
    """Outermost first."""
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}:{frame.f_lineno}"


class _Delays:
    """Seconds in which this thread could have run and got no processor: proc_pid_schedstat, the second number. Zero on
    a kernel that does not count them."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._file = -1
        self._last = self._now()

    def _now(self) -> float:
        return int(os.pread(self._file, 128, 0).split()[1]) / 1e9 if self._file >= 0 else 0.0

    def since_last(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
