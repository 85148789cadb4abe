"""What the launcher answers to USAGE, as the core's figures."""

from __future__ import annotations

from app.core.models import ResourceUsage
from app.launcher.protocol import Reader

_UNKNOWN = (1 << 64) - 1


def resource_usage(source: Reader) -> ResourceUsage:
    """Raises ProtocolError."""
    memory, peak, cpu_ns, processes, open_files = (_known(source.u64()) for _ in range(5))
    source.end()
    return ResourceUsage(
        memory_bytes=memory,
        memory_peak_bytes=peak,
        cpu_seconds=None if cpu_ns is None else cpu_ns / 1e9,
        processes=processes,
        open_files=open_files,
    )


def _known(value: int) -> int | None:
    return None if value == _UNKNOWN else value
