"""The field `secrets`: what can be asked for, and that no answer, log or metric has a value."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendFailure
from app.core.operator_secrets import OperatorSecret
from app.core.secrets import SecretValue
from tests.unit.api.service import Service, kernel, vm

CANARY = "canary-7f3a"
READ = {"host": "*.test", "ports": [443], "http": [{}]}
OWN = {"value": CANARY, "hosts": ["api.test"]}


def proxied(*more: Capability) -> Service:
    service = Service([kernel(Capability.NETWORK_PROXY, Capability.SECRETS, *more), vm()])
    service.app.state.context.secrets.replace(
        {"llm": OperatorSecret(SecretValue("operators-canary"), ("api.test", "b.test"))}
    )
    return service


def body(secrets: Any, *allow: Any, mode: str = "proxy", **more: Any) -> dict[str, Any]:
    network = {"mode": mode, "allow": list(allow or ([READ] if mode == "proxy" else []))}
    return {"secrets": secrets, "policy": {"network": network}, **more}


async def refusal(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    async with service.client() as client:
        answer = await client.post("/sandboxes", json=asked)
        assert [s for b in service.backends for s in b.created] == []
        assert "canary" not in answer.text + service.log.getvalue()
        problem: dict[str, Any] = answer.json()
        return problem


async def test_answers_show_names_and_hosts_only() -> None:
    service = proxied()
    async with service.client() as client:
        asked = body({"TOKEN": {**OWN, "hosts": ["API.test.", "b.test"]}, "LLM": {"from": "llm"}})
        made = await client.post("/sandboxes", json=asked)
        assert made.status_code == 201, made.text
        shown = {
            "LLM": {"hosts": ["api.test", "b.test"], "from": "llm"},
            "TOKEN": {"hosts": ["api.test", "b.test"], "from": None},
        }
        assert made.json()["secrets"] == shown
        path = f"/sandboxes/{made.json()['id']}"
        assert (await client.get(path)).json()["secrets"] == shown
        await client.delete(path)
        assert (await client.get(path)).json()["secrets"] == shown
        plain = await client.post("/sandboxes", json={})
        assert plain.json()["secrets"] == {}


async def test_the_runtime_gets_the_value_and_programs_a_placeholder() -> None:
    service = proxied()
    async with service.client() as client:
        answer = await client.post("/run", json={**body({"TOKEN": OWN}, env={"A": "1"}), "command": ["env"]})
        lines = dict(line.split("=", 1) for line in answer.json()["stdout"].splitlines())
        assert lines["A"] == "1"
        assert lines["TOKEN"].startswith("bulkhead_secret_")
    assert CANARY not in answer.text


async def test_a_sandbox_that_ended_has_no_values_left() -> None:
    service = proxied()
    async with service.client() as client:
        made = await client.post("/sandboxes", json=body({"TOKEN": OWN}))
        sandbox = service.sandboxes.get(made.json()["id"])
        [secret] = sandbox.spec.secrets
        assert secret.value == SecretValue(CANARY)
        await client.delete(f"/sandboxes/{sandbox.id}")
        [secret] = sandbox.spec.secrets
        assert (secret.value, secret.placeholder) == (None, "")


async def test_no_answer_log_or_metric_has_a_value() -> None:
    """Also where something fails, and where an answer is repeated."""
    service = proxied()
    texts: list[str] = []
    async with service.client() as client:
        for _ in range(2):
            answer = await client.post("/sandboxes", json=body({"TOKEN": OWN}), headers={"idempotency-key": "1"})
            texts.append(f"{answer.text} {answer.headers}")
        assert answer.headers["idempotency-replayed"] == "true"
        named = body({"TOKEN": OWN}, id="one")
        statuses = []
        for asked in (named, named, {**named, "secrets": {"TOKEN": {**OWN, "value": "other-canary"}}}):
            answer = await client.post("/sandboxes", json=asked)
            statuses.append(answer.status_code)
            texts.append(answer.text)
        assert statuses == [201, 200, 409]
        for call in (client.get("/sandboxes"), client.get("/sandboxes/one"), client.get("/sandboxes/one/network")):
            texts.append((await call).text)
        texts.append((await client.patch("/sandboxes/one", json={"secrets": {"TOKEN": OWN}})).text)
        service.backend.create_error = BackendFailure("it failed")
        texts.append((await client.post("/sandboxes", json=body({"TOKEN": OWN}))).text)
        texts.append((await client.get("/metrics")).text)
    assert len(texts) == 11
    assert not [text for text in [*texts, service.log.getvalue()] if "canary" in text]


@pytest.mark.parametrize(
    ("secrets", "pointer", "sentence"),
    [
        ([], "/secrets", "must be an object"),
        ({"TOKEN": CANARY}, "/secrets/TOKEN", "must be an object"),
        ({"TOKEN": {"value": 5, "hosts": ["api.test"]}}, "/secrets/TOKEN/value", "must be a string"),
        ({"TOKEN": {"value": [CANARY], "hosts": ["api.test"]}}, "/secrets/TOKEN/value", "must be a string"),
        ({"TOKEN": {**OWN, "hosts": "api.test"}}, "/secrets/TOKEN/hosts", "must be a list"),
        ({"TOKEN": {**OWN, "hosts": []}}, "/secrets/TOKEN/hosts", "must have at least 1 item"),
        ({"TOKEN": {**OWN, "hosts": ["a.test"] * 17}}, "/secrets/TOKEN/hosts", "must have at most 16 items"),
        ({"TOKEN": {**OWN, "hosts": ["*.test"]}}, "/secrets/TOKEN/hosts", "exact names only"),
        ({"TOKEN": {**OWN, "hosts": ["192.0.2.1"]}}, "/secrets/TOKEN/hosts", "exact names only"),
        ({"TOKEN": {"value": CANARY}}, "/secrets/TOKEN/hosts", "must name the hosts"),
        ({"TOKEN": {"hosts": ["api.test"]}}, "/secrets/TOKEN", "needs either value or from"),
        ({"TOKEN": {**OWN, "from": "llm"}}, "/secrets/TOKEN", "needs either value or from"),
        ({"TOKEN": {**OWN, "value": f"{CANARY}\r\nX: 1"}}, "/secrets/TOKEN/value", "control characters"),
        ({"TOKEN": {**OWN, "value": f"{CANARY}\0"}}, "/secrets/TOKEN/value", "control characters"),
        ({"TOKEN": {**OWN, "value": f"{CANARY} "}}, "/secrets/TOKEN/value", "white space"),
        ({"TOKEN": {**OWN, "value": ""}}, "/secrets/TOKEN/value", "must have 1 to 8192 bytes"),
        ({"TOKEN": {**OWN, "value": CANARY * 1000}}, "/secrets/TOKEN/value", "must have 1 to 8192 bytes"),
        ({"TOKEN": {**OWN, "more": CANARY}}, "/secrets/TOKEN/more", "is not known here"),
        ({f"{CANARY}!": OWN}, "/secrets", "a name must have 1 to 128 letters"),
        ({"A": OWN}, "/secrets/A", "is in `env` too"),
        ({f"T{n}": OWN for n in range(17)}, "/secrets", "has 17 secrets; at most 16 are allowed"),
        ({"TOKEN": {"from": "none"}}, "/secrets/TOKEN/from", "no secret of this name; known: llm"),
        (
            {"TOKEN": {"from": "llm", "hosts": ["c.test"]}},
            "/secrets/TOKEN/hosts",
            "b.test, and not to c.test",
        ),
    ],
)
async def test_what_is_wrong_is_refused_with_its_place_and_not_shown(secrets: Any, pointer: str, sentence: str) -> None:
    problem = await refusal(proxied(), body(secrets, env={"A": "1"}))
    [error] = problem["errors"]
    assert error["pointer"] == pointer
    assert sentence in error["detail"]


@pytest.mark.parametrize(
    ("allow", "sentence"),
    [
        (["api.test:443"], "the rule api.test:443 lets bytes to api.test pass unread"),
        ([READ, "api.test:8443"], "the rule api.test:8443 lets bytes to api.test pass unread"),
        ([READ, "*:80"], "the rule *:80 lets bytes to api.test pass unread"),
        (["other.test:443"], "api.test needs a rule with `http`"),
        ([{**READ, "ports": [80]}], "api.test needs a rule with `http`"),
    ],
)
@pytest.mark.parametrize("secret", [OWN, {"from": "llm", "hosts": ["api.test"]}])
async def test_each_host_needs_rules_that_have_requests_read(
    allow: list[Any], sentence: str, secret: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BULKHEAD_EGRESS__ALLOW", '["*:80", "*:443", "*:8443"]')
    problem = await refusal(proxied(), body({"TOKEN": secret}, *allow))
    assert problem["errors"][0]["pointer"] == "/secrets/TOKEN/hosts"
    assert sentence in problem["errors"][0]["detail"]


async def test_other_rules_let_nothing_pass_unread_to_hosts_of_secrets() -> None:
    async with proxied().client() as client:
        path = f"/sandboxes/{(await client.post('/sandboxes', json=body({'TOKEN': OWN}))).json()['id']}"

        async def changed(*allow: Any) -> httpx.Response:
            return await client.patch(path, json={"policy": {"network": {"allow": list(allow)}}})

        unread: list[list[Any]] = [["api.test:443"], [READ, "*:80"]]
        for allow in unread:
            answer = await changed(*allow)
            assert answer.status_code == 422
            [error] = answer.json()["errors"]
            assert error["pointer"] == "/policy/network/allow"
            assert "lets bytes to api.test pass unread" in error["detail"]
        read = {"host": "api.test", "ports": [443], "http": [{"methods": ["GET"]}]}
        for allow in ([], ["other.test:443"], [read]):
            assert (await changed(*allow)).status_code == 200


async def test_all_hosts_of_an_operators_secret_need_rules_unless_some_are_chosen() -> None:
    rule = {**READ, "host": "api.test"}
    problem = await refusal(proxied(), body({"TOKEN": {"from": "llm"}}, rule))
    assert "b.test needs a rule" in problem["errors"][0]["detail"]
    async with proxied().client() as client:
        answer = await client.post("/sandboxes", json=body({"TOKEN": {"from": "llm", "hosts": ["API.test"]}}, rule))
        assert answer.json()["secrets"] == {"TOKEN": {"hosts": ["api.test"], "from": "llm"}}


@pytest.mark.parametrize("mode", ["none", "direct"])
async def test_secrets_need_the_mode_proxy(mode: str) -> None:
    allow = ["api.test"] if mode == "direct" else []
    problem = await refusal(proxied(Capability.NETWORK_DIRECT), body({"TOKEN": OWN}, *allow, mode=mode))
    assert problem["errors"] == [{"pointer": "/secrets", "detail": "need a network with the mode `proxy`"}]


async def test_a_runtime_without_the_capability_refuses_by_name() -> None:
    service = Service([kernel(Capability.NETWORK_PROXY), vm()])
    problem = await refusal(service, body({"TOKEN": OWN}))
    assert (problem["type"].rpartition("/")[2], problem["missing"]) == ("capability_missing", ["secrets"])
    problem = await refusal(proxied(), body({"TOKEN": OWN}, runtime="boxlite"))
    assert (problem["type"].rpartition("/")[2], problem["pointer"]) == ("policy_not_supported", "/policy/network/mode")


async def test_auto_chooses_a_runtime_that_has_secrets() -> None:
    async with proxied().client() as client:
        answer = await client.post("/sandboxes", json=body({"TOKEN": OWN}, runtime="auto"))
        assert answer.json()["runtime"] == "process"


def test_the_schema_says_that_a_value_is_only_written() -> None:
    schema = Service().app.openapi()["components"]["schemas"]["SecretRequest"]["properties"]
    assert {"type": "string", "format": "password", "writeOnly": True} in schema["value"]["anyOf"]
    assert "from" in schema
    assert "source" not in json.dumps(schema)
