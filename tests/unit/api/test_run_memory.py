"""Runs that end at the same moment have one bound for the memory of their answers. They wait, and none is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from starlette.types import Message, Scope

from app.core.sandboxes import Capacity, Sandboxes
from app.main import create_app
from app.settings import load_settings
from app.spill import SpillFolder
from tests.null_backend import NullBackend
from tests.unit.api.service import PROFILES, Service
from tests.unit.api.test_connection_shares import comes_true
from tests.unit.core.support import until

MIB = 1024 * 1024
LARGE = 8 * MIB
ANSWERS_MIB = 64  # the least that an operator can set; one answer of two channels takes 40 while it is made
RUNS = 6


class StoringService(Service):
    """Stores output beyond 256 KiB on disk, as the gateway does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BULKHEAD_TRANSFERS__ANSWERS_MIB", str(ANSWERS_MIB))
        super().__init__([NullBackend()], settings=load_settings())
        spill = SpillFolder(folder, 1024 * MIB)
        self.sandboxes = Sandboxes(self.registry, Capacity(), self.telemetry, spill.of)
        self.app = create_app(self.settings, self.sandboxes, self.registry, telemetry=self.telemetry, profiles=PROFILES)
        self.answers = self.app.state.context.shares.answers


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoringService:
    return StoringService(tmp_path, monkeypatch)


class Client:
    """Sends one run. It takes the answer once `taking` is set, and drops what it took."""

    def __init__(self, service: StoringService, *command: str) -> None:
        self.status, self.size = 0, 0
        self.taking, self.leaving, self.begun = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._body = json.dumps({"command": command, "limits": {"output_bytes": LARGE}}).encode()
        self._service = service

    async def ask(self) -> None:
        headers = [(b"host", b"localhost:8000"), (b"content-type", b"application/json")]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/run",
            "raw_path": b"/run",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 8000),
        }
        await self._service.app(scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.begun.set()
            return
        await self.taking.wait()
        self.size += len(message["body"])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)


def peak_bytes() -> int:
    """The peak of this process's resident memory."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def test_answers_of_simultaneous_runs_stay_below_the_bound_and_all_come(service: StoringService) -> None:
    clients = [Client(service, "both", str(LARGE)) for _ in range(RUNS)]
    for client in clients:
        client.taking.set()
    service.answers.take("", service.answers.size)
    tasks = [asyncio.create_task(client.ask()) for client in clients]
    await comes_true(lambda: service.app.state.context.shares.run_answers.waiting == RUNS)
    reset_peak()
    before = peak_bytes()
    service.answers.give_back("", service.answers.size)
    await asyncio.gather(*tasks)
    grown = peak_bytes() - before
    assert [client.status for client in clients] == [200] * RUNS
    assert all(client.size > 2 * LARGE for client in clients)
    assert grown < (ANSWERS_MIB + 16) * MIB, f"{grown / MIB:.0f} MiB"
    assert service.answers.used == 0


async def test_a_run_that_waits_for_room_leaves_nothing_when_its_client_disconnects(service: StoringService) -> None:
    service.answers.take("", service.answers.size)
    client = Client(service, "both", str(MIB))
    task = asyncio.create_task(client.ask())
    queue = service.app.state.context.shares.run_answers
    await until(lambda: queue.waiting == 1)
    client.leaving.set()
    await task
    assert (client.status, queue.waiting, service.answers.used) == (0, 0, service.answers.size)
    assert service.backend.alive == []


async def test_an_answer_that_nobody_takes_holds_its_bytes_once_and_small_answers_none(service: StoringService) -> None:
    slow, small = Client(service, "both", str(MIB)), Client(service, "both", "1000")
    task = asyncio.create_task(slow.ask())
    await slow.begun.wait()
    held = service.answers.used
    small.taking.set()
    service.answers.take("", service.answers.size - held)
    await small.ask()
    assert small.status == 200
    service.answers.give_back("", service.answers.size - held)
    slow.taking.set()
    await task
    assert (slow.status, held, service.answers.used) == (200, slow.size, 0)
