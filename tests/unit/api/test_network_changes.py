"""`PATCH` of a sandbox's network rules."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendTimeout, CapabilityMissing, Conflict
from app.core.network_rules import parse_rule
from app.core.policy import Policy
from tests.null_backend import Gate
from tests.unit.api.service import Service, create, kernel
from tests.unit.api.test_network import network, proxied

RULE = {"host": "b.test", "ports": [443], "raw": False, "http": None}
PATH = "/sandboxes/one"


@asynccontextmanager
async def running(service: Service | None = None, **more: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """With a sandbox that may reach a.test:443."""
    service = service or proxied()
    async with service.client() as client:
        await create(client, id="one", **{**network("a.test:443"), **more})
        yield client, service


def change(*allow: Any, **more: Any) -> dict[str, Any]:
    return {"policy": {"network": {"allow": list(allow)}}, **more}


async def in_force(client: httpx.AsyncClient) -> tuple[Any, Any, Any]:
    body = (await client.get(PATH)).json()
    return body["policy"]["network"]["allow"], body["isolation"]["network"]["allow"], body["labels"]


async def test_rules_are_replaced_and_answered_and_the_ttl_goes_on() -> None:
    async with running() as (client, _):
        before = (await client.get(PATH)).json()
        for allow, expected in ((["B.test.:443"], [RULE]), ([], [])):
            body = (await client.patch(PATH, json=change(*allow))).json()
            assert body["policy"]["network"] == {"mode": "proxy", "allow": expected}
            assert body["isolation"]["network"]["allow"] == expected
            assert body["expires_at"] == before["expires_at"]
            assert await in_force(client) == (expected, expected, {})


async def test_repeated_create_finds_a_sandbox_whose_rules_were_changed() -> None:
    async with running() as (client, _):
        await client.patch(PATH, json=change("b.test:443"))
        again = await client.post("/sandboxes", json=network("a.test:443", id="one"))
        assert (again.status_code, again.json()["policy"]["network"]["allow"]) == (200, [RULE])


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"policy": None}, "/policy"),
        ({"policy": {}}, "/policy/network"),
        ({"policy": {"network": None}}, "/policy/network"),
        ({"policy": {"network": {}}}, "/policy/network/allow"),
        ({"policy": {"network": {"allow": None}}}, "/policy/network/allow"),
        ({"policy": {"network": {"allow": [], "mode": "none"}}}, "/policy/network/mode"),
        ({"policy": {"profile": "loopback", "network": {"allow": []}}}, "/policy/profile"),
        (change("a.test:443", 5), "/policy/network/allow/1"),
        (change("a.test"), "/policy/network/allow/0"),
        (change(*["a.test:443"] * 65), "/policy/network/allow"),
        (change(*[f"a.test:{port}" for port in range(443, 460)]), "/policy/network/allow/1"),
    ],
)
async def test_what_is_no_change_is_refused_with_its_place(body: dict[str, Any], pointer: str) -> None:
    async with running() as (client, _):
        before = await in_force(client)
        problem = (await client.patch(PATH, json=body)).json()
        assert pointer in [error["pointer"] for error in problem.get("errors", [problem])]
        assert await in_force(client) == before


async def test_rules_are_narrowed_by_the_operator_and_the_profile_as_at_a_create() -> None:
    profile = Policy(profile="narrow", permitted=(parse_rule("*.a.test:443"), parse_rule("x.test:22")))
    service = Service([kernel(Capability.NETWORK_PROXY)], profiles={"default": Policy(), "narrow": profile})
    policy = {"policy": {"profile": "narrow", "network": {"mode": "proxy", "allow": ["x.a.test:443"]}}}
    async with running(service, **policy) as (client, _):
        for allow, ceiling in (
            ("b.test:443", "*.a.test:443, x.test:22"),
            ("x.test:22", "*:80, *:443"),
            ({"host": "y.a.test", "ports": [443], "raw": True}, "*.a.test:443, x.test:22"),
        ):
            problem = (await client.patch(PATH, json=change("y.a.test:443", allow))).json()
            assert problem["type"].endswith("/policy_too_broad")
            assert (problem["pointer"], problem["ceiling"]) == ("/policy/network/allow/1", ceiling)
        assert (await client.patch(PATH, json=change("y.a.test:443"))).status_code == 200


async def test_sandbox_without_a_proxy_is_a_conflict_that_says_why() -> None:
    async with running(policy={}) as (client, _):
        answer = await client.patch(PATH, json=change("a.test:443", labels={"a": "b"}))
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
        assert "has the network mode 'none'; only rules of the mode 'proxy' can change" in answer.json()["detail"]
        assert (await client.get(PATH)).json()["labels"] == {}


@pytest.mark.parametrize(
    ("error", "status", "allow"),
    [
        (Conflict("a program of the sandbox holds port 443"), 409, "a.test"),
        (CapabilityMissing(["network_proxy"], "process"), 422, "a.test"),
        (BackendTimeout("process", "the egress process did not answer"), 504, "b.test"),
    ],
)
async def test_change_that_fails_changes_nothing_else(error: Exception, status: int, allow: str) -> None:
    async with running() as (client, service):
        service.backends[0].network_error = error  # type: ignore[assignment]
        answer = await client.patch(PATH, json=change("b.test:443", labels={"a": "b"}))
        assert answer.status_code == status
        asked, measured, labels = await in_force(client)
        assert [rule["host"] for rule in asked] == [rule["host"] for rule in measured] == [allow]
        assert labels == {}


async def test_other_part_of_the_request_that_is_refused_keeps_the_rules() -> None:
    async with running() as (client, _):
        for more in ({"ttl_seconds": 1e9}, {"idle_seconds": 1e9}):
            assert (await client.patch(PATH, json=change("b.test:443", **more))).status_code == 422
        asked, _, _ = await in_force(client)
        assert [rule["host"] for rule in asked] == ["a.test"]


async def test_rules_and_labels_are_changed_together() -> None:
    async with running() as (client, _):
        await client.patch(PATH, json=change("b.test:443", labels={"a": "b"}))
        assert await in_force(client) == ([RULE], [RULE], {"a": "b"})


async def test_sandbox_that_does_not_run_is_in_the_wrong_state() -> None:
    async with running() as (client, service):
        service.backends[0].create_gate = gate = Gate()
        await client.post("/sandboxes?wait_seconds=0", json=network("a.test:443", id="two"))
        await client.delete(PATH)
        for sandbox, state in (("one", "destroyed"), ("two", "creating")):
            problem = (await client.patch(f"/sandboxes/{sandbox}", json=change("b.test:443"))).json()
            assert (problem["type"], problem["state"]) == ("/problems/wrong_state", state)
        gate.open()
