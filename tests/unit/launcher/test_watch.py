"""When rules are asked, and what they are asked about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.launcher.daemon.oom import MOST_KILLS, killed_too_often
from app.launcher.daemon.watch import Verdict, Watch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def sandbox(**kills: int) -> Any:
    """With one execution for each number of kills."""
    numbers = {int(name.removeprefix("e")): count for name, count in kills.items()}
    return SimpleNamespace(
        runs=bool(numbers), running=list(numbers), groups=SimpleNamespace(oom_kills=numbers.__getitem__)
    )


def test_without_rules_nobody_is_woken() -> None:
    watch = Watch(())
    assert watch.milliseconds_left([sandbox(e1=0)]) is None
    assert watch.look([sandbox(e1=0)]) == []


def test_rules_are_asked_once_per_interval_about_what_runs() -> None:
    clock, asked = Clock(), []
    running, idle = sandbox(e1=0), sandbox()

    def rule(sandboxes: list[Any]) -> list[Verdict]:
        asked.append(sandboxes)
        return [Verdict(running, 1, "resource_limit", "it was its turn")]

    watch = Watch((rule,), clock)
    assert watch.milliseconds_left([running]) == pytest.approx(100, abs=2)
    assert watch.milliseconds_left([idle]) is None
    assert watch.look([running, idle]) == []
    assert asked == []
    clock.now += watch.milliseconds_left([running]) / 1000  # type: ignore[operator]  # it has a rule
    assert [verdict.detail for verdict in watch.look([running, idle])] == ["it was its turn"]
    assert asked == [[running]]
    assert watch.look([running, idle]) == []
    clock.now += 10
    assert watch.look([idle]) == []
    assert asked == [[running]], "and not at all while nothing runs"


def test_an_execution_is_ended_for_its_own_kills_only() -> None:
    verdicts = killed_too_often([sandbox(e1=MOST_KILLS - 1, e2=MOST_KILLS, e3=0), sandbox(e4=MOST_KILLS - 1)])
    assert [(verdict.number, verdict.reason) for verdict in verdicts] == [(2, "oom")]
    assert str(MOST_KILLS) in verdicts[0].detail
