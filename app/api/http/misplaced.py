"""Says where a field belongs that one request takes and another does not.

The names are written out, as this layer knows no schemas. A test compares them with the schemas.
"""

from __future__ import annotations

from collections.abc import Collection

from app.core.execution_limits import EXECUTION_LIMITS
from app.core.limits import LIMITS

_LIFETIME = ("ttl_seconds", "idle_seconds", "idle_counts")
SANDBOX_FIELDS = frozenset(_LIFETIME).union(
    ["id", "runtime", "isolation_min", "image", "storage", "requires", "env", "workdir", "limits", "policy", "labels"],
    ["secrets"],
)
EXECUTION_FIELDS = frozenset(["command", "timeout_seconds", "stdin", "tty", "stderr", "on_output_limit", "output_mode"])
RUN_FIELDS = frozenset(["files", "stdin_base64", "collect"])

_OF_A_RUN = {
    "wait_seconds": "a run always waits; timeout_seconds bounds it",
    "id": "the service chooses the ids of a run",
}
_HOMES = {
    "wait_seconds": "it goes into the query: ?wait_seconds=5",
    **dict.fromkeys(RUN_FIELDS, "it is a field of a run"),
    **dict.fromkeys(EXECUTION_FIELDS, "it is a field of an execution"),
    **dict.fromkeys(SANDBOX_FIELDS, "it is a field of a new sandbox"),
    **dict.fromkeys(EXECUTION_LIMITS, "it is a limit of an execution"),
    **dict.fromkeys(LIMITS, "it is a limit of a new sandbox"),
}


def home_of(name: str, known: Collection[str], is_run: bool) -> str | None:
    """The second half of the sentence about an unknown `name`. `known`: the fields that the body takes at this place,
    and those of its objects as `limits.cpus`. None for a name that belongs nowhere, or into an object of this body."""
    if any(place.endswith(f".{name}") for place in known):
        return None
    return (is_run and _OF_A_RUN.get(name)) or _HOMES.get(name)


def home_of_parameter(name: str, path: str) -> str | None:
    """The same for a parameter of the query of the route at `path`."""
    return _OF_A_RUN.get(name) if path.endswith("/run") else None
