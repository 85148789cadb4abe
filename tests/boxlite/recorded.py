"""What a recording says that was sent, held against what the double sends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

SECONDS = 60  # as long as anything may take
# What differs between two runs of the real server too, or is said by a library that the double does not have.
BLURS = [
    (r" at line \d+ column \d+", ""),
    (r"\b[0-9a-f]{64}\b", "CONTAINER"),
    (r"Some\(\d+\)", "Some(PID)"),
    (r'\["[A-Za-z0-9]{12}"(, "[A-Za-z0-9]{12}")*\]', "[IDS]"),
    (r"at path '\"[^']*'", "at path PATH"),
    (r"(Failed to parse the request body as JSON|invalid control frame): .*", r"\1"),
    (r"(Failed to pull image '[^']*' after trying 1 registry).*", r"\1"),
]


def blur(value: Any) -> Any:
    if isinstance(value, dict):
        blurred = {key: blur(item) for key, item in value.items()}
        for key in {"created_at", "updated_at"} & set(blurred):
            blurred[key] = "TIME"
        if isinstance(blurred.get("pid"), int):
            blurred["pid"] = "PID"
        return blurred
    if isinstance(value, list):
        return [blur(item) for item in value]
    if isinstance(value, str):
        for pattern, shown in BLURS:
            value = re.sub(pattern, shown, value, flags=re.DOTALL)
    return value


@dataclass
class Socket:
    """One attach: what the real server sent until when, and what the double has sent so far."""

    step: dict[str, Any]
    silent: bool  # its output is of another shell or another clock, so that only the texts count
    socket: ClientConnection
    frames: list[str | bytes] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    reader: asyncio.Task[None] | None = None
    left: bool = False

    def follow(self) -> None:
        async def read() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    self.frames.append(await self.socket.recv())
                    self.changed.set()

        self.reader = asyncio.get_running_loop().create_task(read())
        self.reader.add_done_callback(lambda _: self.changed.set())

    def recorded(self, before: float = float("inf")) -> list[str | bytes]:
        return [
            frame["text"] if "text" in frame else base64.b64decode(frame["binary_base64"])
            for frame in self.step["websocket"]["received"]
            if self.step["at_ms"] + frame["at_ms"] < before
        ]

    def heard(self, frames: list[str | bytes]) -> dict[str, Any]:
        binary = [frame for frame in frames if isinstance(frame, bytes) and not self.silent]
        return {
            "stdout": b"".join(frame[1:] for frame in binary if frame[0] == 1),
            "stderr": b"".join(frame[1:] for frame in binary if frame[0] == 2),
            "texts": [blur(json.loads(frame)) for frame in frames if isinstance(frame, str)],
        }

    async def catch_up(self, moment: float) -> None:
        async with asyncio.timeout(SECONDS):
            expected = self.heard(self.recorded(moment))
            while self.reader is not None and not self.reader.done():
                self.changed.clear()
                if all(len(self.heard(self.frames)[key]) >= len(value) for key, value in expected.items()):
                    return
                await self.changed.wait()

    async def compare(self) -> None:
        assert self.reader is not None
        if not self.left:
            await asyncio.wait_for(self.reader, SECONDS)
            code = self.step["websocket"]["close_code"] or 1006
            assert self.socket.close_code == code, (self.step["websocket"]["path"], self.socket.close_code)
            assert self.heard(self.frames) == self.heard(self.recorded())
        self.reader.cancel()
