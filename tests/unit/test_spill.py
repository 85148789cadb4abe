"""Spill files: rings without a name, within one budget."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.errors import CapacityExceeded
from app.spill import MIB, SpillFolder


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SpillFolder]:
    made = SpillFolder(tmp_path, 1000)
    yield made
    made.close()


def test_a_spill_file_has_no_name_and_is_nobody_elses(folder: SpillFolder, tmp_path: Path) -> None:
    file = folder.open(100)
    file.write(0, b"hello")
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(file._fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(file._fd)
    assert file.read(0, 100) == b"hello"
    file.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(1, 50), st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.data())
def test_the_last_bytes_are_found_at_their_offsets(
    folder: SpillFolder, capacity: int, writes: list[bytes], data: st.DataObject
) -> None:
    file, whole = folder.open(capacity), b""
    try:
        for piece in writes:
            part = piece[:capacity]
            file.write(len(whole), part)
            whole += part
        offset = data.draw(st.integers(max(0, len(whole) - capacity), len(whole)))
        got = b""
        while len(got) < len(whole) - offset:
            got += file.read(offset + len(got), len(whole) - offset - len(got))
        assert got == whole[offset:]
        assert folder.used == min(len(whole), capacity)
    finally:
        file.close()
    assert folder.used == 0


def test_the_budget_is_for_all_files_together_and_is_given_back(folder: SpillFolder) -> None:
    one, other = folder.open(800), folder.open(800)
    one.write(0, bytes(600))
    with pytest.raises(OSError) as error:
        other.write(0, bytes(600))
    assert error.value.errno == errno.ENOSPC
    other.write(0, bytes(400))
    assert folder.used == 1000
    one.close()
    assert folder.used == 400
    other.write(400, bytes(400))
    other.close()
    assert folder.used == 0


def test_a_ring_costs_its_capacity_however_much_is_written(folder: SpillFolder) -> None:
    file = folder.open(100)
    for offset in range(0, 5000, 50):
        file.write(offset, bytes(50))
    assert folder.used == 100
    file.close()


def test_a_new_execution_is_refused_when_nothing_is_left(tmp_path: Path) -> None:
    folder = SpillFolder(tmp_path, MIB)
    folder.check()
    file = folder.open(MIB)
    file.write(0, bytes(MIB))
    with pytest.raises(CapacityExceeded, match="1 MiB of stored output"):
        folder.check()
    file.close()
    folder.check()
    folder.close()


def test_the_folder_is_used_where_its_path_is_out_of_reach(tmp_path: Path) -> None:
    """As the gateway's is, once it has given up root."""
    (tmp_path / "a").mkdir()
    folder = SpillFolder(tmp_path / "a", 1000)
    (tmp_path / "a").rename(tmp_path / "b")
    folder.prove()
    assert folder.used == 0
    folder.close()


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SpillFolder(tmp_path / "missing", 1)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        SpillFolder(tmp_path / "file", 1)
