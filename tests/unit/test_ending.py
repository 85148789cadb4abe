"""In which order the processes of a service are ended, and who is killed when one of them hangs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from app.serving.ending import GraceSeconds, end_in_order

GRACE = GraceSeconds(egress=1, launcher=2, gateway=3, egress_alone=4, launcher_alone=5)


class Child:
    """Stands for a process. It ends at a SIGTERM if `ends` says so, and may be waited for as long as it likes."""

    def __init__(self, name: str, said: list[str], ends: Callable[[], bool] = lambda: True) -> None:
        self.name, self._said, self._ends = name, said, ends
        self.status: int | None = None
        self._asked = False

    def poll(self) -> int | None:
        return self.status

    def terminate(self) -> None:
        self._asked = True
        self._said.append(f"terminate {self.name}")

    def kill(self) -> None:
        self.status = -9
        self._said.append(f"kill {self.name}")

    def wait(self, seconds: float | None = None) -> int:
        if self.status is None and self._asked and self._ends():
            self.status = 0
        if self.status is None:
            assert seconds is not None, "it would wait for ever"
            self._said.append(f"{seconds:g} s")
            raise subprocess.TimeoutExpired(self.name, seconds)
        return self.status


def end(gateway: Child | None, egress: Child | None, launcher: Child | None) -> None:
    children: list[Any] = [gateway, egress, launcher]
    end_in_order(children[0], children[1], children[2], GRACE)
    assert all(child is None or child.status is not None for child in (gateway, egress, launcher))


def test_what_works_is_asked_in_order_and_nobody_is_killed() -> None:
    said: list[str] = []
    end(*(Child(name, said) for name in ("gateway", "egress", "launcher")))
    assert said == ["terminate gateway", "terminate egress", "terminate launcher"]


def test_egress_process_that_hangs_is_killed_and_the_gateway_waits_no_longer() -> None:
    said: list[str] = []
    egress = Child("egress", said, lambda: False)
    gateway = Child("gateway", said, lambda: egress.status is not None)
    end(gateway, egress, Child("launcher", said))
    assert said == ["terminate gateway", "1 s", "kill egress", "terminate launcher"]


def test_launcher_that_hangs_is_killed_before_the_gateway() -> None:
    said: list[str] = []
    launcher = Child("launcher", said, lambda: False)
    gateway = Child("gateway", said, lambda: launcher.status is not None)
    end(gateway, Child("egress", said), launcher)
    assert said == ["terminate gateway", "1 s", "kill egress", "2 s", "kill launcher"]


def test_gateway_that_hangs_is_killed_last() -> None:
    said: list[str] = []
    end(Child("gateway", said, lambda: False), Child("egress", said), Child("launcher", said))
    assert said == ["terminate gateway", "1 s", "kill egress", "2 s", "kill launcher", "3 s", "kill gateway"]


@pytest.mark.parametrize("with_gateway", [True, False])
def test_what_hangs_without_a_gateway_that_waits_is_killed(with_gateway: bool) -> None:
    said: list[str] = []
    gateway = Child("gateway", said) if with_gateway else None
    end(gateway, *(Child(name, said, lambda: False) for name in ("egress", "launcher")))
    expected = ["terminate egress", "4 s", "kill egress", "terminate launcher", "5 s", "kill launcher"]
    assert said == ["terminate gateway"][: int(with_gateway)] + expected


def test_what_is_not_there_or_has_ended_is_left_alone() -> None:
    said: list[str] = []
    ended = Child("gateway", said)
    ended.status = 1
    end(ended, None, None)
    assert said == []
