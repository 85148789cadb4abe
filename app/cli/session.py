"""One command in a sandbox, from the first request to the exit status. The sandbox is destroyed whatever happens."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.cli import BROKEN_PIPE, FAILED, sandbox, terminal
from app.cli.collect import collect
from app.cli.endings import shell_line, status_of
from app.cli.gaps import Gaps
from app.cli.interrupts import ENDING, GRACE_SECONDS, Interrupts, Stopped
from app.cli.pipes import DESCRIPTORS, OutputClosed, Sink, pour, wanted
from app.cli.private_modes import PrivateModes
from app.cli.show import is_terminal, put_json, say
from app.cli.terminal import DetachKeys, Raw
from app.client import Client, ClientError, ServiceProblem
from app.client.stream import Exited, Gap, Output, StdinTakenOver, Stream

HOLD_SECONDS = 0.5  # for the second of the keys that detach
GIVE_BACK_SECONDS, ANSWER_SECONDS = 0.5, 0.1  # a terminal answers what it was asked after that at the latest
SERVICE_ENDS = "the service is stopping"  # the detail of an exit
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
    attached: Mapping[str, Any] | None = None  # an execution that others have started: it outlives us
    take: bool = False


class Detached(Exception):
    """The person at the terminal left. The execution runs on."""


async def carry_out(client: Client, order: CommandRequest) -> int:
    """Runs the command and returns the exit status. Raises ClientError."""
    with Interrupts() as interrupts:
        try:
            if isinstance(order.sandbox, str):
                return await _whole(Session(client, interrupts, order, order.sandbox, kept=True))
            sandbox_id = (await sandbox.create(client, interrupts, order.sandbox))["id"]
            session = Session(client, interrupts, order, sandbox_id, kept=order.keep)
            keep = order.keep
            try:
                interrupts.check()
                return await _whole(session)
            except Detached:
                keep = True
                raise
            finally:
                if not keep:
                    await sandbox.destroy(client, interrupts, sandbox_id, service_ends=session.service_ends)
                elif not order.as_json:
                    say(f"the sandbox {sandbox_id} is kept")
        except Stopped as stopped:
            return stopped.status
        except Detached as detached:
            say(f"detached; to return: bulkhead attach {detached}")
            return 0


async def _whole(session: Session) -> int:
    """The command, then its files, then the JSON of both. Raises Detached, Stopped, ClientError."""
    order, interrupts = session.order, session.interrupts
    files: list[dict[str, str]] | None = None
    status = await session.run()
    try:
        if interrupts.status is None:
            await interrupts.wait_for(asyncio.create_task(session.tell_refused()), 0)
        if order.collect and interrupts.status is None:
            work = collect(session.client, session.sandbox_id, order.collect, order.into)
            files = await interrupts.wait_for(asyncio.create_task(work), 0)
    finally:
        session.report(files)
    return status or (FAILED if any("error" in file for file in files or ()) else 0)


async def attach(client: Client, sandbox_id: str, execution_id: str, *, stdin: bool, take: bool) -> int:
    """The exit status of an execution that runs already; 0 when it is left. Raises ClientError."""
    execution = await client.execution(sandbox_id, execution_id)
    if execution.get("state") == "ended":
        say(f"it has ended; bulkhead logs {sandbox_id} {execution_id} shows its output")
    here = terminal.there()
    size = terminal.size() if stdin and here and execution["tty"] else None
    asked = {"command": execution["command"], "stdin": "open" if stdin and (here or wanted()) else "none", "tty": size}
    order = CommandRequest(sandbox_id, asked, attached=execution, take=take)
    try:
        return await carry_out(client, order)
    except ServiceProblem as problem:
        if problem.slug != "conflict" or take or asked["stdin"] == "none":
            raise
    say("another client types; this one watches (--take takes over)")
    return await carry_out(client, replace(order, execution={**asked, "stdin": "none", "tty": None}))


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
        self._started_at: str | None = None
        self._result: dict[str, Any] = {}  # for --json
        self.service_ends = False  # and its sandboxes with it
        self._kept = kept  # the sandbox outlives us: what we started in it must be ended by name
        self._collected: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._truncated = {"stdout": False, "stderr": False}
        self._gaps = Gaps()
        self._line_end = "\n"
        self._modes = PrivateModes()
        self._is_watched = is_terminal()
        self._detached = False
        self._ended = False
        self._killing = False
        self._interrupted_at = float("-inf")
        self._follower: asyncio.Task[int] | None = None
        self._errands: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        if self.order.attached is not None:
            self.execution_id = self.order.attached["id"]
            return await self._follow()
        start = asyncio.create_task(self.client.start(self.sandbox_id, dict(self.order.execution)))
        # Where the sandbox goes anyway, the answer need not be waited for.
        execution = await self.interrupts.wait_for(start, GRACE_SECONDS if self._kept else 0)
        self.execution_id, self._started_at = execution["id"], execution.get("started_at")
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
        except OutputClosed as error:
            if self.order.attached is None:
                raise
            if error.quiet:
                return BROKEN_PIPE
            raise ClientError(str(error)) from error
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
            async with Sink() as sink, self._open_stream(stdin=with_stdin) as stream:
                with self._screen(stream):
                    try:
                        await self._redraw(stream)
                        if with_stdin:
                            feeder = asyncio.create_task(self._feed(stream))
                        exited = await self._until_exit(sink, stream)
                    finally:
                        await self._give_screen_back(sink)
                    await sink.drain()
                if self._detached:
                    raise Detached(f"{self.sandbox_id} {self.execution_id}")
                return FAILED if exited is None else await self._exited(sink, exited)
        finally:
            if feeder is not None:
                feeder.cancel()

    def _open_stream(self, *, stdin: bool) -> Stream:
        offsets: dict[str, int] = {}
        if self.order.attached is not None:
            offsets = {name: counts["bytes"] for name, counts in self.order.attached["output"].items()}
        return self.client.stream(
            self.sandbox_id, self.execution_id, stdin=stdin, take=self.order.take, offsets=offsets
        )

    async def _redraw(self, stream: Stream) -> None:
        """Whoever comes later sees nothing of what is on the screen. Programs draw it anew when the size changes."""
        known = self.order.execution.get("tty")
        if known is None or self.order.attached is None:
            return
        rows, cols = known["rows"], known["cols"]
        with contextlib.suppress(ServiceProblem):  # it has ended: the stream says how
            await self.client.resize(self.sandbox_id, self.execution_id, rows - 1 or rows + 1, cols)
        await stream.resize(rows, cols)

    async def _give_screen_back(self, sink: Sink) -> None:
        """Behind the last output; a terminal that takes none is not waited for."""
        asked = self._modes.asked
        if undo := self._modes.undo():
            sink.put(1, undo)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_BACK_SECONDS):
                await sink.drain()
                if asked and self._line_end == "\r\n":
                    await asyncio.sleep(ANSWER_SECONDS)

    async def _feed(self, stream: Stream) -> None:
        if self.order.execution.get("tty") is None:
            await pour(stream.write)
            return stream.end_input()
        keys, loop = DetachKeys(), asyncio.get_running_loop()
        release: asyncio.TimerHandle | None = None  # of the key that is held now

        async def press(data: bytes) -> None:
            nonlocal release
            if release is not None:
                release.cancel()
                release = None
            passed, left = keys.press(data)
            await stream.write(passed)
            if left:
                self._detached = True
                await stream.leave()
            elif keys.holds:
                release = loop.call_later(HOLD_SECONDS, lambda: self._run_errand(stream.write(keys.release())))

        try:
            await pour(press)
        finally:
            if release is not None:
                release.cancel()
        await stream.write(keys.release())
        return stream.end_input()

    async def _until_exit(self, sink: Sink, stream: Stream) -> Exited | None:
        async for event in stream:
            match event:
                case Output():
                    await self._output(sink, event)
                case Gap():
                    self._truncated[event.channel] = True
                    if (warning := self._gaps.add(event)) is not None:
                        await sink.say(warning, self._line_end)
                case StdinTakenOver():
                    leaves = "" if self.order.execution.get("tty") is None else "; Ctrl-P Ctrl-Q leaves"
                    told = f"another client took stdin over; this one watches{leaves}"
                    await sink.say(told, self._line_end)
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
        with Raw(known, lambda size: self._run_errand(stream.resize(**size)), self._modes.undo):
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
            if self._is_watched:
                self._modes.read(event.data)
            await sink.write(DESCRIPTORS[event.channel], event.data)

    async def _exited(self, sink: Sink, event: Exited) -> int:
        status, sentence = status_of(event.exit, event.exit_code)
        sentence = shell_line(event.exit, status, self.order.execution["command"]) or sentence
        for line in (*self._gaps.summary(), sentence):
            if line is not None:
                await sink.say(line)
        self.service_ends = event.exit.get("detail") == SERVICE_ENDS
        self._result = {
            "sandbox_id": self.sandbox_id,
            "execution_id": self.execution_id,
            "status": status,
            "exit": event.exit,
        }
        return status

    def report(self, files: Sequence[Mapping[str, str]] | None) -> None:
        """With --json, prints the result and the files that were collected. Without an exit it prints nothing."""
        if self.order.as_json and self._result:
            outputs = {**encode(self._collected), **{f"{name}_truncated": cut for name, cut in self._truncated.items()}}
            put_json({**self._result, **outputs, **({} if files is None else {"collected": files})})

    async def tell_refused(self) -> None:
        """Says which hosts were refused while the command ran."""
        if not self._ended or self.order.attached is not None or not self._may_have_network:
            return
        from app.cli.network import advice, refused

        found = await refused(self.client, self.sandbox_id, self._started_at)
        if found is None:
            return
        if self.order.as_json:
            self._result["network"] = {"refused": found}
        else:
            for line in advice(found, self.sandbox_id):
                say(line)

    @property
    def _may_have_network(self) -> bool:
        """A sandbox that others made may have one."""
        if isinstance(self.order.sandbox, str):
            return True
        network = (self.order.sandbox.get("policy") or {}).get("network") or {}
        return network.get("mode") == "proxy"

    # --- signals

    def _on_signal(self, number: signal.Signals) -> None:
        now = asyncio.get_running_loop().time()
        again = now - self._interrupted_at < AGAIN_SECONDS
        self._interrupted_at = now
        attached = self.order.attached is not None
        watching = attached and self.order.execution["stdin"] == "none"
        if self._ended or self._killing or watching or (attached and (number in ENDING or again)):
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


def encode(channels: Mapping[str, bytes | bytearray]) -> dict[str, str]:
    """Returns the channels as text, or as base64 when the bytes of either are not UTF-8. `encoding` says which."""
    try:
        return {name: data.decode() for name, data in channels.items()} | {"encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode() for name, data in channels.items()} | {"encoding": "base64"}
