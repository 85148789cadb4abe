"""Disks of the runtime `process`: when it offers them, and what a refusal of its launcher means to a client."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from app.backends.process.agent import OutOfMemory
from app.backends.process.backend import ProcessBackend
from app.backends.process.files import FileRoom, translated
from app.core.capabilities import Capability
from app.core.errors import BulkheadError, CapabilityMissing, CapacityExceeded, DiskFull
from app.core.limits import MIB, Limits
from app.core.models import Storage
from app.launcher.protocol import DESTROY, OK, REFUSED, REPLY, VERSION, CreatePlan, Writer
from tests.unit.backends.test_link import Played
from tests.unit.core.support import spec

ON_DISK = replace(spec(), storage=Storage.DISK, limits=Limits(disk_mib=200))

NO_ROOM = "the operator's disk has no room for one of 200 MiB above its reserve: ask for less, or try again later"


@asynccontextmanager
async def played(tmp_path: Path) -> AsyncIterator[tuple[Played, ProcessBackend]]:
    launcher, backend = Played(tmp_path / "sock"), ProcessBackend(tmp_path / "sock")
    try:
        yield launcher, backend
    finally:
        await backend.aclose()
        launcher.hang_up()
        launcher.listener.close()


@pytest.mark.parametrize(("layers", "has"), [("landlock,loop_storage", True), ("landlock", False), ("", False)])
async def test_disks_are_offered_when_the_launcher_can_make_them(tmp_path: Path, layers: str, has: bool) -> None:
    async with played(tmp_path) as (launcher, backend):
        assert Capability.STORAGE_DISK in backend.info.capabilities, "nobody has asked the launcher yet"
        assert backend.info.disk_bytes is None
        ready = asyncio.create_task(backend.ready())
        about = [f"protocol={VERSION}", f"layers={layers}", "missing=", "disk_bytes=1000"]
        await launcher.greet([line.encode() for line in about])
        await ready
        assert backend.info.disk_bytes == 1000
        assert (Capability.STORAGE_DISK in backend.info.capabilities) is has
        assert Capability.STORAGE_MEMORY in backend.info.capabilities


async def refused(tmp_path: Path, step: str, number: int, detail: str) -> BulkheadError:
    """What a create on a disk ends with when the launcher refuses it so."""
    async with played(tmp_path) as (launcher, backend):
        creating = asyncio.create_task(backend.create("sbx_1", ON_DISK))
        await launcher.greet()
        _, request, body = await launcher.hear()
        plan = CreatePlan.read(body)
        assert (plan.on_disk, plan.disk_bytes) == (True, 200 * MIB)
        launcher.say(Writer(REPLY).u32(request).u8(REFUSED).text(step).u32(number).text(detail))
        kind, request, _ = await launcher.hear()
        launcher.say(Writer(REPLY).u32(request).u8(OK))
        with pytest.raises(BulkheadError) as raised:
            await creating
        assert kind == DESTROY
    return raised.value


async def test_disk_for_which_there_is_no_room_is_disk_full_with_its_size(tmp_path: Path) -> None:
    error = await refused(tmp_path, "storage", errno.ENOSPC, "the operator's disk has no room for it")
    assert isinstance(error, DiskFull)
    assert (error.limit, str(error)) == (200 * MIB, NO_ROOM)


async def test_disk_without_loop_devices_is_a_missing_capability(tmp_path: Path) -> None:
    """Also when the launcher had not been asked before."""
    error = await refused(tmp_path, "layer:loop_storage", errno.ENOSYS, "there is no /dev/loop-control")
    assert isinstance(error, CapabilityMissing)
    assert (error.missing, error.runtime) == (["storage_disk"], "process")
    assert str(error) == "the runtime 'process' lacks storage_disk: there is no /dev/loop-control"


def test_file_operation_that_is_killed_for_memory_finds_it_full_of_files_or_of_programs() -> None:
    with pytest.raises(DiskFull, match="files are part of it; delete files or end something") as full:
        killed_in(Storage.MEMORY)
    assert full.value.limit == MIB
    with pytest.raises(CapacityExceeded, match="Cannot allocate memory; end something that runs in it") as scarce:
        killed_in(Storage.DISK)
    assert scarce.value.holder == "sandbox"


def killed_in(storage: Storage) -> None:
    with translated(FileRoom(storage, MIB)):
        raise OutOfMemory
