"""Every callback of an event loop is measured in every `async def` test: more than 20 ms of processor time fails it.

A callback is one run of a handle by the loop: a step of a task, a reader's, a timer's. While it runs nobody else is
served. Measured is the processor time of the loop's thread, not the wall clock, which on a shared machine measures
preemption. The tests run on asyncio's own loop, whose handles are Python's and can be measured one by one; uvloop's,
in production, are not, and run the same callbacks.

What is not counted, with reasons:

- what tests, their clients and the command line do on the same loop: what counts is a callback in which the service's
  code is on the stack shortly before the time is up, which a profiling timer tells;
- the start of an application: the settings, `create_app`, its document, and a backend's client with the host's
  certificates, all of which the gateway makes before it listens;
- a client of a test, which reads the host's certificates as well, for 20 ms;
- the collector: what it looks at here is mostly what pytest and the tests hold;
- what a test does itself right before it calls the service, where it says so by `own_work`.

A slower machine takes longer for everything, and a host that stops a virtual processor charges the time to whoever
runs: a property took 52 ms (seen). So what was too slow is compared with a fixed piece of work that is measured right
after the test, and the test runs again (tests/conftest.py). What really holds the loop does so every time.
"""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
import time
import traceback
from asyncio.events import Handle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

import app.api.openapi.document
import app.main
from app.backends.boxlite.backend import BoxliteBackend
from app.settings import Settings
from tests.processor_time import slowness_at_times

MILLISECONDS = float(os.environ.get("BULKHEAD_TEST_CALLBACK_MS") or 20)  # 0 switches it off
FRAMES_SHOWN = 12

_SERVICE = str(Path(app.main.__file__).parent)
_NOT_THE_SERVICE = tuple(f"{_SERVICE}/{name}/" for name in ("cli", "client"))
_SOONER = 0.75  # of the time: the timer counts in ticks of the kernel, 4 ms


class Callbacks:
    """Measures from `install` on. `slow`: what took longer than the limit since `forget`: seconds, and for people."""

    def __init__(self, milliseconds: float) -> None:
        self.limit = milliseconds / 1000
        self.slow: list[tuple[float, str]] = []
        self.counted = 0
        self._left_out = self._collecting = 0.0
        self._own_works = 0
        self._began: tuple[float, float] | None = None  # of the callback that runs, and what was left out before it
        self._stack = ""

    def install(self) -> None:
        Handle._run = self._measured(Handle._run)  # type: ignore[method-assign,assignment]
        gc.callbacks.append(self._on_collector)
        signal.signal(signal.SIGPROF, self._on_time_is_up)
        Settings.__init__ = self._not_counted(Settings.__init__)  # type: ignore[method-assign]
        app.main.create_app = self._not_counted(app.main.create_app)
        BoxliteBackend.__init__ = self._not_counted(BoxliteBackend.__init__)  # type: ignore[method-assign]
        httpx.AsyncClient.__init__ = self._not_counted(httpx.AsyncClient.__init__)  # type: ignore[method-assign]
        app.api.openapi.document.describe = self._not_counted(app.api.openapi.document.describe)

    def forget(self) -> None:
        self.slow.clear()

    def too_slow(self) -> list[str]:
        """What was too slow since `forget`, even for a machine that is as slow as this one is now."""
        if not self.slow:
            return []
        allowed = self.limit * slowness_at_times()
        return [text for seconds, text in self.slow if seconds > allowed]

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """What goes on in here is not the service's. Not to be held over an `await`."""
        began, left_out = time.thread_time(), self._left_out
        self._own_works += 1
        try:
            yield
        finally:
            self._own_works -= 1
            self._left_out = left_out + time.thread_time() - began
            if self._began is not None:  # the timer ran meanwhile, and may have told of what is not counted
                left = self.limit * _SOONER - self._counted_since(*self._began)
                signal.setitimer(signal.ITIMER_PROF, max(0.001, left))

    def _measured(self, run: Callable[[Handle], None]) -> Callable[[Handle], None]:
        def measured(handle: Handle) -> None:
            if threading.current_thread() is not threading.main_thread():  # a loop of a test's own client
                return run(handle)
            self._stack = ""
            signal.setitimer(signal.ITIMER_PROF, self.limit * _SOONER)
            began = self._began = time.thread_time(), self._left_out
            try:
                run(handle)
            finally:
                self._began = None
                took = self._counted_since(*began)
                signal.setitimer(signal.ITIMER_PROF, 0)
                self.counted += 1
                if took > self.limit and self._stack:
                    text = f"{took * 1000:.0f} ms of processor time in one callback: {handle}\n{self._stack}"
                    self.slow.append((took, text))
            return None

        return measured

    def _counted_since(self, began: float, left_out: float) -> float:
        return time.thread_time() - began - (self._left_out - left_out)

    def _not_counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def uncounted(*arguments: Any, **named: Any) -> Any:
            with self.own_work():
                return call(*arguments, **named)

        return uncounted

    def _on_collector(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
        else:
            self._left_out += time.thread_time() - self._collecting

    def _on_time_is_up(self, _: int, frame: FrameType | None) -> None:
        if not self._own_works and any(_is_service(at) for at, _ in traceback.walk_stack(frame)):
            self._stack = "".join(traceback.format_stack(frame, FRAMES_SHOWN))


def _is_service(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(_SERVICE) and not name.startswith(_NOT_THE_SERVICE)


CALLBACKS = Callbacks(MILLISECONDS)
own_work = CALLBACKS.own_work
