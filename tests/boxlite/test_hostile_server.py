"""A server that lies, stalls or dies, at every bound that we set; and what we never ask of any server."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import app.backends.boxlite as package
from app.backends.boxlite.attach import FRAME_BYTES, AttachCut, AttachRefused, Sockets
from app.backends.boxlite.box import Box
from app.backends.boxlite.inside import Facts
from app.backends.boxlite.receipt import isolation
from app.core.errors import BackendFailure, BackendRefused, BackendTimeout, BackendUnavailable, UnknownImage
from app.core.models import ExitReason
from tests.boxlite.double import Answer, Attach, Drop, Route, Stall, drip, endless
from tests.boxlite.double.websocket import accept_key
from tests.boxlite.rig import QUICK, SPEC, quick, rig, start, until

EXIT = '{"type":"exit","exit_code":0}'


@dataclass
class Listener:
    """Takes connections, reads their heads, and answers what it is told to, once each."""

    port: int = 0
    answer: bytes = b""
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    listener = Listener()
    server = await asyncio.start_server(listener, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


# --- answers over HTTP, each to a call in the middle of a boot

LIES = {
    "no JSON": Answer.text("<html>welcome</html>"),
    "JSON that is something else": Answer.json([1, 2, 3]),
    "nothing": Answer.text("", content_type="application/json"),
    "another type": Answer.json({"box_id": 7, "execution_id": 7}),
    "a path for an id": Answer.json({"box_id": "..", "execution_id": ".."}),
    "half a surrogate for an id": Answer.text('{"box_id": "\\ud800", "execution_id": "\\ud800"}'),
    "somebody else's box": Answer.json({"box_id": "AAAAAAAAAAAA", "name": "not-ours", "status": "running"}),
    "a redirect": Answer.verbatim(b"HTTP/1.1 307 x\r\nlocation: /v1/elsewhere\r\ncontent-length: 0\r\n\r\n"),
    "a length that is too long": Answer.verbatim(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{}"),
    "no head": Answer.verbatim(b"\0\1\2\3\r\n\r\n"),
    "an endless head": Answer.verbatim(b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 500_000),
    "more than a bomb": Answer.verbatim(
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n" + gzip.compress(b" " * 50_000_000)
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("route", [Route.CREATE, Route.START, Route.EXEC])
async def test_a_lie_in_the_middle_of_a_boot_is_a_failure_and_nothing_else(route: Route, lie: str) -> None:
    async with rig() as r:
        await r.double.seed("not-ours")
        r.double.faults.on(route, LIES[lie], times=3)
        with pytest.raises(BackendFailure):
            await r.sandbox()
        r.double.faults.clear()
        await until(lambda: r.names() == ["not-ours"])


async def test_a_name_for_which_the_server_gives_another_box_removes_nobody_elses() -> None:
    async with rig() as r:
        stranger = await r.double.seed("not-ours", start=True, cmd=["sleep", "1000"])
        taken = Answer.failure("invalid_argument", "invalid argument: box with name 'x' already exists")
        r.double.faults.on(Route.CREATE, taken, times=1)
        r.double.faults.on(Route.GET, Answer.json(stranger.view()), times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await r.sandbox()
        assert stranger.status == "running" and not r.double.sent(Route.STOP)


async def test_an_answer_about_another_box_says_nothing_of_ours() -> None:
    """Neither that it was started, nor that it has ended."""
    async with rig() as r:
        other = Answer.json({"box_id": "AAAAAAAAAAAA", "name": "not-ours", "status": "stopped"})
        r.double.faults.on(Route.START, other, times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await r.sandbox()
        sandbox = await r.sandbox("sbx_2")
        r.double.faults.on(Route.GET, other, times=1)
        with pytest.raises(BackendRefused, match="another box"):
            await sandbox.look()
        assert (await (await start(sandbox, "true")).end()).code == 0


@pytest.mark.parametrize("route", [Route.CREATE, Route.EXEC, Route.LIST])
async def test_an_endless_body_and_one_that_comes_byte_by_byte(route: Route) -> None:
    async with rig(times=quick(control=0.5, beat_answer=0.5)) as r:
        for body in (lambda: endless(b" " * 65536), lambda: drip(b"{" + b" " * 1000, 0.01)):
            r.double.faults.on(route, Answer.body(body))
            if route is Route.LIST:
                await until(lambda: r.backend._pulse._failure is not None)
            with pytest.raises(BackendFailure):
                await r.sandbox()
            r.double.faults.clear()
            await until(lambda: not r.double.boxes)
            await until(lambda: r.backend._pulse._failure is None)


def test_what_the_server_says_of_a_box_goes_into_the_receipt_only_in_measure() -> None:
    said = {
        "image": "i" * 100_000,
        "cpus": {"a": ["b"] * 10_000},
        "memory_mib": float("nan"),
        "network": {"outbound": {"mode": "disabled"}},
        "created_at": "\ud800",
    }
    facts = Facts("6.1", 1, 80_000_000, {"lo": True}, 0)
    receipt = isolation(Box("x", "n", "running", said), SPEC, facts, 0.5)
    assert receipt["reported"] == {**dict.fromkeys(said), "network": {"outbound": {"mode": "disabled"}}}
    json.dumps(receipt, ensure_ascii=False, allow_nan=False).encode()


# --- frames

JUNK: tuple[str | bytes, ...] = (
    b"", b"\x01", b"\x00zero", b"\x03three", b"\xff\xff", "", "{", "[]", "null", "7", '"exit"', "[" * 100_000,
    '{"type":"error","message":"' + "x" * 1000 + '"}', '{"type":7}', '{"type":"exits","exit_code":0}',
    '{"exit_code":0}', '{"type":"resize"}', '{"a":' + "9" * 5000 + "}",
)  # fmt: skip


async def test_frames_that_are_none_are_passed_over() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=JUNK), times=1)
        run = await start(sandbox, "sh", "-c", "echo out; echo err >&2")
        assert (await run.end()).code == 0 and (run.out, run.err) == (b"out\n", b"err\n")
        assert len(r.double.sent(Route.ATTACH)) == 2


async def test_a_frame_that_is_too_large_cuts_the_socket_and_not_the_execution() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.ATTACH, Attach(first=(b"\x01" * (FRAME_BYTES + 1),)), times=2)
        run = await start(sandbox, "sh", "-c", "echo out")
        assert (await run.end()).code == 0 and run.out == b"out\n"
        assert len(r.double.sent(Route.ATTACH)) == 4


@pytest.mark.parametrize("frame", [b"\x81\x02\xff\xfe", b"\xc1\x00", b"\x83\x00", b"\x81\xff" + b"\xff" * 8])
async def test_bytes_that_are_no_frames_cut_the_socket(frame: bytes) -> None:
    """Broken UTF-8, reserved bits, an unknown kind, a mask and a length without end."""
    upgrade = b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key"))
        writer.write(upgrade + accept_key(key).encode() + b"\r\n\r\n" + frame)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        sockets = Sockets(f"http://127.0.0.1:{port}", {}, QUICK)
        with pytest.raises(AttachCut):
            async with asyncio.timeout(5), sockets.attached("/v1/x") as socket:
                async for _ in socket.frames():
                    pass
        await sockets.aclose()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n", AttachRefused),
        (b"HTTP/1.1 200 x\r\ncontent-length: 0\r\n\r\n", AttachRefused),
        (b"HTTP/1.1 101 x\r\n\r\n", AttachCut),
        (b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: no\r\n\r\n", AttachCut),
        (b"SSH-2.0-OpenSSH\r\n", AttachCut),
        (b"HTTP/1.1 101 x\r\n" + b"x-a: b\r\n" * 10_000, AttachCut),
        (b"HTTP/1.1 101 x\r\nx: " + b"b" * 1_000_000, AttachCut),
        (b"", AttachCut),  # stalls
    ],
)
async def test_a_handshake_that_is_none(answer: bytes, error: type[Exception]) -> None:
    async with listening() as listener:
        listener.answer = answer
        sockets = Sockets(f"http://127.0.0.1:{listener.port}", {"authorization": "Bearer k"}, quick(opening=0.3))
        with pytest.raises(error):
            async with asyncio.timeout(5), sockets.attached("/v1/x"):
                pass
        assert b"authorization: bearer k" in listener.heads[0].lower()


@pytest.mark.parametrize("path", ["/elsewhere", ""])
async def test_a_redirect_of_the_websocket_is_not_followed(path: str) -> None:
    """Not to another host, and not on the same one."""
    async with listening() as listener, listening() as other:
        place = path or f"http://127.0.0.1:{other.port}/x"
        listener.answer = f"HTTP/1.1 302 x\r\nlocation: {place}\r\ncontent-length: 0\r\n\r\n".encode()
        sockets = Sockets(f"http://127.0.0.1:{listener.port}", {}, QUICK)
        with pytest.raises(AttachRefused) as caught:
            async with sockets.attached("/v1/x"):
                pass
        assert caught.value.status == 302 and listener.connections == 1 and other.connections == 0


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h:8100", "ws://h:8100/v1/x"),
        ("https://h", "wss://h/v1/x"),
        ("https://h/base/http", "wss://h/base/http/v1/x"),
        ("http://[::1]:8100", "ws://[::1]:8100/v1/x"),
    ],
)
def test_the_websocket_has_the_servers_scheme_and_path(url: str, target: str) -> None:
    assert Sockets(url, {}, QUICK).target("/v1/x") == target


async def test_a_server_of_tls_is_spoken_to_in_tls() -> None:
    async with listening() as listener:
        sockets = Sockets(f"https://127.0.0.1:{listener.port}", {}, quick(opening=0.3))
        with pytest.raises(AttachCut):
            async with sockets.attached("/v1/x"):
                pass
        assert listener.connections == 1 and not listener.heads  # a hello of TLS has no end of a head


# --- the key


async def test_the_key_is_in_no_log_of_a_whole_life(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with rig() as r:
        sandbox = await r.sandbox()
        await (await start(sandbox, "true")).end()
        await r.double.crash()
        with pytest.raises(BackendFailure) as caught:
            await start(sandbox, "true", execution_id="exe_2")
        await r.double.restart()
        assert r.double.key not in caplog.text and r.double.key not in repr(caught.value)
        assert r.double.key not in json.dumps(dict(sandbox.receipt))
        assert r.double.key not in repr(r.backend._settings)
    assert r.double.key not in caplog.text


async def test_a_401_that_begins_in_the_middle() -> None:
    """The key was changed: nothing can be done any more, and everybody is told so."""
    async with rig(grace_seconds=0.5) as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "sh", "-c", "echo up; sleep 1000")
        await run.saw(b"up")
        right, r.double.key = r.double.key, "another"
        with pytest.raises(BackendUnavailable, match="refuses our key") as caught:
            await start(sandbox, "true", execution_id="exe_2")
        assert caught.value.upstream.status == 401
        async with asyncio.timeout(10):
            assert "refuses our key" in await sandbox.lost()
        with pytest.raises(BackendUnavailable, match="refuses our key"):
            await r.backend.ready()
        assert (await run.end()).reason is ExitReason.LOST
        await sandbox.destroy()
        r.double.key = right
        await until(lambda: not r.double.boxes)


# --- stalls


async def test_a_stop_that_is_lost_is_sent_again_before_anything_else() -> None:
    async with rig(times=quick(stop=0.5)) as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        r.double.faults.on(Route.STOP, Stall(), times=1)
        await sandbox.destroy()
        assert r.routes() == [Route.STOP, Route.STOP, Route.DELETE]


async def test_a_stop_that_never_answers_is_an_error_and_the_destroy_can_be_repeated() -> None:
    async with rig(times=quick(stop=0.2)) as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.STOP, Stall(), times=2)
        with pytest.raises(BackendTimeout):
            await sandbox.destroy()
        await sandbox.destroy()
        assert not r.double.boxes


@pytest.mark.parametrize("code", ["invalid_state", "stopped", "internal", "upstream_unavailable", "engine_unavailable"])
async def test_a_stop_that_the_server_refuses_is_no_reason_to_keep_the_box(code: str) -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        r.double.faults.on(Route.STOP, Answer.failure(code))
        await sandbox.destroy()
        assert r.routes() == [Route.STOP, Route.STOP, Route.DELETE] and not r.double.boxes


async def test_a_box_is_stopped_and_then_deleted_with_force_and_both_by_its_id() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.requests.clear()
        await asyncio.gather(*(sandbox.destroy() for _ in range(3)))
        stop, delete = (request for request in r.double.requests if request.route in {Route.STOP, Route.DELETE})
        assert stop.route is Route.STOP and delete.query == {"force": "true"}
        assert stop.path == f"/v1/boxes/{sandbox.box_id}/stop" and delete.path == f"/v1/boxes/{sandbox.box_id}"


async def test_a_delete_whose_answer_is_lost_was_done_all_the_same() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        r.double.faults.on(Route.DELETE, Drop(done=True), times=1)
        await sandbox.destroy()
        assert not r.double.boxes


async def test_what_is_cancelled_does_not_hang_up_on_a_stop() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        stop = Stall(until=asyncio.Event())
        r.double.faults.on(Route.STOP, stop, times=1)
        destroying = asyncio.get_running_loop().create_task(sandbox.destroy())
        await stop.reached.wait()
        destroying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await destroying
        await r.beats(2)
        assert stop.until is not None and len(r.double.sent(Route.STOP)) == 1
        stop.until.set()
        await until(lambda: not r.double.boxes)
        await sandbox.destroy()


# --- what is never asked


async def test_files_metrics_and_the_rest_are_never_asked_for() -> None:
    async with rig() as r:
        sandbox = await r.sandbox()
        run = await start(sandbox, "sh", "-c", "echo up; sleep 1000", stdin=True)
        await run.saw(b"up")
        await run.handle.signal(15)
        await run.end()
        await sandbox.destroy()
        asked = {request.route for request in r.double.requests}
        assert asked <= {
            Route.ME, Route.LIST, Route.CREATE, Route.START, Route.EXEC, Route.ATTACH, Route.STOP, Route.DELETE,
            Route.GET, Route.SIGNAL, Route.KILL, Route.RESIZE,
        }  # fmt: skip


def test_no_code_of_the_runtime_names_the_servers_files() -> None:
    """`GET .../files` hands out files of the server's host."""
    for path in Path(package.__path__[0]).glob("*.py"):
        assert '"files"' not in path.read_text() and "/files" not in path.read_text(), path


async def test_the_spec_of_a_client_has_no_way_to_name_a_path_of_the_server() -> None:
    async with rig(opened=False) as r:
        for image in ("/etc", "rootfs:/etc", "../x", "file:///etc", "/images/busybox", "a\0b", "\ud800"):
            with pytest.raises(UnknownImage):
                r.backend.fit(replace(SPEC, image=image))
