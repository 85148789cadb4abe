from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.api.schemas import answers
from app.core.errors import (
    BackendUnavailable,
)
from app.core.sandboxes import Capacity
from tests.null_backend import NullBackend
from tests.unit.api.service import Service, create


async def test_lists_are_paged_oldest_first_and_miss_nothing() -> None:
    async with Service().client() as client:
        ids = [await create(client) for _ in range(7)]
        seen: list[str] = []
        cursor = ""
        pages = 0
        while True:
            page = (await client.get(f"/sandboxes?limit=3{cursor}")).json()
            answers.SandboxList.model_validate_json(json.dumps(page))
            seen += [item["id"] for item in page["items"]]
            pages += 1
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
            await create(client, labels={"late": "yes"})
        assert seen[:7] == ids
        assert len(set(seen)) == len(seen)
        assert (pages, len(seen)) == (3, 9)


@pytest.mark.parametrize("cursor", ["x", "MQ%3D%3D", "!!!", "é", "LTE", "MDE", "a" * 65, ""])
async def test_a_bad_cursor_is_refused(cursor: str) -> None:
    async with Service().client() as client:
        answer = await client.get(f"/sandboxes?cursor={cursor}")
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == "query/cursor"


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "1.5"])
async def test_a_bad_limit_is_refused(limit: str) -> None:
    async with Service().client() as client:
        assert (await client.get(f"/sandboxes?limit={limit}")).json()["errors"][0]["pointer"] == "query/limit"


async def test_lists_are_filtered_by_state_runtime_and_labels() -> None:
    service = Service([NullBackend(), NullBackend("boxlite", aliases=("vm",))])
    async with service.client() as client:
        a = await create(client, labels={"team": "a", "url": "http://x"})
        b = await create(client, labels={"team": "b"}, runtime="vm")
        await client.delete(f"/sandboxes/{b}")

        async def found(query: str) -> list[str]:
            answer = await client.get(f"/sandboxes?{query}")
            assert answer.status_code == 200, answer.text
            return [item["id"] for item in answer.json()["items"]]

        assert await found("state=running") == [a]
        assert await found("state=destroyed") == [b]
        assert await found("runtime=vm") == [b]
        assert await found("runtime=linux") == [a]
        assert await found("label=team:a") == [a]
        assert await found("label=team:a&label=url:http://x") == [a]
        assert await found("label=team:a&label=team:b") == []
        for typed, like in (("team", "team:ci"), ("team=a", "team:a"), ("=a", "team:ci")):
            error = (await client.get("/sandboxes", params={"label": typed})).json()["errors"][0]
            assert error == {"pointer": "query/label", "detail": f"must be key:value, such as {like}"}
        assert (await client.get("/sandboxes?state=frozen")).json()["errors"][0]["pointer"] == "query/state"
        assert (await client.get("/sandboxes?runtime=docker")).json()["type"] == "/problems/unknown_runtime"


async def test_an_unknown_id_is_404_on_every_route() -> None:
    async with Service().client() as client:
        path = "/sandboxes/sbx_none"
        answers = [
            await client.get(path),
            await client.patch(path, json={}),
            await client.delete(path),
            await client.get(f"{path}/executions"),
            await client.post(f"{path}/executions", json={"command": ["echo"]}),
            await client.get(f"{path}/executions/exe_none"),
            await client.get(f"{path}/executions/exe_none/output"),
            await client.delete(f"{path}/executions/exe_none"),
            await client.post(f"{path}/executions/exe_none/signal", json={"signal": "INT"}),
        ]
        assert {a.json()["type"] for a in answers} == {"/problems/not_found"}


async def test_patch_changes_only_what_is_given() -> None:
    async with Service().client() as client:
        sandbox = await create(client, idle_seconds=60, labels={"a": "1"})
        before = (await client.get(f"/sandboxes/{sandbox}")).json()
        body = (await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 7200})).json()
        assert body["expires_at"] > before["expires_at"]
        assert (body["idle_seconds"], body["labels"]) == (60, {"a": "1"})
        body = (await client.patch(f"/sandboxes/{sandbox}", json={"idle_seconds": None, "labels": {"b": "2"}})).json()
        assert (body["idle_seconds"], body["labels"]) == (None, {"b": "2"})
        unchanged = (await client.patch(f"/sandboxes/{sandbox}", json={})).json()
        assert (unchanged["labels"], unchanged["expires_at"]) == ({"b": "2"}, body["expires_at"])


@pytest.mark.parametrize("body", [{"ttl_seconds": 0}, {"labels": None}, {"idle_seconds": "x"}, {"runtime": "process"}])
async def test_patch_refuses_what_it_does_not_take(body: Any) -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        answer = await client.patch(f"/sandboxes/{sandbox}", json=body)
        assert answer.json()["errors"][0]["pointer"] == f"/{next(iter(body))}"


async def test_patch_of_a_destroyed_sandbox_is_409_with_its_state() -> None:
    async with Service().client() as client:
        sandbox = await create(client)
        await client.delete(f"/sandboxes/{sandbox}")
        answer = await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 10})
        assert answer.status_code == 409
        assert (answer.json()["type"], answer.json()["state"]) == ("/problems/wrong_state", "destroyed")
        too_long = await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": 1e9})
        assert too_long.json()["type"] == "/problems/limit_too_high"


async def test_delete_is_204_again_while_the_record_is_kept_and_then_404() -> None:
    service = Service(capacity=Capacity(record_seconds=0))
    async with service.client() as client:
        sandbox = await create(client)
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 204
        assert service.backend.alive == []
        async with asyncio.timeout(60):
            while (await client.get(f"/sandboxes/{sandbox}")).status_code == 200:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 404
    async with Service().client() as client:
        sandbox = await create(client)
        for _ in range(3):
            answer = await client.delete(f"/sandboxes/{sandbox}")
            assert (answer.status_code, answer.content) == (204, b"")
        body = (await client.get(f"/sandboxes/{sandbox}")).json()
        assert (body["state"], body["isolation"]) == ("destroyed", None)


async def test_a_destroy_that_the_runtime_cannot_do_is_a_problem() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        service.backend.destroy_error = BackendUnavailable("process", "the launcher is gone", 7)
        answer = await client.delete(f"/sandboxes/{sandbox}")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        service.backend.destroy_error = None
        assert (await client.delete(f"/sandboxes/{sandbox}")).status_code == 204


async def test_a_lost_sandbox_shows_failed_with_its_reason() -> None:
    service = Service()
    async with service.client() as client:
        sandbox = await create(client)
        await service.backend.lose(sandbox, "the worker was killed")
        async with asyncio.timeout(60):
            while (body := (await client.get(f"/sandboxes/{sandbox}")).json())["state"] == "running":  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert (body["state"], body["state_reason"]) == ("failed", "the worker was killed")
