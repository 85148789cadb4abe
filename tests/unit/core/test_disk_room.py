"""Shares of the room for disks, through the core."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.errors import CapacityExceeded, DiskFull, LaunchFailed, LimitTooHigh
from app.core.limits import MIB, Limits
from app.core.models import SandboxSpec, Storage
from app.core.registry import Registry
from app.core.sandboxes import Capacity, Sandbox, Sandboxes
from tests.null_backend import NullBackend
from tests.unit.core.support import Notes, spec


class Service:
    """Its runtime has room for disks of 1,000 MiB."""

    def __init__(self, *, shared: bool = True, disk_bytes: int | None = 1000 * MIB) -> None:
        self.backend = NullBackend()
        self.has(disk_bytes)
        self.sandboxes = Sandboxes(Registry([self.backend], default="process"), Capacity(), Notes(), shared=shared)

    def has(self, disk_bytes: int | None) -> None:
        self.backend._info = replace(self.backend.info, disk_bytes=disk_bytes)

    async def create(self, client: str, mib: int, storage: Storage = Storage.DISK) -> Sandbox:
        sandbox, _ = self.sandboxes.create(on_disk(mib, storage), client=client)
        await self.sandboxes.wait_created(sandbox, 60)
        return sandbox


def on_disk(mib: int, storage: Storage = Storage.DISK) -> SandboxSpec:
    return spec(storage=storage, limits=Limits(disk_mib=mib))


async def test_a_client_may_have_half_of_what_the_others_leave() -> None:
    service = Service()
    await service.create("a", 400)
    await service.create("a", 100)
    with pytest.raises(CapacityExceeded, match="this client has 500 of the service's 1000 MiB of disks") as refused:
        await service.create("a", 1)
    assert (refused.value.holder, refused.value.budget) == ("client", "MiB of disks")
    await service.create("a", 400, Storage.MEMORY)
    await service.create("b", 250)
    with pytest.raises(CapacityExceeded, match="may have at most 250 now"):
        await service.create("b", 1)
    await service.sandboxes.aclose()


async def test_what_a_client_has_deleted_is_its_to_have_again() -> None:
    service = Service()
    first = await service.create("a", 500)
    await first.destroy("over")
    second = await service.create("a", 500)
    assert second.id != first.id
    with pytest.raises(CapacityExceeded):
        await service.create("a", 16)
    await service.sandboxes.aclose()


async def test_a_disk_that_was_not_made_takes_nothing() -> None:
    service = Service()
    service.backend.create_error = LaunchFailed("storage", "EIO", "the disk is broken")
    for _ in range(3):
        with pytest.raises(LaunchFailed):
            await service.create("a", 500)
    service.backend.create_error = None
    await service.create("a", 500)
    await service.sandboxes.aclose()


async def test_more_than_a_client_can_ever_have_is_too_high() -> None:
    service = Service()
    for mib in (501, 1000):
        with pytest.raises(
            LimitTooHigh, match=f"/limits/disk_mib is {mib}, the ceiling is 500: no client may have more"
        ):
            service.sandboxes.create(on_disk(mib), client="a")
    with pytest.raises(DiskFull, match="no room for one of 1001 MiB"):
        service.sandboxes.create(on_disk(1001), client="a")
    assert list(service.sandboxes) == []
    await service.sandboxes.aclose()


async def test_the_room_is_what_the_runtime_says_now() -> None:
    service = Service()
    await service.create("a", 500)
    service.has(300 * MIB)  # others have filled the operator's disk
    with pytest.raises(CapacityExceeded, match="the service's limit of 300 MiB of disks is reached"):
        await service.create("b", 16)
    service.has(1000 * MIB)
    await service.create("b", 250)
    await service.sandboxes.aclose()


@pytest.mark.parametrize(("shared", "disk_bytes"), [(False, 1000 * MIB), (True, None)])
async def test_one_client_alone_or_a_room_that_nobody_knows_has_no_share(shared: bool, disk_bytes: int | None) -> None:
    service = Service(shared=shared, disk_bytes=disk_bytes)
    for _ in range(3):
        await service.create("a", 600)  # what does not fit is for the runtime to refuse
    await service.sandboxes.aclose()
