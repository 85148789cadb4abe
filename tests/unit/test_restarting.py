"""A process of the supervisor that died is started again: at once, and slower when it keeps dying."""

from __future__ import annotations

import subprocess

import pytest

from app.serving.restarting import RestartedProcess, StartFailed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def dead() -> subprocess.Popen[bytes]:
    child = subprocess.Popen(["false"])
    child.wait()
    return child


def test_process_that_lives_is_left_alone() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        restarted = RestartedProcess("it", "all is lost", lambda: child)
        assert restarted.revive() is None
        assert restarted.process is child


def test_process_that_died_is_started_again_at_once_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(dead())
        return started[-1]

    restarted = RestartedProcess("the thing", "all is lost", start)
    assert restarted.revive() is None
    assert len(started) == 2
    assert restarted.process is started[1]
    assert capsys.readouterr().err == "bulkhead: the thing ended with 1: starting another; all is lost\n"


def test_process_that_keeps_dying_is_started_ever_slower_up_to_ten_seconds() -> None:
    clock = Clock()
    restarted = RestartedProcess("it", "all is lost", dead, clock)
    assert [restarted.revive() for _ in range(4)] == [None] * 4
    waits = []
    for _ in range(5):
        wait = restarted.revive()
        assert wait is not None
        clock.now += wait
        assert restarted.revive() is None
        waits.append(round(wait, 1))
    assert waits == [1.6, 3.2, 6.4, 10.0, 10.0]


def test_process_that_lived_for_a_minute_is_started_at_once_again() -> None:
    clock = Clock()
    restarted = RestartedProcess("it", "all is lost", dead, clock)
    for _ in range(4):
        restarted.revive()
    clock.now += 61
    assert [restarted.revive() for _ in range(3)] == [None] * 3


def test_start_that_failed_is_told_and_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    fails = [False, True, False]

    def start() -> subprocess.Popen[bytes]:
        if fails.pop(0):
            raise StartFailed("there is no room")
        return dead()

    restarted = RestartedProcess("it", "all is lost", start)
    assert restarted.revive() == 1.0
    assert "bulkhead: there is no room\n" in capsys.readouterr().err
    assert restarted.revive() is None
    assert fails == []
