"""Requests made to hold the event loop do not: every callback here is measured (tests/callbacks.py)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest

from app.api.context import BODY_LIMIT, RUN_BODY_LIMIT
from app.api.http.complexity import DIGITS, MOST, check_complexity
from app.api.routes.run import OUTPUT_CEILING
from app.api.schemas.run_answers import response_of
from app.core.budget import Budget
from app.core.collecting import FILES, TOTAL_BYTES, CollectedFile
from app.core.errors import InvalidRequest
from app.core.files import ArchiveEntry, EntryKind
from app.core.models import Exit, ExitReason, OutputMode
from app.core.reservations import BudgetQueue, Reservation
from app.core.resources import Capacity
from app.core.running import Captured, Outcome
from app.core.tar import archive, entries
from tests.callbacks import CALLBACKS, own_work
from tests.unit.api.service import Service

JSON = {"content-type": "application/json"}


async def test_callback_that_is_too_slow_is_noticed() -> None:
    """The control: what all other tests rely on."""

    async def without_slices() -> int:
        return len(b"".join([piece async for piece in archive(_empty_files(20_000))]))

    before = CALLBACKS.counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.core.timeslices.SECONDS", 60)
        await asyncio.create_task(without_slices())
    assert CALLBACKS.counted > before
    assert any("writing.py" in told for told in CALLBACKS.too_slow()), CALLBACKS.slow
    CALLBACKS.forget()


async def _empty_files(count: int) -> AsyncIterator[ArchiveEntry | bytes]:
    for number in range(count):
        yield ArchiveEntry(EntryKind.FILE, b"%06d" % number)


async def test_archive_of_many_empty_files_goes_out_and_in_by_slices() -> None:
    async def there_and_back() -> int:
        return sum([1 async for _ in entries(archive(_empty_files(20_000)))])

    assert await asyncio.create_task(there_and_back()) == 20_000


WORST = {
    "numbers": (b'{"x":[', b"0,", b"0]}"),
    "lists": (b'{"x":[', b"[],", b"0]}"),
    "objects": (b'{"x":[', b"{},", b"0]}"),
    "deep": (b'{"x":', b"[", b""),
    "names": (b"{", b'"%d":0,', b'"x":0}'),
    "variables": (b'{"env":{', b'"%d":"",', b'"x":""}}'),
    "arguments": (b'{"command":[', b'"",', b'""]}'),
    "files": (b'{"command":["x"],"files":[', b"{},", b"{}]}"),
}


def _body(shape: str, size: int) -> bytes:
    head, one, tail = WORST[shape]
    if b"%d" in one:
        return head + b"".join(one % number for number in range(size // (len(one) + 4))) + tail
    return head + one * ((size - len(head) - len(tail)) // len(one)) + tail


@pytest.mark.parametrize("shape", WORST)
async def test_body_of_very_many_values_is_refused_before_it_is_parsed(shape: str) -> None:
    with own_work():
        body = _body(shape, RUN_BODY_LIMIT)
    service = Service()
    async with service.client() as client:
        answer = await client.post("/run", content=body, headers=JSON)
        assert answer.status_code == 422
        assert "too many parts" in answer.json()["errors"][0]["detail"]
        with own_work():
            body = _body(shape, MOST // 24)  # few enough
        answer = await client.post("/run", content=body, headers=JSON)
        assert "too many parts" not in answer.text


LONG_NUMBERS = {
    "integers": b'{"command":[' + b",".join([b"9" * 4300] * 900) + b"]}",
    "exponent": b'{"ttl_seconds":1e' + b"9" * (BODY_LIMIT - 100) + b"}",
    "fraction": b'{"ttl_seconds":0.' + b"9" * (BODY_LIMIT - 100) + b"}",
    "small": b'{"ttl_seconds":0.' + b"9" * 33 + b"}",
}


@pytest.mark.parametrize("shape", LONG_NUMBERS)
async def test_body_with_a_long_number_is_refused_before_it_is_parsed(shape: str) -> None:
    service = Service()
    async with service.client() as client:
        answer = await client.post("/sandboxes", content=LONG_NUMBERS[shape], headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "", "detail": "the body has a number with more than 32 digits in a row"}
    ]
    assert service.backend.created == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"ttl_seconds":' + b"9" * DIGITS + b"." + b"9" * DIGITS + b"}",
        b'{"' + b"1" * 100 + b'":"' + b"2" * 100 + b'\\"' + b"3" * 100 + b'"}',
        b'{"stdin":"' + b"7" * (BODY_LIMIT // 2) + b'"}',
        b"[" + b",".join([b"9" * DIGITS] * 2000) + b"]",
    ],
    ids=["short numbers", "strings", "a long string", "many numbers"],
)
async def test_numbers_of_few_digits_and_digits_in_strings_are_taken(body: bytes) -> None:
    await asyncio.create_task(check_complexity(body))


@pytest.mark.parametrize("content", ["x", "\n", '"', "\\", "é", "[,{:"], ids=ascii)
async def test_text_of_any_kind_is_no_complexity(content: str) -> None:
    with own_work():
        body = json.dumps({"stdin": content * (BODY_LIMIT // 8)}, ensure_ascii=False).encode()
    await asyncio.create_task(check_complexity(body))


async def test_strings_end_where_the_parser_sees_their_end() -> None:
    piece = 64 * 1024
    for text in (b"\\" * piece, b'\\"' * piece, b"x" + b'\\"' * piece, b"x" * (piece - 10) + b'\\"' * 20):
        body = b'{"stdin":"' + text * 2 + b',,,,","x":[' + b"0," * MOST
        with pytest.raises(InvalidRequest, match="too many parts"):
            await check_complexity(body)
        await check_complexity(body[: body.index(b'","x"')] + b'"}')


@pytest.mark.parametrize("data", [b"\x01", "é".encode(), b"\xff"], ids=["control", "text", "binary"])
async def test_output_of_a_run_becomes_json_by_slices(data: bytes) -> None:
    channel = Captured(data * (OUTPUT_CEILING // len(data)), cut_begin=False, cut_end=False, has_gap=False)
    exit_ = Exit(ExitReason.EXITED, code=0)
    files = [CollectedFile(b"a", data * (TOTAL_BYTES // len(data) // FILES)) for _ in range(FILES)]
    outcome = Outcome("sbx", "exe", exit_, channel, channel, OutputMode.EXACT, files)
    reservation = Reservation(BudgetQueue(Budget("bytes", 1, "client")), "")
    answer = await asyncio.create_task(response_of(outcome, {"a": "b"}, reservation))
    with own_work():
        body = json.loads(bytes(answer.body))
        found = body["stdout"].encode() if body["encoding"] == "utf-8" else base64.b64decode(body["stderr"])
        assert found == channel.data
        assert (body["a"], body["exit"]["code"], body["stdout_truncated"]) == ("b", 0, False)
        assert [base64.b64decode(file["content_base64"]) for file in body["collected"]] == [
            file.content for file in files
        ]


async def test_pages_of_a_thousand_sandboxes_are_made_by_slices() -> None:
    service = Service(capacity=Capacity(sandboxes=1000))
    async with service.client() as client:
        labels = {f"key{number}": "v" * 200 for number in range(64)}
        for _ in range(300):
            assert (await client.post("/sandboxes", json={"labels": labels})).status_code == 201
        query = "&".join(["label=key0:" + "v" * 200] * 200)
        answer = await client.get(f"/sandboxes?limit=1000&{query}")
        with own_work():
            found = answer.json()
        assert (len(found["items"]), found["next_cursor"]) == (300, None)
