"""The network mode `proxy`: what can be asked for, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any

import httpx
import pytest

from app.core.capabilities import Capability
from app.core.network_log import EVENTS, REFUSED, NetworkEvent
from app.core.sandboxes import Capacity
from tests.null_backend import Gate
from tests.unit.api.service import LiveService, Service, create, kernel, vm
from tests.unit.api.test_events import ACCEPT, Event, events_of

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
                {"host": "index.example.org", "ports": [443], "raw": False, "http": None},
                {"host": "*.example.net", "ports": [80, 443], "raw": False, "http": None},
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
        ([{"host": "a.test", "ports": [443], "http": []}], "/policy/network/allow/0/http"),
        ([{"host": "a.test", "ports": [443], "http": [{"x": 1}]}], "/policy/network/allow/0/http/0/x"),
        ([{"host": "a.test", "ports": [443], "http": [{"methods": ["get"]}]}], "/policy/network/allow/0"),
        ([{"host": "a.test", "ports": [443], "http": [{"paths": ["/a%2f"]}]}], "/policy/network/allow/0"),
        ([{"host": "a.test", "ports": [443], "http": [{}], "raw": True}], "/policy/network/allow/0"),
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


async def test_without_the_mode_nothing_changes() -> None:
    async with proxied().client() as client:
        sandbox = await create(client)
        answer = (await client.get(f"/sandboxes/{sandbox}")).json()
        assert answer["policy"]["network"] == {"mode": "none", "allow": []}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the edge has no event for its own bookkeeping
            await asyncio.sleep(0)


# --- what is told


async def run(client: httpx.AsyncClient, sandbox: str, *command: str) -> str:
    """Returns the id of the execution."""
    answer = await client.post(f"/sandboxes/{sandbox}/executions?wait_seconds=30", json={"command": list(command)})
    return str(answer.json()["id"])


async def events(client: httpx.AsyncClient, sandbox: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(f"/sandboxes/{sandbox}/network", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_connections_and_refusals_are_listed_in_their_order() -> None:
    async with proxied().client() as client:
        sandbox = await create(client, **network("a.test:443"))
        only = await run(client, sandbox, "dial", "a.test", "443")
        await run(client, sandbox, "dial", "b.test", "443")
        found = await events(client, sandbox)
        allowed, name = found["items"]
        assert name["execution_id"] is None, "there are two by now"
        assert (found["next_cursor"], found["dropped"]) == (None, 0)
        assert datetime.fromisoformat(allowed.pop("at")).tzinfo is not None
        assert allowed == {
            "kind": "connection",
            "execution_id": only,
            "name": "a.test",
            "address": "203.0.113.1",
            "port": 443,
            "method": None,
            "path": None,
            "verdict": "allowed",
            "rule": "a.test:443",
            "reason": None,
            "bytes_sent": 9,
            "bytes_received": 99,
            "duration_seconds": 0.5,
        }
        assert (name["kind"], name["name"], name["port"], name["verdict"]) == ("name", "b.test", None, "refused")


async def test_events_come_in_pages_and_by_verdict() -> None:
    async with proxied().client() as client:
        sandbox = await create(client, **network("a.test:443"))
        for name in ("a.test", "b.test", "a.test", "c.test"):
            await run(client, sandbox, "dial", name, "443")
        seen, cursor = [], None
        while True:
            page = await events(client, sandbox, limit=1, **({"cursor": cursor} if cursor else {}))
            seen += [event["name"] for event in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert seen == ["a.test", "b.test", "a.test", "c.test"]
        refusals = await events(client, sandbox, verdict="refused")
        assert [event["name"] for event in refusals["items"]] == ["b.test", "c.test"]
        assert (await client.get(f"/sandboxes/{sandbox}/network?verdict=maybe")).status_code == 422


async def test_events_of_an_ended_sandbox_are_kept_with_its_record() -> None:
    async with proxied().client() as client:
        sandbox = await create(client, **network("a.test:443"))
        await run(client, sandbox, "dial", "b.test", "443")
        await client.delete(f"/sandboxes/{sandbox}")
        assert [event["name"] for event in (await events(client, sandbox))["items"]] == ["b.test"]


async def test_a_sandbox_without_the_mode_has_no_events() -> None:
    async with proxied().client() as client:
        sandbox = await create(client)
        assert await events(client, sandbox) == {"items": [], "next_cursor": None, "dropped": 0}
        assert (await client.get("/sandboxes/nobody/network")).status_code == 404


async def test_what_a_hostile_program_asks_for_is_told_without_harm() -> None:
    service = proxied()
    async with service.client() as client:
        sandbox = await create(client, **network("a.test:443"))
        log = service.backend.sandboxes[sandbox].network_log
        assert log is not None
        log.add(NetworkEvent(1e300, "name", "\x1b[2J\ud800.test", None, None, "refused", None, "x" * 1000))
        (event,) = (await events(client, sandbox))["items"]
        assert (event["name"], event["at"][:4], len(event["reason"])) == ("\\x1b[2J\\ud800.test", "9999", 400)
        run = await client.post(f"/sandboxes/{sandbox}/run", json={"command": ["echo"]})
        assert run.json()["network"] == {"refused": []}


async def test_more_events_than_are_kept_are_counted() -> None:
    service = proxied()
    async with service.client() as client:
        sandbox = await create(client, **network("a.test:443"))
        for _ in range(EVENTS + 7):
            service.backend.sandboxes[sandbox].dial("b.test", 443)
        found = await events(client, sandbox, limit=1000)
        assert (len(found["items"]), found["dropped"], found["next_cursor"]) == (1000, 7, None)


async def test_a_run_answers_with_what_was_refused_in_it() -> None:
    async with proxied().client() as client:
        answer = await client.post("/run", json={"command": ["dial", "b.test", "443"], **network("a.test:443")})
        refused = {"name": "b.test", "address": None, "port": None, "reason": "name", "count": 1}
        assert answer.json()["network"] == {"refused": [refused]}
        sandbox = await create(client, **network("a.test:443"))
        for names in (["b.test"], ["c.test"]):
            ran = await client.post(f"/sandboxes/{sandbox}/run", json={"command": ["dial", *names, "443"]})
            assert [host["name"] for host in ran.json()["network"]["refused"]] == names
        none = await client.post("/run", json={"command": ["echo"]})
        assert none.json()["network"] == {"refused": []}


async def test_the_largest_list_of_refusals_fits_into_an_answer() -> None:
    service = proxied()
    async with service.client() as client:
        sandbox = await create(client, **network("a.test:443"))
        running = asyncio.create_task(
            client.post(f"/sandboxes/{sandbox}/run", json={"command": ["silent-then", "echo"]})
        )
        inside = service.backend.sandboxes[sandbox]
        await until(lambda: bool(inside.executions))
        for number in range(2 * REFUSED):
            name = "\U0001f600" * 1000 + str(number)
            inside.network_log.add(  # type: ignore[union-attr]  # it has one
                NetworkEvent(1.0, "connection", f"{number}{name}", "x" * 999, 65535, "refused", None, "\\" * 999)
            )
        next(iter(inside.executions.values())).released.set()
        answer = (await running).json()["network"]["refused"]
        assert (len(answer), len(answer[0]["name"]), len(answer[0]["reason"])) == (REFUSED, 400, 64)


# --- Server-Sent Events


async def told(live: LiveService, sandbox: str, query: str = "", **headers: str) -> AsyncGenerator[Event, None]:
    path = f"/sandboxes/{sandbox}/network{query}"
    async with live.client.stream("GET", path, headers=ACCEPT | headers, timeout=60) as answer:
        async for event in events_of(answer):
            if event is not None:
                yield event


async def test_who_follows_gets_what_is_kept_then_what_comes_then_the_end() -> None:
    async with proxied().served() as live:
        sandbox = await create(live.client, **network("a.test:443"))
        inside = live.service.backend.sandboxes[sandbox]
        inside.dial("b.test", 443)
        following = told(live, sandbox)
        first = await anext(following)
        assert (first.kind, first.id, first.data["name"]) == ("network", "0", "b.test")
        inside.dial("a.test", 443)
        assert (await anext(following)).data["verdict"] == "allowed"
        await live.client.delete(f"/sandboxes/{sandbox}")
        last = await anext(following)
        assert (last.kind, last.id, last.data) == ("end", "1", {"total": 2})
        assert [event async for event in following] == []


async def test_who_comes_back_goes_on_behind_the_last_event_that_was_seen() -> None:
    async with proxied().served() as live:
        sandbox = await create(live.client, **network("a.test:443"))
        for name in ("b.test", "a.test", "c.test"):
            live.service.backend.sandboxes[sandbox].dial(name, 443)
        await live.client.delete(f"/sandboxes/{sandbox}")
        found = [event async for event in told(live, sandbox, **{"Last-Event-ID": "0"})]
        assert [(event.kind, event.data.get("name")) for event in found] == [
            ("network", "a.test"),
            ("network", "c.test"),
            ("end", None),
        ]
        refused = [event.data.get("name") async for event in told(live, sandbox, "?verdict=refused")]
        assert refused == ["b.test", "c.test", None]
        cursor = (await events(live.client, sandbox, limit=2))["next_cursor"]
        behind = [event.data.get("name") async for event in told(live, sandbox, f"?cursor={cursor}")]
        assert behind == ["c.test", None]


async def test_events_that_are_gone_are_a_gap() -> None:
    async with proxied().served() as live:
        sandbox = await create(live.client, **network("a.test:443"))
        inside = live.service.backend.sandboxes[sandbox]
        for _ in range(EVENTS + 5):
            inside.dial("a.test", 443)
        assert inside.network_log is not None
        inside.network_log.drop(3)
        await live.client.delete(f"/sandboxes/{sandbox}")
        found = [event async for event in told(live, sandbox)]
        assert (found[0].kind, found[0].id, found[0].data) == ("gap", "4", {"dropped": 5})
        assert (found[-2].kind, found[-2].id, found[-2].data) == ("gap", "1007", {"dropped": 3})
        assert [event.kind for event in found].count("network") == EVENTS


async def test_events_of_a_sandbox_without_the_mode_end_at_once() -> None:
    async with proxied().served() as live:
        sandbox = await create(live.client)
        assert [(event.kind, event.data) async for event in told(live, sandbox)] == [("end", {"total": 0})]


async def test_a_follower_of_a_new_sandbox_waits_until_it_runs() -> None:
    service = proxied()
    service.backend.create_gate = gate = Gate()
    async with service.served() as live:
        created = asyncio.create_task(live.client.post("/sandboxes?wait_seconds=0", json=network("a.test:443", id="x")))
        await created
        following = told(live, "x")
        first = asyncio.ensure_future(anext(following))
        await gate.reached.wait()
        gate.open()
        await live.client.get("/sandboxes/x?wait_seconds=30")
        service.backend.sandboxes["x"].dial("b.test", 443)
        assert (await first).data["name"] == "b.test"
        await live.client.delete("/sandboxes/x")
        assert [event.kind async for event in following] == ["end"]


async def test_followers_are_streams_and_leave_nothing_behind() -> None:
    service = Service([kernel(Capability.NETWORK_PROXY)], capacity=Capacity(streams=1))
    async with service.served() as live:
        sandbox = await create(live.client, **network("a.test:443"))
        inside = live.service.backend.sandboxes[sandbox]
        inside.dial("b.test", 443)
        following = told(live, sandbox)
        await anext(following)
        answer = await live.client.get(f"/sandboxes/{sandbox}/network", headers=ACCEPT)
        assert (answer.status_code, answer.json()["type"]) == (429, "/problems/capacity_exceeded")
        await following.aclose()
        await until(lambda: service.app.state.context.shares.streams.used == 0)


@pytest.mark.parametrize("accept", [ACCEPT, {}])
@pytest.mark.parametrize("last", ["x", "1-2", "-1", ""])
async def test_an_id_that_no_event_had_is_refused(last: str, accept: dict[str, str]) -> None:
    async with proxied().client() as client:
        sandbox = await create(client, **network("a.test:443"))
        answer = await client.get(f"/sandboxes/{sandbox}/network", headers=accept | {"Last-Event-ID": last})
        assert answer.json()["errors"][0]["pointer"] == "header/Last-Event-ID"


async def test_head_of_the_events_opens_no_stream() -> None:
    async with proxied().client() as client:
        sandbox = await create(client, **network("a.test:443"))
        answer = await client.head(f"/sandboxes/{sandbox}/network", headers=ACCEPT)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
