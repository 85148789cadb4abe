"""What goes out over HTTP, and what becomes of every kind of answer."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
from typing import Any

import httpx
import pytest
import respx

from app.backends.boxlite.client import ANSWER_BYTES, BoxliteClient, Unanswered, Unreachable, upstream_of
from app.backends.boxlite.server import BoxliteServer, is_silent
from app.backends.boxlite.turns import TooManyPending
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable
from tests.boxlite.rig import QUICK

URL = "http://boxlite.test:8100"
KEY = "secret-key-0123456789"


def client(key: str | None = KEY, url: str = URL) -> BoxliteClient:
    return BoxliteClient(url, key, QUICK)


async def ask(**answer: Any) -> BackendFailure:
    with respx.mock:
        respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(**answer))
        with pytest.raises(BackendFailure) as caught:
            await client().request("GET", "/v1/x", seconds=5)
    return caught.value


def envelope(code: object, message: object = "no luck") -> dict[str, Any]:
    return {"error": {"message": message, "type": "SomeError", "code": code}}


@respx.mock
async def test_every_request_carries_the_key_and_asks_for_plain_bytes() -> None:
    route = respx.post(f"{URL}/v1/x").mock(return_value=httpx.Response(201, json={"a": 1}))
    answer = await client().request("POST", "/v1/x", seconds=5, body={"b": "ü"}, query={"force": "true"})
    assert (answer.status, answer.body) == (201, {"a": 1})
    sent = route.calls.last.request
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["content-type"] == "application/json" and json.loads(sent.content) == {"b": "ü"}
    assert str(sent.url) == f"{URL}/v1/x?force=true"


@respx.mock
async def test_without_a_key_and_without_a_body_there_is_no_header_of_either() -> None:
    route = respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(204))
    assert (await client(None).request("GET", "/v1/x", seconds=5)).body is None
    sent = route.calls.last.request
    assert "authorization" not in sent.headers and "content-type" not in sent.headers


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
    error = await ask(status_code=status, json=envelope(code))
    assert type(error) is kind
    assert (upstream_of(error).status, upstream_of(error).code) == (status, code)
    assert "no luck" in str(error) and code in str(error)
    assert not is_silent(error)


@pytest.mark.parametrize(
    ("answer", "kind", "code", "words"),
    [
        ({"status_code": 422, "text": "unknown field `x`"}, BackendRefused, None, "unknown field `x`"),
        ({"status_code": 413, "text": "length limit exceeded"}, BackendRefused, None, "length limit exceeded"),
        ({"status_code": 404}, BackendRefused, None, "nothing more"),
        ({"status_code": 502, "html": "<h1>Bad Gateway</h1>"}, BackendUnavailable, None, "Bad Gateway"),
        ({"status_code": 503, "text": ""}, BackendUnavailable, None, "nothing more"),
        ({"status_code": 504, "text": ""}, BackendTimeout, None, "nothing more"),
        ({"status_code": 429, "text": ""}, BackendUnavailable, None, "nothing more"),
        ({"status_code": 500, "json": envelope(500)}, BackendRefused, None, "no luck"),  # up to 0.9.0
        ({"status_code": 500, "json": []}, BackendRefused, None, "[]"),
        ({"status_code": 500, "json": {"error": "flat"}}, BackendRefused, None, "flat"),
        (
            {"status_code": 503, "json": {"statusCode": 5, "error": 1, "message": "m", "code": "engine_unavailable"}},
            BackendUnavailable,
            "engine_unavailable",
            "m",
        ),  # the cloud's
        ({"status_code": 302, "headers": {"location": "http://evil.test/"}}, BackendRefused, None, "302"),
        ({"status_code": 200, "text": "<html>"}, BackendRefused, None, "is not JSON"),
        ({"status_code": 200, "content": b"[" * 100_000}, BackendRefused, None, "is not JSON"),
        ({"status_code": 200, "content": b"9" * 5_000}, BackendRefused, None, "is not JSON"),
        ({"status_code": 200, "content": b"\xff\xfe"}, BackendRefused, None, "is not JSON"),
        (
            {"status_code": 500, "content": b"[" * 100_000, "headers": {"content-type": "application/json"}},
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
    error = await ask(status_code=401, json=json_)
    assert isinstance(error, BackendUnavailable) and error.retry_after_seconds == 60
    assert str(error) == "the BoxLite server refuses the key" and upstream_of(error).status == 401


@pytest.mark.parametrize(
    "answer",
    [
        {"status_code": 403, "json": envelope(f"bad {KEY}", f"no access with Bearer {KEY}, {KEY}")},
        {"status_code": 400, "text": f"headers were authorization: Bearer {KEY}"},
        *({"status_code": 400, "text": "x" * before + KEY + "x" * 8000} for before in (140, 290, 1190, 7995)),
        *({"status_code": 400, "json": envelope("c", "x" * 8000 + KEY + "x" * after)} for after in (140, 290, 1190)),
        {"status_code": 400, "text": "x", "headers": {"x-request-id": KEY}},
    ],
)
async def test_a_server_that_repeats_the_key_is_not_repeated(answer: Any) -> None:
    error = await ask(**answer)
    for half in (KEY[:8], KEY[-8:]):
        assert half not in str(error) and half not in repr(error) and half not in str(upstream_of(error))


async def test_an_error_names_the_servers_request_by_which_its_log_can_be_searched() -> None:
    headers = {"x-request-id": "4f0c-7"}
    assert str(await ask(status_code=500, json=envelope("internal"), headers=headers)).endswith("(its request 4f0c-7)")
    assert "request" not in str(await ask(status_code=500, json=envelope("internal")))


async def test_a_long_word_of_the_server_costs_nothing() -> None:
    began = time.process_time()
    error = await ask(status_code=400, json=envelope("c " * 1_000_000, "a " * 3_000_000))
    assert len(str(error)) < 1000 and time.process_time() - began < 1


async def test_the_servers_words_become_one_printable_line() -> None:
    body = b'{"error": {"message": "a\\u001b[31m\\nb\\ud800c\\u0000", "code": "x\\ud800\\n"}}'
    error = await ask(status_code=400, content=body, headers={"content-type": "application/json"})
    assert str(error).encode() and str(error).endswith("a\N{REPLACEMENT CHARACTER}[31m b\N{REPLACEMENT CHARACTER}c"
                                                       "\N{REPLACEMENT CHARACTER}")  # fmt: skip
    assert (upstream_of(error).code or "").encode() and "\n" not in (upstream_of(error).code or "")


@pytest.mark.parametrize(
    ("raised", "kind", "silent"),
    [
        (httpx.ConnectError("refused"), Unreachable, True),
        (httpx.ConnectTimeout("slow"), Unreachable, True),
        (httpx.PoolTimeout("full"), TooManyPending, True),
        (httpx.ReadTimeout("slow"), Unanswered, True),
        (httpx.WriteTimeout("slow"), Unanswered, True),
        (httpx.RemoteProtocolError("Server disconnected"), Unanswered, True),
        (httpx.ReadError(""), Unanswered, True),
        (httpx.WriteError(""), Unanswered, True),
    ],
)
@respx.mock
async def test_what_was_not_sent_is_told_from_what_was_not_answered(
    raised: Exception, kind: type[BackendFailure], silent: bool
) -> None:
    respx.post(f"{URL}/v1/x").mock(side_effect=raised)
    with pytest.raises(kind) as caught:
        await client().request("POST", "/v1/x", seconds=5)
    assert type(caught.value) is kind and is_silent(caught.value) is silent
    assert upstream_of(caught.value).status is None


@respx.mock
async def test_an_answer_that_does_not_end_is_given_up_at_the_bound() -> None:
    pieces = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            nonlocal pieces
            while True:
                pieces += 1
                yield b" " * 65536

    respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(200, stream=Endless()))
    with pytest.raises(BackendRefused, match=str(ANSWER_BYTES)):
        await client().request("GET", "/v1/x", seconds=30)
    assert pieces == ANSWER_BYTES // 65536 + 1


@respx.mock
async def test_an_answer_that_comes_byte_by_byte_has_as_much_time_as_any_other() -> None:
    class Drip(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            while True:
                yield b" "
                await asyncio.sleep(0.01)

    respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(200, stream=Drip()))
    with pytest.raises(Unanswered, match=r"within 0\.1 seconds"):
        await client().request("GET", "/v1/x", seconds=0.1)


@respx.mock
async def test_cookies_are_neither_kept_nor_sent() -> None:
    route = respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(204, headers={"set-cookie": "a=b; Path=/"}))
    ours = client()
    await ours.request("GET", "/v1/x", seconds=5)
    await ours.request("GET", "/v1/x", seconds=5)
    assert "cookie" not in route.calls.last.request.headers


@respx.mock
async def test_a_caller_that_leaves_does_not_disconnect() -> None:
    go, asked, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        asked.set()
        await go.wait()
        answered.set()
        return httpx.Response(204)

    respx.post(f"{URL}/v1/x").mock(side_effect=answer)
    ours = client()
    calling = asyncio.get_running_loop().create_task(ours.request("POST", "/v1/x", seconds=5))
    await asked.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    closing = asyncio.get_running_loop().create_task(ours.aclose())
    await asyncio.sleep(0)
    assert not closing.done() and not answered.is_set()
    go.set()
    await closing
    assert answered.is_set()
    with pytest.raises(Unreachable, match="stopping"):
        await ours.request("POST", "/v1/x", seconds=5)


async def test_the_key_is_in_no_log_and_no_repr(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with respx.mock:
        respx.get(f"{URL}/v1/x").mock(return_value=httpx.Response(500, text="x"))
        ours = client()
        with pytest.raises(BackendFailure) as caught:
            await ours.request("GET", "/v1/x", seconds=5)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY not in repr(error) and KEY not in str(error)
        error = error.__cause__ or error.__context__
    assert KEY not in caplog.text and KEY not in repr(ours) and KEY not in repr(BoxliteServer(ours, None))
