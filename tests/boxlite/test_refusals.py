"""What is refused over boxlite, as docs/boxlite.md lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.boxlite.test_api import BODY, refused, service
from tests.unit.api.service import create

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/boxlite.md"
TTY = {"rows": 24, "cols": 80}


def listed(request: str) -> str:
    """The answer that the document names for a request."""
    section = DOCUMENT.read_text().partition("## What is refused")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in section.splitlines()]
    (found,) = [row[1] for row in rows if len(row) == 3 and row[0] == request]
    return found


@pytest.mark.parametrize(
    ("request_", "body", "status", "kind"),
    [
        ("`limits.processes`", {"limits": {"processes": 5}}, 422, "policy_not_supported"),
        ("`limits.memory_mib` below 64", {"limits": {"memory_mib": 63}}, 422, "invalid_request"),
        ("a profile other than `default`", {"policy": {"profile": "loopback"}}, 422, "policy_not_supported"),
        (
            "`policy.filesystem`, `policy.syscalls`",
            {"policy": {"filesystem": {"read_only": ["/usr"]}}},
            422,
            "policy_not_supported",
        ),
        (
            "`policy.filesystem`, `policy.syscalls`",
            {"policy": {"syscalls": {"profile": "default"}}},
            422,
            "policy_not_supported",
        ),
        ("`storage: memory`", {"storage": "memory"}, 422, "capability_missing"),
        ("`idle_counts: processes`", {"idle_counts": "processes"}, 422, "capability_missing"),
        ("`requires` with what the table above denies", {"requires": ["kill_tree"]}, 422, "capability_missing"),
        (
            "`network.mode: direct` without `BULKHEAD_BOXLITE__DIRECT_ALLOW`",
            {"policy": {"network": {"mode": "direct", "allow": ["a.test"]}}},
            422,
            "policy_not_supported",
        ),
        (
            "`network.mode: proxy` without `BULKHEAD_EGRESS__BOXLITE_NETWORK`",
            {"policy": {"network": {"mode": "proxy", "allow": ["a.test:443"]}}},
            422,
            "policy_not_supported",
        ),
        ("the variable `BOXLITE_EXECUTOR`", {"env": {"BOXLITE_EXECUTOR": "guest"}}, 422, "invalid_request"),
    ],
)
async def test_create_is_refused_as_documented(request_: str, body: dict[str, Any], status: int, kind: str) -> None:
    async with service() as (r, live):
        await refused(live, status, kind, **body)
        assert not r.double.boxes
    assert listed(request_).startswith(f"{status} `{kind}`")


async def test_requests_of_a_box_are_refused_as_documented() -> None:
    limits, plain = "`stack_mib`, `open_files`, `file_mib` with plain output or a terminal", {"output_mode": "plain"}
    exact = "`output_mode: exact` of a terminal, or where the image cannot"
    starts: list[tuple[str, dict[str, Any], int, str]] = [
        ("`cpu_seconds`, `memory_mib` of an execution", {"limits": {"cpu_seconds": 1}}, 422, "policy_not_supported"),
        ("`cpu_seconds`, `memory_mib` of an execution", {"limits": {"memory_mib": 16}}, 422, "policy_not_supported"),
        (limits, {**plain, "limits": {"file_mib": 1}}, 409, "unsupported_by_runtime"),
        (limits, {"tty": TTY, "limits": {"open_files": 16}}, 409, "unsupported_by_runtime"),
        ("`stderr: stdout` with plain output", {**plain, "stderr": "stdout"}, 409, "unsupported_by_runtime"),
        (exact, {"tty": TTY, "output_mode": "exact"}, 409, "unsupported_by_runtime"),
        (
            "an argument of more than 100,000 bytes",
            {"command": ["echo", "a" * 100_001]},
            422,
            "invalid_request",
        ),
    ]
    async with service() as (_, live):
        box = await create(live.client, **BODY)
        for request_, body, status, kind in starts:
            answer = await live.client.post(f"/sandboxes/{box}/executions", json={"command": ["true"], **body})
            assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{kind}"), answer.text
            assert listed(request_) == f"{status} `{kind}`"
        for verb in ("pause", "resume"):
            answer = await live.client.post(f"/sandboxes/{box}/{verb}")
            assert (answer.status_code, answer.json()["type"]) == (409, "/problems/unsupported_by_runtime")
        assert listed("pause and resume") == "409 `unsupported_by_runtime`"
        usage = (await live.client.get(f"/sandboxes/{box}/usage")).json()
        assert usage["cpu_seconds"] is usage["memory_bytes"] is None
