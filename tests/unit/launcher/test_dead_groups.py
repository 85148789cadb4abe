"""When the kernel is told to drop pages, on a fake tree of version 2."""

from __future__ import annotations

import os
import subprocess
import sys
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


# As in the launcher on version 2, the folder is the first that is opened.
LOWEST = """
import os, sys
from app.launcher.daemon.cgroup import Hierarchy
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2
from app.launcher.daemon.dead_groups import DeadGroups
at = os.open(sys.argv[1], os.O_RDONLY)
assert at == 3
tree = CgroupTreeV2("x", [Hierarchy(("memory",), at)])
groups = DeadGroups(tree)
tree.removed_groups = 32
groups.go_on()
while groups.reclaiming:
    groups.go_on()
"""


def test_pages_are_dropped_where_the_folder_is_the_lowest_descriptor(tmp_path: Path) -> None:
    (tmp_path / "cgroup.stat").write_text(f"nr_dying_descendants {MOST + 1}\n")
    (tmp_path / "memory.current").write_text("4096\n")
    (tmp_path / "memory.reclaim").write_text("")
    subprocess.run([sys.executable, "-c", LOWEST, tmp_path], check=True)
    assert (tmp_path / "memory.reclaim").read_text() == "4096"
