"""A stream that is cut, and one that lies."""

from __future__ import annotations

import os

import pytest

from tests.unit.cli.fake_service import BASE, EXECUTION, FakeService, Program, Wire, fake_service, problem
from tests.unit.cli.typed import bulkhead

STREAM = f"GET {BASE}/executions/{EXECUTION}/stream"
DESTROY = f"DELETE {BASE}"


async def cut(wire: Wire) -> None:
    await wire.start()
    wire.cut()


async def test_cut_stream_goes_on_at_the_byte_where_it_was_cut() -> None:
    async def first(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"one ")
        await wire.output(b"E", 2)
        await wire.close(1012)

    async def second(wire: Wire) -> None:
        assert (wire.request.query["stdout_offset"], wire.request.query["stderr_offset"]) == ("4", "1")
        await wire.start()
        await wire.output(b"two\n")
        await wire.exit(code=9, stdout=b"one two\n", stderr=b"E")

    async with fake_service(first, cut, second) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stdout, ended.stderr) == (9, b"one two\n", "E")


async def test_stdin_goes_on_after_the_bytes_that_were_accepted() -> None:
    data = os.urandom(900_000)
    received = b""

    async def first(wire: Wire) -> None:
        nonlocal received
        await wire.start()
        while len(received) < 300_000:
            frame = await wire.read()
            assert isinstance(frame, bytes)
            received += frame
        received = received[:123_456]  # the rest was read from the socket and not accepted
        wire.cut()

    async def second(wire: Wire) -> None:
        assert wire.request.query["stdin"] == "take"
        await wire.start(stdin_bytes=len(received))
        rest = await wire.read_stdin()
        await wire.exit(code=0 if received + rest == data else 1)

    async with fake_service(first, second) as service:
        ended = await bulkhead(service.url, "run", "cmd", stdin=data)
    assert (ended.status, ended.stderr) == (0, "")


async def test_stdin_that_somebody_took_over_is_let_go() -> None:
    async def first(wire: Wire) -> None:
        await wire.start()
        await wire.close(4001)

    async def second(wire: Wire) -> None:
        assert wire.request.query["stdin"] == "false"
        await wire.start()
        await wire.exit(code=0)

    async with fake_service(first, second) as service:
        ended = await bulkhead(service.url, "run", "cmd", stdin=b"data")
    assert (ended.status, ended.stderr) == (0, "bulkhead: another client took stdin over; this one watches\n")


async def test_stream_that_is_cut_again_and_again_is_given_up() -> None:
    async with fake_service(cut) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert ended.status == 125
    assert ended.stderr.startswith("bulkhead: the stream was cut and could not be resumed: ")
    assert service.asked().count(STREAM) == 6
    assert service.asked()[-1] == DESTROY


async def test_execution_that_is_gone_is_not_asked_for_again() -> None:
    class Forgetful(FakeService):
        async def _stream(self, request, reader, writer):  # type: ignore[no-untyped-def]  # the fake's own
            if self.streams:
                self.answers[STREAM] = problem(404, "not_found", "not found", detail="there is no execution 'exe_1'")
            await super()._stream(request, reader, writer)

    async with fake_service(cut, kind=Forgetful) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stderr) == (125, "bulkhead: not found: there is no execution 'exe_1'\n")
    assert service.asked().count(STREAM) == 2


async def test_stream_that_cannot_go_on_says_why() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.text(
            type="problem", problem={"type": "/problems/internal_error", "title": "internal error", "detail": "oh"}
        )
        await wire.close(1011)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stderr) == (125, "bulkhead: internal error: oh\n")
    assert service.asked().count(STREAM) == 1


# --- what was received is checked


def lie(received: bytes, claimed: bytes) -> Program:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(received)
        await wire.exit(code=0, stdout=claimed)

    return program


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        (b"bytez", "stdout was damaged: the digest of its 5 bytes is wrong"),
        (b"bytes and more", "stdout is incomplete: 5 of 14 bytes were received"),
    ],
)
async def test_output_that_is_not_what_was_sent_is_an_error(claimed: bytes, said: str) -> None:
    async with fake_service(lie(b"bytes", claimed)) as service:
        ended = await bulkhead(service.url, "run", "cmd")
    assert (ended.status, ended.stdout, ended.stderr) == (125, b"bytes", f"bulkhead: {said}\n")
    assert service.asked()[-1] == DESTROY


async def test_dropped_bytes_are_told_and_the_status_stays_the_programs() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"ab")
        await wire.text(type="gap", channel="stdout", **{"from": 2, "to": 10})
        await wire.output(b"yz")
        await wire.exit(code=3, stdout=b"?" * 12)

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "cmd")
        as_json = await bulkhead(service.url, "run", "--json", "cmd")
    assert (ended.status, ended.stdout) == (3, b"abyz")
    assert ended.stderr == "bulkhead: stdout: bytes 2 to 9 are missing: they were dropped before they were read\n"
    assert b'"stdout_truncated": true' in as_json.stdout
