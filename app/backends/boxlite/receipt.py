"""The receipt of a box: what was measured from inside, what the server reports, and what only the server can know."""

from __future__ import annotations

import json
from typing import Any

from app.backends.boxlite.box import Box
from app.backends.boxlite.inside import BoxMeasurements
from app.core.errors import IsolationUnavailable
from app.core.limits import MIB
from app.core.models import OutputMode, SandboxSpec, Tier
from app.core.policy import Network

# The guest sees about 14 MB more than it was given (seen: 142976 kB of 128 MiB), and less what its kernel keeps.
MEMORY_SLACK = 64 * MIB
_CLAIMED = (
    "the wall itself: that the guest runs in a virtual machine of its own, jailed on its host",
    "limits.disk_mib: the size of the box's disk",
    "policy.network: what the server's own network lets through",
)
_NOTES = (
    "measured by programs of the image, before any command ran",
    "the server sets no cgroup limit on the virtual machine: its page cache comes on top of memory_mib on the host",
    "plain output is text: bytes that are not UTF-8 arrive as U+FFFD, and what a busy server loses is not always told",
)
_LOOK_UPS = (
    "the server answers the names that programs look up, whatever the rules: what they look up leaves its machine"
)

REPORTED_BYTES = 4096  # of one member: what a server says goes out to clients
_REPORTED = ("image", "cpus", "memory_mib", "network", "created_at")


def check(facts: BoxMeasurements, spec: SandboxSpec) -> None:
    """Raises IsolationUnavailable where the box has more than it was given."""
    if spec.policy.network.mode == "none" and facts.routes != 0:
        what = f"{facts.routes} routes to outside" if facts.routes > 0 else "routes that cannot be read"
        raise IsolationUnavailable("network", f"the box must have no network, but it has {what}")
    if facts.cpus > spec.limits.cpus:
        raise IsolationUnavailable(
            "limit_cpus", f"the box must have {spec.limits.cpus:g} cpus, but it has {facts.cpus}"
        )
    if facts.memory_bytes > spec.limits.memory_mib * MIB + MEMORY_SLACK:
        raise IsolationUnavailable(
            "limit_memory", f"the box has {facts.memory_bytes} bytes of memory, which is more than its limit"
        )


def isolation(box: Box, spec: SandboxSpec, facts: BoxMeasurements, boot_seconds: float, inexact: str) -> dict[str, Any]:
    """`inexact`: why output cannot be exact; empty: it is."""
    said = box.said
    return {
        "tier": Tier.VM.value,
        "box_id": box.id,
        "server_version": None,  # no answer of the server tells it
        "boot_seconds": round(boot_seconds, 3),
        "measured": {"kernel": facts.kernel, "cpus": facts.cpus, "memory_bytes": facts.memory_bytes},
        "reported": {name: _bounded(said.get(name)) for name in _REPORTED},
        "claimed": list(_CLAIMED),
        "storage": {"kind": spec.storage, "file_system": None, "bytes": None},  # its size is the server's claim
        "network": {
            "mode": spec.policy.network.mode,
            **_rules(spec.policy.network),
            "links": [{"name": name, "up": up} for name, up in sorted(facts.links.items())],
            "routes_to_outside": facts.routes,
        },
        "output_mode": OutputMode.PLAIN if inexact else OutputMode.EXACT,
        "output_detail": f"the image {inexact}" if inexact else None,
        "root": spec.image,
        "missing_layers": [],
        "notes": [*_NOTES, *([_LOOK_UPS] if facts.routes else [])],
    }


def _rules(network: Network) -> dict[str, Any]:
    return {"allow": [rule.as_dict() for rule in network.rules]} if network.mode == "proxy" else {}


def _bounded(value: Any) -> Any:
    """As it is, or None where it is too much or nothing that can be sent on."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if len(text) <= REPORTED_BYTES else None
