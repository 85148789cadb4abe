"""The gateway's start: enough descriptors or none at all, and a folder for output."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import resource
import socket
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
import uvicorn
from websockets.asyncio.client import connect

from app.backends.boxlite.backend import BoxliteBackend
from app.backends.process.backend import ProcessBackend
from app.core.backend import Backend
from app.core.limits import MIB
from app.core.policy import DEFAULT_PROFILES
from app.serving import gateway
from app.serving.gateway import (
    AnnouncedServer,
    StartRefused,
    build,
    descriptors_needed,
    open_spill,
    raise_descriptor_limit,
)
from app.serving.http_bounds import BoundedHttp
from app.serving.ws_bounds import BoundedWebSocket
from app.settings import load_settings
from app.spill import SpillFolder
from app.telemetry import Telemetry
from tests.unit.api.service import Service, create, start

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "need", "set_to"),
    [
        ((1024, 4096), 2000, (2000, 4096)),
        ((1024, INFINITE), 2000, (2000, INFINITE)),
        ((4096, 4096), 2000, None),
        ((INFINITE, INFINITE), 2000, None),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_it_must(
    limits: tuple[int, int], need: int, set_to: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, value: asked.append(value))
    raise_descriptor_limit(need)
    assert asked == ([set_to] if set_to else [])


def test_a_hard_limit_below_the_need_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    with pytest.raises(
        StartRefused, match=r"needs 5000 descriptors, the limit is 4096: raise it \(ulimit -Hn"
    ) as refused:
        raise_descriptor_limit(5000)
    assert all(f"__{name}".upper() in str(refused.value) for name in NEED_DESCRIPTORS)


NEED_DESCRIPTORS = ("sandboxes", "executions", "connections", "strangers", "transfers")


@pytest.mark.parametrize("name", NEED_DESCRIPTORS)
def test_more_capacity_needs_more_descriptors(name: str) -> None:
    assert descriptors_needed(load_settings(capacity={name: 5000})) > descriptors_needed(load_settings())


def test_the_folder_for_output_is_made_private(tmp_path: Path) -> None:
    spill = open_spill(load_settings(data=tmp_path / "a" / "b"), -1)
    assert (tmp_path / "a" / "b" / "spill").stat().st_mode & 0o777 == 0o700
    spill.prove()
    spill.close()


def test_a_folder_that_cannot_be_made_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartRefused, match="cannot be used: Not a directory"):
        open_spill(load_settings(data=tmp_path / "file"), -1)


def test_an_operators_directories_are_part_of_every_profile(tmp_path: Path) -> None:
    settings = load_settings(process={"root_paths": ["/opt/tools"]}, data=tmp_path)
    widened = gateway._with_roots(DEFAULT_PROFILES["default"], settings)
    assert widened.filesystem.read_only == ("/usr", "/etc", "/opt/tools")
    assert DEFAULT_PROFILES["default"].filesystem.read_only == ("/usr", "/etc")


def test_nothing_listens_before_root_is_given_up(tmp_path: Path) -> None:
    """`build` only wires."""
    spill = SpillFolder(tmp_path, MIB)
    settings, backends = load_settings(port=0, data=tmp_path), [ProcessBackend(None, "no launcher")]
    server = build(settings, Telemetry(), {}, DEFAULT_PROFILES, spill, backends)
    assert not server.started
    assert server.config.host == "127.0.0.1"
    assert server.config.proxy_headers is False
    assert server.config.access_log is False
    spill.close()


def test_connections_inherit_bounds_on_what_waits_for_a_client() -> None:
    listener = gateway.bind("127.0.0.1", 0)
    listener.listen(1)
    with listener, socket.create_connection(listener.getsockname()) as client:
        connection, _ = listener.accept()
        with connection, client:
            # The kernel doubles the value for its own bookkeeping, socket(7).
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * gateway.SEND_BUFFER
            assert connection.getsockopt(socket.IPPROTO_TCP, gateway._TCP_NOTSENT_LOWAT) == gateway.UNSENT_BYTES


def test_port_that_is_for_root_is_refused_with_the_cure() -> None:
    assert gateway.why_not_bound(OSError(errno.EACCES, "Permission denied")) == (
        "Permission denied; the gateway is not root: choose a port above 1023, and put a proxy in front of it"
    )


def test_what_the_server_says_is_one_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [])
    stream = io.StringIO()
    Telemetry(stream=stream).take_server_log()
    logging.getLogger("uvicorn.error").warning("closed with %d:\n%s", 1008, "x")
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert (said["event"], said["level"], said["detail"]) == ("server", "warning", "closed with 1008:\nx")


@pytest.mark.parametrize(("runtime", "starts"), [("boxlit", False), ("boxlite", True), ("vm", True), ("auto", True)])
def test_a_default_runtime_that_does_not_exist_stops_the_start(tmp_path: Path, runtime: str, starts: bool) -> None:
    """One that is not enabled does not: /readyz tells it."""
    settings, spill = load_settings(port=0, data=tmp_path, runtime=runtime), SpillFolder(tmp_path, MIB)
    backends: list[Backend] = [ProcessBackend(None), BoxliteBackend(settings.boxlite, "0123456789ab")]
    with nullcontext() if starts else pytest.raises(StartRefused, match="there is no runtime 'boxlit'"):
        build(settings, Telemetry(), {}, DEFAULT_PROFILES, spill, backends)
    spill.close()


async def test_streams_and_held_answers_get_their_end_before_the_service_stops() -> None:
    service = Service()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    config = uvicorn.Config(service.app, http=BoundedHttp, ws=BoundedWebSocket, log_config=None, access_log=False)
    server = AnnouncedServer(config, service.sandboxes.aclose)
    serving = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        path = await start(client, await create(client), "sleep")
        held = asyncio.create_task(client.get(f"{path}?wait_seconds=60"))
        events = asyncio.create_task(client.get(f"{path}/stream", headers={"accept": "text/event-stream"}))
        async with connect(
            f"ws://127.0.0.1:{port}{path}/stream", proxy=None, open_timeout=60, ping_timeout=None
        ) as stream:
            assert json.loads(await stream.recv())["type"] == "start"
            while service.sandboxes.execution(*path.split("/")[2::2]).viewers < 2:  # noqa: ASYNC110 - the edge has no event
                await asyncio.sleep(0)
            server.should_exit = True
            async with asyncio.timeout(60):
                assert json.loads(await stream.recv())["exit"]["reason"] == "killed"
                assert "the service is stopping" in (await events).text
                assert (await held).json()["exit"]["detail"] == "the service is stopping"
    await serving
    assert not [line for line in service.logged if line["event"] == "fault"]
