"""What goes out over HTTP, and what becomes of every kind of answer."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import pytest

from app.backends.boxlite.client import (
    AT_ONCE_BYTES,
    LIST,
    ONE_THING,
    AnswerLimits,
    BoxliteClient,
    Unanswered,
    Unreachable,
    upstream_of,
)
from app.backends.boxlite.connection import HttpResponse, ServerConnection
from app.backends.boxlite.connection_pool import ConnectionPool
from app.backends.boxlite.server import BoxliteServer, is_silent
from app.backends.boxlite.turns import TooManyPending
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable
from tests.boxlite.answering import answering, raw_server, response
from tests.boxlite.double.http import Request, Response
from tests.boxlite.rig import QUICK, quick, until
from tests.processor_time import slowness

KEY = "secret-key-0123456789"


@asynccontextmanager
async def client(url: str, key: str | None = KEY, **options: Any) -> AsyncIterator[BoxliteClient]:
    ours = BoxliteClient(url, key, QUICK, **options)
    try:
        yield ours
    finally:
        await ours.aclose()


async def ask(**answer: Any) -> BackendFailure:
    async with answering(response(**answer)) as server, client(server.url) as ours:
        with pytest.raises(BackendFailure) as caught:
            await ours.request("GET", "/v1/x", seconds=60)
    return caught.value


def envelope(code: object, message: object = "no luck") -> dict[str, Any]:
    return {"error": {"message": message, "type": "SomeError", "code": code}}


async def test_every_request_carries_the_key_and_asks_for_plain_bytes() -> None:
    async with answering(response(201, json={"a": 1})) as server, client(server.url) as ours:
        answer = await ours.request("POST", "/v1/x", seconds=60, body={"b": "ü"}, query={"force": "true"})
    assert (answer.status, answer.body) == (201, {"a": 1})
    [sent] = server.requests
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["content-type"] == "application/json" and sent.json == {"b": "ü"}
    assert sent.headers["host"] == f"127.0.0.1:{server.port}"
    assert (sent.method, sent.target) == ("POST", "/v1/x?force=true")


async def test_without_a_key_and_without_a_body_there_is_no_header_of_either() -> None:
    async with answering(response(204)) as server, client(server.url, None) as ours:
        assert (await ours.request("GET", "/v1/x", seconds=60)).body is None
    [sent] = server.requests
    assert "authorization" not in sent.headers and "content-type" not in sent.headers
    assert sent.body == b"" and "content-length" not in sent.headers


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_argument", BackendRefused),
        (400, "unsupported", BackendRefused),
        (403, "forbidden", BackendRefused),
        (404, "not_found", BackendRefused),
        (409, "invalid_state", BackendRefused),
        (409, "conflict", BackendRefused),
        (409, "stopped", BackendRefused),
        (422, "image_pull_failed", BackendRefused),
        (429, "resource_exhausted", BackendUnavailable),
        (500, "internal", BackendRefused),
        (500, "storage_error", BackendRefused),
        (500, "config_error", BackendRefused),
        (503, "engine_unavailable", BackendUnavailable),
        (503, "upstream_unavailable", BackendUnavailable),
        (503, "network_unavailable", BackendUnavailable),
        (504, "timeout", BackendTimeout),
        (200 + 300, "engine_unavailable", BackendUnavailable),  # the code beats the status
        (503, "not_found", BackendRefused),
        (400, "timeout", BackendTimeout),
    ],
)
async def test_errors_by_their_code_with_the_upstreams_status_and_code(
    status: int, code: str, kind: type[BackendFailure]
) -> None:
    error = await ask(status=status, json=envelope(code))
    assert type(error) is kind
    assert (upstream_of(error).status, upstream_of(error).code) == (status, code)
    assert "no luck" in str(error) and code in str(error)
    assert not is_silent(error)


@pytest.mark.parametrize(
    ("answer", "kind", "code", "words"),
    [
        ({"status": 422, "text": "unknown field `x`"}, BackendRefused, None, "unknown field `x`"),
        ({"status": 413, "text": "length limit exceeded"}, BackendRefused, None, "length limit exceeded"),
        ({"status": 404}, BackendRefused, None, "nothing more"),
        ({"status": 502, "html": "<h1>Bad Gateway</h1>"}, BackendUnavailable, None, "Bad Gateway"),
        ({"status": 503, "text": ""}, BackendUnavailable, None, "nothing more"),
        ({"status": 504, "text": ""}, BackendTimeout, None, "nothing more"),
        ({"status": 429, "text": ""}, BackendUnavailable, None, "nothing more"),
        ({"status": 500, "json": envelope(500)}, BackendRefused, None, "no luck"),  # up to 0.9.0
        ({"status": 500, "json": []}, BackendRefused, None, "[]"),
        ({"status": 500, "json": {"error": "flat"}}, BackendRefused, None, "flat"),
        (
            {"status": 503, "json": {"statusCode": 5, "error": 1, "message": "m", "code": "engine_unavailable"}},
            BackendUnavailable,
            "engine_unavailable",
            "m",
        ),  # the cloud's
        ({"status": 302, "headers": {"location": "http://evil.test/"}}, BackendRefused, None, "302"),
        ({"status": 200, "text": "<html>"}, BackendRefused, None, "is not JSON"),
        ({"status": 200, "content": b"[" * 100_000}, BackendRefused, None, "is not JSON"),
        ({"status": 200, "content": b"9" * 5_000}, BackendRefused, None, "is not JSON"),
        ({"status": 200, "content": b"\xff\xfe"}, BackendRefused, None, "is not JSON"),
        (
            {"status": 500, "content": b"[" * 100_000, "headers": {"content-type": "application/json"}},
            BackendRefused,
            None,
            "500",
        ),
    ],
)  # fmt: skip
async def test_what_is_no_envelope(answer: Any, kind: type[BackendFailure], code: str | None, words: str) -> None:
    gc.disable()  # hypothesis listens to the collector, and fails where the parser has left it no depth
    try:
        error = await ask(**answer)
    finally:
        gc.enable()
    assert type(error) is kind and upstream_of(error).code == code
    assert words in str(error) and len(str(error)) < 500


@pytest.mark.parametrize(
    "json_",
    [envelope("unauthenticated"), envelope("something", f"your key {KEY} is wrong")],
)
async def test_a_refused_key_is_told_without_the_key(json_: dict[str, Any]) -> None:
    error = await ask(status=401, json=json_)
    assert isinstance(error, BackendUnavailable) and error.retry_after_seconds == 60
    assert str(error) == "the BoxLite server refuses the key" and upstream_of(error).status == 401


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 403, "json": envelope(f"bad {KEY}", f"no access with Bearer {KEY}, {KEY}")},
        {"status": 400, "text": f"headers were authorization: Bearer {KEY}"},
        *({"status": 400, "text": "x" * before + KEY + "x" * 8000} for before in (140, 290, 1190, 7995)),
        *({"status": 400, "json": envelope("c", "x" * 8000 + KEY + "x" * after)} for after in (140, 290, 1190)),
        {"status": 400, "text": "x", "headers": {"x-request-id": KEY}},
    ],
)
async def test_a_server_that_repeats_the_key_is_not_repeated(answer: Any) -> None:
    error = await ask(**answer)
    for half in (KEY[:8], KEY[-8:]):
        assert half not in str(error) and half not in repr(error) and half not in str(upstream_of(error))


async def test_an_error_names_the_servers_request_by_which_its_log_can_be_searched() -> None:
    headers = {"x-request-id": "4f0c-7"}
    assert str(await ask(status=500, json=envelope("internal"), headers=headers)).endswith("(its request 4f0c-7)")
    assert "request" not in str(await ask(status=500, json=envelope("internal")))


async def test_a_long_word_of_the_server_costs_nothing() -> None:
    began = time.thread_time()
    error = await ask(status=400, json=envelope("c " * 1_000_000, "a " * 3_000_000))
    assert len(str(error)) < 1000 and (time.thread_time() - began) / slowness() < 1


async def test_the_servers_words_become_one_printable_line() -> None:
    body = b'{"error": {"message": "a\\u001b[31m\\nb\\ud800c\\u0000", "code": "x\\ud800\\n"}}'
    error = await ask(status=400, content=body, headers={"content-type": "application/json"})
    assert str(error).encode() and str(error).endswith("a\N{REPLACEMENT CHARACTER}[31m b\N{REPLACEMENT CHARACTER}c"
                                                       "\N{REPLACEMENT CHARACTER}")  # fmt: skip
    assert (upstream_of(error).code or "").encode() and "\n" not in (upstream_of(error).code or "")


# --- what was not sent is told from what was not answered


async def failure(url: str, *, seconds: float = 60, body: Any = None) -> BackendFailure:
    async with client(url) as ours:
        with pytest.raises(BackendFailure) as caught:
            await ours.request("POST", "/v1/x", seconds=seconds, body=body)
    assert upstream_of(caught.value).status is None
    return caught.value


async def test_nothing_was_sent_where_nobody_listens() -> None:
    async with answering(response(204)) as server:
        url = server.url
    error = await failure(url)
    assert type(error) is Unreachable and is_silent(error)


async def test_nothing_was_sent_where_nobody_takes_the_connection() -> None:
    """The kernel drops what it is asked for beyond the backlog of a socket, and the other side asks again."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = listener.getsockname()[1]
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        ours = BoxliteClient(f"http://127.0.0.1:{port}", KEY, quick(connect=0.2))
        with pytest.raises(Unreachable, match=r"no connection within 0\.2 seconds") as caught:
            await ours.request("POST", "/v1/x", seconds=60)
        await ours.aclose()
    assert is_silent(caught.value)


async def test_nothing_was_sent_where_all_connections_are_taken() -> None:
    """And when one is free again, the next request goes through."""
    go = asyncio.Event()

    async def answer(_: Request) -> Response:
        await go.wait()
        return response(204)

    async with answering(answer) as server, client(server.url, connections=1) as ours:
        first = asyncio.create_task(ours.request("POST", "/v1/x", seconds=60))
        await until(lambda: server.requests)
        with pytest.raises(TooManyPending) as caught:
            await ours.request("POST", "/v1/x", seconds=0.1)
        assert is_silent(caught.value) and len(server.requests) == 1
        go.set()
        assert (await first).status == 204
        for _ in range(3):
            assert (await ours.request("POST", "/v1/x", seconds=60)).status == 204
        assert len(server.requests) == 4 and server.connections == 1


async def test_a_request_that_fails_gives_its_place_back() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with raw_server(talk) as url, client(url, connections=1) as ours:
        for _ in range(3):
            with pytest.raises(Unanswered):
                await ours.request("POST", "/v1/x", seconds=60)


async def test_it_was_sent_and_no_answer_comes_in_time() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(talk) as url:
        error = await failure(url, seconds=0.1)
    assert type(error) is Unanswered and is_silent(error) and "within 0.1 seconds" in str(error)


async def test_a_request_that_the_server_does_not_read_is_given_up_in_time() -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()

    async with raw_server(talk) as url:
        error = await failure(url, seconds=0.3, body="x" * 32 * 1024 * 1024)
        ended.set()
    assert type(error) is Unanswered and is_silent(error)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 201 x\r\ncontent-length: 5\r\n\r\nabc", b"HTTP/1.1 2"])
@pytest.mark.parametrize("reset", [False, True])
async def test_it_was_sent_and_the_connection_ends_before_the_end_of_the_answer(answer: bytes, *, reset: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async with raw_server(talk) as url:
        error = await failure(url)
    assert type(error) is Unanswered and is_silent(error) and "answer to POST is incomplete" in str(error)


async def test_a_connection_that_ends_while_the_request_is_sent_is_no_answer() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async with raw_server(talk) as url:
        error = await failure(url, body="x" * 32 * 1024 * 1024)
    assert type(error) is Unanswered and is_silent(error)


async def test_an_answer_that_does_not_end_is_given_up_at_the_bound() -> None:
    """How many bytes are taken until then: `test_connection.py`."""

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 65536

    async with answering(Response(200, endless(), "application/json")) as server, client(server.url) as ours:
        with pytest.raises(BackendRefused, match=str(ONE_THING.bytes)) as caught:
            await ours.request("GET", "/v1/x", seconds=30)
    assert upstream_of(caught.value).status == 200


@pytest.mark.parametrize("limits", [ONE_THING, LIST])
async def test_an_answer_of_too_many_parts_is_not_parsed(limits: AnswerLimits) -> None:
    async def asked(commas: int) -> object:
        body = b"[" + b"0," * commas + b"0]"
        async with answering(Response(200, body, "application/json")) as server, client(server.url) as ours:
            return (await ours.request("GET", "/v1/x", seconds=60, limits=limits)).body

    assert await asked(limits.parts - 1) == [0] * limits.parts
    with pytest.raises(BackendRefused, match="is not JSON"):
        await asked(limits.parts)


@pytest.mark.parametrize("limits", [ONE_THING, LIST])
async def test_an_answer_of_too_many_bytes_is_refused(limits: AnswerLimits) -> None:
    async def asked(size: int) -> object:
        async with answering(Response(200, b"7" + b" " * (size - 1), "application/json")) as server:
            async with client(server.url) as ours:
                return (await ours.request("GET", "/v1/x", seconds=60, limits=limits)).body

    assert await asked(limits.bytes) == 7
    with pytest.raises(BackendRefused, match=str(limits.bytes)):
        await asked(limits.bytes + 1)


async def test_long_answers_that_come_together_are_parsed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each run through the loop, so that they delay the others by one at a time."""
    parsed: list[int] = []
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        asyncio.get_running_loop().call_soon(run)

    class Answered(ConnectionPool):
        async def exchange(self, *_: object, **__: object) -> tuple[HttpResponse, ServerConnection]:
            return HttpResponse(200, body=b" " * AT_ONCE_BYTES + b"7"), ServerConnection(lambda _: None)

        def keep(self, connection: ServerConnection) -> None:
            parsed.append(runs)

    monkeypatch.setattr("app.backends.boxlite.client.ConnectionPool", Answered)
    monkeypatch.setattr("app.backends.boxlite.client.json.loads", lambda _: parsed.append(runs))
    async with client("http://127.0.0.1:1") as ours:
        run()
        asked = [ours.request("GET", "/v1/x", seconds=60) for _ in range(10)]
        await asyncio.gather(*asked)
    came, read = parsed[:10], parsed[10:]
    assert len(set(came)) == 1 and len(read) == len(set(read)) == 10


async def test_an_answer_that_comes_byte_by_byte_has_as_much_time_as_any_other() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    async with answering(Response(200, drip(), "application/json")) as server, client(server.url) as ours:
        with pytest.raises(Unanswered, match=r"within 0\.1 seconds"):
            await ours.request("GET", "/v1/x", seconds=0.1)


async def test_cookies_are_neither_kept_nor_sent() -> None:
    answer = response(204, headers={"set-cookie": "a=b; Path=/"})
    async with answering(answer) as server, client(server.url) as ours:
        await ours.request("GET", "/v1/x", seconds=60)
        await ours.request("GET", "/v1/x", seconds=60)
    assert len(server.requests) == 2 and "cookie" not in server.requests[-1].headers


@pytest.mark.parametrize("place", ["/elsewhere", "http://127.0.0.1:{port}/x"])
async def test_a_redirect_is_not_followed(place: str) -> None:
    """Not to another host, and not on the same one."""
    async with answering(response(204)) as other:
        answer = response(302, headers={"location": place.format(port=other.port)})
        async with answering(answer) as server, client(server.url) as ours:
            with pytest.raises(BackendRefused, match="302"):
                await ours.request("GET", "/v1/x", seconds=60)
        assert len(server.requests) == 1 and other.connections == 0


async def test_a_caller_that_leaves_does_not_disconnect() -> None:
    go, asked, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: Request) -> Response:
        asked.set()
        await go.wait()
        answered.set()
        return response(204)

    async with answering(answer) as server, client(server.url) as ours:
        calling = asyncio.get_running_loop().create_task(ours.request("POST", "/v1/x", seconds=60))
        await asked.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        closing = asyncio.get_running_loop().create_task(ours.aclose())
        await asyncio.sleep(0)
        assert not closing.done() and not answered.is_set()
        go.set()
        await closing
        assert answered.is_set() and len(server.requests) == 1
        with pytest.raises(Unreachable, match="stopping"):
            await ours.request("POST", "/v1/x", seconds=60)


async def test_the_key_is_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with answering(response(500, text="x")) as server, client(server.url) as ours:
        with pytest.raises(BackendFailure) as caught:
            await ours.request("GET", "/v1/x", seconds=60)
        known: list[object] = [ours, ours.connections, BoxliteServer(ours, None)]
        assert not any(KEY in repr(one) for one in known)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in repr(error) and KEY not in str(error)
        error = error.__cause__ or error.__context__
    assert KEY not in caplog.text
