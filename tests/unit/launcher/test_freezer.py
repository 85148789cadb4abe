"""What is written to freeze a payload, on either version, on a fake tree of plain files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.launcher.daemon.cgroup import Hierarchy
from app.launcher.daemon.cgroup_v1 import CgroupTreeV1
from app.launcher.daemon.cgroup_v2 import CgroupTreeV2
from app.launcher.daemon.freezer import Freezer


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    (tmp_path / "one").mkdir()
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path / "one", descriptor
    os.close(descriptor)


def test_version_1_is_frozen_once_the_kernel_says_so(folder: tuple[Path, int]) -> None:
    payload, descriptor = folder
    state = payload / "freezer.state"
    state.write_text("THAWED")
    one = Freezer(CgroupTreeV1("x", [Hierarchy(("freezer",), descriptor)]), "one")
    assert (one.available, one.frozen, one.settled) == (True, False, False)
    one.freeze()
    state.write_text("FREEZING\n")
    assert (one.frozen, one.settled) == (True, False)
    state.write_text("FROZEN\n")
    assert one.settled
    state.write_text("")
    one.thaw()
    assert (state.read_text(), one.frozen, one.settled) == ("THAWED", False, False)


def test_version_2_is_frozen_once_its_events_say_so(folder: tuple[Path, int]) -> None:
    payload, descriptor = folder
    (payload / "cgroup.freeze").write_text("0")
    (payload / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    one = Freezer(CgroupTreeV2("x", [Hierarchy(("memory", "pids", "cpu"), descriptor)]), "one")
    one.freeze()
    assert ((payload / "cgroup.freeze").read_text(), one.settled) == ("1", False)
    (payload / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert one.settled
    one.kill_frozen()  # there is no list of processes here: on this version a kill needs no help
    one.release([os.getpid()])
    one.thaw()
    assert (payload / "cgroup.freeze").read_text() == "0"


def test_a_host_without_a_freezer_cannot(folder: tuple[Path, int]) -> None:
    one = Freezer(CgroupTreeV1("x", [Hierarchy(("memory",), folder[1])]), "one")
    assert not one.available
    with pytest.raises(OSError, match="no freezer"):
        one.freeze()
    one.thaw()
    one.kill_frozen()
    one.release([os.getpid()])
    CgroupTreeV1("x", []).end_frozen()
    assert list(folder[0].iterdir()) == []
