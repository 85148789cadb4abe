from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.api.context import BODY_LIMIT, RUN_BODY_LIMIT, RequestTimeouts
from app.core.errors import BackendUnavailable
from app.core.sandboxes import Capacity
from app.settings import load_settings
from tests.callbacks import own_work
from tests.null_backend import Gate, NullBackend
from tests.unit.api.service import Service, call, create, start
from tests.unit.core.support import until

KEY = {"idempotency-key": "one"}


@asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """With the lifespan, whose end also ends what goes on for a key."""
    async with service.app.router.lifespan_context(service.app), service.client() as client:
        yield client
    assert service.backend.alive == []


class Gone:
    """A client that hangs up when `leave` is called."""

    def __init__(self, service: Service, path: str, body: object, key: str = "one") -> None:
        self._left = asyncio.Event()
        self._messages = iter([{"type": "http.request", "body": json.dumps(body).encode()}])
        headers = (("host", "localhost"), ("content-type", "application/json"), ("idempotency-key", key))
        self.request = asyncio.ensure_future(call(service.app, "POST", path, [], headers, self._receive))

    async def _receive(self) -> Mapping[str, Any]:
        for message in self._messages:
            return message
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def leave(self) -> None:
        self._left.set()
        assert await self.request == []


async def test_the_first_answer_is_repeated_with_status_body_and_location() -> None:
    service = Service()
    async with client_of(service) as client:
        first = await client.post("/sandboxes", json={}, headers=KEY)
        again = await client.post("/sandboxes", json={}, headers=KEY)
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.content == first.content
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["content-type"] == "application/json"
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        assert len(service.backend.created) == 1


async def test_every_post_takes_it_with_or_without_a_body_in_the_answer() -> None:
    service = Service()
    async with client_of(service) as client:
        sandbox = await create(client)
        path = await start(client, sandbox, "trap", "SIGUSR1")
        for _ in range(2):
            answer = await client.post(f"{path}/signal", json={"signal": "SIGUSR1"}, headers=KEY)
            assert (answer.status_code, answer.content) == (204, b"")
        log = await client.get(f"{path}/output?offset=0")
        assert log.text == "ready\nSIGUSR1\n"
        first, again = [
            await client.post(f"/sandboxes/{sandbox}/executions", json={"command": ["echo"]}, headers=KEY)
            for _ in range(2)
        ]
        assert again.json() == first.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [("/sandboxes", {"labels": {"a": "b"}}), ("/sandboxes?wait_seconds=5", {})],
)
async def test_another_body_or_query_is_a_mismatch(path: str, body: dict[str, Any]) -> None:
    service = Service()
    async with client_of(service) as client:
        await client.post("/sandboxes", json={}, headers=KEY)
        answer = await client.post(path, json=body, headers=KEY)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/idempotency_mismatch")
        assert len(service.backend.created) == 1


async def test_a_key_is_of_one_path_and_says_nothing_to_other_methods() -> None:
    service = Service()
    async with client_of(service) as client:
        sandbox = (await client.post("/sandboxes", json={}, headers=KEY)).json()["id"]
        said = await client.post("/run", json={"command": ["exit", "0"]}, headers=KEY)
        assert said.json()["exit"]["code"] == 0
        for ttl in (10, 20):
            answer = await client.patch(f"/sandboxes/{sandbox}", json={"ttl_seconds": ttl}, headers=KEY)
            assert answer.status_code == 200
            assert "idempotency-replayed" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        [("idempotency-key", "")],
        [("idempotency-key", "x" * 256)],
        [("idempotency-key", "ü")],
        [("idempotency-key", "a\tb")],
        [("idempotency-key", "a"), ("idempotency-key", "a")],
    ],
    ids=str,
)
async def test_a_malformed_key_is_refused_by_the_headers_name(headers: list[tuple[str, str]]) -> None:
    service = Service()
    sent = [("host", "localhost"), ("content-type", "application/json"), *headers]
    first, body = await call(service.app, "POST", "/sandboxes", [{"type": "http.request", "body": b"{}"}], sent)
    problem = json.loads(body["body"])
    assert (first["status"], problem["type"]) == (422, "/problems/invalid_request")
    assert problem["errors"][0]["pointer"] == "header/Idempotency-Key"
    assert service.backend.created == []


@pytest.mark.parametrize("key", ["x", "x" * 255, "~ !"])
async def test_a_key_has_1_to_255_printable_characters(key: str) -> None:
    async with client_of(Service()) as client:
        answers = [await client.post("/sandboxes", json={}, headers={"idempotency-key": key}) for _ in range(2)]
        assert answers[0].json() == answers[1].json()


async def test_fifty_at_once_make_one_sandbox_and_get_one_answer() -> None:
    service = Service()
    async with client_of(service) as client:
        gate = service.backend.create_gate = Gate()
        asked = [asyncio.ensure_future(client.post("/sandboxes", json={}, headers=KEY)) for _ in range(50)]
        await gate.reached.wait()
        gate.open()
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert len(service.backend.created) == 1
        assert len({answer.headers["x-request-id"] for answer in answers}) == 50


async def test_a_lost_answer_is_given_to_the_retry() -> None:
    service = Service()
    async with client_of(service) as client:
        gate = service.backend.create_gate = Gate()
        gone = Gone(service, "/sandboxes", {})
        await gate.reached.wait()
        await gone.leave()
        gate.open()
        answer = await client.post("/sandboxes", content=b"{}", headers={**KEY, "content-type": "application/json"})
        assert answer.status_code == 201
        assert answer.json()["state"] == "running"
        assert service.backend.created == [answer.json()["id"]]
        assert [line["status"] for line in service.logged if line.get("path") == "/sandboxes"] == [499, 201]


async def test_a_run_whose_client_went_away_is_carried_out_once_and_its_answer_kept() -> None:
    service = Service()
    async with client_of(service) as client:
        gate = service.backend.execute_gate = Gate()
        body = {"command": ["echo", "hello"]}
        gone = Gone(service, "/run", body)
        await gate.reached.wait()
        await gone.leave()
        gate.open()
        await until(lambda: service.backend.created != [] and service.backend.alive == [])
        service.backend.execute_gate = None
        content = json.dumps(body).encode()
        answer = await client.post("/run", content=content, headers={**KEY, "content-type": "application/json"})
        assert (answer.status_code, answer.json()["stdout"]) == (200, "hello\n")
        assert answer.headers["idempotency-replayed"] == "true"
        assert len(service.backend.created) == 1


async def test_a_failure_of_the_service_leaves_the_key_free_and_is_told_to_all_who_wait() -> None:
    service = Service()
    async with client_of(service) as client:
        service.backend.create_error = BackendUnavailable("process", "gone")
        answers = await asyncio.gather(*(client.post("/sandboxes", json={}, headers=KEY) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {503}
        assert len(service.backend.created) == 1
        assert all(answer.headers["retry-after"] for answer in answers)
        service.backend.create_error = None
        assert (await client.post("/sandboxes", json={"labels": {}}, headers=KEY)).status_code == 201


async def test_a_full_house_leaves_the_key_free() -> None:
    async with client_of(Service(capacity=Capacity(sandboxes=1))) as client:
        sandbox = await create(client)
        assert (await client.post("/sandboxes", json={}, headers=KEY)).status_code == 429
        await client.delete(f"/sandboxes/{sandbox}")
        assert (await client.post("/sandboxes", json={}, headers=KEY)).status_code == 201


async def test_a_refusal_is_an_answer_too() -> None:
    service = Service()
    async with client_of(service) as client:
        answers = [await client.post("/sandboxes", json={"runtime": "no"}, headers=KEY) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [422, 422]
        assert answers[0].content == answers[1].content
        assert answers[1].headers["content-type"] == "application/problem+json"


class Broken(NullBackend):
    def fit(self, spec: Any) -> Any:
        raise LookupError("a fault of ours")


async def test_a_fault_of_ours_is_a_500_in_the_log_and_is_not_kept() -> None:
    service = Service([Broken()])
    async with client_of(service) as client:
        answers = [await client.post("/sandboxes", json={}, headers=KEY) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [500, 500]
        assert "fault of ours" not in answers[0].text
        assert "idempotency-replayed" not in answers[1].headers
        assert sum("a fault of ours" in json.dumps(line) for line in service.logged) == 2


async def test_the_body_is_bounded_by_its_route_before_the_key_counts() -> None:
    service = Service()
    async with client_of(service) as client:
        for path, limit in (("/sandboxes", BODY_LIMIT), ("/run", RUN_BODY_LIMIT)):
            headers = {**KEY, "content-type": "application/json"}
            answer = await client.post(path, content=b" " * (limit + 1), headers=headers)
            assert (answer.status_code, answer.json()["limit"]) == (413, limit)
        assert (await client.post("/sandboxes", json={}, headers=KEY)).status_code == 201
        large = b'{"command":["exit","0"]}' + b" " * BODY_LIMIT
        answer = await client.post("/run", content=large, headers={**KEY, "content-type": "application/json"})
        assert answer.status_code == 200


async def test_a_body_that_trickles_in_is_ended() -> None:
    service = Service(timeouts=RequestTimeouts(body=0.01))
    headers = (("host", "localhost"), ("idempotency-key", "one"))
    start, _ = await call(service.app, "POST", "/run", [{"type": "http.request", "more_body": True}], headers)
    assert start["status"] == 422
    assert (b"connection", b"close") in start["headers"]


async def test_a_client_that_leaves_within_its_body_began_nothing() -> None:
    service = Service()
    headers = (("host", "localhost"), ("idempotency-key", "one"))
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert await call(service.app, "POST", "/sandboxes", messages, headers) == []
    assert service.backend.created == []


async def test_who_is_not_let_in_does_not_reach_the_answers() -> None:
    service = Service(key_hashes=("0" * 64,))
    async with client_of(service) as client:
        for _ in range(2):
            answer = await client.post("/sandboxes", json={}, headers=KEY)
            assert answer.status_code == 401
            assert "idempotency-replayed" not in answer.headers


async def test_the_operators_numbers_bound_what_is_remembered() -> None:
    few = load_settings(idempotency={"keys": 1, "mib": 0, "seconds": 60})
    service = Service(settings=few)
    async with client_of(service) as client:
        assert (await client.post("/sandboxes", json={}, headers=KEY)).status_code == 201
        answer = await client.post("/sandboxes", json={}, headers=KEY)
        assert (answer.status_code, answer.json()["type"]) == (409, "/problems/conflict")
        assert (await client.post("/sandboxes", json={}, headers={"idempotency-key": "two"})).status_code == 201
        assert (await client.post("/sandboxes", json={}, headers=KEY)).status_code == 201
        assert len(service.backend.created) == 3


async def test_the_end_of_the_service_ends_what_nobody_waits_for() -> None:
    service = Service()
    async with client_of(service):
        gone = Gone(service, "/run", {"command": ["sleep"]})
        await until(lambda: any(room.executions for room in service.backend.sandboxes.values()))
        await gone.leave()
        assert service.backend.alive != []


async def test_fifty_at_once_with_an_id_of_their_own_make_one_sandbox_and_one_execution() -> None:
    service = Service()
    async with client_of(service) as client:
        gate = service.backend.create_gate = Gate()
        asked = [asyncio.ensure_future(client.post("/sandboxes", json={"id": "mine"})) for _ in range(50)]
        await gate.reached.wait()
        gate.open()
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
        assert service.backend.created == ["mine"]
        body = {"id": "one", "command": ["trap", "SIGUSR1"]}
        answers = await asyncio.gather(*(client.post("/sandboxes/mine/executions", json=body) for _ in range(50)))
        assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
        assert list(service.backend.sandboxes["mine"].executions) == ["one"]


async def test_who_waits_for_the_answer_of_another_holds_its_body_in_the_bound_of_all() -> None:
    service = Service(settings=load_settings(transfers={"bodies_mib": 32}))
    service.backend.execute_gate = gate = Gate()
    with own_work():
        body = json.dumps({"command": ["exit", "0"], "stdin": "x" * 7_000_000}).encode()
    headers = {**KEY, "content-type": "application/json"}
    async with client_of(service) as client:
        asked = [asyncio.create_task(client.post("/run", content=body, headers=headers))]
        await gate.reached.wait()
        asked += [asyncio.create_task(client.post("/run", content=body, headers=headers)) for _ in range(8)]
        refused, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert {answer.result().json()["type"] for answer in refused} == {"/problems/capacity_exceeded"}
        gate.open()
        assert (await asked[0]).status_code == 200
        await asyncio.wait(asked)
        assert (await client.post("/run", content=body, headers=headers)).status_code == 200
