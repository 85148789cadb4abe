"""Leaving an execution at a terminal and coming back to it, and what becomes of the terminal."""

from __future__ import annotations

import asyncio
import fcntl
import signal
import struct
import termios
from typing import Any, cast

import pytest

from app.cli import session
from tests.unit.cli.fake_service import EXECUTION, SANDBOX, FakeService, Wire, answer, fake_service, problem
from tests.unit.cli.screen import screen
from tests.unit.cli.test_terminal import DESTROY, DRAWS, EXECUTIONS, UNDONE, Drawing, Shell, typed
from tests.unit.cli.typed import bulkhead

PATH = f"{EXECUTIONS}/{EXECUTION}"
KILL = f"DELETE {PATH}"
LEFT = f"detached; to return: bulkhead attach {SANDBOX} {EXECUTION}\r\n".encode()


def running(service: FakeService, stdout: int = 0, stderr: int = 0, state: str = "running") -> None:
    """An execution on a terminal, which has printed so many bytes."""
    output = {"stdout": {"bytes": stdout, "dropped_bytes": 0}, "stderr": {"bytes": stderr, "dropped_bytes": 0}}
    body = {"id": EXECUTION, "sandbox_id": SANDBOX, "command": ["sh"], "tty": True, "output": output, "state": state}
    service.answers[f"GET {PATH}"] = answer(200, body)
    service.answers[f"POST {PATH}/resize"] = (204, {}, b"")


# --- the keys


@pytest.mark.parametrize("words", ["run -it sh", f"exec -it {SANDBOX} sh", f"attach {SANDBOX} {EXECUTION}"])
async def test_two_keys_leave_and_the_execution_runs_on(words: str) -> None:
    shell = Drawing()
    async with screen() as terminal, fake_service(shell) as service:
        running(service)
        before = terminal.modes()
        process = await terminal.begin(service.url, *words.split())
        await terminal.until(b"$ ")
        terminal.type(b"ls\x10\x11never")
        while (sent := await shell.typed.get()) != b"ls":
            assert sent == {"type": "resize", "rows": 33, "cols": 99}  # of attach
        assert await process.wait() == 0
        await terminal.until(LEFT)
        assert terminal.modes() == before
        assert {KILL, DESTROY}.isdisjoint(service.asked())
    assert UNDONE in terminal.shown
    assert terminal.shown.index(UNDONE) < terminal.shown.index(LEFT)


async def test_first_of_the_keys_alone_reaches_the_program_in_the_end() -> None:
    shell = Shell()
    async with screen() as terminal, fake_service(shell) as service:
        process = await terminal.begin(service.url, "run", "-it", "sh")
        await terminal.until(b"$ ")
        terminal.type(b"\x10")
        assert await typed(shell, 1) == b"\x10"
        shell.end.set()
        assert await process.wait() == 5


async def test_an_earlier_key_does_not_release_the_first_of_the_keys_too_early() -> None:
    """Timers of the loop: one while a key is held, and none for all others."""
    keys, fired = Keys(b"a", b"b", b"\x10", b"c", b"\x10"), []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def counted(delay: float, call: Any, *arguments: Any) -> asyncio.TimerHandle:
        fired.append(call_later(60, call, *arguments))
        return fired[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "pour", keys)
        patch.setattr(loop, "call_later", counted)
        order = session.CommandRequest("s", {"tty": {"rows": 1, "cols": 1}})
        await session.Session(cast(Any, None), cast(Any, None), order, "s", kept=True)._feed(cast(Any, keys))
    assert (keys.written, keys.ended) == (b"ab\x10c\x10", True)
    assert [handle.cancelled() for handle in fired] == [True, True]


class Keys:
    """A keyboard, and the stream that its keys go to."""

    def __init__(self, *pressed: bytes) -> None:
        self.pressed = pressed
        self.written = b""
        self.ended = False

    async def __call__(self, press: Any) -> None:
        for key in self.pressed:
            await press(key)

    async def write(self, data: bytes) -> None:
        self.written += data

    def end_input(self) -> None:
        self.ended = True


# --- attach


async def test_attach_to_what_has_ended_says_where_its_output_is() -> None:
    shell = Shell()
    shell.end.set()
    async with fake_service(shell) as service:
        running(service, state="ended")
        ended = await bulkhead(service.url, "attach", SANDBOX, EXECUTION)
    assert ended.status == 5
    assert ended.stderr == f"bulkhead: it has ended; bulkhead logs {SANDBOX} {EXECUTION} shows its output\n"


async def test_attach_shows_what_comes_types_and_has_the_program_draw_anew() -> None:
    shell = Shell()

    async def program(wire: Wire) -> None:
        wire.sent = {1: bytes(1000), 2: bytes(7)}
        await shell(wire)

    async with screen() as terminal, fake_service(program) as service:
        running(service, 1000, 7)
        process = await terminal.begin(service.url, "attach", SANDBOX, EXECUTION)
        await terminal.until(b"$ ")
        assert terminal.is_raw()
        terminal.type(b"\x03")
        sizes = [await shell.typed.get(), await shell.typed.get()]
        shell.end.set()
        assert await process.wait() == 5
    assert sizes == [{"type": "resize", "rows": 33, "cols": 99}, b"\x03"]
    assert service.body_of(f"POST {PATH}/resize") == {"rows": 32, "cols": 99}
    (stream,) = [request for request in service.requests if request.path.endswith("/stream")]
    assert stream.query == {"stdout_offset": "1000", "stderr_offset": "7", "stdin": "true"}
    assert f"POST {EXECUTIONS}" not in service.asked()


async def test_attach_watches_when_somebody_else_types_and_a_signal_leaves() -> None:
    async def prints(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"$ ")
        await asyncio.Event().wait()

    class Held(FakeService):
        async def _stream(self, request: Any, reader: Any, writer: Any) -> None:
            if request.query["stdin"] == "true":
                await self._reply(writer, problem(409, "conflict", "conflict", detail="stdin is held"))
                return
            await super()._stream(request, reader, writer)

    async with screen() as terminal, fake_service(prints, kind=Held) as service:
        running(service)
        before = terminal.modes()
        process = await terminal.begin(service.url, "attach", SANDBOX, EXECUTION)
        await terminal.until(b"$ ")
        assert b"bulkhead: another client types; this one watches (--take takes over)\r\n" in terminal.shown
        terminal.type(b"\x03")  # its own terminal is as it was: this is SIGINT
        assert await process.wait() == 130
        assert terminal.modes() == before
        assert [request for request in service.asked() if "DELETE" in request or "signal" in request] == []


async def test_client_that_loses_its_stdin_says_so_and_leaves_by_the_detach_keys() -> None:
    async def taken_over(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"$ ")
        await wire.close(4001)

    async def goes_on(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"typed by another")
        await asyncio.Event().wait()

    async with screen() as terminal, fake_service(taken_over, goes_on) as service:
        running(service)
        before = terminal.modes()
        process = await terminal.begin(service.url, "attach", SANDBOX, EXECUTION)
        await terminal.until(b"typed by another")
        assert b"bulkhead: another client took stdin over; this one watches; Ctrl-P Ctrl-Q leaves\r\n" in terminal.shown
        terminal.type(b"\x10\x11")
        assert await process.wait() == 0
        assert terminal.modes() == before
    streams = [request for request in service.requests if request.path.endswith("/stream")]
    assert [stream.query["stdin"] for stream in streams] == ["true", "false"]


@pytest.mark.parametrize(("options", "stdin"), [(["--take"], "take"), (["--no-stdin"], "false")])
async def test_attach_takes_over_or_only_watches(options: list[str], stdin: str) -> None:
    shell = Shell()
    shell.end.set()
    async with screen() as terminal, fake_service(shell) as service:
        running(service)
        process = await terminal.begin(service.url, "attach", *options, SANDBOX, EXECUTION)
        assert await process.wait() == 5
    (stream,) = [request for request in service.requests if request.path.endswith("/stream")]
    assert stream.query["stdin"] == stdin


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_signal_that_ends_attach_does_not_end_the_execution(number: signal.Signals, status: int) -> None:
    shell = Shell()
    async with screen() as terminal, fake_service(shell) as service:
        running(service)
        before = terminal.modes()
        process = await terminal.begin(service.url, "attach", SANDBOX, EXECUTION)
        await terminal.until(b"$ ")
        process.send_signal(number)
        assert await process.wait() == status
        assert terminal.modes() == before
        assert KILL not in service.asked()


# --- what becomes of the terminal


async def test_screen_is_given_back_when_the_service_is_killed() -> None:
    async def dies(wire: Wire) -> None:
        await wire.start()
        await wire.output(DRAWS)
        wire.cut()

    async def is_gone(wire: Wire) -> None:
        wire.cut()

    async with screen() as terminal, fake_service(dies, is_gone) as service:
        before = terminal.modes()
        process = await terminal.begin(service.url, "exec", "-it", SANDBOX, "sh")
        assert await process.wait() == 125
        await terminal.until(b"could not be resumed")
        assert terminal.modes() == before
    assert UNDONE in terminal.shown


async def test_screen_is_given_back_after_a_signal() -> None:
    shell = Drawing()
    async with screen() as terminal, fake_service(shell) as service:
        process = await terminal.begin(service.url, "exec", "-it", SANDBOX, "sh")
        await terminal.until(b"$ ")
        process.send_signal(signal.SIGTERM)
        await service.killed.wait()
        shell.end.set()
        assert await process.wait() == 143
        await terminal.until(UNDONE)


async def test_answers_of_the_terminal_are_not_typed_into_the_shell() -> None:
    """A program asks, and ends before the answer comes."""

    async def asks(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"\x1b[6n")
        await wire.exit(code=5)

    async with screen() as terminal, fake_service(asks) as service:
        process = await terminal.begin(service.url, "run", "-it", "sh")
        await terminal.until(b"\x1b[6n")
        terminal.type(b"\x1b[1;1R")
        assert await process.wait() == 5
        waiting = fcntl.ioctl(terminal.slave, termios.FIONREAD, bytes(4))
        modes = termios.tcgetattr(terminal.slave)
        modes[3] &= ~termios.ICANON  # what waits is counted in lines otherwise
        termios.tcsetattr(terminal.slave, termios.TCSANOW, modes)
        waiting = fcntl.ioctl(terminal.slave, termios.FIONREAD, bytes(4))
    assert struct.unpack("i", waiting) == (0,)


# --- stdin without a terminal for the program


HINT = b"bulkhead: stdin is not connected (-i connects it, -it adds a terminal)\r\n"


@pytest.mark.parametrize("words", [["run", "cat"], ["exec", SANDBOX, "cat"]])
async def test_person_at_a_terminal_is_told_that_stdin_is_not_connected(words: list[str]) -> None:
    told = asyncio.Event()

    async def waits(wire: Wire) -> None:
        await wire.start()
        await told.wait()
        await wire.exit(code=0)

    async with screen() as terminal, fake_service(waits) as service:
        process = await terminal.begin(service.url, *words)
        await terminal.until(b"\n")
        told.set()
        assert await process.wait() == 0
    assert terminal.shown == HINT
    assert len(HINT.rstrip()) <= 79
    assert service.body_of(f"POST {EXECUTIONS}")["stdin"] == "none"


async def test_command_that_ends_at_once_needs_no_word_about_stdin() -> None:
    async def ends(wire: Wire) -> None:
        await wire.start()
        await wire.exit(code=3)

    async with screen() as terminal, fake_service(ends) as service:
        process = await terminal.begin(service.url, "run", "true")
        assert await process.wait() == 3
    assert b"stdin" not in terminal.shown


async def test_stdin_of_a_terminal_is_passed_on_by_lines_when_it_is_asked_for() -> None:
    async def cat(wire: Wire) -> None:
        await wire.start()
        await wire.output(await wire.read_stdin())
        await wire.exit(code=0)

    async with screen() as terminal, fake_service(cat) as service:
        process = await terminal.begin(service.url, "run", "-i", "cat")
        terminal.type(b"line\n\x04")
        assert await process.wait() == 0
        await terminal.until(b"line\r\nline\r\n")
    body = service.body_of(f"POST {EXECUTIONS}")
    assert (body["stdin"], "tty" in body) == ("open", False)


async def test_without_a_terminal_there_is_nothing_to_tell() -> None:
    async def ends(wire: Wire) -> None:
        await wire.start()
        await wire.exit(code=0)

    async with fake_service(ends) as service:
        ended = await bulkhead(service.url, "run", "cat")
    assert (ended.status, ended.stderr) == (0, "")
