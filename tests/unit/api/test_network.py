"""The network mode `proxy`: what can be asked for, and what is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from app.core.capabilities import Capability
from tests.unit.api.service import Service, create, kernel, vm

RULES = ["index.example.org:443", {"host": "*.example.net", "ports": [443, 80]}]


def proxied() -> Service:
    return Service([kernel(Capability.NETWORK_PROXY), vm()])


def network(*allow: Any, mode: str = "proxy", **more: Any) -> dict[str, Any]:
    return {"policy": {"network": {"mode": mode, "allow": list(allow)}}, **more}


async def refused(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    async with service.client() as client:
        problem: dict[str, Any] = (await client.post("/sandboxes", json=body)).json()
        assert [s for b in service.backends for s in b.created] == []
        return problem


async def test_rules_are_answered_in_their_normal_form() -> None:
    async with proxied().client() as client:
        answer = await client.post("/sandboxes", json=network(*RULES))
        assert answer.status_code == 201, answer.text
        assert answer.json()["policy"]["network"] == {
            "mode": "proxy",
            "allow": [
                {"host": "index.example.org", "ports": [443], "raw": False},
                {"host": "*.example.net", "ports": [80, 443], "raw": False},
            ],
        }


async def test_a_repeated_create_may_spell_its_rules_differently() -> None:
    async with proxied().client() as client:
        first = await client.post("/sandboxes", json=network("a.test:443", id="one"))
        again = await client.post("/sandboxes", json=network({"host": "A.test.", "ports": [443]}, id="one"))
        other = await client.post("/sandboxes", json=network("b.test:443", id="one"))
        assert (first.status_code, again.status_code, other.status_code) == (201, 200, 409)


@pytest.mark.parametrize(
    ("allow", "pointer"),
    [
        ([], "/policy/network/allow"),
        (["a.test"], "/policy/network/allow/0"),
        (["a.test:443", 5], "/policy/network/allow/1"),
        ([None], "/policy/network/allow/0"),
        ([["a.test:443"]], "/policy/network/allow/0"),
        ([""], "/policy/network/allow/0"),
        (["a" * 262], "/policy/network/allow/0"),
        ([{"host": "a.test"}], "/policy/network/allow/0/ports"),
        ([{"host": "a.test", "ports": [443, 0]}], "/policy/network/allow/0/ports/1"),
        ([{"host": "a.test", "ports": [443], "raw": 1}], "/policy/network/allow/0/raw"),
        ([{"host": "a.test", "ports": [443], "http": [{}]}], "/policy/network/allow/0/http"),
        ([{"host": "a.test", "ports": [53]}], "/policy/network/allow/0"),
        ([{"host": "10.0.0.1", "ports": [443]}], "/policy/network/allow/0"),
        (["a.test:443"] * 65, "/policy/network/allow"),
    ],
)
async def test_what_is_no_rule_is_refused_with_its_place(allow: list[Any], pointer: str) -> None:
    problem = await refused(proxied(), network(*allow))
    assert problem["type"].endswith("/invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]


async def test_a_field_of_a_rule_that_is_misspelt_is_answered_with_the_one_that_was_meant() -> None:
    problem = await refused(proxied(), network({"host": "a.test", "port": [443]}))
    assert problem["errors"][-1]["detail"] == "is not known here; did you mean 'ports'?"


async def test_a_rule_beyond_the_operators_is_refused_with_its_place_and_the_ceiling() -> None:
    problem = await refused(proxied(), network("a.test:443", "a.test:22"))
    assert problem["type"].endswith("/policy_too_broad")
    assert (problem["pointer"], problem["ceiling"]) == ("/policy/network/allow/1", "*:80, *:443")


@pytest.mark.parametrize("mode", ["none", "direct"])
async def test_rules_with_ports_need_the_mode_proxy(mode: str) -> None:
    service = Service([kernel(Capability.NETWORK_PROXY, Capability.NETWORK_DIRECT)])
    problem = await refused(service, network({"host": "a.test", "ports": [443]}, mode=mode))
    assert problem["type"].endswith("/invalid_request")


@pytest.mark.parametrize(("runtime", "name"), [("boxlite", "boxlite"), ("process", "process")])
async def test_a_runtime_without_a_proxy_refuses_by_name(runtime: str, name: str) -> None:
    problem = await refused(Service([kernel(), vm()]), network("a.test:443", runtime=runtime))
    assert problem["type"].endswith("/policy_not_supported")
    assert (problem["pointer"], problem["runtime"]) == ("/policy/network/mode", name)
    assert problem["detail"] == f"the runtime '{name}' has no network of the mode proxy"


async def test_auto_takes_a_runtime_with_a_proxy() -> None:
    service = Service([kernel(), vm(Capability.NETWORK_PROXY)])
    async with service.client() as client:
        answer = (await client.post("/sandboxes", json=network("a.test:443", runtime="auto"))).json()
        assert answer["runtime"] == "boxlite"
        assert "process lacks network_proxy" in answer["runtime_reason"]
    missing = await refused(Service([kernel(), vm()]), network("a.test:443", runtime="auto"))
    assert missing["type"].endswith("/capability_missing")
    assert missing["missing"] == ["network_proxy"]


async def test_secrets_are_not_known_here() -> None:
    problem = await refused(proxied(), network("a.test:443", secrets={}))
    assert [error["pointer"] for error in problem["errors"]] == ["/secrets"]


async def test_without_the_mode_nothing_changes() -> None:
    async with proxied().client() as client:
        sandbox = await create(client)
        answer = (await client.get(f"/sandboxes/{sandbox}")).json()
        assert answer["policy"]["network"] == {"mode": "none", "allow": []}
