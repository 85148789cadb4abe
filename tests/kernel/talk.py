"""What tests say to a running service beyond one call: executions that run on, and their streams."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.service import PATIENCE, Service

CHANNELS = {1: "stdout", 2: "stderr"}


@dataclass
class Running:
    """One execution."""

    service: Service
    path: str

    def show(self) -> dict[str, Any]:
        status, answer = self.service.call("GET", self.path)
        assert status == 200, answer
        return dict(answer)

    def exit(self) -> dict[str, Any]:
        """Waits for it."""
        return dict(self.service.ended(self.path)["exit"])

    def exit_now(self) -> dict[str, Any]:
        """It must have ended."""
        shown = self.show()
        assert shown["state"] == "ended", shown
        return dict(shown["exit"])

    def out(self, channel: str = "stdout") -> bytes:
        return self.service.output(self.path, channel)

    def saw(self, text: bytes, channel: str = "stdout", polls: int = 2000) -> bytes:
        """Waits until the output holds `text`: it is woken by output, not by a clock."""
        data = self.out(channel)
        for _ in range(polls):
            if text in data:
                return data
            status, answer = self.service.call(
                "GET", f"{self.path}/output?channel={channel}&offset={len(data)}&wait_seconds=30&limit=1"
            )
            assert status == 200, answer
            data = self.out(channel)
            if text not in data and self.show()["state"] == "ended":
                break
        raise AssertionError(f"{text!r} was not printed: {data[-500:]!r}, {self.show()}")

    def signal(self, signal: str | int) -> int:
        return self.service.call("POST", f"{self.path}/signal", {"signal": signal})[0]

    def delete(self) -> int:
        return self.service.call("DELETE", self.path)[0]

    def stream(self, query: str = "", **options: Any) -> Viewer:
        url = self.service.url.replace("http", "ws", 1) + f"{self.path}/stream{query}"
        options = {
            "compression": None,
            "max_size": None,
            "proxy": None,
            "open_timeout": PATIENCE,
            "close_timeout": 0.3,
        } | options
        stack = ExitStack()
        return Viewer(stack.enter_context(connect(url, **options)), stack)


def start(service: Service, sandbox: str, *command: str, **body: Any) -> Running:
    status, answer = service.call("POST", f"/sandboxes/{sandbox}/executions", {"command": list(command), **body})
    assert status == 201, answer
    return Running(service, f"/sandboxes/{sandbox}/executions/{answer['id']}")


@dataclass
class Viewer:
    """One open stream; what it has received so far."""

    socket: ClientConnection
    stack: ExitStack
    start: dict[str, Any] = field(default_factory=dict)
    exit: dict[str, Any] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, bytearray] = field(default_factory=lambda: {name: bytearray() for name in CHANNELS.values()})
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CHANNELS.values(), 0))
    digests: dict[str, Any] = field(default_factory=lambda: {name: hashlib.sha256() for name in CHANNELS.values()})
    keep: bool = True

    def step(self, timeout: float = PATIENCE) -> bool:
        """Takes one frame; False after the server's close."""
        try:
            frame = self.socket.recv(timeout)
        except ConnectionClosed:
            return False
        if isinstance(frame, bytes):
            name = CHANNELS[frame[0]]
            data = memoryview(frame)[1:]
            assert 0 < len(data) <= 64 * 1024
            self.counts[name] += len(data)
            self.digests[name].update(data)
            if self.keep:
                self.out[name] += data
            return True
        said = json.loads(frame)
        kind = said["type"]
        if kind == "start":
            assert not self.start
            self.start = said
        elif kind == "exit":
            self.exit = said
        elif kind == "gap":
            self.gaps.append(said)
        else:
            self.problems.append(said["problem"])
        return True

    def until_exit(self, timeout: float = PATIENCE) -> dict[str, Any]:
        """Reads to the server's close: nothing may come after the exit frame."""
        while not self.exit:
            assert self.step(timeout), f"closed {self.code} before the exit frame"
        assert not self.step(timeout), "a frame after the exit frame"
        assert self.code == 1000
        return self.exit

    def until(self, text: bytes, channel: str = "stdout") -> None:
        while text not in self.out[channel]:
            assert self.step(), f"closed {self.code}; saw {bytes(self.out[channel])[-200:]!r}"

    def until_closed(self) -> int | None:
        while self.step():
            pass
        return self.code

    @property
    def code(self) -> int | None:
        return self.socket.close_code

    def send(self, data: bytes | str) -> None:
        self.socket.send(data)

    def say(self, **frame: Any) -> None:
        self.socket.send(json.dumps(frame))

    def check(self) -> None:
        """Counts and digests of the exit frame are those of what came (only without gaps)."""
        for name in CHANNELS.values():
            told = self.exit[name]
            assert told["bytes"] == self.counts[name]
            assert told["sha256"] == self.digests[name].hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
