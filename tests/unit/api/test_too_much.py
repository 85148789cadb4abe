"""A request for more than there is learns which limit it is, its number, what to do, and whether to try again."""

from __future__ import annotations

from app.core.sandboxes import Capacity
from tests.told import Told, told_by
from tests.unit.api.service import Service, create, start


def later(sentence: str) -> Told:
    return 429, "capacity_exceeded", "1", sentence


def never(sentence: str) -> Told:
    return 422, "bound_exceeded", None, sentence


async def test_sandboxes() -> None:
    async with Service(capacity=Capacity(sandboxes=1)).client() as client:
        await create(client)
        for path in ("/sandboxes", "/run"):
            answer = await client.post(path, json={"command": ["true"]} if path == "/run" else {})
            assert told_by(answer) == later("the service's limit of 1 sandboxes is reached; try again later")


async def test_records_of_sandboxes() -> None:
    async with Service(capacity=Capacity(records=1)).client() as client:
        await create(client)
        answer = await client.post("/sandboxes", json={})
        assert told_by(answer) == later("the service's limit of 1 sandbox records is reached; try again later")


async def test_executions_of_one_sandbox() -> None:
    async with Service(capacity=Capacity(executions_running=1)).client() as client:
        sandbox = await create(client)
        await start(client, sandbox, "sleep")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["true"]})
        assert told_by(answer) == later(
            "this sandbox's limit of 1 executions that run or have left processes behind is reached; free some, or try "
            "again later"
        )
        assert answer.json()["holder"] == "sandbox"


async def test_records_of_executions() -> None:
    async with Service(capacity=Capacity(executions_kept=1)).client() as client:
        sandbox = await create(client)
        await start(client, sandbox, "sleep")
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["true"]})
        assert told_by(answer) == later(
            "this sandbox's limit of 1 executions that run, have left processes behind or are watched is reached; free "
            "some, or try again later"
        )


async def test_viewers_of_one_execution() -> None:
    async with Service(capacity=Capacity(viewers=1)).served() as live:
        path = await live.start("sleep")
        async with live.stream(path) as socket:
            await socket.recv()
            answer = await live.client.get(f"{path}/stream", headers={"accept": "text/event-stream"})
            assert told_by(answer) == later(
                "this execution's limit of 1 viewers is reached; free some, or try again later"
            )
            assert answer.json()["holder"] == "execution"


async def test_command_that_is_larger_than_all_that_is_stored_of_commands() -> None:
    async with Service(capacity=Capacity(commands_mib=1)).client() as client:
        sandbox = await create(client)
        command = {"command": ["echo", *["x" * 100_000] * 6]}
        answer = await client.post(f"/sandboxes/{sandbox}/executions", json=command)
        assert told_by(answer) == never(
            "the request needs more than 524288 bytes of stored commands, which is the most that it can have; send "
            "less at once"
        )


async def test_service_that_stops_makes_no_sandbox() -> None:
    service = Service()
    async with service.client() as client:
        await service.app.state.context.sandboxes.aclose()
        for path, body in (("/sandboxes", {}), ("/run", {"command": ["true"]})):
            assert told_by(await client.post(path, json=body)) == (
                *(503, "service_stopping", "5"),
                "the service is stopping and makes no sandbox any more; try again when it has been started",
            )


async def test_large_body() -> None:
    async with Service().client() as client:
        answer = await client.post(
            "/sandboxes", content=bytes(4 * 1024 * 1024 + 1), headers={"content-type": "application/json"}
        )
        assert told_by(answer) == (
            *(413, "payload_too_large", None),
            "the request body is larger than 4194304 bytes, which is the most",
        )
        assert answer.json()["limit"] == 4 * 1024 * 1024
