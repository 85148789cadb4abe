"""Chooses where the files of a sandbox are, and says what that means for `disk_mib`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from app.core.backend import RuntimeInfo
from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable, CapabilityMissing, InvalidRequest, LimitTooHigh
from app.core.limits import Limits
from app.core.models import Storage

CAPABILITIES: Mapping[Storage, Capability] = {
    Storage.MEMORY: Capability.STORAGE_MEMORY,
    Storage.DISK: Capability.STORAGE_DISK,
}
_WAYS_OUT: Mapping[Storage, str] = {
    Storage.MEMORY: "leave `storage` out, or ask for the storage `disk`",
    Storage.DISK: "ask for the storage `memory`; `bulkhead probe` tells the operator why there are no disks",
}
_RETRY_SECONDS = 60  # an operator's work brings it, and time does not
LEAST_DISK_MIB = 16  # below it a file system's own structures would be most of it


def storage_needs(asked: Storage | None, default: Storage) -> frozenset[Capability]:
    """What a runtime must have for a request. Where the operator's default is memory, any runtime will do."""
    if asked is None and default is Storage.MEMORY:
        return frozenset()
    return frozenset({CAPABILITIES[asked or default]})


def choose_storage(asked: Storage | None, default: Storage, runtime: RuntimeInfo) -> Storage:
    """Returns what was asked for, else the operator's default. A disk stands in for a default of memory that the
    runtime does not have. Nothing stands in for a disk. Raises CapabilityMissing."""
    wanted = asked or default
    if CAPABILITIES[wanted] in runtime.capabilities:
        return wanted
    if asked is None and Capability.STORAGE_DISK in runtime.capabilities:
        return Storage.DISK
    missing = CAPABILITIES[wanted]
    raise CapabilityMissing(
        [missing], runtime.name, f"the runtime {runtime.name!r} lacks {missing}: {_WAYS_OUT[wanted]}"
    )


def lacks_default(default: Storage, runtime: RuntimeInfo) -> BackendUnavailable | None:
    """None, or why the runtime refuses every request that does not name its storage."""
    try:
        choose_storage(None, default, runtime)
    except CapabilityMissing as error:
        missing = ", ".join(error.missing)
        detail = f"the runtime {runtime.name!r} lacks {missing}, and the operator chose the storage `{default}`"
        return BackendUnavailable(runtime.name, f"{detail}; `bulkhead probe` says what helps", _RETRY_SECONDS)
    return None


def fit_disk(limits: Limits, storage: Storage, asked: int | None, ceiling: float) -> Limits:
    """Fits `disk_mib` to the kind of storage. In memory, files have `memory_mib` at most. A disk has 16 MiB at least.
    `asked` is the client's own number and is never changed. Raises LimitTooHigh, InvalidRequest."""
    if storage is Storage.MEMORY and limits.disk_mib > limits.memory_mib:
        if asked is not None:
            way_out = "files are memory; ask for a higher limits.memory_mib, or for the storage `disk`"
            raise LimitTooHigh("/limits/disk_mib", asked, limits.memory_mib, way_out)
        return replace(limits, disk_mib=limits.memory_mib)
    if storage is Storage.DISK and limits.disk_mib < LEAST_DISK_MIB:
        if asked is not None:
            raise InvalidRequest.at("/limits/disk_mib", f"must be at least {LEAST_DISK_MIB} with the storage `disk`")
        if ceiling < LEAST_DISK_MIB:
            raise LimitTooHigh("/limits/disk_mib", LEAST_DISK_MIB, ceiling, "a disk cannot be smaller")
        return replace(limits, disk_mib=LEAST_DISK_MIB)
    return limits
