"""Rules for what runs. An execution that breaks a rule is ended, and its exit says why.

A rule is a function. It gets sandboxes and names the executions that are to end. Where the kernel reports that a
sandbox needs to be looked at (see oom.py), the rule is asked then. Other rules are asked once per interval, about all
sandboxes in which something runs.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # `typing` is heavy
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from app.launcher.daemon.sandbox_process import SandboxProcess

    Rule = Callable[[list[SandboxProcess]], list["Verdict"]]

_INTERVAL_SECONDS = 0.1


class Verdict:
    """This execution of this sandbox is to end. `reason` is the reason of its exit, as in the API. `detail` is a
    sentence."""

    __slots__ = ("detail", "number", "reason", "sandbox")

    def __init__(self, sandbox: SandboxProcess, number: int, reason: str, detail: str) -> None:
        self.sandbox, self.number, self.reason, self.detail = sandbox, number, reason, detail


class Watch:
    """The rules that are asked once per interval. Without rules the launcher never wakes for them."""

    def __init__(self, rules: tuple[Rule, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._rules, self._clock = rules, clock
        self._due = clock() + _INTERVAL_SECONDS

    def milliseconds_left(self, sandboxes: Iterable[SandboxProcess]) -> int | None:
        """Time until `look` is due. None when there is no rule or nothing runs."""
        if not self._rules or not any(sandbox.runs for sandbox in sandboxes):
            return None
        return max(0, int((self._due - self._clock()) * 1000) + 1)

    def look(self, sandboxes: Iterable[SandboxProcess]) -> list[Verdict]:
        """Asks the rules. Does nothing before the interval has passed."""
        if not self._rules or self._clock() < self._due:
            return []
        self._due = self._clock() + _INTERVAL_SECONDS
        running = [sandbox for sandbox in sandboxes if sandbox.running]
        return [verdict for rule in self._rules for verdict in rule(running)] if running else []
