from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.api.schemas import answers
from app.core.backend import CommandLimits
from app.core.capabilities import Capability
from app.core.errors import BackendUnavailable
from app.core.sandboxes import Capacity
from tests.null_backend import CAPABILITIES, Gate, NullBackend
from tests.unit.api.service import Service, call, create, start, vm
from tests.unit.core.support import until


async def test_start_answers_201_with_location_and_no_exit_while_it_runs() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["sleep"]})
        assert answer.status_code == 201
        body = answer.json()
        assert answer.headers["location"] == f"/sandboxes/{sandbox}/executions/{body['id']}"
        answers.Execution.model_validate_json(answer.content)
        assert "exit" not in body
        assert (body["state"], body["ended_at"], body["sandbox_id"]) == ("running", None, sandbox)
        assert (await client.get(f"/sandboxes/{sandbox}")).json()["executions"] == {"running": 1, "total": 1}


async def test_an_ended_execution_has_exit_and_byte_counts() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "echo", "hello")
        answer = await client.get(f"{path}?wait_seconds=60")
        answers.Execution.model_validate_json(answer.content)
        body = answer.json()
        assert body["state"] == "ended"
        assert (body["exit"]["reason"], body["exit"]["code"], body["exit"]["signal"]) == ("exited", 0, None)
        assert body["output"]["stdout"] == {"bytes": 6, "dropped_bytes": 0}


async def test_what_a_runtime_may_have_lost_is_null_and_not_zero() -> None:
    async with Service([vm()], default="boxlite").client() as client:
        path = await start(client, await create(client), "echo", "hello")
        answer = await client.get(f"{path}?wait_seconds=60")
        answers.Execution.model_validate_json(answer.content)
        assert answer.json()["output"] == {
            "stdout": {"bytes": 6, "dropped_bytes": None},
            "stderr": {"bytes": 0, "dropped_bytes": None},
        }


async def test_a_command_that_cannot_be_started_is_201_and_ends_with_start_failed() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "missing")
        body = (await client.get(f"{path}?wait_seconds=60")).json()
        assert body["exit"]["reason"] == "start_failed"
        assert "ENOENT" in body["exit"]["detail"]


async def test_the_same_id_with_the_same_command_is_the_same_execution() -> None:
    async with Service().client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        first = await client.post(path, json={"id": "job", "command": ["echo", "x"]})
        again = await client.post(path, json={"id": "job", "command": ["echo", "x"]})
        other = await client.post(path, json={"id": "job", "command": ["echo", "y"]})
        assert [first.status_code, again.status_code, other.status_code] == [201, 200, 409]
        assert again.json()["started_at"] == first.json()["started_at"]
        assert len((await client.get(path)).json()["items"]) == 1


async def test_env_and_workdir_of_the_sandbox_are_defaults() -> None:
    async with Service().client() as client:
        sandbox = await create(client, env={"A": "1", "B": "1"}, workdir="/tmp")
        path = await start(client, sandbox, "env", env={"B": "2"})
        await client.get(f"{path}?wait_seconds=60")
        assert (await client.get(f"{path}/output")).text == "A=1\nB=2\n"
        for given, seen in (({}, "/tmp\n"), ({"workdir": "/workspace//a"}, "/workspace/a\n")):
            path = await start(client, sandbox, "pwd", **given)
            await client.get(f"{path}?wait_seconds=60")
            assert (await client.get(f"{path}/output")).text == seen


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/command"),
        ({"command": []}, "/command"),
        ({"command": [""]}, "/command"),
        ({"command": "echo"}, "/command"),
        ({"command": ["echo", 1]}, "/command/1"),
        ({"command": ["echo", "a\0b"]}, "/command/1"),
        ({"command": ["echo", "x" * 140_000]}, "/command/1"),
        ({"command": ["x"] * 70_000}, "/command"),
        ({"command": ["echo", *["x" * 100_000] * 25]}, "/command"),
        ({"command": ["echo"], "env": {f"K{n}": "" for n in range(10_000)}}, "/env"),
        ({"command": ["echo"], "env": {"A": None}}, "/env/A"),
        ({"command": ["echo"], "workdir": "x"}, "/workdir"),
        ({"command": ["echo"], "workdir": "/.."}, "/workdir"),
        ({"command": ["echo"], "timeout_seconds": 0}, "/timeout_seconds"),
        ({"command": ["echo"], "timeout_seconds": "1"}, "/timeout_seconds"),
        ({"command": ["echo"], "stdin": "pipe"}, "/stdin"),
        ({"command": ["echo"], "stdin": True}, "/stdin"),
        ({"command": ["echo"], "tty": "80x24"}, "/tty"),
        ({"command": ["echo"], "id": "NO"}, "/id"),
        ({"command": ["echo"], "on_output_limit": "ignore"}, "/on_output_limit"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_wrong_field_is_named_and_nothing_is_started(body: Any, pointer: str) -> None:
    service = Service()
    async with service.client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        answer = await client.post(path, json=body)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["type"] == "/problems/invalid_request"
        assert problem["errors"][0]["pointer"] == pointer
        assert len(answer.content) < 20_000
        assert (await client.get(path)).json()["items"] == []


async def test_a_timeout_above_wall_seconds_is_refused() -> None:
    async with Service().client() as client:
        sandbox = await create(client, limits={"wall_seconds": 10})
        answer = await client.post(
            f"/sandboxes/{sandbox}/executions", json={"command": ["echo"], "timeout_seconds": 10.5}
        )
        problem = answer.json()
        assert (problem["type"], problem["pointer"], problem["ceiling"]) == (
            "/problems/limit_too_high",
            "/timeout_seconds",
            10,
        )
        assert problem["detail"] == (
            "/timeout_seconds is 10.5, the ceiling is 10: "
            "create the sandbox with a higher limits.wall_seconds (up to 86400)"
        )
        most = await create(client, limits={"wall_seconds": 86_400})
        answer = await client.post(
            f"/sandboxes/{most}/executions", json={"command": ["echo"], "timeout_seconds": 86_401}
        )
        assert answer.json()["detail"] == "/timeout_seconds is 86401, the ceiling is 86400"


async def test_timeout_ends_the_execution() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "sleep", timeout_seconds=0.01)
        assert (await client.get(f"{path}?wait_seconds=60")).json()["exit"]["reason"] == "timeout"


async def test_the_runtimes_own_limits_hold_before_anything_is_started() -> None:
    service = Service([NullBackend(command_limits=CommandLimits(argument_bytes=10, arguments=3))])
    async with service.client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        assert (await client.post(path, json={"command": ["echo", "x" * 11]})).json()["errors"][0]["pointer"] == (
            "/command/1"
        )
        assert (await client.post(path, json={"command": ["echo"] * 4})).json()["errors"][0]["pointer"] == "/command"


async def test_open_stdin_on_a_runtime_without_it_is_refused() -> None:
    service = Service([NullBackend(capabilities=CAPABILITIES - {Capability.STDIN})])
    async with service.client() as client:
        answer = await client.post(
            f"/sandboxes/{await create(client)}/executions", json={"command": ["cat"], "stdin": "open"}
        )
        assert answer.json()["type"] == "/problems/capability_missing"
        assert answer.json()["missing"] == ["stdin"]


async def test_start_on_a_creating_sandbox_waits_whatever_wait_seconds_says() -> None:
    service = Service()
    gate = service.backend.create_gate = Gate()
    async with service.client() as client:
        sandbox = (await client.post("/sandboxes?wait_seconds=0", json={})).json()["id"]
        path = f"/sandboxes/{sandbox}/executions"
        held = [
            asyncio.create_task(client.post(path + query, json={"command": ["echo"]}))
            for query in ("", "?wait_seconds=0", "?wait_seconds=0.01")
        ]
        await gate.reached.wait()
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in held)
        gate.open()
        assert [(await task).status_code for task in held] == [201] * 3


async def test_start_waits_for_the_end_when_it_is_asked_to() -> None:
    service = Service()
    async with service.client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        assert "exit" not in (await client.post(path, json={"command": ["sleep"]})).json()
        assert "exit" not in (await client.post(f"{path}?wait_seconds=0.01", json={"command": ["sleep"]})).json()
        answer = await client.post(f"{path}?wait_seconds=60", json={"id": "mine", "command": ["print", "300000"]})
        assert (answer.status_code, answer.json()["exit"]["code"]) == (201, 0)
        assert answer.json()["output"]["stdout"]["bytes"] == 300_000
        again = await client.post(f"{path}?wait_seconds=60", json={"id": "mine", "command": ["print", "300000"]})
        assert (again.status_code, again.json()) == (200, answer.json())
        for wrong in ("-1", "61", "300", "nan"):
            refused = await client.post(f"{path}?wait_seconds={wrong}", json={"command": ["echo"]})
            assert refused.json()["errors"][0]["pointer"] == "query/wait_seconds"


async def test_client_that_disconnects_while_it_waits_for_the_end_leaves_the_execution_running() -> None:
    service = Service()
    left = asyncio.Event()
    messages = iter([{"type": "http.request", "body": b'{"command": ["sleep"]}'}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async with service.client() as client:
        path = f"/sandboxes/{await create(client)}/executions"
        waiting = asyncio.ensure_future(call(service.app, "POST", f"{path}?wait_seconds=60", [], receive=receive))
        await until(lambda: any(room.executions for room in service.backend.sandboxes.values()))
        left.set()
        assert await waiting == []
        (item,) = (await client.get(path)).json()["items"]
        assert item["state"] == "running"


async def test_start_in_a_destroyed_sandbox_is_409() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        await client.delete(f"/sandboxes/{sandbox}")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["echo"]})
        assert (answer.status_code, answer.json()["state"]) == (409, "destroyed")


async def test_executions_over_the_operators_limits_are_429() -> None:
    async with Service(capacity=Capacity(executions_running=1)).client() as client:
        sandbox = await create(client)
        await start(client, sandbox, "sleep")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["echo"]})
        assert answer.status_code == 429


async def test_a_runtime_that_fails_is_a_problem_and_leaves_no_execution() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        service.backend.execute_error = BackendUnavailable("process", "the launcher is gone")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["echo"]})
        assert answer.status_code == 503
        assert (await client.get(f"/sandboxes/{sandbox}/executions")).json()["items"] == []


async def test_an_execution_that_its_client_disconnects_on_runs_and_is_listed() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        gate = service.backend.execute_gate = Gate()
        body = {"type": "http.request", "body": b'{"command":["echo","hi"]}'}
        asking = asyncio.create_task(
            call(service.app, "POST", f"/sandboxes/{sandbox}/executions", [body, {"type": "http.disconnect"}])
        )
        await gate.reached.wait()
        gate.open()
        await asking
        (item,) = (await client.get(f"/sandboxes/{sandbox}/executions")).json()["items"]
        path = f"/sandboxes/{sandbox}/executions/{item['id']}"
        assert (await client.get(f"{path}?wait_seconds=60")).json()["exit"]["code"] == 0


async def test_executions_are_listed_oldest_first_in_pages() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        ids = [(await start(client, sandbox, "echo")).rsplit("/", 1)[1] for _ in range(5)]
        path = f"/sandboxes/{sandbox}/executions"
        first = (await client.get(f"{path}?limit=3")).json()
        rest = (await client.get(f"{path}?limit=3&cursor={first['next_cursor']}")).json()
        assert [i["id"] for i in first["items"] + rest["items"]] == ids
        assert rest["next_cursor"] is None
        answers.ExecutionList.model_validate_json(json.dumps(first))


async def test_wait_seconds_of_an_execution_is_at_most_60() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "sleep")
        assert (await client.get(f"{path}?wait_seconds=61")).json()["errors"][0]["pointer"] == "query/wait_seconds"
        assert "exit" not in (await client.get(f"{path}?wait_seconds=0.01")).json()


async def test_a_signal_reaches_the_program_by_any_name() -> None:
    async with Service().client() as client:
        for name in ("SIGINT", "INT", "sigint"):
            path = await start(client, await create(client), "sleep")
            assert (await client.post(f"{path}/signal", json={"signal": name})).status_code == 204
            exit_ = (await client.get(f"{path}?wait_seconds=60")).json()["exit"]
            assert (exit_["reason"], exit_["signal"], exit_["code"]) == ("signaled", "SIGINT", None)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"signal": "SIGNOPE"}, "/signal"),
        ({"signal": 2}, "/signal"),
        ({}, "/signal"),
        ({"signal": "INT", "x": 1}, "/x"),
    ],
)
async def test_an_unknown_signal_is_refused_and_nothing_is_sent(body: Any, pointer: str) -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "sleep")
        assert (await client.post(f"{path}/signal", json=body)).json()["errors"][0]["pointer"] == pointer
        assert (await client.get(path)).json()["state"] == "running"


async def test_a_signal_after_the_end_is_409_with_the_state() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "echo")
        await client.get(f"{path}?wait_seconds=60")
        answer = await client.post(f"{path}/signal", json={"signal": "TERM"})
        assert (answer.status_code, answer.json()["state"]) == (409, "ended")


async def test_delete_kills_everything_and_is_repeatable() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        path = await start(client, sandbox, "daemon", "sleep")
        for _ in range(2):
            assert (await client.delete(path)).status_code == 204
        assert service.backend.alive == [sandbox]
        exit_ = (await client.get(path)).json()["exit"]
        assert (exit_["reason"], exit_["detail"]) == ("killed", "the execution was deleted")
