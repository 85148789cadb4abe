"""When the kernel is told to drop pages, on a fake tree of version 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.launcher.daemon.cgroup import Hierarchy
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2
from app.launcher.daemon.dead_groups import MOST, DeadGroups
from tests.kernel import host


@pytest.mark.parametrize(("dead", "removed", "told"), [(MOST + 1, 32, "4096"), (MOST, 32, ""), (MOST + 1, 31, "")])
def test_pages_are_dropped_when_too_many_are_dead(tmp_path: Path, dead: int, removed: int, told: str) -> None:
    (tmp_path / "cgroup.stat").write_text(f"nr_descendants 3\nnr_dying_descendants {dead}\n")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.reclaim").write_text("")
    at = os.open(tmp_path, os.O_RDONLY)
    tree = CgroupTreeV2("x", [Hierarchy(("memory", "pids", "cpu"), at)])
    groups = DeadGroups(tree)
    tree.removed_groups = removed
    groups.go_on()
    assert groups.reclaiming == bool(told)

    def ended() -> bool:
        groups.go_on()
        return not groups.reclaiming

    host.until(ended, "the child ends")
    assert (tmp_path / "memory.reclaim").read_text() == told
    os.close(at)
