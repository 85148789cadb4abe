"""The one shot of `app/core/oneshot.py` over every backend of `kinds.py`: what it answers, and that nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from app.core.backend import Backend
from app.core.errors import BulkheadError
from app.core.models import Command, ExitReason, Stdin
from app.core.oneshot import OneShot, run_once
from app.core.placing import PlacedFile
from app.core.registry import Registry
from app.core.running import Job, Outcome
from app.core.sandboxes import Capacity, Sandboxes
from tests.contract.kinds import KINDS, Kind
from tests.null_backend import pattern
from tests.unit.core.support import Notes, cancelled_after

ONES = [kind for kind in KINDS if kind.name != "machine"]  # a boot takes five seconds there, and promises no more


@pytest.fixture(params=ONES, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    chosen.check()
    return chosen


class Started(Notes):
    def __init__(self) -> None:
        super().__init__()
        self.started = asyncio.Event()

    def execution_started(self, runtime: str, seconds: float) -> None:
        super().execution_started(runtime, seconds)
        self.started.set()


@dataclass
class Place:
    kind: Kind
    backend: Backend
    sandboxes: Sandboxes
    notes: Started

    async def run(
        self, argv: tuple[str, ...], stdin: bytes = b"", timeout: float = 60, files: tuple[PlacedFile, ...] = ()
    ) -> Outcome:
        spec = self.backend.fit(self.kind.spec)
        opened = Stdin.OPEN if stdin else Stdin.NONE
        command = Command(argv, env=self.kind.env, workdir=spec.workdir, timeout_seconds=timeout, stdin=opened)
        outcome = await run_once(self.sandboxes, OneShot(spec, Job(command, files, stdin)))
        assert self.kind.left(self.backend) == []
        assert list(self.sandboxes) == []
        return outcome


@asynccontextmanager
async def place(kind: Kind) -> AsyncIterator[Place]:
    backend = await kind.open()
    backend.open()
    notes = Started()
    sandboxes = Sandboxes(Registry([backend], default=backend.info.name), Capacity(), notes)
    try:
        yield Place(kind, backend, sandboxes, notes)
    finally:
        await sandboxes.aclose()
        await backend.aclose()
    assert kind.left(backend) == []


async def test_a_run_gives_what_the_command_printed_and_how_it_ended(kind: Kind) -> None:
    async with place(kind) as at:
        said = await at.run(kind.programs.echo("hello"))
        assert (said.exit.reason, said.exit.code) == (ExitReason.EXITED, 0)
        assert (said.stdout.data, said.stderr.data) == (b"hello\n", b"")
        assert (await at.run(kind.programs.err("oops"))).stderr.data == b"oops\n"
        assert (await at.run(kind.programs.exit(3))).exit.code == 3
        assert (await at.run(kind.programs.missing())).exit.reason is ExitReason.START_FAILED


async def test_stdin_comes_whole_and_ends(kind: Kind) -> None:
    async with place(kind) as at:
        data = b"0123456\n" * 20_000
        assert (await at.run(kind.programs.cat(), stdin=data)).stdout.data == data


async def test_a_run_that_takes_too_long_is_ended_with_all_that_it_started(kind: Kind) -> None:
    async with place(kind) as at:
        said = await at.run(kind.programs.sleep(), stdin=bytes(3 * 2**20), timeout=0.5)
        assert said.exit.reason is ExitReason.TIMEOUT


async def test_files_are_there_when_the_command_starts(kind: Kind) -> None:
    async with place(kind) as at:
        content = pattern(200_000)
        files = (
            PlacedFile("a/b/c", content, 0o600),
            *(PlacedFile(f"many/{n}", b"%d" % n) for n in range(50)),
            PlacedFile("/tmp/elsewhere", b"there"),
        )
        for path, expected in (
            ("/workspace/a/b/c", content),
            ("/workspace/many/49", b"49"),
            ("/tmp/elsewhere", b"there"),
        ):
            assert (await at.run(kind.programs.show(path), files=files)).stdout.data == expected


async def test_files_that_have_no_room_or_no_right_name_the_file(kind: Kind) -> None:
    async with place(kind) as at:
        with pytest.raises(BulkheadError, match=r"^/files/1: "):
            await at.run(
                kind.programs.exit(0),
                files=(PlacedFile("a", b""), PlacedFile("/dev/null/x", b""), PlacedFile("b", b"")),
            )
        assert kind.left(at.backend) == []


async def test_a_daemon_goes_with_the_sandbox(kind: Kind) -> None:
    async with place(kind) as at:
        assert (await at.run(kind.programs.daemon(0))).exit.code == 0


async def test_runs_at_the_same_time_are_apart(kind: Kind) -> None:
    async with place(kind) as at:
        spec = at.backend.fit(kind.spec)
        shots = [
            OneShot(spec, Job(Command(kind.programs.echo(str(n)), env=kind.env, workdir=spec.workdir)))
            for n in range(8)
        ]
        said = await asyncio.gather(*(run_once(at.sandboxes, shot) for shot in shots))
        assert [outcome.stdout.data for outcome in said] == [b"%d\n" % n for n in range(8)]
        assert kind.left(at.backend) == []


async def test_a_run_that_is_cut_short_at_any_turn_leaves_nothing(kind: Kind) -> None:
    async with place(kind) as at:
        for number in range(kind.turns):
            assert await cancelled_after(number, at.run(kind.programs.sleep()))
            assert kind.left(at.backend) == []
            assert list(at.sandboxes) == []


async def test_a_run_whose_command_runs_is_cut_short_with_it(kind: Kind) -> None:
    async with place(kind) as at:
        running = asyncio.ensure_future(at.run(kind.programs.sleep()))
        await at.notes.started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert kind.left(at.backend) == []
        assert list(at.sandboxes) == []
