from __future__ import annotations

import asyncio

import pytest

from tests.null_backend import pattern
from tests.unit.api.service import Service, create, start


async def test_output_is_the_raw_bytes_with_its_place() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "both", "100000")
        await client.get(f"{path}?wait_seconds=60")
        for channel in ("stdout", "stderr"):
            answer = await client.get(f"{path}/output?channel={channel}&offset=10&limit=70000")
            assert answer.content == pattern(100_000)[10:70_010]
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert (
                answer.headers["output-offset"],
                answer.headers["output-next-offset"],
                answer.headers["output-total"],
                answer.headers["output-complete"],
            ) == ("10", "70010", "100000", "false")
        answer = await client.get(f"{path}/output?offset=70010")
        assert (answer.content, answer.headers["output-complete"]) == (pattern(100_000)[70_010:], "true")


async def test_output_begins_later_than_asked_for_when_bytes_were_dropped() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client, limits={"output_bytes": 1000}), "print", "200000")
        await client.get(f"{path}?wait_seconds=60")
        answer = await client.get(f"{path}/output")
        begin = int(answer.headers["output-offset"])
        assert begin >= 200_000 - 1000
        assert answer.content == pattern(200_000)[begin:]
        assert (await client.get(path)).json()["output"]["stdout"]["dropped_bytes"] == begin


async def test_output_beyond_the_end_is_416() -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "echo")
        await client.get(f"{path}?wait_seconds=60")
        assert (await client.get(f"{path}/output?offset=2")).json()["type"] == "/problems/range_not_satisfiable"
        assert (await client.get(f"{path}/output?offset=1")).content == b""


async def test_an_empty_answer_is_held_until_there_is_output() -> None:
    service = Service()
    async with service.client() as client:
        path = await start(client, await create(client), "silent-then", "echo", "late")
        answer = await client.get(f"{path}/output?wait_seconds=0.01")
        assert (answer.content, answer.headers["output-complete"]) == (b"", "false")
        held = asyncio.create_task(client.get(f"{path}/output?wait_seconds=60"))
        _, _, sandbox, _, execution = path.split("/")
        log = service.sandboxes.execution(sandbox, execution).logs
        async with asyncio.timeout(60):
            while not any(len(one._wakers) > 1 for one in log.values()):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
        service.backend.release(execution)
        assert (await held).content == b"late\n"


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("offset=-1", "offset"),
        ("limit=0", "limit"),
        ("limit=99999999", "limit"),
        ("channel=stdin", "channel"),
        ("wait_seconds=61", "wait_seconds"),
    ],
)
async def test_bad_output_queries_are_refused(query: str, name: str) -> None:
    async with Service().client() as client:
        path = await start(client, await create(client), "sleep")
        assert (await client.get(f"{path}/output?{query}")).json()["errors"][0]["pointer"] == f"query/{name}"


async def test_output_of_a_destroyed_sandbox_is_409_and_the_exit_stays() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        path = await start(client, sandbox, "echo", "hi")
        await client.get(f"{path}?wait_seconds=60")
        await client.delete(f"/sandboxes/{sandbox}")
        answer = await client.get(f"{path}/output")
        assert (answer.status_code, answer.json()["state"]) == (409, "destroyed")
        assert (await client.get(path)).json()["exit"]["code"] == 0


async def test_output_kept_first_with_on_output_limit_kill() -> None:
    async with Service().client() as client:
        sandbox = await create(client, limits={"output_bytes": 1000})
        path = await start(client, sandbox, "spew", on_output_limit="kill")
        body = (await client.get(f"{path}?wait_seconds=60")).json()
        assert body["exit"]["reason"] == "output_limit"
        assert (await client.get(f"{path}/output")).content == pattern(1000)
