"""What `bulkhead probe` says about a BoxLite server: one sentence, whatever answers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from app.cli.boxlite import ask_server
from app.cli.host import LayerReport
from tests.unit.cli.fake_service import Answer, FakeService, Request, answer, fake_service

KEY = "a key with 16 characters"
CONFIG = {"capabilities": {"snapshots_enabled": True}}


class Server(FakeService):
    async def _answer(self, request: Request) -> Answer:
        if str(request) == "GET /v1/config":
            assert "authorization" not in request.headers
            return self.answers.get(str(request)) or answer(200, CONFIG)
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return answer(401, {"error": {"message": "invalid or missing API key", "code": "unauthenticated"}})
        return await super()._answer(request)


async def asked(service: FakeService, key: str | None = KEY, prefix: str | None = None) -> LayerReport:
    layer = await asyncio.to_thread(ask_server, service.url, key, prefix)
    assert (layer.runtime, layer.layer, layer.needed) == ("boxlite", "server", True)
    assert KEY not in f"{layer}"
    return layer


@pytest.mark.parametrize(("prefix", "path"), [(None, "/v1/boxes"), ("an/org", "/v1/an/org/boxes")])
async def test_server_that_answers_is_there(prefix: str | None, path: str) -> None:
    async with fake_service(kind=Server) as service:
        service.answers[f"GET {path}"] = answer(200, {"boxes": [{}, {}]})
        layer = await asked(service, prefix=prefix)
    assert (layer.available, layer.detail, layer.cure) == (True, f"answers at {service.url}, with 2 boxes", None)
    assert service.asked() == ["GET /v1/config", f"GET {path}"]


@pytest.mark.parametrize(("key", "said"), [("wrong", "refuses the key"), (None, "wants a key")])
async def test_wrong_key_is_told_from_none(key: str | None, said: str) -> None:
    async with fake_service(kind=Server) as service:
        layer = await asked(service, key)
    assert (layer.available, layer.detail) == (False, f"the server at {service.url} {said} (401)")
    assert layer.cure is not None
    assert "BULKHEAD_BOXLITE__API_KEY" in layer.cure


@pytest.mark.parametrize("other", [answer(404, {}), answer(200, {"hello": 1}), (200, {}, b"<html>")])
async def test_something_else_is_no_boxlite_server(other: Answer) -> None:
    async with fake_service(kind=Server) as service:
        service.answers["GET /v1/config"] = other
        layer = await asked(service)
    assert (layer.available, layer.detail) == (False, f"the server at {service.url} is not a BoxLite server")


async def test_server_that_cannot_list_its_boxes_is_not_there() -> None:
    async with fake_service(kind=Server) as service:
        service.answers["GET /v1/boxes"] = answer(500, {"error": {}})
        layer = await asked(service)
    assert (layer.available, layer.detail) == (False, f"the server at {service.url} lists no boxes (500)")


def test_silence_is_told_with_the_systems_word() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    layer = ask_server(url, KEY)
    assert (layer.available, layer.detail) == (False, f"nothing answers at {url} (Connection refused)")


def test_key_that_no_header_can_carry_is_told() -> None:
    layer = ask_server("http://127.0.0.1:1", "schlüssel")
    assert (layer.available, layer.detail) == (False, "the key has characters that a header cannot have")
