"""Which kind of storage a sandbox gets, and what that makes of `disk_mib`."""

from __future__ import annotations

import pytest

from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.errors import CapabilityMissing, InvalidRequest, LimitTooHigh
from app.core.limits import Limits
from app.core.models import Storage
from app.core.storage import CAPABILITIES, LEAST_DISK_MIB, choose_storage, fit_disk, storage_needs

MEMORY, DISK = Storage.MEMORY, Storage.DISK
CEILING = 4096


def runtime(*kinds: Storage) -> RuntimeInfo:
    return RuntimeInfo("one", "kernel", "0", frozenset(CAPABILITIES[kind] for kind in kinds))


def test_every_kind_has_its_capability() -> None:
    assert {f"storage_{kind}": capability for kind, capability in CAPABILITIES.items()} == {
        capability: capability for capability in Capability if capability.startswith("storage_")
    }


@pytest.mark.parametrize("default", Storage)
@pytest.mark.parametrize("asked", Storage)
def test_what_was_asked_for_is_chosen_whatever_the_default(asked: Storage, default: Storage) -> None:
    assert choose_storage(asked, default, runtime(MEMORY, DISK)) is asked
    assert choose_storage(None, default, runtime(MEMORY, DISK)) is default


@pytest.mark.parametrize(("asked", "only"), [(MEMORY, DISK), (DISK, MEMORY)])
def test_nothing_stands_in_for_what_was_asked_for(asked: Storage, only: Storage) -> None:
    with pytest.raises(CapabilityMissing) as refusal:
        choose_storage(asked, only, runtime(only))
    assert refusal.value.missing == [f"storage_{asked}"]


def test_a_disk_stands_in_for_a_default_of_memory_and_never_the_other_way_round() -> None:
    assert choose_storage(None, MEMORY, runtime(DISK)) is DISK
    with pytest.raises(CapabilityMissing) as refusal:
        choose_storage(None, DISK, runtime(MEMORY))
    assert refusal.value.missing == ["storage_disk"]
    with pytest.raises(CapabilityMissing) as refusal:
        choose_storage(None, MEMORY, runtime())
    assert refusal.value.missing == ["storage_memory"]


def test_a_request_needs_what_it_names_and_else_the_operators_disk() -> None:
    assert storage_needs(MEMORY, DISK) == {Capability.STORAGE_MEMORY}
    assert storage_needs(DISK, MEMORY) == {Capability.STORAGE_DISK}
    assert storage_needs(None, DISK) == {Capability.STORAGE_DISK}
    assert storage_needs(None, MEMORY) == frozenset()


def test_files_in_memory_have_the_smaller_of_the_default_and_the_memory() -> None:
    assert fit_disk(Limits(memory_mib=64, disk_mib=512), MEMORY, None, CEILING).disk_mib == 64
    assert fit_disk(Limits(memory_mib=1024, disk_mib=512), MEMORY, None, CEILING).disk_mib == 512


def test_a_number_above_the_memory_is_refused_and_names_both() -> None:
    assert fit_disk(Limits(memory_mib=64, disk_mib=64), MEMORY, 64, CEILING).disk_mib == 64
    with pytest.raises(LimitTooHigh) as refusal:
        fit_disk(Limits(memory_mib=64, disk_mib=65), MEMORY, 65, CEILING)
    assert (refusal.value.pointer, refusal.value.ceiling) == ("/limits/disk_mib", 64)
    assert "limits.memory_mib, or for the storage `disk`" in str(refusal.value)


def test_a_disk_may_be_larger_than_the_memory_and_leaves_it_as_it_is() -> None:
    limits = Limits(memory_mib=64, disk_mib=2000)
    assert fit_disk(limits, DISK, 2000, CEILING) == limits


def test_a_disk_below_the_least_is_refused_and_a_default_below_it_is_raised() -> None:
    assert fit_disk(Limits(disk_mib=LEAST_DISK_MIB), DISK, LEAST_DISK_MIB, CEILING).disk_mib == LEAST_DISK_MIB
    small = Limits(disk_mib=LEAST_DISK_MIB - 1)
    with pytest.raises(InvalidRequest) as refusal:
        fit_disk(small, DISK, small.disk_mib, CEILING)
    assert [error.pointer for error in refusal.value.errors] == ["/limits/disk_mib"]
    assert fit_disk(small, DISK, None, CEILING).disk_mib == LEAST_DISK_MIB
    with pytest.raises(LimitTooHigh) as too_high:
        fit_disk(small, DISK, None, small.disk_mib)
    assert (too_high.value.pointer, too_high.value.ceiling) == ("/limits/disk_mib", LEAST_DISK_MIB - 1)
