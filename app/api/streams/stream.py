"""One open stream. Output goes to the client. Stdin, signals and sizes come from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import Receive, Send

from app.api.context import ApplicationContext
from app.api.streams.frames import CHANNEL_BYTE, StdinEof, exit_frame, gap_frame, problem_frame, start_frame, understand
from app.api.streams.viewing import Offsets, View
from app.core.backend import settle
from app.core.errors import BulkheadError, Conflict, Forbidden
from app.core.executions import Execution, StdinLease
from app.core.follow import OutputGap, OutputPiece
from app.core.models import Terminal

NORMAL, POLICY_VIOLATION, INTERNAL_ERROR, TAKEN_OVER = 1000, 1008, 1011, 4001
REASONS = {
    NORMAL: "the execution has ended",
    POLICY_VIOLATION: "this stream does not hold the stdin of the execution",
    INTERNAL_ERROR: "the service has a fault; its log has the reason",
    TAKEN_OVER: "another stream has taken stdin",
}


@dataclass(frozen=True, slots=True)
class WebSocketEncoding:
    """The connection of a client, and the encoding of a view as frames. `send` and `receive` are the server's own."""

    receive: Receive
    send: Send
    request_id: str

    async def text(self, frame: str) -> None:
        await self.send({"type": "websocket.send", "text": frame})

    async def problem(self, error: Exception) -> None:
        await self.text(problem_frame(error, self.request_id))

    # --- Encoding

    async def start(self, execution: Execution, offsets: Offsets) -> None:
        await self.text(start_frame(execution, offsets))

    async def output(self, item: OutputPiece) -> None:
        await self.send({"type": "websocket.send", "bytes": CHANNEL_BYTE[item.channel] + item.data})

    async def gap(self, gap: OutputGap) -> None:
        await self.text(gap_frame(gap))

    async def exit(self, execution: Execution) -> None:
        await self.text(exit_frame(execution))


class StreamSession:
    """It does three things at once: output (closes with 1000 after the exit frame), input (1008 for stdin from a stream
    that does not hold it) and take-over (4001). The first with a close code ends the session. Input also ends it when
    the client is gone."""

    def __init__(
        self, context: ApplicationContext, view: View, lease: StdinLease | None, line: WebSocketEncoding
    ) -> None:
        self._context = context
        self._view = view
        self._execution = view.execution
        self._lease = lease
        self._line = line

    async def run(self) -> None:
        await self._line.send({"type": "websocket.accept"})
        try:
            code = await self._until_over()
        except Exception as error:  # whatever it is, the client is told that the stream cannot go on
            self._context.journal.failure(request_id=self._line.request_id, error=error)
            await self._close(INTERNAL_ERROR, error)
        else:
            if code is not None:
                await self._close(code)

    async def _close(self, code: int, error: Exception | None = None) -> None:
        """Closes. A client that does not read delays these frames only for a limited time."""
        try:
            async with asyncio.timeout(self._context.timeouts.close):
                if error is not None:
                    await self._line.problem(error)
                await self._line.send({"type": "websocket.close", "code": code, "reason": REASONS[code]})
        except (TimeoutError, OSError):
            return

    async def _until_over(self) -> int | None:
        """Returns the close code. None when the client is gone. The output has no task of its own, so what there is of
        it leaves in one packet with the acceptance."""
        loop = asyncio.get_running_loop()
        up = loop.create_task(self._input())
        tasks = [up] if self._lease is None else [up, loop.create_task(self._take_over(self._lease))]
        code, sending = None, asyncio.timeout(None)
        is_sending = True

        def stop_sending(_: asyncio.Task[int | None]) -> None:
            if is_sending and not sending.expired():
                sending.reschedule(loop.time())

        try:
            async with sending:
                for task in tasks:
                    task.add_done_callback(stop_sending)
                code = await self._output()
                if code is None:  # that alone ends nothing: stdin that came before the disconnect is still read
                    await asyncio.wait([up])
        except TimeoutError:
            if not sending.expired():
                raise
        finally:
            is_sending = False
            done = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            for task in tasks:
                if not task.done():
                    await settle(task)
        return max((code for code in (code, *(task.result() for task in done)) if code is not None), default=None)

    async def _take_over(self, lease: StdinLease) -> int | None:
        await lease.taken_over.wait()
        return TAKEN_OVER

    # --- down

    async def _output(self) -> int | None:
        try:
            await self._view.send_to(self._line)
        except OSError:  # the server's way to say that the client is gone
            return None
        return NORMAL

    # --- up

    async def _input(self) -> int | None:
        try:
            while (message := await self._line.receive())["type"] != "websocket.disconnect":
                data: bytes | None = message.get("bytes")
                try:
                    if data is None:
                        await self._obey(understand(message.get("text") or ""))
                    elif self._lease is None:
                        await self._line.problem(Conflict(REASONS[POLICY_VIOLATION]))
                        return POLICY_VIOLATION
                    else:
                        await self._feed(self._lease, data)
                except BulkheadError as error:
                    await self._line.problem(error)
        except OSError:
            return None
        return None

    async def _obey(self, request: StdinEof | Terminal | int) -> None:
        if self._view.only:
            raise Forbidden("this stream was opened with a ticket without stdin: it can only read")
        if isinstance(request, int):
            await self._execution.signal(request)
        elif isinstance(request, Terminal):
            await self._execution.resize(request)
        elif self._lease is None:
            raise Conflict(REASONS[POLICY_VIOLATION])
        else:
            await self._lease.close()

    async def _feed(self, lease: StdinLease, data: bytes) -> None:
        """Feeds stdin. While the program does not read, the socket is not read either, so a disconnect would not be
        noticed. A message without content sends nothing, but raises when the connection is gone."""
        write = asyncio.get_running_loop().create_task(lease.write(data))
        try:
            while not (await asyncio.wait([write], timeout=self._context.timeouts.probe))[0]:
                await self._line.send({"type": "websocket.send"})
            await write
        finally:
            write.cancel()
            await settle(write)
