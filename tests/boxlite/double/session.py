"""One attached client: the replay, the live output, and what the client sends."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from tests.boxlite.double.execution import Execution
from tests.boxlite.double.faults import Attach
from tests.boxlite.double.http import dumps
from tests.boxlite.double.machine import GuestLost, NoSuchProcess
from tests.boxlite.double.settings import Settings
from tests.boxlite.double.websocket import WebSocket

SIGNALS = (1, 2, 3, 6, 10, 12, 15, 28)
USUAL = Attach()


@dataclass(frozen=True)
class Frame:
    """One message of a client: its text, or how many bytes of stdin it was."""

    execution_id: str
    text: str | None
    size: int


def control(kind: str, **values: Any) -> str:
    return dumps(dict(sorted({"type": kind, **values}.items())))


class Session:
    def __init__(
        self,
        socket: WebSocket,
        execution: Execution,
        settings: Settings,
        frames: list[Frame],
        *,
        read_only: bool,
        fault: Attach | None,
    ) -> None:
        self._frames_received = frames
        self._socket = socket
        self._execution = execution
        self._settings = settings
        self._read_only = read_only
        self._refused: set[str] = set()
        self._fault = fault or USUAL
        self._wake = asyncio.Event()
        self._frames = 0

    async def run(self) -> None:
        """Until the client is gone, or the execution has ended and the client has answered the Close."""
        loop = asyncio.get_running_loop()
        sender = loop.create_task(self._send_all())
        receiver = loop.create_task(self._receive_all())
        try:
            await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and not receiver.done() and sender.exception() is None:
                seconds = self._settings.close_seconds if self._fault.close else None
                await asyncio.wait({receiver}, timeout=seconds)
        finally:
            for task in (sender, receiver):
                task.cancel()
            await asyncio.gather(sender, receiver, return_exceptions=True)
            self._execution.free.set()
            self._execution.last_seen = loop.time()

    async def _send_all(self) -> None:
        execution, fault = self._execution, self._fault
        followed = [(stream, *stream.follow(self._wake.set)) for stream in execution.streams]
        execution.when_done(self._wake.set)
        try:
            if execution.shown_code is None and fault.pings:
                await self._socket.ping()
            for message in fault.first:
                await self._socket.send(message)
            await self._send_output(followed)
        except TimeoutError:
            if execution.shown_code is None:
                self._socket.cut()
                raise
        finally:
            execution.forget(self._wake.set)
            for stream, _, reader in followed:
                stream.leave(reader)
        if fault.exit:
            await self._socket.send(control("exit", exit_code=execution.shown_code))
        if fault.close:
            await self._socket.close()

    async def _send_output(self, followed: list[Any]) -> None:
        execution = self._execution
        for stream, backlog, _ in followed:
            for chunk in backlog:
                await self._send(stream.channel + chunk)
        while execution.shown_code is None:
            self._wake.clear()
            sent = False
            for stream, _, reader in followed:
                if chunk := reader.take():
                    await self._send(stream.channel + chunk)
                    sent = True
            if sent:
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), self._settings.ping_seconds)
            except TimeoutError:
                if self._fault.pings:
                    await self._socket.ping()
        for stream, _, reader in followed:
            while chunk := reader.take_last():
                await self._send(stream.channel + chunk)

    async def _send(self, message: bytes) -> None:
        if self._fault.output:
            async with asyncio.timeout(self._settings.write_seconds):
                await self._socket.send(message)
        self._frames += 1
        if self._frames == self._fault.cut_after:
            self._socket.cut()

    async def _receive_all(self) -> None:
        async for message in self._socket.messages():
            text = message if isinstance(message, str) else None
            self._frames_received.append(Frame(self._execution.id, text, len(message)))
            if isinstance(message, bytes):
                if self._read_only:
                    await self._refuse("stdin")
                    await self._socket.close(1008, "read-only attach")
                    return
                self._execution.write(message)
            elif error := await self._obey(message):
                await self._socket.send(control("error", message=error))

    async def _refuse(self, kind: str) -> None:
        """Once for every kind; later ones vanish."""
        if kind not in self._refused:
            self._refused.add(kind)
            text = f"read-only attach rejected a write: {kind}"
            await self._socket.send(control("error", code="read_only_attach", message=text))

    async def _obey(self, message: str) -> str | None:
        try:
            frame = json.loads(message)
        except ValueError as error:
            return f"invalid control frame: {error}"
        kind = frame.get("type") if isinstance(frame, dict) else None
        if not isinstance(kind, str):
            return "control frame missing 'type' field"
        if kind not in {"stdin_eof", "signal", "resize"}:
            return f"unknown control type: {kind}"
        if self._read_only:
            await self._refuse(kind)
            return None
        numbers = [frame.get(name) for name in {"signal": ["sig"], "resize": ["cols", "rows"]}.get(kind, [])]
        for name, number in zip({"signal": ["sig"]}.get(kind, ["cols", "rows"]), numbers, strict=False):
            if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
                return f"{kind}: '{name}' must be a positive integer"
        return await self._act(kind, numbers)

    async def _act(self, kind: str, numbers: list[Any]) -> str | None:
        if kind == "stdin_eof":
            self._execution.end_stdin()
        elif kind == "resize":
            if not self._execution.terminal:
                return "resize failed: internal error: execution was not started with a PTY"
            self._execution.resize(*numbers)
        elif numbers[0] not in SIGNALS:
            return f"signal {numbers[0]} not allowed; whitelist: {list(SIGNALS)}"
        else:
            try:
                await self._execution.signal(numbers[0])
            except (NoSuchProcess, GuestLost):
                return "signal failed: internal error: Failed to send signal"
        return None
