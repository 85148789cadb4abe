"""The route of a request is found without the framework's router, which still refuses what no route has."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.routing import Match
from starlette.types import Scope

from app.api.http.strict_route import StrictRoute
from tests.unit.api.service import Service


@pytest.mark.parametrize(("method", "path"), [("POST", "/sandboxes"), ("GET", "/sandboxes"), ("HEAD", "/sandboxes")])
async def test_a_request_asks_only_the_route_that_has_its_path_and_method(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    asked: list[tuple[str, Any]] = []
    matches = StrictRoute.matches

    def noted(route: StrictRoute, scope: Scope) -> tuple[Match, Scope]:
        asked.append((route.path, route.methods))
        return matches(route, scope)

    monkeypatch.setattr(StrictRoute, "matches", noted)
    async with Service().client() as client:
        answer = await client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code in {200, 201}
    assert [where for where, _ in asked] == [path]


async def test_what_no_route_has_is_refused_as_before() -> None:
    async with Service().client() as client:
        unknown = await client.get("/nothing/here")
        other_method = await client.request("PUT", "/sandboxes")
        own_method = await client.request("SPIN", "/sandboxes")
    assert unknown.status_code == 404
    assert other_method.status_code == own_method.status_code == 405
    assert other_method.headers["allow"] == own_method.headers["allow"] == "GET, HEAD, POST"
