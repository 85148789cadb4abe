"""PUT …/stdin: the body of a request as the program's stdin."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from app.api.context import RequestTimeouts
from app.core.errors import BackendUnavailable
from app.core.executions import StdinLease
from tests.null_backend import pattern
from tests.unit.api.service import LiveService, Service, frames_of, text_of
from tests.unit.api.streams import WINDOW, execution_of, refusal, until


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def ends_with(live: LiveService, path: str, printed: bytes) -> None:
    """By the digest, which covers what the log no longer holds."""
    async with live.stream(path) as socket:
        exit_ = (await frames_of(socket))[0][-1]
    assert exit_["stdout"]["bytes"] == len(printed)
    assert exit_["stdout"]["sha256"] == hashlib.sha256(printed).hexdigest()


def problem(answer: httpx.Response, status: int, slug: str, state: str | None = None) -> str:
    found = answer.json()
    assert (answer.status_code, found["type"], found.get("state")) == (status, f"/problems/{slug}", state), found
    return str(found["detail"])


class Upload:
    """A PUT by hand, so that it can stop in the middle."""

    def __init__(self, live: LiveService, path: str, length: int, query: str = "", more: str = "") -> None:
        self._live = live
        first = f"PUT {path}/stdin{query} HTTP/1.1\r\nhost: localhost\r\n"
        self._head = f"{first}content-length: {length}\r\n{more}\r\n"

    async def __aenter__(self) -> Upload:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._live.port)
        self.writer.write(self._head.encode())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def status(self) -> bytes:
        async with asyncio.timeout(60):
            return (await self.reader.readline()).split()[1]


async def test_bodies_are_appended_and_eof_ends_stdin() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        for query, body in (("", b"one "), ("?eof=false", b""), ("?eof=true", b"two")):
            answer = await live.client.put(f"{path}/stdin{query}", content=body)
            assert (answer.status_code, answer.content) == (204, b"")
        await ends_with(live, path, b"one two")


async def test_an_empty_body_with_eof_only_ends_stdin() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        assert (await live.client.put(f"{path}/stdin?eof=true")).status_code == 204
        assert (await live.client.get(f"{path}?wait_seconds=60")).json()["exit"]["code"] == 0


async def test_a_large_body_without_a_length_arrives_whole() -> None:
    size = 3_000_000
    data = pattern(size)
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        body = pieces(*(data[at : at + 100_000] for at in range(0, size, 100_000)))
        async with live.stream(path) as socket:
            assert (await live.client.put(f"{path}/stdin?eof=true", content=body)).status_code == 204
            assert (await frames_of(socket))[1][1] == data


async def test_what_came_is_in_stdin_before_the_rest_is_sent() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with Upload(live, path, 6, "?eof=true") as upload, live.stream(path) as socket:
            await text_of(socket)
            upload.writer.write(b"abc")
            assert await socket.recv() == b"\x01abc"
            upload.writer.write(b"def")
            assert await upload.status() == b"204"
            assert await socket.recv() == b"\x01def"


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain; charset=utf-16"])
async def test_any_media_type_is_taken_as_bytes(kind: str) -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        await live.client.put(f"{path}/stdin?eof=true", content=b"\xff{", headers={"content-type": kind})
        await ends_with(live, path, b"\xff{")


# --- one holder


async def test_while_a_stream_holds_stdin_it_is_409_and_afterwards_not() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with live.stream(path, "?stdin=true"):
            problem(await live.client.put(f"{path}/stdin", content=b"x"), 409, "conflict")
        await until(live, path, _lease=None)
        assert (await live.client.put(f"{path}/stdin?eof=true", content=b"y")).status_code == 204
        await ends_with(live, path, b"y")


async def test_two_at_once_are_409_and_a_stream_too() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with Upload(live, path, 2) as upload:
            upload.writer.write(b"a")
            await until(live, path, stdin_bytes=1)
            problem(await live.client.put(f"{path}/stdin", content=b"x"), 409, "conflict")
            assert (await refusal(live, path, "?stdin=true"))["type"] == "/problems/conflict"
            upload.writer.write(b"b")
            assert await upload.status() == b"204"
        assert (await live.client.put(f"{path}/stdin?eof=true")).status_code == 204
        await ends_with(live, path, b"ab")


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_stream_may_take_stdin_over_from_an_upload_which_is_409(stuck: bool) -> None:
    async with Service().served() as live:
        path = await live.start("silent-then", "cat", stdin="open")
        sent = b"a" * (WINDOW if stuck else 3)
        async with Upload(live, path, 8 * WINDOW) as upload:
            upload.writer.write(sent)
            await until(live, path, stdin_bytes=len(sent))
            async with live.stream(path, "?stdin=take") as socket:
                assert (await text_of(socket))["stdin_bytes"] == len(sent)
                assert await upload.status() == b"409"
                live.service.backend.release(path.rsplit("/", 1)[1])
                await socket.send(b"b")
                await socket.send('{"type":"stdin_eof"}')
                await until(live, path, state="ended")
        await ends_with(live, path, sent + b"b")


# --- states


async def test_without_stdin_after_its_end_and_after_the_end_it_is_409() -> None:
    async with Service().served() as live:
        path = await live.start("sleep")
        problem(await live.client.put(f"{path}/stdin", content=b"x"), 409, "wrong_state", "running")
        path = await live.start("sleep", stdin="open")
        assert (await live.client.put(f"{path}/stdin?eof=true")).status_code == 204
        for query in ("", "?eof=true"):
            detail = problem(await live.client.put(f"{path}/stdin{query}"), 409, "wrong_state", "running")
            assert detail == "stdin has been closed"
        await live.client.delete(path)
        path = await live.start("cat", stdin="open")
        await live.client.delete(path)
        problem(await live.client.put(f"{path}/stdin?eof=true", content=b"x"), 409, "wrong_state", "ended")


async def test_unknown_ids_and_parameters_are_refused() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        problem(await live.client.put(f"{path}x/stdin"), 404, "not_found")
        for query, pointer in (("?eof=maybe", "query/eof"), ("?end=true", "query/end")):
            answer = await live.client.put(f"{path}/stdin{query}", content=b"x")
            problem(answer, 422, "invalid_request")
            assert answer.json()["errors"][0]["pointer"] == pointer
        assert execution_of(live, path).stdin_bytes == 0


async def test_a_program_that_never_reads_holds_the_upload_until_it_ends() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        async with Upload(live, path, 64 * WINDOW) as upload:
            upload.writer.write(bytes(64 * WINDOW))
            left = -1
            while (now := upload.writer.transport.get_write_buffer_size()) != left:  # until the kernel's are full too
                left = now
                assert (await live.client.get("/healthz")).status_code == 200
            assert left > 32 * WINDOW
            assert execution_of(live, path).stdin_bytes < 2 * WINDOW
            assert (await live.client.delete(path)).status_code == 204
            assert await upload.status() == b"409"
        assert execution_of(live, path)._lease is None


async def test_the_last_piece_of_a_body_that_was_not_read_is_409_as_well() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        putting = asyncio.create_task(live.client.put(f"{path}/stdin", content=bytes(WINDOW)))
        await until(live, path, stdin_bytes=WINDOW)
        await live.client.delete(path)
        assert problem(await putting, 409, "wrong_state", "ended") == "the execution has ended"


async def test_a_program_that_closed_its_stdin_is_409() -> None:
    async with Service().served() as live:
        path = await live.start("close-stdin", stdin="open")
        answer = await live.client.put(f"{path}/stdin", content=b"x")
        assert problem(answer, 409, "wrong_state", "running") == "the program does not read stdin any more"


async def test_a_program_that_ended_after_it_took_the_body_needs_no_eof() -> None:
    async with Service().served() as live:
        path = await live.start("trap", stdin="open")
        async with Upload(live, path, 2, "?eof=true") as upload:
            upload.writer.write(b"a")
            await until(live, path, stdin_bytes=1)
            execution = execution_of(live, path)
            close = execution.end_stdin

            async def end_a_moment_too_late(lease: StdinLease) -> None:
                await live.client.delete(path)
                await close(lease)

            execution.end_stdin = end_a_moment_too_late
            upload.writer.write(b"b")
            assert await upload.status() == b"204"
        assert (await live.client.get(path)).json()["state"] == "ended"


async def test_a_runtime_that_fails_is_told() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        room = live.service.backend.sandboxes[path.split("/")[2]]

        async def write(data: bytes) -> bool:
            raise BackendUnavailable("process", "gone")

        room.executions[path.rsplit("/", 1)[1]].write = write  # type: ignore[method-assign]  # a runtime that fails
        problem(await live.client.put(f"{path}/stdin", content=b"x"), 503, "backend_unavailable")
        assert execution_of(live, path).stdin_bytes == 0
        assert execution_of(live, path)._lease is None


async def test_an_upload_that_is_refused_before_it_was_told_to_go_on_closes_the_connection() -> None:
    async with Service().served() as live:
        without, path = await live.start("sleep"), await live.start("cat", stdin="open")
        async with Upload(live, without, 5, more="expect: 100-continue\r\n") as upload:
            answer = await upload.reader.read()
            assert answer.startswith(b"HTTP/1.1 409 ")
            assert b"\r\nconnection: close\r\n" in answer.lower()
        async with Upload(live, path, 5, "?eof=true", "expect: 100-continue\r\n") as upload:
            assert await upload.status() == b"100"
            upload.writer.write(b"hello")
            assert await upload.reader.readline() == b"\r\n"
            assert await upload.status() == b"204"
        await ends_with(live, path, b"hello")


# --- hang-ups


async def test_what_came_before_a_disconnect_is_in_stdin_which_stays_open() -> None:
    service = Service()
    async with service.served() as live:
        path = await live.start("cat", stdin="open")
        async with Upload(live, path, 100, "?eof=true") as upload:
            upload.writer.write(b"half")
            await until(live, path, stdin_bytes=4)
        await until(live, path, _lease=None)
        assert (await live.client.get(path)).json()["state"] == "running"
        assert (await live.client.put(f"{path}/stdin?eof=true", content=b" done")).status_code == 204
        await ends_with(live, path, b"half done")
    assert [line["status"] for line in service.logged if line["event"] == "request" and line["method"] == "PUT"] == [
        *(499, 204)
    ]


async def test_a_disconnect_is_noticed_while_the_program_does_not_read() -> None:
    async with Service(timeouts=RequestTimeouts(close=0.05)).served() as live:
        path = await live.start("silent-then", "cat", stdin="open")
        async with Upload(live, path, 2 * WINDOW) as upload:
            upload.writer.write(bytes(WINDOW))
            await until(live, path, stdin_bytes=WINDOW)
        await until(live, path, _lease=None)
        live.service.backend.release(path.rsplit("/", 1)[1])
        assert (await live.client.put(f"{path}/stdin?eof=true", content=b"x")).status_code == 204
        await ends_with(live, path, bytes(WINDOW) + b"x")


async def test_a_whole_body_goes_in_and_ends_stdin_also_when_its_client_did_not_wait() -> None:
    async with Service().served() as live:
        path = await live.start("silent-then", "cat", stdin="open")
        async with Upload(live, path, WINDOW + 1, "?eof=true") as upload:
            upload.writer.write(bytes(WINDOW))
            await until(live, path, stdin_bytes=WINDOW)
            upload.writer.write(b"x")
            await upload.writer.drain()
        await live.client.get("/healthz")
        live.service.backend.release(path.rsplit("/", 1)[1])
        await ends_with(live, path, bytes(WINDOW) + b"x")


async def test_signals_pass_an_upload_that_waits() -> None:
    async with Service().served() as live:
        path = await live.start("sleep", stdin="open")
        putting = asyncio.create_task(live.client.put(f"{path}/stdin", content=bytes(WINDOW)))
        await until(live, path, stdin_bytes=WINDOW)
        assert (await live.client.post(f"{path}/signal", json={"signal": "SIGTERM"})).status_code == 204
        problem(await putting, 409, "wrong_state", "ended")


async def test_a_stream_that_was_open_for_stdin_is_not_disturbed_by_a_refused_upload() -> None:
    async with Service().served() as live:
        path = await live.start("cat", stdin="open")
        async with live.stream(path, "?stdin=true") as socket:
            await text_of(socket)
            problem(await live.client.put(f"{path}/stdin?eof=true", content=b"x"), 409, "conflict")
            await socket.send(b"mine")
            assert await socket.recv() == b"\x01mine"
            await socket.send('{"type":"stdin_eof"}')
            assert (await text_of(socket))["type"] == "exit"
            with pytest.raises(ConnectionClosed):
                await socket.recv()
