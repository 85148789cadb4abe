"""The size of a disk's image."""

from __future__ import annotations

from app.core.limits import MIB
from app.core.storage import LEAST_DISK_MIB
from app.launcher.daemon.disk_image import USABLE_OF_8, image_bytes


def test_what_is_usable_of_an_image_is_never_less_than_said() -> None:
    sizes = (mib * MIB for mib in (*range(LEAST_DISK_MIB, 1024), *range(1024, 1024 * 1024, 1023)))
    assert [size for size in sizes if image_bytes(size) * USABLE_OF_8 > 8 * size] == []
    assert image_bytes(LEAST_DISK_MIB * MIB) * (USABLE_OF_8 + 1) > 8 * LEAST_DISK_MIB * MIB, "it could be told better"
