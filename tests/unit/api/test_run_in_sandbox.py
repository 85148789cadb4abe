from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from app.api.context import BODY_LIMIT, RUN_BODY_LIMIT
from app.core.capabilities import Capability
from tests.null_backend import CAPABILITIES, Gate, NullBackend, pattern
from tests.unit.api.service import Service, call
from tests.unit.core.support import until

MIB = 1024 * 1024


async def sandbox(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post("/sandboxes", json=body)
    assert answer.status_code == 201, answer.text
    return f"/sandboxes/{answer.json()['id']}"


async def run(client: httpx.AsyncClient, path: str, *command: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(f"{path}/run", json={"command": list(command), **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_variables_and_directory_come_over_those_of_the_sandbox() -> None:
    async with Service().client() as client:
        path = await sandbox(client, env={"A": "1", "B": "1"}, workdir="/workspace/x")
        assert (await run(client, path, "env", env={"B": "2"}))["stdout"] == "A=1\nB=2\n"
        assert (await run(client, path, "pwd"))["stdout"] == "/workspace/x\n"
        assert (await run(client, path, "pwd", workdir="/tmp"))["stdout"] == "/tmp\n"


async def test_output_is_bounded_by_1_mib_and_by_the_sandbox() -> None:
    async with Service().client() as client:
        path = await sandbox(client)
        said = await run(client, path, "print", str(2 * MIB), on_output_limit="kill")
        assert (said["exit"]["detail"], said["stdout_truncated"]) == (f"stdout passed {MIB} bytes", True)
        said = await run(client, path, "spew", limits={"output_bytes": 800}, on_output_limit="kill")
        assert (said["stdout"], said["exit"]["reason"]) == (pattern(800).decode(), "output_limit")
        answer = await client.post(
            f"{path}/run", json={"command": ["exit", "0"], "limits": {"output_bytes": 8 * MIB + 1}}
        )
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/limit_too_high")
        assert (answer.json()["pointer"], answer.json()["ceiling"]) == ("/limits/output_bytes", 8 * MIB)
        small = await sandbox(client, limits={"output_bytes": 1000})
        assert len((await run(client, small, "print", "5000"))["stdout"]) == 1000
        answer = await client.post(f"{small}/run", json={"command": ["exit", "0"], "limits": {"output_bytes": 1001}})
        assert answer.json()["ceiling"] == 1000


async def test_state_that_does_not_allow_it_is_told_and_nothing_is_put() -> None:
    service = Service()
    body = {"command": ["echo"], "files": [{"path": "a", "content": "x"}]}
    async with service.client() as client:
        assert (await client.post("/sandboxes/none/run", json=body)).status_code == 404
        path = await sandbox(client)
        await client.post(f"{path}/pause")
        for sent in (body, {"command": ["echo"]}):
            answer = await client.post(f"{path}/run", json=sent)
            assert (answer.status_code, answer.json()["state"]) == (409, "paused")
        await client.post(f"{path}/resume")
        assert (await client.get(f"{path}/files?path=a")).status_code == 404
        service.backend.destroy_gate = Gate()
        ending = asyncio.create_task(client.delete(path))
        await service.backend.destroy_gate.reached.wait()
        assert (await client.post(f"{path}/run", json=body)).status_code == 409
        service.backend.destroy_gate.open()
        await ending
        answer = await client.post(f"{path}/run", json=body)
        assert (answer.status_code, answer.json()["state"]) == (409, "destroyed")


async def test_sandbox_that_is_creating_is_waited_for() -> None:
    service = Service()
    service.backend.create_gate = Gate()
    async with service.client() as client:
        created = await client.post("/sandboxes?wait_seconds=0", json={})
        path = f"/sandboxes/{created.json()['id']}"
        running = asyncio.create_task(run(client, path, "echo", "late"))
        await service.backend.create_gate.reached.wait()
        service.backend.create_gate.open()
        assert (await running)["stdout"] == "late\n"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"files": [{"path": "../a", "content": ""}]}, "/files/0/path"),
        ({"collect": ["ok", "/etc/passwd"]}, "/collect/1"),
        ({"collect": "main"}, "/collect"),
        ({"collect": ["x"] * 1025}, "/collect"),
        ({"stdin": "a", "stdin_base64": "YQ=="}, "/stdin_base64"),
        ({"workdir": "out"}, "/workdir"),
        ({"env": {"A=B": "1"}}, "/env/A=B"),
        ({"command": [""]}, "/command"),
        ({"limits": {"memory_mib": 1}}, "/limits/memory_mib"),
        ({"limits": {"disk_mib": 64}}, "/limits/disk_mib"),
        ({"runtime": "process"}, "/runtime"),
    ],
)
async def test_wrong_field_is_named_and_nothing_is_started(body: dict[str, Any], pointer: str) -> None:
    async with Service().client() as client:
        path = await sandbox(client)
        answer = await client.post(f"{path}/run", json={"command": ["exit", "0"], **body})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert (await client.get(f"{path}/executions")).json()["items"] == []


async def test_runtime_without_files_refuses_them_and_what_is_to_be_collected() -> None:
    service = Service([NullBackend(capabilities=CAPABILITIES - {Capability.FILES})])
    async with service.client() as client:
        path = await sandbox(client)
        for body in ({"files": [{"path": "a", "content": "x"}]}, {"collect": ["a"]}):
            for to in (f"{path}/run", "/run"):
                answer = await client.post(to, json={"command": ["exit", "0"], **body})
                assert answer.json()["type"] == "/problems/unsupported_by_runtime"


async def test_body_may_have_8_mib_as_of_a_run_and_no_more() -> None:
    async with Service().client() as client:
        path = await sandbox(client)
        head, tail = b'{"command": ["exit", "0"], "stdin": "', b'"}'
        content = head + b"x" * (RUN_BODY_LIMIT - len(head) - len(tail)) + tail
        headers = {"content-type": "application/json"}
        assert (await client.post(f"{path}/run", content=content, headers=headers)).status_code == 200
        answer = await client.post(f"{path}/run", content=content + b" ", headers=headers)
        assert (answer.status_code, answer.json()["limit"]) == (413, RUN_BODY_LIMIT)
        answer = await client.post(f"{path}/executions", content=content, headers=headers)
        assert (answer.status_code, answer.json()["limit"]) == (413, BODY_LIMIT)


async def test_key_repeats_the_answer_and_the_command_runs_once() -> None:
    service = Service()
    async with service.client() as client:
        path = await sandbox(client)
        keyed = {"Idempotency-Key": "once"}
        body = {"command": ["echo", "x"], "collect": ["none"]}
        first = await client.post(f"{path}/run", json=body, headers=keyed)
        again = await client.post(f"{path}/run", json=body, headers=keyed)
        assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
        assert len((await client.get(f"{path}/executions")).json()["items"]) == 1


async def hung_up(service: Service, path: str, *more: tuple[str, str]) -> None:
    left = asyncio.Event()
    messages = iter([{"type": "http.request", "body": json.dumps({"command": ["sleep"]}).encode()}])
    headers = [("host", "localhost"), ("content-type", "application/json"), *more]

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    running = asyncio.ensure_future(call(service.app, "POST", f"{path}/run", [], headers, receive))
    await until(lambda: any(room.executions for room in service.backend.sandboxes.values()))
    left.set()
    assert await running == []


async def test_client_that_disconnects_ends_its_command_and_not_the_sandbox() -> None:
    service = Service()
    async with service.client() as client:
        path = await sandbox(client)
        await hung_up(service, path)
        (item,) = (await client.get(f"{path}/executions")).json()["items"]
        ended = (await client.get(f"{path}/executions/{item['id']}?wait_seconds=60")).json()["exit"]
        assert (ended["reason"], ended["detail"]) == ("killed", "its client disconnected")
        assert (await run(client, path, "echo", "still here"))["stdout"] == "still here\n"


async def test_client_with_a_key_that_disconnects_ends_nothing() -> None:
    service = Service()
    async with service.client() as client:
        path = await sandbox(client)
        await hung_up(service, path, ("idempotency-key", "mine"))
        (item,) = (await client.get(f"{path}/executions")).json()["items"]
        assert item["state"] == "running"
