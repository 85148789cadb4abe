from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import Message, Receive, Scope, Send

from app.api.http.access import AccessMiddleware, AccessPolicy
from app.api.http.dispatch import Dispatch
from app.api.http.idempotency import Idempotency
from app.api.http.tickets import Tickets
from app.core.budget import Budget
from app.core.fair_queue import EACH_TURN
from app.core.registry import Registry
from app.settings import Settings
from tests.unit.api.service import Service, call

KEY, OTHER = "bh_" + "k" * 43, "bh_" + "o" * 43
HASHES = tuple(hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER))


async def get(service: Service, path: str, **headers: str) -> httpx.Response:
    async with service.client() as client:
        return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


# --- hosts


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "LOCALHOST"])
async def test_loopback_names_are_served_with_any_port(host: str) -> None:
    assert (await get(Service(), "/sandboxes", host=host)).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost:x",
        "[::1",
        "localhost:",
        "a b",
        "",
    ],
)
async def test_other_hosts_are_403_but_for_health(host: str) -> None:
    service = Service()
    answer = await get(service, "/sandboxes", host=host)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden")
    for path in ("/healthz", "/readyz"):
        assert (await get(Service(), path, host=host)).status_code == 200


async def test_a_request_without_host_or_with_two_is_403() -> None:
    for headers in ([], [("host", "localhost"), ("host", "localhost")]):
        sent = await call(Service().app, "GET", "/sandboxes", [], headers)
        assert sent[0]["status"] == 403


async def test_hosts_from_the_settings_are_added_with_and_without_port() -> None:
    settings = Settings(allowed_hosts=("box.example", "other.example:443"))
    for host, status in (
        ("box.example", 200),
        ("box.example:9", 200),
        ("other.example:443", 200),
        ("other.example", 403),
        ("localhost", 200),
    ):
        assert (await get(Service(settings=settings), "/sandboxes", host=host)).status_code == status


# --- origins


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("HTTP://LOCALHOST:8000", 200),
        ("https://app.example", 200),
        ("http://localhost:8001", 403),
        ("https://localhost:8000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_only_the_own_and_the_listed_origins_may_call(origin: str, status: int) -> None:
    settings = Settings(allowed_origins=("https://app.example",))
    assert (await get(Service(settings=settings), "/sandboxes", origin=origin)).status_code == status


async def test_a_foreign_origin_cannot_create() -> None:
    service = Service()
    async with service.client() as client:
        answer = await client.post("/sandboxes", json={}, headers={"origin": "http://evil.example"})
        assert answer.status_code == 403
        assert service.backend.created == []


# --- keys


async def test_without_keys_nobody_needs_one() -> None:
    assert (await get(Service(), "/sandboxes")).status_code == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", f"Basic {KEY}", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {HASHES[0]}", "Bearer é"],
)
async def test_without_a_known_key_it_is_401(authorization: str) -> None:
    headers = [(b"authorization", authorization.encode())] if authorization else []
    async with Service(key_hashes=HASHES).client(headers=headers) as client:
        for path in ("/sandboxes", "/runtimes", "/metrics", "/nope", "/healthz/x"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {OTHER}", f"Bearer  {KEY}"])
async def test_every_configured_key_opens(authorization: str) -> None:
    answer = await get(Service(key_hashes=HASHES), "/sandboxes", authorization=authorization)
    assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/docs", "/openapi.json", "/problems/conflict"])
async def test_open_paths_need_no_key(path: str) -> None:
    assert (await get(Service(key_hashes=HASHES), path)).status_code == 200


async def test_refused_requests_of_one_address_hold_up_another_by_a_few() -> None:
    service = Service(key_hashes=HASHES)
    order: list[int] = []

    async def ask(path: str, address: str) -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                order.append(message["status"])

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "scheme": "http", "path": path, "raw_path": path.encode(), "method": "GET"}
        scope |= {"query_string": b"", "headers": [(b"host", b"localhost")], "client": (address, 1)}
        await service.app(scope, receive, send)

    await asyncio.gather(*(ask("/sandboxes", "192.0.2.1") for _ in range(200)), ask("/healthz", "192.0.2.2"))
    assert (order.count(401), order.count(200)) == (200, 1)
    assert order.index(200) <= 5 * EACH_TURN


async def test_two_authorization_headers_are_401() -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")]
    async with Service(key_hashes=HASHES).client() as client:
        assert (await client.get("/sandboxes", headers=headers)).status_code == 401


# --- request ids, log, faults


async def test_every_answer_has_a_request_id_of_ours_or_the_clients() -> None:
    service = Service()
    async with service.client() as client:
        assert (await client.get("/nope")).headers["x-request-id"].startswith("req_")
        answer = await client.get("/nope", headers={"x-request-id": "my-id_1.2"})
        assert answer.headers["x-request-id"] == answer.json()["instance"] == "my-id_1.2"
        for bad in ("a b", "x" * 129, "", "é", "a\tb"):
            answer = await client.get("/nope", headers=[(b"x-request-id", bad.encode())])
            assert answer.headers["x-request-id"].startswith("req_")


async def test_the_log_has_no_query_no_header_value_and_no_body() -> None:
    service = Service(key_hashes=HASHES)
    async with service.client() as client:
        await client.post(
            "/sandboxes?wait_seconds=7&token=qqq",
            json={"env": {"SECRET": "bbb"}},
            headers={"authorization": f"Bearer {KEY}", "user-agent": "uuu"},
        )
    text = service.log.getvalue()
    for secret in ("wait_seconds", "qqq", "SECRET", "bbb", KEY, "uuu", "Bearer"):
        assert secret not in text
    (line,) = service.logged
    assert line["event"] == "request"
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/sandboxes", 422, "127.0.0.1")
    assert line["request_id"].startswith("req_")
    assert line["ms"] > 0


async def test_the_log_names_the_key_of_each_request() -> None:
    service = Service(key_hashes=HASHES)
    async with service.client() as client:
        for key in (KEY, "wrong"):
            await client.get("/sandboxes", headers={"authorization": f"Bearer {key}"})
        await client.get("/problems", headers={"authorization": f"Bearer {KEY}"})
    assert [(line["status"], line["key"]) for line in service.logged] == [(200, "key 0"), (401, None), (200, None)]
    assert hashlib.sha256(KEY.encode()).hexdigest() not in service.log.getvalue()


async def test_control_characters_in_a_path_leave_the_log_escaped_on_one_line() -> None:
    service = Service()
    await call(service.app, "GET", '/a\n{"event":"forged"}\x1b[2J\u202e', [])
    text = service.log.getvalue()
    assert text.count("\n") == 1
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text)["event"] == "request"


async def test_an_unexpected_exception_is_500_without_internals_and_is_logged() -> None:
    service = Service()

    def broken(_: Registry) -> None:
        raise RuntimeError("secret internals")

    async with service.client() as client:
        service.sandboxes.get = broken  # type: ignore[assignment, method-assign]  # a fault that no code here has
        answer = await client.delete("/sandboxes/x")
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/internal_error"
    assert "secret" not in answer.text
    fault = next(line for line in service.logged if line["event"] == "fault")
    assert fault["request_id"] == answer.json()["instance"]
    assert "secret internals" in fault["exception"]


async def test_a_path_or_method_that_is_not_there_is_a_problem_too() -> None:
    async with Service().client() as client:
        for path in ("/nope", "/sandboxes/", "/sandboxes/x/halt", "/streams", "/redoc"):
            answer = await client.get(path)
            assert answer.json()["type"] == "/problems/not_found", path
            assert answer.headers["content-type"] == "application/problem+json"
        answer = await client.put("/sandboxes")
        assert (answer.status_code, answer.json()["type"]) == (405, "/problems/method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed"), True),
        (BrokenPipeError(), True),
        (RuntimeError("Response content shorter than Content-Length"), False),
    ],
)
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
async def test_a_send_after_the_client_is_gone_is_no_fault(error: Exception, gone: bool, host: str) -> None:
    service = Service()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        raise error

    scope = {"type": "http", "scheme": "http", "path": "/", "method": "GET", "headers": [(b"host", host.encode())]}
    tickets, shares = Tickets(Budget("tickets", 4, "client")), service.app.state.context.shares
    middleware = AccessMiddleware(app, AccessPolicy(), tickets, service.telemetry, shares)
    if gone:
        await middleware(scope, receive, send)
        (line,) = service.logged
        assert (line["event"], line["status"]) == ("request", 499)
    else:
        with pytest.raises(RuntimeError, match="shorter"):
            await middleware(scope, receive, send)


def test_only_our_own_layers_stand_around_a_request() -> None:
    """Each costs every request, and the framework brings some that nothing here needs."""
    layers = []
    layer: Any = Service().app.build_middleware_stack()
    while not isinstance(layer, Dispatch):
        layers.append(type(layer))
        layer = getattr(layer, "app", None) or layer._app
    assert layers == [AccessMiddleware, Idempotency, ExceptionMiddleware]
