"""Which rights each version of Landlock handles, as landlock(7) lists them."""

from __future__ import annotations

import pytest

from app.launcher.kernel import landlock

FILES = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15, 5: 16, 6: 16, 7: 16, 20: 16}


@pytest.mark.parametrize(("version", "count"), FILES.items())
def test_every_file_right_of_a_version_is_handled(version: int, count: int) -> None:
    assert landlock.handled_files(version) == (1 << count) - 1


@pytest.mark.parametrize("version", range(8))
def test_tcp_came_with_4_and_scopes_with_6(version: int) -> None:
    assert landlock.handled_network(version) == (3 if version >= 4 else 0)
    assert landlock.handled_scopes(version) == (3 if version >= 6 else 0)


@pytest.mark.parametrize("version", range(1, 8))
def test_devices_are_never_made_and_reading_never_writes(version: int) -> None:
    assert landlock.read_write(version) & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK) == 0
    assert landlock.read_write(version) | landlock.MAKE_CHAR | landlock.MAKE_BLOCK == landlock.handled_files(version)
    assert landlock.READ & (landlock.WRITE_FILE | landlock.TRUNCATE) == 0
    assert landlock.LOOK & landlock.EXECUTE == 0
    assert landlock.NODE & (landlock.EXECUTE | landlock.IOCTL_DEV) == 0


def test_every_bit_has_a_name() -> None:
    assert len(landlock.FS_NAMES) == 16
    assert landlock.FS_NAMES[14:] == ("truncate", "ioctl_dev")
    assert len(landlock.NET_NAMES) == len(landlock.SCOPE_NAMES) == 2
