"""The files of a box, by its own shell: over the double, whose boxes run dash with coreutils, or busybox alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.backends.boxlite.sandbox import BoxliteSandbox
from app.core.errors import (
    AccessDenied,
    BulkheadError,
    Conflict,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    WrongType,
)
from app.core.files import ArchiveEntry, DirectoryEntry, EntryKind, FileKind, FileStat
from tests.boxlite.double import Settings
from tests.boxlite.rig import PLAIN, Rig, numbers, rig, start
from tests.require import require

SHELLS = ["coreutils", "busybox"]
ODD = b"new\nline \xff\xfe 'q' \"d\" $x `y` \\z -- *"


def settings(shell: str) -> Settings:
    if shell == "busybox":
        require("busybox", Path("/usr/bin/busybox").exists(), "the Debian package busybox")
        return Settings(path="/opt/busybox")
    return Settings()


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def run(sandbox: BoxliteSandbox, script: str) -> bytes:
    done = await start(sandbox, "sh", "-c", script, workdir="/workspace", **PLAIN)
    exit_ = await done.end()
    assert exit_.code == 0, (exit_, done.err)
    return done.out


async def content_of(sandbox: BoxliteSandbox, path: bytes, begin: int = 0, size: int | None = None) -> bytes:
    async with sandbox.files.open(path) as file:
        wanted = file.stat.size - begin if size is None else size
        return b"".join([piece async for piece in file.read(begin, wanted)])


async def left_over(made: Rig, sandbox: BoxliteSandbox) -> None:
    """Neither processes nor files of ours."""
    assert await run(sandbox, "find / -xdev -name '.bulkhead-*'; find /tmp -name '.bulkhead-*'") == b""
    async with asyncio.timeout(60):
        while made.marked():  # noqa: ASYNC110 - a process has no event that another could wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("shell", SHELLS)
async def test_what_is_written_is_read(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        for path, content in {
            b"a": b"",
            b"b": b"\0\xff\n" * 7,
            b"deep/er/" + ODD: os.urandom(700_001),
            b"/tmp/c": numbers(2_000_000),
        }.items():
            assert await sandbox.files.write(path, pieces(content[:5], content[5:])) is True
            assert await content_of(sandbox, path) == content
            stat = await sandbox.files.stat(path)
            assert (stat.kind, stat.size, stat.mode) == (FileKind.FILE, len(content), 0o644)
            assert stat.modified_ns % 1_000_000_000
        assert await sandbox.files.write(b"a", pieces(b"new"), mode=0o711) is False
        assert (await sandbox.files.stat(b"/workspace/a")).mode == 0o711
        assert await content_of(sandbox, b"a") == b"new"
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_part_of_a_file_is_read(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        content = numbers(400_000)
        await sandbox.files.write(b"f", pieces(content))
        async with sandbox.files.open(b"f") as file:
            await run(sandbox, "mv f g; echo other >f")
            for begin, size in ((0, 0), (1, 1), (4095, 2), (4096, 4096), (100_001, 250_000), (399_999, 1)):
                assert b"".join([p async for p in file.read(begin, size)]) == content[begin : begin + size]
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_directory_is_listed_page_by_page_in_the_order_of_bytes(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        await run(sandbox, "mkdir d; cd d; for n in $(seq 300); do : >n$n; done; mkfifo p; ln -s 'a\nb' l; mkdir e")
        await sandbox.files.write(b"d/" + ODD, pieces(b"12345"))
        found: list[DirectoryEntry] = []
        after: bytes | None = None
        while True:
            page = await sandbox.files.list(b"d", after, 97)
            found += page.entries
            if not page.more:
                break
            after = page.entries[-1].name
        assert [e.name for e in found] == sorted([b"n%d" % n for n in range(1, 301)] + [b"p", b"l", b"e", ODD])
        by_name = {entry.name: entry for entry in found}
        assert by_name[b"l"].target == b"a\nb"
        assert by_name[b"l"].stat.kind is FileKind.SYMLINK
        assert by_name[b"p"].stat.kind is FileKind.FIFO
        assert by_name[b"e"].stat.kind is FileKind.DIRECTORY
        assert by_name[ODD].stat.size == 5
        assert (await sandbox.files.list(b"d/e", None, 10)).entries == []


@pytest.mark.parametrize("shell", SHELLS)
async def test_what_is_not_yet_in_its_place_is_neither_listed_nor_packed(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"half" * 50_000
            begun.set()
            await go_on.wait()
            yield b"whole"

        upload = asyncio.create_task(sandbox.files.write(b"d/f", slow()))
        await begun.wait()
        while b".bulkhead-" not in await run(sandbox, "ls -a d || :"):  # the directory is made by it too
            pass
        assert (await sandbox.files.list(b"d", None, 10)).entries == []
        async with sandbox.files.pack(b".") as items:
            assert [item.name async for item in items if isinstance(item, ArchiveEntry)] == [b"", b"d"]
        go_on.set()
        assert await upload is True
        assert [entry.name for entry in (await sandbox.files.list(b"d", None, 10)).entries] == [b"f"]


@pytest.mark.parametrize("shell", SHELLS)
async def test_directories_are_made_and_things_deleted(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        files = sandbox.files
        assert await files.make_directory(b"a/b/c") is True
        assert await files.make_directory(b"a/b/c") is False
        with pytest.raises(Conflict):
            await files.delete(b"a/b", recursive=False)
        await files.delete(b"a/b/c", recursive=False)
        await files.delete(b"a", recursive=True)
        await run(sandbox, "echo x >f; ln -s f l; ln -s /etc d")
        for link in (b"l", b"d"):
            await files.delete(link, recursive=True)
        assert await content_of(sandbox, b"f") == b"x\n"
        assert await run(sandbox, "ls /etc/passwd") == b"/etc/passwd\n"
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_what_cannot_be_done_is_told_by_name(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        files = sandbox.files
        await run(sandbox, "echo x >f; mkdir d; mkfifo p; ln -s l l; echo >d/x")

        async def refused(kind: type[BulkheadError], *operations: object) -> None:
            for operation in operations:
                with pytest.raises(kind):
                    await operation  # type: ignore[misc]

        await refused(
            NotFound,
            files.stat(b"no"),
            content_of(sandbox, b"no"),
            files.list(b"no", None, 1),
            files.delete(b"no", recursive=False),
            files.delete(b"no", recursive=True),
        )
        await refused(
            WrongType,
            content_of(sandbox, b"d"),
            content_of(sandbox, b"p"),
            content_of(sandbox, b"/dev/zero"),
            files.list(b"f", None, 1),
            files.make_directory(b"f"),
            files.make_directory(b"f/x"),
            files.write(b"d", pieces(b"")),
            files.write(b"p", pieces(b"")),
            files.write(b"f/x", pieces(b"")),
            files.write(b"new/", pieces(b"")),
            files.stat(b"f/x"),
        )
        await refused(InvalidRequest, files.stat(b"l"), files.stat(b"n" * 256), files.delete(b"d/.", recursive=True))
        await refused(InvalidRequest, files.stat(b"/" + b"n/" * 3000), files.stat(b"a\0b"), files.stat(b""))
        await refused(AccessDenied, files.write(b"/usr/x", pieces(b"")), files.delete(b"/", recursive=True))
        assert await run(sandbox, "cat f; ls -A") == b"x\nd\nf\nl\np\n"
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_file_is_written_through_links(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        await run(
            sandbox, "mkdir -p d/e; cd d; ln -s ../e/new e/one; mkdir ../e; ln -s ../../e/two e/two; ln -s one e/three"
        )
        await run(sandbox, "ln -s /workspace/d/e/three l; ln -s 'odd\n' n")
        for link in (b"l", b"d/e/two", b"n"):
            assert await sandbox.files.write(link, pieces(link)) is True
            assert await sandbox.files.write(link, pieces(link)) is False
            assert await content_of(sandbox, link) == link
        assert await run(sandbox, "cat d/e/new; cat e/two; readlink l") == b"ld/e/two/workspace/d/e/three\n"
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_failed_write_leaves_the_old_file_and_no_directory_of_its_own(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()

        async def breaks_off() -> AsyncIterator[bytes]:
            yield numbers(600_000)
            raise Conflict("the client is gone")

        await sandbox.files.write(b"f", pieces(b"old"))
        for path in (b"f", b"x/y/z"):
            with pytest.raises(Conflict, match="the client is gone"):
                await sandbox.files.write(path, breaks_off())
        assert await content_of(sandbox, b"f") == b"old"
        assert await run(sandbox, "ls -A") == b"f\n"
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_condition_holds_at_the_last_moment(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        seen: list[FileStat | None] = []

        def check(stat: FileStat | None) -> None:
            seen.append(stat)
            if len(seen) > 1 and stat != seen[0]:
                raise PreconditionFailed("it has changed")

        async def meanwhile(script: str) -> AsyncIterator[bytes]:
            yield b"mine"
            await run(sandbox, script)

        with pytest.raises(PreconditionFailed):
            await sandbox.files.write(b"f", meanwhile("echo theirs >f"), check=check)
        assert await content_of(sandbox, b"f") == b"theirs\n"
        seen.clear()
        with pytest.raises(PreconditionFailed):
            await sandbox.files.write(b"f", meanwhile("rm f"), check=check)
        assert await run(sandbox, "ls -A") == b""
        seen.clear()
        assert await sandbox.files.write(b"f", pieces(b"mine"), check=check) is True
        seen.clear()
        assert await sandbox.files.write(b"f", pieces(b"again"), check=check) is False
        assert len(seen) == 1  # the second look is the script's, which asks us when it sees something else
        with pytest.raises(WrongType):
            await sandbox.files.write(b"f", meanwhile("rm f; mkdir f"), check=lambda _: None)
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_tree_goes_in_and_comes_out(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        long = b"/".join([b"n" * 120] * 3)
        big = os.urandom(300_000)
        tree: list[ArchiveEntry | bytes] = [
            ArchiveEntry(EntryKind.DIRECTORY, b"", 0o755, 0),
            ArchiveEntry(EntryKind.DIRECTORY, b"ro", 0o555, 10**18),
            ArchiveEntry(EntryKind.FILE, b"ro/f", 0o640, 10**18, len(big)),
            big,
            ArchiveEntry(EntryKind.HARD_LINK, b"ro/same", 0o640, 10**18, target=b"ro/f"),
            ArchiveEntry(EntryKind.SYMLINK, b"ro/up", 0o777, 10**18, target=b"../" + ODD),
            ArchiveEntry(EntryKind.FILE, ODD, 0o600, 10**18, 3),
            b"odd",
            ArchiveEntry(EntryKind.FILE, long + b"/f", 0o644, 10**18, 0),
            ArchiveEntry(EntryKind.SYMLINK, long + b"/l", 0o777, 10**18, target=b"t" * 300),
        ]

        async def content() -> AsyncIterator[ArchiveEntry | bytes]:
            for item in tree:
                yield item

        await run(sandbox, "mkdir -p t/ro; echo old >t/ro/f; echo keep >t/keep; mkfifo t/pipe")
        await sandbox.files.unpack(b"t", content())
        found: dict[bytes, tuple[ArchiveEntry, bytes]] = {}
        name = b""
        async with sandbox.files.pack(b"t") as items:
            async for item in items:
                if isinstance(item, bytes):
                    found[name] = found[name][0], found[name][1] + item
                else:
                    name = item.name
                    found[name] = item, b""
        assert list(found) == sorted(found, key=lambda name: name.split(b"/"))
        for index, item in enumerate(tree):
            if isinstance(item, bytes) or not item.name:
                continue
            entry, data = found[item.name]
            assert (entry.kind, entry.mode, entry.target, entry.size) == (item.kind, item.mode, item.target, item.size)
            if item.kind is EntryKind.FILE:
                assert entry.modified_ns == item.modified_ns
                assert data == (tree[index + 1] if item.size else b"")
        assert found[b"keep"][1] == b"keep\n"
        assert b"pipe" not in found
        async with sandbox.files.pack(b"t/keep") as items:
            whole = [item async for item in items]
        assert isinstance(whole[0], ArchiveEntry)
        assert (whole[0].name, whole[1:]) == (b"keep", [b"keep\n"])
        await left_over(made, sandbox)


@pytest.mark.parametrize("shell", SHELLS)
async def test_a_tree_that_does_not_fit_or_breaks_off_leaves_nothing(shell: str) -> None:
    async with rig(settings(shell)) as made:
        sandbox = await made.sandbox()
        await run(sandbox, "mkdir -p t/d; echo x >t/f; ln -s d t/l; find . >/tmp/before")

        async def content(name: bytes, *, broken: bool = False) -> AsyncIterator[ArchiveEntry | bytes]:
            yield ArchiveEntry(EntryKind.FILE, b"a", size=1)
            yield b"a"
            yield ArchiveEntry(EntryKind.FILE, name, size=600_000)
            yield numbers(500_000)
            if broken:
                raise Conflict("the client is gone")
            yield numbers(100_000)

        with pytest.raises(WrongType) as clash:
            await sandbox.files.unpack(b"t", content(b"d"))
        assert clash.value.found == "directory"
        with pytest.raises(WrongType) as clash:
            await sandbox.files.unpack(b"t", content(b"f/x"))
        assert clash.value.found == "file"
        for path in (b"t", b"new/er"):
            with pytest.raises(Conflict, match="the client is gone"):
                await sandbox.files.unpack(path, content(b"y", broken=True))
        with pytest.raises(WrongType):
            await sandbox.files.unpack(b"t/f", content(b"y"))
        assert await run(sandbox, "find . | cmp - /tmp/before") == b""
        await sandbox.files.unpack(b"t", content(b"l/x"))  # joined through a link, as a command would write
        assert await content_of(sandbox, b"t/d/x") == numbers(500_000) + numbers(100_000)
        await left_over(made, sandbox)
