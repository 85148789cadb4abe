"""What the tests of the stream have in common."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.unit.api.service import LiveService

WINDOW = 1024 * 1024


def execution_of(live: LiveService, path: str) -> Any:
    _, _, sandbox, _, execution = path.split("/")
    return live.service.sandboxes.execution(sandbox, execution)


async def until(live: LiveService, path: str, **attributes: object) -> None:
    """Waits, turn by turn of the loop, until the execution has these attributes."""
    execution = execution_of(live, path)
    async with asyncio.timeout(60):
        # The edge has no event for its own bookkeeping, so the loop is turned until it is done.
        while any(getattr(execution, n) != v for n, v in attributes.items()):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)


async def refusal(live: LiveService, path: str, query: str = "", **options: Any) -> dict[str, Any]:
    with pytest.raises(InvalidStatus) as caught:
        async with live.stream(path, query, **options):
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(response.body)
    assert problem["status"] == response.status_code
    assert problem["instance"] == response.headers["x-request-id"]
    return problem
