"""The control groups of the next sandbox: they are made ahead with its clone, and go with it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.serving.supervisor import start_launcher
from tests.kernel import host
from tests.kernel.direct import Gateway, Launched, launcher, sandboxes_of
from tests.require import require
from tests.service import PATIENCE


@pytest.fixture
def alone() -> Iterator[tuple[Launched, Gateway]]:
    require("root", os.geteuid() == 0, "the launcher needs root")
    with launcher() as launched, Gateway(launched[0].socket) as gateway:
        gateway.hello()
        yield launched, gateway


def clone_ahead(launched: Launched) -> tuple[int, int]:
    """(pid, uid) of the clone that is made ahead, once it lives in its groups."""
    found: list[tuple[int, int]] = []

    def waits() -> bool:
        found[:] = [(pid, uid) for pid in host.children_of(launched[1].pid) for uid in {*host.uids_of(pid)}]
        return len(found) == 1 and host.WORKERS in Path(f"/proc/{found[0][0]}/cgroup").read_text()

    host.until(waits, "a clone that was made ahead waits for its plan")
    return found[0]


def folders(launched: Launched, uid: int) -> list[str]:
    parent, _, first = launched[0].cgroup_parent.partition("/")
    return [folder for folder in host.group_folders(int(first), parent) if f"s-{uid}" in Path(folder).parts]


def test_groups_are_there_before_anybody_asks_for_a_sandbox(alone: tuple[Launched, Gateway]) -> None:
    launched, gateway = alone
    pid, uid = clone_ahead(launched)
    made = folders(launched, uid)
    assert made
    assert sandboxes_of(launched) == set()
    with gateway.create():
        assert sandboxes_of(launched) == {f"s-{uid}"}, "the sandbox has them, now with limits"
        assert folders(launched, uid) == made, "and no others"
        assert pid in host.children_of(launched[1].pid)
        gateway.destroy()
    assert folders(launched, uid) == []


def test_clone_ahead_that_is_killed_takes_its_groups_with_it(alone: tuple[Launched, Gateway]) -> None:
    launched, gateway = alone
    pid, uid = clone_ahead(launched)
    os.kill(pid, signal.SIGKILL)
    host.until(lambda: host.state_of(pid) in ("Z", ""), "it has ended")
    with gateway.create() as owner:
        assert folders(launched, uid) == []
        assert len(sandboxes_of(launched)) == 1
        assert gateway.run(owner, 1, "echo", "fine") == (b"fine\n", 0)
        gateway.destroy()
    assert sandboxes_of(launched) == set()


def test_launcher_that_is_killed_at_any_point_ahead_leaves_no_more_than_empty_groups() -> None:
    """The next launcher begins with them."""
    require("root", os.geteuid() == 0, "the launcher needs root")
    chance = random.Random(24)
    for _ in range(12):
        with launcher() as (config, child):
            with Gateway(config.socket) as gateway:
                gateway.hello()
                threading.Event().wait(chance.uniform(0, 0.015))
                child.kill()
                child.wait(PATIENCE)
            uids = range(config.uid_first, config.uid_first + config.uid_count)
            host.until(lambda uids=uids: not host.living_of(*uids), "every process ends")  # type: ignore[misc]
            again = start_launcher(config)
            try:
                assert sandboxes_of((config, again)) == set()
                with Gateway(config.socket) as gateway, gateway.create() as owner:
                    assert len(sandboxes_of((config, again))) == 1
                    assert gateway.run(owner, 1, "echo", "fine") == (b"fine\n", 0)
                    gateway.destroy()
                assert sandboxes_of((config, again)) == set()
            finally:
                again.terminate()
                again.communicate(timeout=PATIENCE)
