"""A box that lies about its files, hangs, talks without end, or goes away: an error soon, and nothing of ours left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.backends.boxlite import tree
from app.backends.boxlite.files import ATTEMPTS
from app.backends.boxlite.sandbox import BoxliteSandbox
from app.backends.boxlite.script_runner import AT_ONCE
from app.core.errors import (
    BackendFailure,
    BackendTimeout,
    BackendUnavailable,
    BoundExceeded,
    BulkheadError,
    CapacityExceeded,
    PayloadTooLarge,
    UnsupportedByRuntime,
    WrongState,
)
from app.core.files import ArchiveEntry, EntryKind, Files
from app.core.tar.header import LARGEST
from tests.boxlite.double import Attach, Drop, Route, Settings
from tests.boxlite.rig import PLAIN, Rig, numbers, quick, rig, start, until
from tests.boxlite.test_files import content_of, left_over, pieces, run
from tests.told import told

USUAL = "/usr/bin:/bin"
REPLACE = r"""
cd /opt/evil
printf "#!/bin/sh\n%s\n" "$2" >new
chmod 755 new
exec mv new "$1"
"""
Operation = Callable[[Files], Awaitable[object]]


async def archive() -> AsyncIterator[ArchiveEntry | bytes]:
    yield ArchiveEntry(EntryKind.FILE, b"a", size=3)
    yield b"abc"


async def read(files: Files, path: bytes = b"f") -> bytes:
    async with files.open(path) as file:
        return b"".join([piece async for piece in file.read(0, file.stat.size)])


async def pack(files: Files) -> list[ArchiveEntry | bytes]:
    async with files.pack(b".") as items:
        return [item async for item in items]


OPERATIONS: dict[str, Operation] = {
    "stat": lambda files: files.stat(b"f"),
    "read": read,
    "write": lambda files: files.write(b"g", pieces(numbers(300_000))),
    "list": lambda files: files.list(b".", None, 10),
    "make_directory": lambda files: files.make_directory(b"d"),
    "delete": lambda files: files.delete(b"f", recursive=False),
    "pack": pack,
    "unpack": lambda files: files.unpack(b".", archive()),
}


@asynccontextmanager
async def hostile(**programs: str) -> AsyncIterator[tuple[Rig, BoxliteSandbox]]:
    """A box with a file `f`, whose programs of these names are replaced by these scripts."""
    timeouts = quick(files=1.0, shell=1.0, cleanup=0.5, status_lag=0.1)
    async with rig(Settings(path=f"/opt/evil:{USUAL}"), timeouts) as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(200_000)))
        await run(sandbox, "mkdir -p /opt/evil; ln -s f l")
        for name, script in programs.items():
            new = await start(sandbox, "/bin/sh", "-c", REPLACE, "sh", name, script, **PLAIN)
            assert (await new.end()).code == 0
        yield made, sandbox


async def nothing_of_ours(sandbox: BoxliteSandbox) -> None:
    """Looked at with programs that do not lie."""
    done = await start(sandbox, "/bin/sh", "-c", f"PATH={USUAL}; find / -xdev -name '.bulkhead-*'", **PLAIN)
    assert (await done.end()).code == 0
    assert done.out == b""


SHELLS = {
    "talks without end": "exec yes",
    "talks without a newline": "exec cat /dev/zero",
    "ends at once": "exit 0",
    "says nonsense": "echo is nothing; exec cat",
    "says too large numbers": "echo is 81a4 99999999999999999999 1 1 x y; exec cat",
    "says what kind there cannot be": "echo is 01a4 1 1 1 x y; exec cat",
    "is killed": "kill -9 $$",
    "is silent": "exec sleep 1000",
}


@pytest.mark.parametrize("script", SHELLS)
async def test_shell_that_lies_is_a_failure_and_soon(script: str) -> None:
    async with hostile(sh=SHELLS[script]) as (_, sandbox):
        for operation in OPERATIONS.values():
            async with asyncio.timeout(60):
                with pytest.raises(BackendFailure):
                    await operation(sandbox.files)
        await nothing_of_ours(sandbox)


async def test_piece_that_is_too_large_is_not_waited_for() -> None:
    said = "echo is 81a4 9 1 1 2 +0000; echo open 81a4 9 1 1 2 +0000; echo piece 999999 $(printf %064d 0); exec cat"
    async with hostile(sh=said) as (_, sandbox):
        with pytest.raises(BackendFailure, match="no sense"):
            await read(sandbox.files)


PROGRAMS: dict[str, tuple[str, str, type[BulkheadError]]] = {
    "another digest of a piece": ("read", "sha256sum:echo $(printf %064d 7) -", BackendUnavailable),
    "another digest of a file": ("write", "sha256sum:echo $(printf %064d 7) -", BackendFailure),
    "another digest of an archive": ("unpack", "sha256sum:cat >/dev/null; echo $(printf %064d 7) -", BackendFailure),
    "a base64 that fails": ("list", "base64:cat >/dev/null; exit 1", BackendFailure),
    "a dd that fails": ("list", "dd:exit 1", BackendFailure),
    "no base64": ("read", "base64:cat >/dev/null; echo %%", BackendFailure),
    "a file that is longer than it says": ("read", "base64:head -c 73728 /dev/zero | /usr/bin/base64", BackendFailure),
    "names without end": ("list", "find:exec yes ./aaaaaaaaaaaaaaaa", BoundExceeded),
    "names of elsewhere": ("list", "find:printf '/etc/passwd\\0'", BackendFailure),
    "names that are cut": ("list", "find:printf ./x", BackendFailure),
    "names that are not there": ("list", "find:printf './x\\0./y\\0'", BulkheadError),
    "facts without a mark": ("list", 'stat:[ $2 != -L ] || exec /usr/bin/stat "$@"; echo x', BackendFailure),
    "facts of others": (
        "list",
        'xargs:cat >/dev/null; echo "${5%% *} 81a4 1 1 1 x +0000 1.1 ./other"',
        BackendFailure,
    ),
    "too few links": ("pack", "readlink:exit 0", BackendFailure),
    "a file that is shorter than it says": ("pack", "head:exit 0", BackendFailure),
    "a tar that fails": ("unpack", "tar:echo tar: it is broken >&2; exit 2", BackendFailure),
    "a tar that hangs": ("unpack", "tar:exec sleep 1000", BackendTimeout),
    "a hash that hangs": ("write", "sha256sum:exec sleep 1000", BackendTimeout),
}


@pytest.mark.parametrize("lie", PROGRAMS)
async def test_program_that_lies_is_a_failure_and_leaves_nothing(lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "NAMES_BYTES", 300_000)
    operation, program, error = PROGRAMS[lie]
    name, _, script = program.partition(":")
    async with hostile(**{name: script}) as (_, sandbox), asyncio.timeout(60):
        if lie == "names that are not there":
            assert (await sandbox.files.list(b".", None, 10)).entries == []
            return
        with pytest.raises(error):
            await OPERATIONS[operation](sandbox.files)
        await until_clean(sandbox)


@pytest.mark.parametrize(
    ("number", "most", "operation", "bound"),
    [
        ("MOST_ENTRIES", 1, "pack", "entries in one archive"),
        ("NAMES_BYTES", 8, "pack", "bytes of names in one directory or archive"),
        ("NAMES_BYTES", 8, "list", "bytes of names in one directory or archive"),
    ],
)
async def test_tree_that_is_too_large_is_never_read_however_long_one_waits(
    number: str, most: int, operation: str, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await run(sandbox, "touch first second")
        await OPERATIONS[operation](sandbox.files)
        monkeypatch.setattr(tree, number, most)
        with pytest.raises(BoundExceeded) as refused:
            await OPERATIONS[operation](sandbox.files)
        assert told(refused.value) == (
            *(422, "bound_exceeded", None),
            f"the request needs more than {most} {bound}, which is the most that it can have; ask for parts of the "
            "tree one by one",
        )


async def test_file_that_is_too_large_for_the_archive_of_a_box_is_named() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()

        async def content() -> AsyncIterator[ArchiveEntry | bytes]:
            yield ArchiveEntry(EntryKind.FILE, b"d/large", size=LARGEST)

        with pytest.raises(PayloadTooLarge) as refused:
            await sandbox.files.unpack(b".", content())
        assert told(refused.value) == (
            *(413, "payload_too_large", None),
            "the entry 'd/large' is larger than 8589934591 bytes, which is the most; send it on its own, "
            "outside the archive",
        )
        await until_clean(sandbox)


async def until_clean(sandbox: BoxliteSandbox) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await nothing_of_ours(sandbox)
            except AssertionError:
                await asyncio.sleep(0.1)  # what is killed is cleaned up behind the client's back
            else:
                return


@pytest.mark.parametrize("tool", ["stat", "base64", "sha256sum", "tar"])
async def test_image_without_a_tool_is_told_by_its_name(tool: str) -> None:
    async with rig(Settings(path="/opt/busybox:/opt/few")) as made:
        sandbox = await made.sandbox()
        await run(sandbox, "mkdir /opt/few; cp -P /opt/busybox/* /opt/few; rm -r /opt/busybox")
        await run(sandbox, f"rm /opt/few/{tool}")
        with pytest.raises(UnsupportedByRuntime, match=f"lacks {tool}"):
            await sandbox.files.unpack(b".", archive())


async def test_image_without_a_shell_that_works_is_told() -> None:
    async with rig(Settings(path="/opt/busybox")) as made:
        sandbox = await made.sandbox()
        await run(sandbox, "rm /opt/busybox/sh")
        with pytest.raises(UnsupportedByRuntime):
            await sandbox.files.stat(b".")


# --- clients and servers that go away


@pytest.mark.parametrize("operation", ["read", "write", "pack", "unpack"])
async def test_client_that_goes_away_leaves_nothing(operation: str) -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(2_000_000)))
        reached = asyncio.Event()

        async def hangs() -> AsyncIterator[bytes]:
            yield numbers(600_000)
            reached.set()
            await asyncio.Event().wait()

        async def hangs_too() -> AsyncIterator[ArchiveEntry | bytes]:
            yield ArchiveEntry(EntryKind.FILE, b"a", size=1_000_000)
            async for piece in hangs():
                yield piece

        async def stops_reading() -> None:
            async with sandbox.files.open(b"f") as file:
                async for _ in file.read(0, 2_000_000):
                    reached.set()
                    await asyncio.Event().wait()

        async def stops_packing() -> None:
            async with sandbox.files.pack(b".") as items:
                async for item in items:
                    if isinstance(item, bytes):
                        reached.set()
                        await asyncio.Event().wait()

        what: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "read": stops_reading,
            "write": lambda: sandbox.files.write(b"f", hangs()),
            "pack": stops_packing,
            "unpack": lambda: sandbox.files.unpack(b"new", hangs_too()),
        }
        task = asyncio.ensure_future(what[operation]())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await run(sandbox, "ls -A") == b"f\n"
        assert await content_of(sandbox, b"f") == numbers(2_000_000)
        await left_over(made, sandbox)


async def test_client_that_goes_away_before_the_script_runs_leaves_nothing() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        for turns in range(0, 40, 3):
            task = asyncio.ensure_future(sandbox.files.write(b"f", pieces(b"x")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await until(lambda: not made.marked())
        await left_over(made, sandbox)


@pytest.mark.parametrize("how", ["destroy", "kill_box"])
async def test_end_of_the_sandbox_ends_what_is_under_way(how: str) -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        reached = asyncio.Event()

        async def hangs() -> AsyncIterator[bytes]:
            yield numbers(3_000_000)
            reached.set()
            yield numbers(3_000_000)
            await asyncio.sleep(1)  # by then the box is gone
            yield numbers(3_000_000)

        task = asyncio.ensure_future(sandbox.files.write(b"f", hangs()))
        await reached.wait()
        if how == "destroy":
            await sandbox.destroy()
        else:
            made.double.kill_box(sandbox.box_id)
        with pytest.raises(WrongState) as ended:
            await task
        assert ended.value.state == ("destroyed" if how == "destroy" else "failed")
        with pytest.raises(WrongState):
            await sandbox.files.stat(b"f")
        await sandbox.destroy()


async def test_connection_that_breaks_is_a_failure_and_leaves_nothing() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(600_000)))
        for operation in ("pack", "write", "unpack"):
            made.double.faults.on(Route.ATTACH, Attach(first=(b"\x02x",), cut_after=1), 1)
            with pytest.raises(BackendUnavailable):
                await OPERATIONS[operation](sandbox.files)
        made.double.faults.on(Route.ATTACH, Drop(), 1)
        with pytest.raises(BackendUnavailable):
            await sandbox.files.write(b"f", pieces(b"x"))
        made.double.faults.on(Route.EXEC, Drop(done=True), 1)
        with pytest.raises(BackendFailure):
            await sandbox.files.write(b"f", pieces(b"x"))
        await until(lambda: not made.marked())
        await until_clean(sandbox)
        assert await content_of(sandbox, b"f") == numbers(600_000)


async def test_read_goes_on_behind_a_connection_that_breaks() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(600_000)))
        made.double.faults.on(Route.ATTACH, Attach(cut_after=250))
        assert await content_of(sandbox, b"f", 5000) == numbers(600_000)[5000:]
        made.double.faults.clear()
        made.double.faults.on(Route.ATTACH, Attach(cut_after=2))
        with pytest.raises(BackendUnavailable):
            await read(sandbox.files)
        assert len(made.double.sent(Route.ATTACH)) > ATTEMPTS
        made.double.faults.clear()
        await until_clean(sandbox)


async def test_read_does_not_go_on_in_another_file() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(600_000)))
        made.double.faults.on(Route.ATTACH, Attach(cut_after=250), 1)
        with pytest.raises(BackendFailure, match="the file was replaced"):
            async with sandbox.files.open(b"f") as file:
                await run(sandbox, "echo other >g; mv g f")
                async for _ in file.read(0, 600_000):
                    pass


async def test_so_many_at_one_time_and_no_more() -> None:
    async with rig(timeouts=quick(shell=2)) as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(b"x"))
        let_go = asyncio.Event()
        opened = 0

        async def hold() -> None:
            nonlocal opened
            async with sandbox.files.open(b"f"):
                opened += 1
                await let_go.wait()

        tasks = [asyncio.ensure_future(hold()) for _ in range(AT_ONCE)]
        await until(lambda: opened == AT_ONCE)
        with pytest.raises(CapacityExceeded) as refused:
            await sandbox.files.stat(b"f")
        assert told(refused.value) == (
            *(429, "capacity_exceeded", "1"),
            "this sandbox's limit of 16 operations on files at one time is reached; free some, or try again later",
        )
        let_go.set()
        await asyncio.gather(*tasks)
        assert (await sandbox.files.stat(b"f")).size == 1


async def test_download_of_the_server_is_never_asked() -> None:
    async with rig() as made:
        sandbox = await made.sandbox()
        await sandbox.files.write(b"f", pieces(numbers(100_000)))
        for operation in ("stat", "read", "write", "list", "make_directory", "pack", "unpack", "delete"):
            await OPERATIONS[operation](sandbox.files)
        assert not {Route.DOWNLOAD, Route.UPLOAD} & {request.route for request in made.double.requests}
