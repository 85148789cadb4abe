"""What schemathesis is told about this service: no wait that takes minutes, and two of three valid requests are within
what any operator permits, so that there is something to go on with. The third stays as wild as the schema is."""

from __future__ import annotations

import io
import itertools
import tarfile
from typing import Any

import schemathesis
from hypothesis import strategies as st

LONGEST_WAIT = 0.1
LONGEST_RUN = 0.5  # an event stream goes on until then, and the answer to a run comes then
ACCEPTED_WAIT = 60
CEILINGS = {"cpus": 1, "memory_mib": 64, "processes": 32, "disk_mib": 16, "wall_seconds": 60, "output_bytes": 2**20}
NUMBERS = itertools.count()
LIFE_SECONDS = (60, 3600)
# They do something in a sandbox of the host as well as in the backend without isolation.
NAMES = st.sampled_from(["a", "a/b", "c", "../out", "/etc/x", "a/../../out", "", "ä", "x" * 300])
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
PROGRAMS = (["cat"], ["sleep", "1000"], ["echo", "hello"], ["env"], ["sleep", "1000"], ["cat", "/etc/passwd"])


def _archive(entries: list[tuple[str, bytes]]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "../a", 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(b"text"))
    return made.getvalue()


schemathesis.openapi.media_type(
    "application/x-tar", st.lists(st.tuples(NAMES, KINDS), max_size=4).map(_archive) | st.binary(max_size=2000)
)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    _wait_less(case.query or {})
    body = case.body
    if isinstance(body, dict) and case.meta is not None and case.meta.phase.name.value == "stateful":
        _be_new(body)
    if not isinstance(body, dict) or case.meta is None or case.meta.generation.mode.is_negative:
        return
    turn = len(repr(sorted(body)))  # the same for the same request: a failure can be shrunk
    if turn % 3 == 0:
        return
    if case.path in {"/sandboxes", "/sandboxes/{sandbox_id}", "/run"}:
        _be_modest(body)
    if case.path.endswith(("/executions", "/run")):
        _start_something(body, turn)


def _wait_less(query: Any) -> None:
    """What the service must refuse stays as it is."""
    try:
        seconds = float(query.get("wait_seconds", 0))
    except (TypeError, ValueError):
        return
    if LONGEST_WAIT < seconds <= ACCEPTED_WAIT:
        query["wait_seconds"] = LONGEST_WAIT


def _be_new(body: dict[str, Any]) -> None:
    """The same steps must lead to the same answers, or hypothesis gives up: an id can be taken once only."""
    if isinstance(body.get("id"), str):
        body["id"] = f"id-{next(NUMBERS)}"


def _be_modest(body: dict[str, Any]) -> None:
    for name in ("isolation_min", "image", "requires", "policy"):
        body.pop(name, None)
    for name in ("ttl_seconds", "idle_seconds"):
        if body.get(name) is not None:
            body[name] = min(max(body[name], LIFE_SECONDS[0]), LIFE_SECONDS[1])
    limits = body.get("limits") or {}
    for name, most in CEILINGS.items():
        if limits.get(name) is not None:
            limits[name] = min(limits[name], most)


def _start_something(body: dict[str, Any], turn: int) -> None:
    body["command"] = list(PROGRAMS[(turn + len(body["command"])) % len(PROGRAMS)])
    body["timeout_seconds"] = LONGEST_RUN
    if turn % 2:
        body.pop("tty", None)  # not every runtime has terminals
