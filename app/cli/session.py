"""One command in a sandbox, from the first request to the exit status. The sandbox is destroyed whatever happens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.cli import BROKEN_PIPE, FAILED, sandbox
from app.cli.collect import collect
from app.cli.endings import shell_line, status_of
from app.cli.gaps import Gaps
from app.cli.interrupts import ENDING, GRACE_SECONDS, Interrupts, Stopped
from app.cli.pipes import DESCRIPTORS, OutputClosed, Sink, pour
from app.cli.show import message, put_json, say
from app.client import Client, ClientError, ServiceProblem
from app.client.stream import Exited, Gap, Output, Stream

AGAIN_SECONDS = 2.0  # a second Ctrl-C within this time kills
COLLECTED_BYTES = 64 * 1024 * 1024  # of each channel, for --json


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """`sandbox` is the body of a create, or the id of an existing sandbox, which is kept."""

    sandbox: Mapping[str, Any] | str
    execution: Mapping[str, Any]
    keep: bool = False
    as_json: bool = False
    collect: Sequence[str] = ()
    into: str = "."


async def carry_out(client: Client, order: CommandRequest) -> int:
    """Runs the command and returns the exit status. Raises ClientError."""
    with Interrupts() as interrupts:
        try:
            if isinstance(order.sandbox, str):
                return await Session(client, interrupts, order, order.sandbox, kept=True).run()
            sandbox_id = (await sandbox.create(client, interrupts, order.sandbox))["id"]
            try:
                interrupts.check()
                status = await Session(client, interrupts, order, sandbox_id, kept=order.keep).run()
                if order.collect and not await collect(client, sandbox_id, order.collect, order.into):
                    return status or FAILED
                return status
            finally:
                if not order.keep:
                    await sandbox.destroy(client, interrupts, sandbox_id)
                elif not order.as_json:
                    say(f"the sandbox {sandbox_id} is kept")
        except Stopped as stopped:
            return stopped.status


class Session:
    """One execution with the terminal, pipes and signals that belong to it."""

    def __init__(
        self, client: Client, interrupts: Interrupts, order: CommandRequest, sandbox_id: str, *, kept: bool
    ) -> None:
        self.client = client
        self.interrupts = interrupts
        self.order = order
        self.sandbox_id = sandbox_id
        self.execution_id = ""
        self._kept = kept  # the sandbox outlives us: what we started in it must be ended by name
        self._collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._truncated = {"stdout": False, "stderr": False}
        self._gaps = Gaps()
        self._line_end = "\n"
        self._ended = False
        self._killing = False
        self._interrupted_at = float("-inf")
        self._follower: asyncio.Task[int] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        start = asyncio.create_task(self.client.start(self.sandbox_id, dict(self.order.execution)))
        # Where the sandbox goes anyway, the answer need not be waited for.
        execution = await self.interrupts.wait_for(start, GRACE_SECONDS if self._kept else 0)
        self.execution_id = execution["id"]
        try:
            self.interrupts.check()
            return await self._follow()
        except (OutputClosed, Stopped) as error:
            if self._kept and not self._ended:
                await self._errand(self.client.kill(self.sandbox_id, self.execution_id))
            if isinstance(error, OutputClosed) and error.quiet:
                return BROKEN_PIPE
            if isinstance(error, OutputClosed):
                raise ClientError(str(error)) from error
            raise

    async def _follow(self) -> int:
        self._follower = asyncio.create_task(self._stream())
        self.interrupts.react(self._on_signal)
        try:
            status = await self._follower
        except asyncio.CancelledError:
            self.interrupts.check()
            raise
        finally:
            self.interrupts.react(None)
            for errand in self._errands:
                errand.cancel()
        return status if self.interrupts.status is None else self.interrupts.status

    # --- output and input

    async def _stream(self) -> int:
        with_stdin = self.order.execution.get("stdin") == "open"
        feeder: asyncio.Task[None] | None = None
        try:
            async with (
                Sink() as sink,
                self.client.stream(self.sandbox_id, self.execution_id, stdin=with_stdin) as stream,
            ):
                with self._screen(stream):
                    if with_stdin:
                        feeder = asyncio.create_task(_feed(stream))
                    exited = await self._until_exit(sink, stream)
                    await sink.drain()
                return FAILED if exited is None else await self._exited(sink, exited)
        finally:
            if feeder is not None:
                feeder.cancel()

    async def _until_exit(self, sink: Sink, stream: Stream) -> Exited | None:
        async for event in stream:
            match event:
                case Output():
                    await self._output(sink, event)
                case Gap():
                    self._truncated[event.channel] = True
                    if (warning := self._gaps.add(event)) is not None:
                        await sink.write(2, message(warning, self._line_end))
                case Exited():
                    self._ended = True
                    return event
        return None

    @contextlib.contextmanager
    def _screen(self, stream: Stream) -> Iterator[None]:
        """With a terminal, our own one is the program's until the block is left."""
        known = self.order.execution.get("tty")
        if known is None:
            yield
            return
        from app.cli.terminal import Raw

        with Raw(known, lambda size: self._run_errand(stream.resize(**size))):
            self._line_end = "\r\n"
            yield
        self._line_end = "\n"

    async def _output(self, sink: Sink, event: Output) -> None:
        if self.order.as_json:
            collected = self._collected[event.channel]
            collected += event.data
            if len(collected) > COLLECTED_BYTES:
                del collected[:-COLLECTED_BYTES]  # from the front of a bytearray this moves no bytes
                self._truncated[event.channel] = True
        else:
            await sink.write(DESCRIPTORS[event.channel], event.data)

    async def _exited(self, sink: Sink, event: Exited) -> int:
        status, sentence = status_of(event.exit, event.exit_code)
        sentence = shell_line(event.exit, status, self.order.execution["command"]) or sentence
        for line in (*self._gaps.summary(), sentence):
            if line is not None:
                await sink.write(2, message(line))
        if self.order.as_json:
            put_json(
                {
                    "sandbox_id": self.sandbox_id,
                    "execution_id": self.execution_id,
                    "status": status,
                    "exit": event.exit,
                    **encode(self._collected),
                    **{f"{name}_truncated": cut for name, cut in self._truncated.items()},
                }
            )
        return status

    # --- signals

    def _on_signal(self, number: signal.Signals) -> None:
        now = asyncio.get_running_loop().time()
        again = now - self._interrupted_at < AGAIN_SECONDS
        self._interrupted_at = now
        if self._ended or self._killing:
            self._give_up(number)
        elif number in ENDING or again:
            self._killing = True
            if number in ENDING:
                self.interrupts.end_with(number)
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._give_up, number)
            self._run_errand(self.client.kill(self.sandbox_id, self.execution_id))
        else:
            self._run_errand(self.client.signal(self.sandbox_id, self.execution_id, number.name))

    def _give_up(self, number: signal.Signals) -> None:
        if self._follower is not None and not self._follower.done():
            self.interrupts.end_with(number)
            self._follower.cancel()

    def _run_errand(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._errand(call))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _errand(self, call: Coroutine[Any, Any, None]) -> None:
        try:
            await call
        except ServiceProblem as problem:
            if problem.slug not in {"wrong_state", "not_found"}:  # it ended first: the stream says how
                say(str(problem), self._line_end)
        except ClientError as error:
            say(str(error), self._line_end)


async def _feed(stream: Stream) -> None:
    await pour(stream.write)
    stream.end_input()


def encode(channels: Mapping[str, bytes | bytearray]) -> dict[str, str]:
    """Returns the channels as text, or as base64 when the bytes of either are not UTF-8. `encoding` says which."""
    try:
        return {name: data.decode() for name, data in channels.items()} | {"encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode() for name, data in channels.items()} | {"encoding": "base64"}
