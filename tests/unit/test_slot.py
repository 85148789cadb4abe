"""Slots: no two services share a uid, whatever ranges they were given, and a dead one's slot is free again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.serving.slot import UIDS, NoSlot, release, take_slot

BASE = 1_000_000


def test_the_lowest_free_range_is_taken(tmp_path: Path) -> None:
    slots = [take_slot(BASE, 4 * UIDS, tmp_path) for _ in range(3)]
    assert [slot.uid_first for slot in slots] == [BASE, BASE + UIDS, BASE + 2 * UIDS]
    assert {slot.uid_count for slot in slots} == {UIDS}
    release(slots[1])
    again = take_slot(BASE, 4 * UIDS, tmp_path)
    assert again.uid_first == BASE + UIDS
    for slot in (slots[0], again, slots[2]):
        release(slot)
    assert [path.name for path in tmp_path.iterdir()] == ["uids.lock"]


def test_everything_of_a_slot_is_named_after_its_first_uid(tmp_path: Path) -> None:
    slot = take_slot(BASE, UIDS, tmp_path)
    assert slot.gateway_uid == BASE
    assert (slot.folder, slot.cgroup) == (tmp_path / str(BASE), f"bulkhead/{BASE}")
    assert slot.launcher_socket == tmp_path / str(BASE) / "launcher.sock"
    assert slot.egress_socket == tmp_path / str(BASE) / "egress.sock"
    assert slot.folder.stat().st_mode & 0o777 == 0o755
    release(slot)


def test_other_users_pass_through_its_folders_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        slot = take_slot(BASE, UIDS, tmp_path / "run")
        (tmp_path / "as-it-was").mkdir()
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (slot.run, slot.folder, tmp_path / "as-it-was")]
    assert modes == [0o755, 0o755, 0o700]
    release(slot)


def test_every_uid_of_a_slot_is_somebodys(tmp_path: Path) -> None:
    slot = take_slot(BASE, 10, tmp_path)
    assert [slot.gateway_uid, slot.egress_uid, *slot.sandbox_uids] == list(range(BASE, BASE + 10))
    release(slot)


def test_no_range_free_is_said_in_a_sentence(tmp_path: Path) -> None:
    slots = [take_slot(BASE, 2 * UIDS, tmp_path) for _ in range(2)]
    with pytest.raises(NoSlot, match="all 2 ranges of host uids are in use"):
        take_slot(BASE, 2 * UIDS, tmp_path)
    for slot in slots:
        release(slot)


def test_ranges_that_overlap_without_beginning_together_are_apart(tmp_path: Path) -> None:
    one = take_slot(BASE, UIDS, tmp_path)
    with pytest.raises(NoSlot):
        take_slot(BASE + 1, UIDS, tmp_path)
    with pytest.raises(NoSlot):
        take_slot(BASE - 1, UIDS, tmp_path)
    other = take_slot(BASE + 1, 2 * UIDS, tmp_path)
    assert other.uid_first == BASE + 1 + UIDS
    release(one)
    release(other)


def test_a_small_range_is_one_slot(tmp_path: Path) -> None:
    slot = take_slot(BASE, 10, tmp_path)
    assert slot.uid_count == 10
    with pytest.raises(NoSlot):
        take_slot(BASE, 10, tmp_path)
    release(slot)


def test_the_slot_of_a_killed_service_is_free_again_and_its_folder_is_found(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from app.serving.slot import take_slot\n"
    code += f"s = take_slot({BASE}, {UIDS}, Path(sys.argv[1]))\n"
    code += "(s.folder / 'root').mkdir(); s.launcher_socket.touch(); s.egress_socket.touch()\n"
    code += "print('up', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        with pytest.raises(NoSlot):
            take_slot(BASE, UIDS, tmp_path)
        child.kill()
    slot = take_slot(BASE, UIDS, tmp_path)
    assert (slot.folder / "root").is_dir()
    release(slot)
    assert not slot.folder.exists()


def test_a_child_that_inherited_the_lock_keeps_the_slot(tmp_path: Path) -> None:
    """So nobody takes the uids while a launcher still ends its sandboxes."""
    slot = take_slot(BASE, UIDS, tmp_path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(slot.lock,))
    with child:
        os.close(slot.lock)
        with pytest.raises(NoSlot):
            take_slot(BASE, UIDS, tmp_path)
    release(take_slot(BASE, UIDS, tmp_path))


def test_a_run_folder_that_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoSlot, match="cannot be made: Not a directory"):
        take_slot(BASE, UIDS, tmp_path / "file" / "run")
