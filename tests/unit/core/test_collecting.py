from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, cast

import pytest

from app.core import collecting
from app.core.collecting import FILES, NAMES, OPENS, TOTAL_BYTES, Collection, patterns_of
from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BulkheadError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    WrongType,
)
from app.core.files import DirectoryEntry, FileKind, Files, FileStat, Listing
from app.core.models import SandboxState
from app.core.running import Job, run_in
from tests.callbacks import own_work
from tests.null_backend import Gate, NullExecution
from tests.unit.core.support import Core, command, until

MANY = {b"%06d" % number: 1 for number in range(100_000)}


class Folder:
    """Files by name; `reading` counts how many were opened."""

    def __init__(self, files: dict[bytes, int], kind: FileKind = FileKind.FILE) -> None:
        self.files = files
        with own_work():
            self.names = sorted(files)
            self.entries = [DirectoryEntry(name, FileStat(kind, files[name], 0o644, 0, 1)) for name in self.names]
        self.opened: list[bytes] = []
        self.gate: Gate | None = None
        self.failure: BulkheadError | None = None  # of each open

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        if path != b".":
            raise AccessDenied("'x' is not yours")
        begin = 0 if after is None else bisect(self.names, after)
        return Listing(self.entries[begin : begin + limit], more=begin + limit < len(self.names))

    @asynccontextmanager
    async def open(self, path: bytes) -> AsyncIterator[Any]:
        self.opened.append(path)
        if self.gate is not None:
            await self.gate.pass_through()
        if self.failure is not None:
            raise self.failure
        if path not in self.files:
            raise NotFound("file", path.decode())
        yield _Open(self.files[path])


class _Open:
    def __init__(self, size: int) -> None:
        self.stat = FileStat(FileKind.FILE, size, 0o644, 0, 1)

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        with own_work():
            data = b"x" * size
        yield data


async def collect(folder: Folder, *patterns: str) -> list[tuple[bytes, int | str]]:
    collection = Collection(patterns_of(patterns))
    await collection.run(cast(Files, folder))
    return [(file.path, file.error or "" if file.content is None else len(file.content)) for file in collection.files]


async def test_a_hundred_thousand_matches_are_cut_by_their_number_and_hold_nobody_up() -> None:
    folder = Folder(MANY)
    found = await collect(folder, "*", "00*")
    assert found[:FILES] == [(b"%06d" % number, 1) for number in range(FILES)]
    assert found[FILES:] == [
        (b"*", "matches more; one answer has 1024 files at most"),
        (b"00*", "matches more; one answer has 1024 files at most"),
    ]
    assert len(folder.opened) == FILES


async def test_names_that_are_looked_at_have_a_bound_for_all_patterns_together() -> None:
    folder = Folder(dict(islice(MANY.items(), NAMES // 2 + 1)))
    bound = f"needs a look at more than {NAMES} names, which is the most for one answer"
    assert await collect(folder, "a*", "b*", "c*") == [
        (b"a*", "nothing matches"),
        (b"b*", bound),
        (b"c*", bound),
    ]


async def test_links_that_lead_nowhere_are_opened_a_bounded_number_of_times() -> None:
    folder = Folder({b"%06d" % number: 1 for number in range(OPENS + 10)}, FileKind.SYMLINK)
    folder.files = {b"plain": 1}
    bound = f"needs more than {OPENS} files to be opened, which is the most for one answer"
    assert await collect(folder, "0*", "*", "plain") == [(b"0*", bound), (b"*", bound), (b"plain", 1)]
    assert len(folder.opened) == OPENS + 1


async def test_what_is_no_file_counts_and_is_not_opened() -> None:
    folder = Folder({b"%06d" % number: 1 for number in range(FILES + 1)}, FileKind.FIFO)
    found = await collect(folder, "*")
    assert found[0] == (b"000000", "is a FIFO; only regular files are collected")
    assert (len(found), folder.opened) == (FILES + 1, [])


async def test_bytes_have_a_bound_and_a_gigabyte_is_not_read() -> None:
    folder = Folder({b"a": 1 << 30, b"b": TOTAL_BYTES, b"c": 0, b"d": 1})
    assert await collect(folder, "a", "b", "c", "d") == [
        (b"a", f"has {1 << 30} bytes; collected files have {TOTAL_BYTES} bytes in all at most"),
        (b"b", TOTAL_BYTES),
        (b"c", 0),
        (
            b"d",
            f"has 1 bytes; collected files have {TOTAL_BYTES} bytes in all at most; the files before it have 8388608",
        ),
    ]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (None, "does not exist"),
        (
            WrongType("directory", "'a' is a directory; a file is needed here"),
            "is a directory; only regular files are collected",
        ),
        (WrongType("fifo", "'a' is a FIFO; a file is needed here"), "is a FIFO; only regular files are collected"),
        (WrongType("file", "'a' is a file; a directory is needed"), "does not exist: a part of it is not a directory"),
        (AccessDenied("'a': Permission denied"), "permission denied"),
        (
            InvalidRequest.at("query/path", "'a': Too many levels of symbolic links"),
            "Too many levels of symbolic links",
        ),
        (BackendFailure("'a': Input/output error"), "Input/output error"),
    ],
)
async def test_error_follows_the_path_and_does_not_repeat_it(failure: BulkheadError | None, error: str) -> None:
    folder = Folder({})
    folder.failure = failure
    assert await collect(folder, "a") == [(b"a", error)]


async def test_directory_that_cannot_be_listed_is_told() -> None:
    assert await collect(Folder({}), "x/*") == [(b"x/*", "'x' cannot be listed: permission denied")]


async def test_pattern_of_many_stars_is_matched_in_slices() -> None:
    folder = Folder({b"a" * 120 + b"%06d" % number: 1 for number in range(2000)})
    assert await collect(folder, "*a" * 120 + "*b") == [(("*a" * 120 + "*b").encode(), "nothing matches")]


async def test_time_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "SECONDS", 0.05)
    folder = Folder({b"a": 1, b"b": 1})
    folder.gate = Gate()
    late = "was not collected within 0.05 seconds"
    assert await collect(folder, "a", "b") == [(b"a", late), (b"b", late)]


@pytest.mark.parametrize("named", [b"caf\xe9", "caf\u00e9".encode()])
async def test_names_of_any_bytes_are_matched_by_characters(named: bytes) -> None:
    assert await collect(Folder({named: 2}), "caf?") == [(named, 2)]


async def test_client_that_disconnects_ends_its_command_and_nothing_else() -> None:
    async with Core() as core:
        sandbox = await core.create()
        other = await core.start(sandbox, "sleep")
        running = asyncio.ensure_future(run_in(core.sandboxes, sandbox, Job(command("daemon", "sleep"))))
        await until(lambda: len(sandbox.executions) == 2 and not running.done())
        (mine,) = set(sandbox.executions.values()) - {other}
        await mine.started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await mine.wait()
        assert mine.exit is not None
        assert (mine.exit.reason, mine.exit.detail) == ("killed", "its client disconnected")
        assert (sandbox.state, other.exit) == (SandboxState.RUNNING, None)
        assert core.backend.alive == [sandbox.id, f"{sandbox.id}/{other.id}"]


async def test_client_that_disconnects_at_any_moment_leaves_no_command() -> None:
    async with Core() as core:
        sandbox = await core.create()
        for turns in range(12):
            running = asyncio.ensure_future(run_in(core.sandboxes, sandbox, Job(command("sleep"))))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            for execution in tuple(sandbox.executions.values()):
                await execution.wait()
        assert core.backend.alive == [sandbox.id]


async def test_command_whose_stdin_cannot_be_fed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def too_large(self: NullExecution, data: bytes) -> bool:
        raise PayloadTooLarge(1)

    monkeypatch.setattr(NullExecution, "write", too_large)
    async with Core() as core:
        sandbox = await core.create()
        with pytest.raises(PayloadTooLarge) as raised:
            await run_in(core.sandboxes, sandbox, Job(command("daemon", "sleep", stdin=True), stdin=b"x"))
        (execution,) = sandbox.executions.values()
        await execution.wait()
        await execution.settled()
        assert execution.exit is not None
        assert (execution.exit.reason, execution.exit.detail) == ("killed", f"the run failed: {raised.value}")
        assert core.backend.alive == [sandbox.id]
