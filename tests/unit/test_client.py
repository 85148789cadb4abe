"""The client's parts that need no service. What needs one stands in `tests/unit/cli`."""

from __future__ import annotations

import asyncio

import pytest
import respx

from app.client import Client, ClientError, ServiceProblem
from app.client import stdin as outgoing
from app.client.errors import problem_of
from app.client.http import execution_path
from app.client.stdin import Outgoing
from app.client.stream import OutputDamaged, Received


async def taken(stdin: Outgoing, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await stdin.take()
        assert piece is not None
        data += piece
    return data


async def test_stdin_is_sent_again_from_the_byte_that_was_not_accepted() -> None:
    stdin = Outgoing()
    stdin.rewind(0)
    for piece in (b"abc", b"def", b"ghi"):
        await stdin.put(piece)
    assert await taken(stdin, 6) == b"abcdef"
    stdin.rewind(2)
    assert await taken(stdin, 7) == b"cdefghi"
    stdin.finish()
    assert await stdin.take() is None
    stdin.rewind(9)
    assert await stdin.take() is None


async def test_stdin_of_a_second_writer_begins_where_the_service_says() -> None:
    stdin = Outgoing()
    stdin.rewind(100)
    await stdin.put(b"abc")
    assert await taken(stdin, 3) == b"abc"
    stdin.rewind(101)
    assert await taken(stdin, 2) == b"bc"
    with pytest.raises(ClientError, match="99 bytes, and 103 were sent"):
        stdin.rewind(99)


async def test_stdin_that_was_forgotten_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "KEPT", 4)
    stdin = Outgoing()
    stdin.rewind(0)
    for piece in (b"abc", b"def", b"ghi"):
        await stdin.put(piece)
    await taken(stdin, 9)
    stdin.rewind(3)
    assert await taken(stdin, 6) == b"defghi"
    with pytest.raises(ClientError, match="stdin cannot be resumed"):
        stdin.rewind(2)


async def test_stdin_waits_while_much_is_under_way_and_not_when_nobody_wants_it() -> None:
    stdin = Outgoing()
    stdin.rewind(0)
    await stdin.put(b"x" * outgoing.WINDOW)
    waiting = asyncio.create_task(stdin.put(b"y"))
    await asyncio.sleep(0)
    assert not waiting.done()
    await stdin.take()
    await waiting
    stuck = asyncio.create_task(stdin.put(b"z" * outgoing.WINDOW))
    await asyncio.sleep(0)
    assert not stuck.done()
    stdin.discard()
    await stuck
    await stdin.put(b"x" * outgoing.WINDOW * 2)
    assert await stdin.take() is None


def test_digest_counts_only_while_nothing_is_missing() -> None:
    whole, holed = Received(), Received()
    for received in (whole, holed):
        received.take(b"ab")
    holed.skip(5)
    holed.check("stdout", {"bytes": 5, "sha256": "no"})
    whole.check("stdout", {"bytes": 2, "dropped_bytes": 0, "sha256": None})
    with pytest.raises(OutputDamaged, match="digest"):
        whole.check("stdout", {"bytes": 2, "sha256": "no"})
    with pytest.raises(OutputDamaged, match="incomplete"):
        holed.check("stdout", {"bytes": 6})


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_id_that_a_url_would_swallow_is_refused(name: str) -> None:
    with pytest.raises(ClientError, match="is not an id"):
        execution_path("sbx", name)


def test_id_is_one_component_of_the_path() -> None:
    assert execution_path("a/../b?c", "ü#") == "/sandboxes/a%2F..%2Fb%3Fc/executions/%C3%BC%23"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"type":"/problems/not_found","title":"Not found","detail":"no x"}', "Not found: no x"),
        (b'{"title":"Invalid","errors":[{"pointer":"/a","detail":"b"}]}', "Invalid: /a: b"),
        (b"[1]", "the answer was 404 Missing: [1]"),
        (b"\xff", "the answer was 404 Missing: \ufffd"),
        (b"", "the answer was 404 Missing"),
    ],
)
def test_any_refusal_becomes_a_sentence(body: bytes, said: str) -> None:
    problem = problem_of(404, "Missing", body)
    assert (str(problem), problem.status) == (said, 404)
    assert isinstance(problem, ServiceProblem)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "https://user:pass@x", "localhost:8000"])
def test_url_that_names_no_service_is_refused(url: str) -> None:
    with pytest.raises(ClientError) as caught:
        Client(url)
    assert "pass" not in str(caught.value).replace("password", "")


async def test_key_is_not_in_the_clients_own_description() -> None:
    async with Client("http://localhost:1", "bh_secret_secret") as client:
        assert "secret" not in repr(client)
        assert client.headers()["Authorization"] == "Bearer bh_secret_secret"


async def test_every_label_of_a_list_is_sent() -> None:
    with respx.mock(base_url="http://service") as service:
        asked = service.get("/sandboxes").respond(json={"items": [], "next_cursor": None})
        async with Client("http://service") as client:
            assert [item async for item in client.sandboxes({"a": "1", "b": "2"})] == []
    assert asked.calls.last.request.url.query == b"label=a%3A1&label=b%3A2&limit=1000"
