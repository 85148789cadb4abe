"""`--tty`: a real terminal, the command in its foreground, and a service of canned answers."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
from asyncio.subprocess import PIPE

import pytest

from app.cli.terminal import DEADLY
from tests.unit.cli.fake_service import BASE, SANDBOX, FakeService, Wire, fake_service
from tests.unit.cli.screen import Screen, screen
from tests.unit.cli.typed import bulkhead

EXECUTIONS = f"{BASE}/executions"
DESTROY = f"DELETE {BASE}"
SIZE = {"type": "resize", "rows": 50, "cols": 132}


class Shell:
    """A program that draws a prompt; what is typed stands in `typed`, sizes too. It ends as the test says."""

    def __init__(self) -> None:
        self.typed: asyncio.Queue[object] = asyncio.Queue()
        self.end = asyncio.Event()

    async def __call__(self, wire: Wire) -> None:
        await wire.start()
        await wire.output(b"$ ")
        reader = asyncio.create_task(self._read(wire))
        await self.end.wait()
        await wire.exit(code=5)
        await reader

    async def _read(self, wire: Wire) -> None:
        while (frame := await wire.read()) is not None:
            self.typed.put_nowait(frame)


# A program that draws: another screen, no cursor, colours, pasting.
DRAWS = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[31m$ "
UNDONE = b"\x1b[?25h\x1b[?2004l\x1b[?1049l"


class Drawing(Shell):
    async def __call__(self, wire: Wire) -> None:
        await wire.start()
        await wire.output(DRAWS)
        reader = asyncio.create_task(self._read(wire))
        await self.end.wait()
        await wire.exit(code=5)
        await reader


async def typed(shell: Shell, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await shell.typed.get()
        assert isinstance(piece, bytes)
        data += piece
    return data


@pytest.mark.parametrize("words", [["run", "-t", "sh"], ["exec", "--tty", SANDBOX, "sh"]])
async def test_keys_go_to_the_program_as_they_are_and_its_output_comes_back_so(words: list[str]) -> None:
    shell, keys = Shell(), b"a\r\x03\x1a\x04\x11\x13\xff"
    async with screen() as terminal, fake_service(shell) as service:
        before = terminal.modes()
        process = await terminal.begin(service.url, *words, env={"TERM": "screen-256color"})
        await terminal.until(b"$ ")
        assert terminal.is_raw()
        terminal.type(keys)
        assert await typed(shell, len(keys)) == keys
        shell.end.set()
        assert await process.wait() == 5
        assert terminal.modes() == before
    assert terminal.shown == b"$ "
    assert service.body_of(f"POST {EXECUTIONS}") == {
        "command": ["sh"],
        "stdin": "open",
        "tty": {"rows": 33, "cols": 99},
        "env": {"TERM": "screen-256color"},
    }


async def test_kind_of_terminal_that_was_typed_is_not_overruled() -> None:
    shell = Shell()
    shell.end.set()
    async with screen(0, 0) as terminal, fake_service(shell) as service:
        process = await terminal.begin(service.url, "run", "-t", "-e", "TERM=dumb", "sh", env={"TERM": "xterm"})
        assert await process.wait() == 5
    assert service.body_of("POST /sandboxes") == {"env": {"TERM": "dumb"}}
    assert "env" not in service.body_of(f"POST {EXECUTIONS}")
    assert service.body_of(f"POST {EXECUTIONS}")["tty"] == {"rows": 24, "cols": 80}  # of one that has no size


async def test_size_follows_the_terminal_also_after_a_cut() -> None:
    again = asyncio.Event()

    async def first(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"$ ")
        assert await wire.read() == SIZE
        again.set()
        wire.cut()

    async def second(wire: Wire) -> None:
        await wire.start()
        assert await wire.read() == SIZE
        await wire.exit(stdout=b"$ ")

    async with screen() as terminal, fake_service(first, second) as service:
        process = await terminal.begin(service.url, "run", "-t", "sh")
        await terminal.until(b"$ ")
        terminal.resize(50, 132)
        await again.wait()
        assert await process.wait() == 0


async def test_size_that_changed_before_the_stream_is_told() -> None:
    async with screen() as terminal:

        class Slow(FakeService):
            async def _answer(self, request):  # type: ignore[no-untyped-def]  # the fake's own
                if str(request) == f"POST {EXECUTIONS}":
                    terminal.resize(50, 132)
                return await super()._answer(request)

        async def program(wire: Wire) -> None:
            await wire.start()
            assert await wire.read() == SIZE
            await wire.exit()

        async with fake_service(program, kind=Slow) as service:
            process = await terminal.begin(service.url, "run", "-t", "sh")
            assert await process.wait() == 0


@pytest.mark.parametrize(
    ("number", "status", "cleans"),
    [
        (signal.SIGTERM, 143, True),
        (signal.SIGHUP, 129, True),
        *((number, -number, False) for number in DEADLY),
    ],
)
async def test_terminal_is_as_before_after_a_signal(number: signal.Signals, status: int, cleans: bool) -> None:
    shell = Drawing()
    async with screen() as terminal, fake_service(shell) as service:
        before = terminal.modes()
        process = await terminal.begin(service.url, "run", "-t", "sh")
        await terminal.until(b"$ ")
        process.send_signal(number)
        if cleans:
            await service.killed.wait()
        shell.end.set()
        assert await process.wait() == status
        assert terminal.modes() == before
        await terminal.until(UNDONE)
    assert (DESTROY in service.asked()) is cleans


async def test_terminal_is_as_before_after_a_crash_and_messages_end_their_lines() -> None:
    async def lies(wire: Wire) -> None:
        await wire.start()
        await wire.text(type="gap", channel="stdout", **{"from": 0, "to": 3})
        await wire.exit(stdout=b"much more")

    async with screen() as terminal, fake_service(lies) as service:
        before = terminal.modes()
        process = await terminal.begin(service.url, "run", "-t", "sh", stderr=PIPE)
        _, said = await process.communicate()
        assert terminal.modes() == before
    assert process.returncode == 125
    assert said.splitlines(keepends=True) == [
        b"bulkhead: stdout: bytes 0 to 2 are missing: they were dropped before they were read\r\n",
        b"bulkhead: stdout is incomplete: 3 of 9 bytes were received\n",
    ]


async def test_terminal_is_taken_again_after_a_stop() -> None:
    shell = Shell()
    async with screen() as terminal, fake_service(shell) as service:
        before = terminal.modes()
        process = await terminal.begin(service.url, "run", "-t", "sh")
        await terminal.until(b"$ ")
        process.send_signal(signal.SIGSTOP)
        await stopped(process.pid)
        assert terminal.is_raw()
        as_a_shell_would(terminal, before)
        terminal.resize(50, 132)
        process.send_signal(signal.SIGCONT)
        assert await shell.typed.get() == SIZE
        assert terminal.is_raw()
        shell.end.set()
        assert await process.wait() == 5
        assert terminal.modes() == before


@pytest.mark.parametrize("typed_", [["run", "-t", "sh"], ["exec", SANDBOX, "-t", "sh"]])
async def test_without_a_terminal_nothing_is_asked(typed_: list[str]) -> None:
    async with fake_service() as service:
        ended = await bulkhead(service.url, *typed_, stdin=b"")
    assert (ended.status, ended.stderr) == (125, "bulkhead: --tty needs a terminal on stdin\n")
    assert service.asked() == []


async def test_json_and_a_terminal_exclude_each_other() -> None:
    async with screen() as terminal, fake_service() as service:
        process = await terminal.begin(service.url, "run", "-t", "--json", "sh")
        assert await process.wait() == 125
        await terminal.until(b"use either --tty or --json\r\n")
    assert service.asked() == []


def as_a_shell_would(terminal: Screen, modes: list[object]) -> None:
    termios.tcsetattr(terminal.slave, termios.TCSANOW, modes)  # type: ignore[arg-type]  # as tcgetattr gave them


async def stopped(pid: int) -> None:
    """The kernel tells a parent that its child stopped."""
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED)


# --- messages of our own, beside what a program prints


@pytest.mark.parametrize(("printed", "shown"), [(b"half a line", b"half a line\r\n"), (b"a line\n", b"a line\r\n")])
@pytest.mark.parametrize("channel", [1, 2])
async def test_a_message_begins_a_line_of_its_own(printed: bytes, shown: bytes, channel: int) -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(printed, channel)
        await wire.exit("timeout", None, -9, detail="still running after 2 s")

    said = b"bulkhead: timeout: still running after 2 s"
    async with fake_service(program) as service, screen() as terminal:
        process = await terminal.begin(service.url, "run", "true")
        await process.wait()
        await terminal.until(said)
    assert terminal.shown.replace(b"\r\r\n", b"\r\n") == shown + said + b"\r\n"


async def test_a_message_in_a_pipe_stays_as_it_is() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"half a line")
        await wire.exit("timeout", None, -9, detail="still running after 2 s")

    async with fake_service(program) as service:
        ended = await bulkhead(service.url, "run", "true")
    assert (ended.stdout, ended.stderr) == (b"half a line", "bulkhead: timeout: still running after 2 s\n")


async def test_an_error_behind_half_a_line_begins_a_line_of_its_own() -> None:
    async def program(wire: Wire) -> None:
        await wire.start()
        await wire.output(b"half a line")
        await wire.text(type="problem", problem={"title": "Internal error", "detail": "x", "status": 500})
        await wire.close(1011)

    async with fake_service(program) as service, screen() as terminal:
        process = await terminal.begin(service.url, "run", "true")
        assert await process.wait() == 125
        await terminal.until(b"bulkhead: ")
    assert terminal.shown.startswith(b"half a line\r\nbulkhead: ") or terminal.shown.startswith(
        b"half a line\r\r\nbulkhead: "
    )
