from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from app.api.context import BODY_LIMIT, RequestTimeouts
from app.settings import load_settings
from tests.null_backend import Gate
from tests.processor_time import slowness
from tests.unit.api.service import Service, call

JSON = {"content-type": "application/json"}


async def post(content: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any], Any]:
    service = Service()
    async with service.client() as client:
        answer = await client.post("/sandboxes", content=content, headers=JSON if headers is None else headers)
        assert service.backend.created == [] or answer.status_code == 201
        return answer.status_code, answer.json(), answer.headers


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"a":1}{"b":2}',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"runtime":"\\ud800"}',
        b'{"runtime":"\xff"}',
        b'{"ttl_seconds":NaN}',
        b'{"ttl_seconds":1e999}',
        b'{"limits":{"memory_mib":' + b"9" * 6000 + b"}}",
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
        b'{"limits":' * 300 + b"1" + b"}" * 300,
    ],
    ids=lambda value: repr(value[:24]),
)
async def test_what_is_not_json_is_422_with_a_pointer(content: bytes) -> None:
    status, problem, _ = await post(content)
    assert (status, problem["type"]) == (422, "/problems/invalid_request")
    assert isinstance(problem["errors"][0]["pointer"], str)


@pytest.mark.parametrize(
    ("number", "status"), [("64.0", 201), ("6.4e1", 201), ("64.5", 422), ('"64"', 422), ("true", 422)]
)
async def test_a_whole_number_is_an_integer_however_it_is_written(number: str, status: int) -> None:
    found, answer, _ = await post(f'{{"limits":{{"memory_mib":{number}}}}}'.encode())
    assert found == status
    if status == 201:
        assert answer["limits"]["memory_mib"] == 64
    else:
        assert [error["pointer"] for error in answer["errors"]] == ["/limits/memory_mib"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"requires":[' + b"1," * 1_900_000 + b"1]}",
        b'{"policy":{"filesystem":{"read_only":[' + b"1," * 1_900_000 + b"1]}}}",
        json.dumps({"env": {f"k{n}": n for n in range(200_000)}}).encode(),
        json.dumps({"labels": {f"k{n}": n for n in range(200_000)}}).encode(),
        json.dumps({f"k{n}": n for n in range(200_000)}).encode(),
        json.dumps({"limits": {f"k{n}": n for n in range(200_000)}}).encode(),
    ],
    ids=["requires", "paths", "env", "labels", "fields", "limits"],
)
async def test_a_body_with_a_million_errors_is_refused_fast_and_shortly(content: bytes) -> None:
    assert len(content) < BODY_LIMIT
    began = time.thread_time()
    status, problem, _ = await post(content)
    assert (time.thread_time() - began) / slowness() < 1.5  # collecting all errors takes 8 s
    assert status == 422
    assert 1 <= len(problem["errors"]) <= 32
    assert len(problem["detail"]) <= 1000


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/jsonp"},
    ],
    ids=str,
)
async def test_another_media_type_is_415(headers: dict[str, str]) -> None:
    status, problem, _ = await post(b"{}", headers)
    assert (status, problem["type"]) == (415, "/problems/unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
async def test_json_by_any_of_its_names_is_taken(media_type: str) -> None:
    assert (await post(b"{}", {"content-type": media_type}))[0] == 201


async def test_a_body_over_4_mib_is_413_by_its_length_without_being_read() -> None:
    service = Service()
    headers = (
        ("host", "localhost"),
        ("content-type", "application/json"),
        ("content-length", str(BODY_LIMIT + 1)),
    )
    start, body = await call(service.app, "POST", "/sandboxes", [], headers)
    assert start["status"] == 413
    assert json.loads(body["body"])["limit"] == BODY_LIMIT


async def test_a_chunked_body_over_4_mib_is_413_when_it_passes_the_limit() -> None:
    service = Service()
    chunk = {"type": "http.request", "body": b"x" * 1024 * 1024, "more_body": True}
    start, body = await call(service.app, "POST", "/sandboxes", [chunk] * 5)
    assert start["status"] == 413
    assert json.loads(body["body"])["type"] == "/problems/payload_too_large"


async def test_a_body_of_exactly_4_mib_is_read() -> None:
    status, _, _ = await post(b"{}" + b" " * (BODY_LIMIT - 2))
    assert status == 201


async def test_a_body_that_trickles_in_is_ended() -> None:
    service = Service(timeouts=RequestTimeouts(body=0.01))
    start, body = await call(
        service.app, "POST", "/sandboxes", [{"type": "http.request", "body": b"{", "more_body": True}]
    )
    assert start["status"] == 422
    assert (b"connection", b"close") in start["headers"]
    assert "did not arrive within" in json.loads(body["body"])["detail"]


async def test_a_client_that_leaves_within_its_body_gets_no_answer_and_creates_nothing() -> None:
    service = Service()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert await call(service.app, "POST", "/sandboxes", messages) == []
    assert service.backend.created == []
    assert service.logged[-1]["status"] == 499


async def test_a_body_in_pieces_is_put_together() -> None:
    service = Service()
    pieces = [{"type": "http.request", "body": bytes([byte]), "more_body": True} for byte in b'{"id":"mine"}']
    start, _ = await call(service.app, "POST", "/sandboxes", [*pieces, {"type": "http.request", "body": b""}])
    assert start["status"] == 201
    await service.sandboxes.aclose()


async def test_413_over_a_real_connection_ends_it() -> None:
    async with Service().served() as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", live.port)
        writer.write(
            b"POST /sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 99999999\r\n\r\n{"
        )
        async with asyncio.timeout(60):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()


async def test_bodies_together_have_a_bound_and_give_back_what_they_took() -> None:
    service = Service(settings=load_settings(transfers={"bodies_mib": 8}))
    body = json.dumps({"command": ["exit", "0"], "stdin": "x" * 5_000_000}).encode()
    service.backend.execute_gate = gate = Gate()
    async with service.client() as client:
        running = asyncio.create_task(client.post("/run", content=body, headers=JSON))
        await gate.reached.wait()
        refused = await client.post("/run", content=body, headers=JSON)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/capacity_exceeded")
        assert "retry-after" in refused.headers
        gate.open()
        assert (await running).status_code == 200
        assert (await client.post("/run", content=body, headers=JSON)).status_code == 200
