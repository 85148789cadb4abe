"""Executions with limits of their own on processor time and memory. Others are never looked at here."""

from __future__ import annotations

import os
import time

from app.launcher.daemon.oom import MOST_KILLS
from app.launcher.daemon.watch import Verdict

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable

    from app.launcher.daemon.sandbox_process import SandboxProcess

_SOONEST, _LATEST = 0.05, 0.25  # seconds until the next look at one that may reach its limit, or that does nothing


class LimitedExecution:
    """One of them, and when to look at it next."""

    __slots__ = ("cpu_ns", "due", "number", "sandbox", "used_ns")

    def __init__(self, sandbox: SandboxProcess, number: int, cpu_ns: int, due: float) -> None:
        """`cpu_ns`: the limit; 0: only its memory has one."""
        self.sandbox, self.number, self.cpu_ns, self.due, self.used_ns = sandbox, number, cpu_ns, due, 0


class LimitedExecutions:
    """No process uses more than one processor, so a limit is looked at when all of them together can have reached it:
    a few times for each execution, and more often only near its end. One that has a limit on memory alone is looked at
    four times a second as long as it does nothing, and up to twenty times while it computes. 200 that sleep cost 5 % of
    the launcher's thread, measured."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._processors = os.cpu_count() or 1
        self._known: list[LimitedExecution] = []

    def add(self, sandbox: SandboxProcess, number: int, cpu_ns: int) -> None:
        limited = LimitedExecution(sandbox, number, cpu_ns, 0.0)
        limited.due = self._clock() + self._seconds_left(limited, idle=False)
        self._known.append(limited)

    @property
    def milliseconds_left(self) -> int | None:
        """Until `look` has something to do; None without any."""
        if not self._known:
            return None
        first = min(limited.due for limited in self._known)
        return max(0, int((first - self._clock()) * 1000) + 1)

    def look(self) -> list[Verdict]:
        """Those that are over a limit. They, and those that have ended, are looked at no more."""
        if not self._known:
            return []
        found: list[Verdict] = []
        now, rest = self._clock(), []
        for limited in self._known:
            if limited.due > now:
                rest.append(limited)
            elif limited.number in limited.sandbox.running:
                verdict = self._judge(limited, now)
                if verdict is None:
                    rest.append(limited)
                else:
                    found.append(verdict)
        self._known = rest
        return found

    def _judge(self, limited: LimitedExecution, now: float) -> Verdict | None:
        sandbox, number = limited.sandbox, limited.number
        usage = sandbox.groups.usage(number)
        if limited.cpu_ns and usage.cpu_ns >= limited.cpu_ns:
            detail = f"used {usage.cpu_ns / 1e9:.2f} s of processor time; its limit is {limited.cpu_ns / 1e9:g} s"
            return Verdict(sandbox, number, "cpu_limit", detail)
        # On version 1 the kernel tells the payload's group of kills at its own limit only, not of those at an
        # execution's own.
        if usage.ooms >= MOST_KILLS:
            detail = f"the kernel killed {usage.ooms} of its processes at the memory limit"
            return Verdict(sandbox, number, "oom", f"{detail}; after {MOST_KILLS} it is ended")
        idle, limited.used_ns = usage.cpu_ns == limited.used_ns, usage.cpu_ns
        limited.due = now + self._seconds_left(limited, idle=idle)
        return None

    def _seconds_left(self, limited: LimitedExecution, *, idle: bool) -> float:
        soonest = _LATEST if idle else _SOONEST
        if not limited.cpu_ns:
            return soonest
        return max(soonest, (limited.cpu_ns - limited.used_ns) / 1e9 / self._processors)
