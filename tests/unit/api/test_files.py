"""Files at the edge: bounds, slow and vanished clients, ends of sandboxes. What they promise of files themselves is in
`tests/contract/test_files.py`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from app.core.capabilities import Capability
from app.core.errors import BackendFailure, BackendUnavailable
from app.core.files import FileKind
from app.core.resources import Capacity
from app.settings import load_settings
from tests.null_backend import CAPABILITIES, Gate, NullBackend, pattern
from tests.null_files import NullFiles
from tests.unit.api.service import LiveService, Service, create

MIB = 1024 * 1024


@dataclass
class Room:
    live: LiveService
    id: str

    @property
    def backend(self) -> NullBackend:
        return self.live.service.backend

    @property
    def files(self) -> NullFiles:
        return self.backend.sandboxes[self.id].files

    @property
    def running(self) -> int:
        return self.backend.alive.count(f"{self.id}/files")

    def url(self, path: str, what: str = "files") -> str:
        return f"/sandboxes/{self.id}/{what}?path={path}"

    async def call(self, method: str, path: str, what: str = "files", **options: Any) -> httpx.Response:
        return await self.live.client.request(method, self.url(path, what), **options)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - the service tells nobody what its clients do
                await asyncio.sleep(0.005)

    @asynccontextmanager
    async def line(
        self, method: str, path: str, *headers: str, what: str = "files", receive_buffer: int | None = None
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection by hand, on which a request has begun."""
        plain = socket.socket()
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.live.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
        writer.write("\r\n".join([f"{method} {self.url(path, what)} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
        writer.transport.set_write_buffer_limits(0)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@asynccontextmanager
async def served(*backends: NullBackend, **options: Any) -> AsyncIterator[Room]:
    settings = load_settings(allowed_hosts=("x",), transfers=options.pop("transfers", {}))
    sandbox = options.pop("sandbox", {})
    async with Service(list(backends) or None, settings=settings, **options).served() as live:
        yield Room(live, await create(live.client, **sandbox))
    assert live.service.backend.alive == []


async def all_of(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """What came, and whether the connection was cut rather than closed."""
    got = b""
    try:
        while piece := await reader.read(MIB):
            got += piece
    except ConnectionResetError:
        return got, True
    return got, False


def slug(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).removeprefix("/problems/")


# --- who may


async def test_runtime_without_files_is_409_by_every_route() -> None:
    backend = NullBackend(capabilities=CAPABILITIES - {Capability.FILES})
    async with served(backend) as room:
        for method, what in (("GET", "files"), ("PUT", "files"), ("DELETE", "files"), ("GET", "directory")):
            answer = await room.call(method, "a", what)
            assert (answer.status_code, slug(answer)) == (409, "unsupported_by_runtime")
        for method, what in (("PUT", "directory"), ("GET", "archive"), ("PUT", "archive")):
            assert slug(await room.call(method, "a", what)) == "unsupported_by_runtime"


async def test_sandbox_that_is_being_created_is_waited_for() -> None:
    service = Service()
    service.backend.create_gate = gate = Gate()
    async with service.served() as live:
        created = await live.client.post("/sandboxes?wait_seconds=0", json={})
        assert created.json()["state"] == "creating"
        room = Room(live, created.json()["id"])
        writing = asyncio.create_task(room.call("PUT", "a", content=b"1"))
        await gate.reached.wait()
        await asyncio.sleep(0)
        assert not writing.done()
        gate.open()
        assert (await writing).status_code == 201


async def test_number_of_operations_is_bounded() -> None:
    async with served(capacity=Capacity(transfers=1)) as room:
        async with room.line("PUT", "a", "Content-Length: 10"):
            await room.until(lambda: room.running == 1)
            answer = await room.call("GET", "a")
            assert (answer.status_code, slug(answer)) == (429, "capacity_exceeded")
            assert "retry-after" in answer.headers
        await room.until(lambda: room.running == 0)
        assert (await room.call("GET", "a")).status_code == 404


async def test_number_of_archives_that_are_unpacked_is_bounded() -> None:
    """The names of each are held in memory."""
    async with served(capacity=Capacity(archives=1)) as room:
        async with room.line("PUT", "a", "Content-Length: 10", what="archive"):
            await room.until(lambda: room.running == 1)
            answer = await room.call("PUT", "b", "archive", content=b"")
            assert (answer.status_code, slug(answer)) == (429, "capacity_exceeded")
            assert (await room.call("GET", "a")).status_code == 404
        await room.until(lambda: room.running == 0)
        answer = await room.call("PUT", "b", "archive", content=bytes(1024))
        assert answer.status_code == 204


# --- what a body may be


async def test_body_above_the_ceiling_is_413_by_its_length_and_by_its_bytes() -> None:
    async with served(transfers={"ceiling_mib": 1}) as room:
        assert (await room.call("PUT", "a", content=b"old")).status_code == 201

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield bytes(100_000)

        for what in ("files", "archive"):
            for content in (bytes(MIB + 1), chunks()):
                answer = await room.call("PUT", "a" if what == "files" else ".", what, content=content)
                assert answer.status_code in ({413} if what == "files" else {413, 422}), answer.text
        assert (await room.call("PUT", "a", content=chunks())).json()["limit"] == MIB
        assert (await room.call("GET", "a")).content == b"old"
        assert (await room.call("PUT", "a", content=bytes(MIB))).status_code == 204


async def test_encoded_body_is_415_and_a_part_of_a_file_422() -> None:
    async with served() as room:
        answer = await room.call("PUT", "a", content=b"1", headers={"content-encoding": "gzip"})
        assert (answer.status_code, slug(answer)) == (415, "unsupported_media_type")
        answer = await room.call("PUT", "a", content=b"1", headers={"content-range": "bytes 0-0/2"})
        assert answer.json()["errors"][0]["pointer"] == "header/content-range"
        assert (await room.call("PUT", "a", content=b"1", headers={"content-encoding": "identity"})).status_code == 201


@pytest.mark.parametrize("name", ["if-match", "if-none-match", "if-unmodified-since"])
async def test_condition_that_nobody_could_keep_is_refused(name: str) -> None:
    async with served() as room:
        for method, what in (("DELETE", "files"), ("PUT", "directory"), ("PUT", "archive")):
            answer = await room.call(method, "a", what, headers={name: "*"})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"header/{name}")


@pytest.mark.parametrize("value", ["abc", '"a" "b"', 'W/abc, "x"', '"a', ""])
async def test_condition_that_is_no_entity_tag_is_refused(value: str) -> None:
    async with served() as room:
        for method in ("GET", "PUT"):
            answer = await room.call(method, "a", headers={"if-none-match": value})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "header/if-none-match")


@pytest.mark.parametrize("query", ["mode=0778", "mode=01777", "mode=rw", "mode=", "recursive=1"])
async def test_wrong_parameter_is_refused_by_name(query: str) -> None:
    async with served() as room:
        answer = await room.call("PUT", f"a&{query}", content=b"1")
        assert answer.json()["errors"][0]["pointer"] == f"query/{query.partition('=')[0]}"
        answer = await room.call("DELETE", "a&recursive=maybe")
        assert answer.json()["errors"][0]["pointer"] == "query/recursive"


# --- clients that stall or vanish


async def test_upload_that_stalls_is_refused_and_leaves_the_old_file() -> None:
    async with served(transfers={"stall_seconds": 1}) as room:
        await room.call("PUT", "a", content=b"old")
        async with room.line("PUT", "a", "Content-Length: 10") as (reader, writer):
            writer.write(b"12345")
            answer, _ = await all_of(reader)
            assert answer.startswith(b"HTTP/1.1 422 ")
            assert b"connection: close" in answer
            assert b"no byte of the body arrived for 1 seconds" in answer
        assert (await room.call("GET", "a")).content == b"old"


async def test_upload_that_is_slow_but_goes_on_is_taken() -> None:
    async with served(transfers={"stall_seconds": 1}) as room:
        async with room.line("PUT", "a", "Content-Length: 8", "Connection: close") as (reader, writer):
            for n in range(8):
                writer.write(b"%d" % n)
                await asyncio.sleep(0.2)
            assert (await all_of(reader))[0].startswith(b"HTTP/1.1 201 ")
        assert (await room.call("GET", "a")).content == b"01234567"


async def test_reader_that_takes_nothing_is_cut_off() -> None:
    async with served(transfers={"stall_seconds": 1}, sandbox={"limits": {"disk_mib": 64}}) as room:
        await room.call("PUT", "a", content=bytes(30 * MIB))
        async with room.line("GET", "a", receive_buffer=4096) as (reader, _):
            await room.until(lambda: room.running == 1)
            await room.until(lambda: room.running == 0)
            got, was_cut = await all_of(reader)
            assert was_cut
            assert len(got) < 30 * MIB


async def test_reader_that_is_slow_but_goes_on_gets_everything() -> None:
    async with served(transfers={"stall_seconds": 1}, sandbox={"limits": {"disk_mib": 64}}) as room:
        await room.call("PUT", "a", content=bytes(8 * MIB))
        async with room.line("GET", "a", "Connection: close", receive_buffer=64 * 1024) as (reader, _):
            loop = asyncio.get_running_loop()
            total, slowly_until = 0, loop.time() + 1.5
            while piece := await reader.read(256 * 1024):
                total += len(piece)
                if loop.time() < slowly_until:
                    await asyncio.sleep(0.05)
            assert total > 8 * MIB


async def test_reader_that_disconnects_ends_the_operation() -> None:
    async with served(sandbox={"limits": {"disk_mib": 64}}) as room:
        await room.call("PUT", "a", content=bytes(30 * MIB))
        for what in ("files", "archive"):
            async with room.line("GET", "a", what=what) as (reader, _):
                await reader.readline()
                assert room.running == 1
            await room.until(lambda: room.running == 0)


async def test_reader_that_disconnects_before_the_first_byte_ends_the_operation() -> None:
    async with served() as room:
        await room.call("PUT", "a", content=b"1")
        room.files.gate = gate = Gate()
        async with room.line("GET", "a"):
            await gate.reached.wait()
            assert room.running == 1
        await room.until(lambda: room.running == 0)


# --- what fails in the middle


async def test_error_before_the_first_byte_is_a_problem() -> None:
    async with served() as room:
        room.files.error = BackendUnavailable("process", "the launcher is gone")
        for method, what in (("GET", "files"), ("HEAD", "files"), ("GET", "archive"), ("GET", "directory")):
            answer = await room.call(method, ".", what)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("what", ["files", "archive"])
async def test_error_in_the_middle_cuts_the_connection_and_is_logged(what: str) -> None:
    async with served(sandbox={"limits": {"disk_mib": 64}}) as room:
        await room.call("PUT", "a", content=bytes(4 * MIB))
        room.files.piece_error = BackendFailure("the pipe broke")
        room.files.piece_gate = gate = Gate()
        async with room.line("GET", "a", "Connection: close", what=what) as (reader, _):
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            gate.open()
            got, _ = await all_of(reader)
            assert len(got) < 4 * MIB
            assert not got.endswith(b"0\r\n\r\n")
        with pytest.raises(httpx.TransportError):
            await room.call("GET", "a", what)
        assert any("the pipe broke" in str(line) for line in room.live.service.logged)


async def test_file_that_becomes_shorter_is_never_a_whole_answer() -> None:
    async with served(sandbox={"limits": {"disk_mib": 64}}) as room:
        await room.call("PUT", "a", content=pattern(3 * MIB))
        room.files.piece_gate = gate = Gate()
        async with room.line("GET", "a", "Connection: close") as (reader, _):
            await gate.reached.wait()
            room.files.truncate(b"a", MIB)
            gate.open()
            got, _ = await all_of(reader)
        assert len(got) < 2 * MIB


async def test_loss_of_the_sandbox_ends_what_runs() -> None:
    async with served() as room:
        async with room.line("PUT", "a", "Content-Length: 10") as (reader, _):
            await room.until(lambda: room.running == 1)
            await room.backend.lose(room.id)
            assert await reader.readline() == b"HTTP/1.1 409 Conflict\r\n"
            assert b'"state":"failed"' in (await reader.read(4096))
        assert room.running == 0


# --- idle time


async def test_sandbox_is_not_idle_while_a_file_comes_in_and_is_afterwards() -> None:
    async with served() as room:
        sandbox = room.live.service.sandboxes.get(room.id)
        async with room.line("PUT", "a", "Content-Length: 10") as (reader, writer):
            writer.write(b"12345")
            await room.until(lambda: room.running == 1)
            sandbox.update(set_idle=True, idle_seconds=0.15)
            await asyncio.sleep(0.5)
            assert sandbox.state == "running"
            writer.write(b"67890")
            assert await reader.readline() == b"HTTP/1.1 201 Created\r\n"
        await room.until(lambda: sandbox.state == "destroyed")
        assert sandbox.state_reason == "the sandbox expired: it was idle"


# --- what else there is


@pytest.mark.parametrize("kind", [k for k in FileKind if k not in {FileKind.FILE, FileKind.SYMLINK}])
async def test_every_kind_is_told(kind: FileKind) -> None:
    async with served() as room:
        room.files.special(b"a", kind)
        assert (await room.call("HEAD", "a")).headers["file-type"] == kind
        assert (await room.call("GET", "a")).json()["found"] == kind
        assert (await room.call("GET", ".", "directory")).json()["items"][0]["type"] == kind


@pytest.mark.parametrize("year", [1960, 1970, 9999, 10_000])
async def test_time_that_cannot_be_said_is_left_out(year: int) -> None:
    async with served() as room:
        await room.call("PUT", "a", content=b"1")
        room.files.tree.at(b"a").modified_ns = (year - 1970) * 31_557_600 * 1_000_000_000
        answer = await room.call("GET", "a")
        assert answer.status_code == 200
        assert ("last-modified" in answer.headers) is (year in {1970, 9999})
        item = (await room.call("GET", ".", "directory")).json()["items"][0]
        assert (item["modified_at"] is None) is (year == 10_000)


async def test_method_that_is_not_there_names_the_others() -> None:
    async with served() as room:
        answer = await room.call("POST", "a")
        assert (answer.status_code, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PUT")
        assert answer.json()["detail"] == "this path takes DELETE, GET, HEAD, PUT"
