"""Processes that outlive their execution hold two descriptors of the gateway each: not without bound."""

from __future__ import annotations

from pathlib import Path

from tests.service import Service


def test_descriptors_for_what_is_left_behind_are_bounded(service: Service) -> None:
    sandbox = service.create(limits={"processes": 200})
    folder = Path(f"/proc/{service.children()['gateway']}/fd")
    before = len(list(folder.iterdir()))
    for _ in range(90):
        service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": ["sh", "-c", "sleep 1000 & exit 0"]})
    for execution in service.call("GET", f"/sandboxes/{sandbox}/executions?limit=1000")[1]["items"]:
        path = f"/sandboxes/{sandbox}/executions/{execution['id']}"
        assert service.call("GET", f"{path}?wait_seconds=30")[1]["exit"]["code"] == 0
    assert service.run(sandbox, "true")["exit"]["code"] == 0
    assert len(list(folder.iterdir())) - before <= 2 * 64 + 20
    assert service.call("DELETE", f"/sandboxes/{sandbox}")[0] == 204
