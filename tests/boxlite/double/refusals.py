"""What the server says of a box that cannot do what was asked, in its own words."""

from __future__ import annotations

from typing import Protocol

from tests.boxlite.double.create import Options
from tests.boxlite.double.http import Failure

DECISION = "That is a decision for you, not for a side effect — start the box explicitly if it is what you want."
WOULD_RUN = "it is configured, and starting the box would run its main command."
WOULD_RUN_AGAIN = (
    "it is stopped, and its main command has already run, and starting the box again would run it a second time."
)
TRANSPORT = 'status: Unknown, message: "transport error", details: [], metadata: MetadataMap { headers: {} }'
REFUSED = (
    'status: Unavailable, message: "Connection refused (os error 111)", details: [],'
    " metadata: MetadataMap { headers: {} }"
)
LOST_BY_DELETE = f"Attach failed: {TRANSPORT}"


class Asleep(Protocol):
    """A box that does not run."""

    id: str
    status: str
    options: Options


def unreachable(detail: str = REFUSED) -> Failure:
    return Failure("upstream_unavailable", f"gRPC/tonic error: {detail}")


def stopping() -> Failure:
    """A /stop is under way, or was when its client hung up."""
    text = "Handle invalidated after stop(). Use runtime.get() to get a new handle."
    return Failure("stopped", f"stopped: {text}")


def hollow(container_id: str) -> Failure:
    return Failure("internal", f"internal error: spawn_failed: Container not found: {container_id}")


def not_removed(box_id: str, pid: int) -> Failure:
    text = f"cannot remove box {box_id} with live pid Some({pid}) (status: Running). Use force=true to stop first"
    return Failure("invalid_state", f"invalid state: {text}")


def not_in_this_state(box_id: str, verb: str, status: str) -> Failure:
    return Failure("invalid_state", f"invalid state: Cannot {verb} box {box_id}: it is {status}")


def refuse_to_wake(box: Asleep, verb: str) -> None:
    """Nothing but /start runs a main command, boots a failed box, or wakes one that must not wake by itself."""
    if box.status == "failed":
        raise not_in_this_state(box.id, verb, box.status)
    if box.status == "stopped" and not box.options.auto_resume:
        raise Failure("conflict", f"box {box.id} is Stopped and has AutoResume disabled; start it explicitly first")
    if box.options.has_main_command:
        why = WOULD_RUN if box.status == "configured" else WOULD_RUN_AGAIN
        raise Failure("invalid_state", f"invalid state: Cannot {verb} box {box.id}: {why} {DECISION}")
