"""What a client is told of files: in its own names, and nothing of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.core.errors import AccessDenied, BulkheadError, InvalidRequest, WrongType
from app.core.files import ArchiveEntry, EntryKind
from tests.kernel.test_files import room


async def test_a_mount_point_is_refused_before_anything_in_it_is_deleted() -> None:
    async with room() as made:
        await made.sh("mkdir -p a/b; echo x >a/b/f; echo y >/tmp/g")
        for path in (b"/workspace", b"/workspace/", b"/tmp", b"/tmp/", b"../workspace"):
            with pytest.raises(AccessDenied):
                await made.files.delete(path, recursive=True)
        assert await made.sh("cat a/b/f /tmp/g") == b"x\ny\n"


async def test_a_path_that_ends_in_dots_deletes_nothing() -> None:
    async with room() as made:
        await made.sh("mkdir -p a/b/c; touch a/b/c/f a/other top")
        before = await made.sh("find . | sort")
        for path in (b".", b"a/.", b"a/b/c/..", b"a/b/c/../"):
            with pytest.raises(InvalidRequest):
                await made.files.delete(path, recursive=True)
        assert await made.sh("find . | sort") == before


async def test_what_stops_a_deletion_is_named_by_its_path() -> None:
    async with room() as made:
        await made.sh("mkdir -p t/a/shut; echo x >t/a/shut/f; chmod 0500 t/a/shut")
        with pytest.raises(AccessDenied, match="t/a/shut/f"):
            await made.files.delete(b"t", recursive=True)


async def test_no_problem_names_a_temporary_file() -> None:
    async def tree() -> AsyncIterator[ArchiveEntry | bytes]:
        yield ArchiveEntry(EntryKind.FILE, b"d/f", size=1)
        yield b"x"

    async with room() as made:
        await made.sh("ln -s /nope dangling; mkdir shut; chmod 0500 shut")
        problems: list[BulkheadError] = []
        for path in (b"/usr/x", b"dangling", b"shut/f"):
            with pytest.raises(AccessDenied) as denied:
                await made.write(path, b"x")
            assert repr(path.decode()) in str(denied.value)
            problems.append(denied.value)
        with pytest.raises(AccessDenied) as denied:
            await made.files.unpack(b"/usr", tree())
        problems.append(denied.value)
        assert not [problem for problem in problems if ".bulkhead" in str(problem)]


async def test_what_is_not_yet_in_its_place_is_not_listed_and_not_packed() -> None:
    async with room() as made:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"half" * 50_000
            begun.set()
            await go_on.wait()
            yield b"whole"

        upload = asyncio.create_task(made.files.write(b"d/f", slow()))
        await begun.wait()
        assert [entry.name for entry in (await made.files.list(b"d", None, 10)).entries] == []
        async with made.files.pack(b".") as items:
            names = [item.name async for item in items if isinstance(item, ArchiveEntry)]
        assert names == [b"", b"d"]
        go_on.set()
        assert await upload is True
        assert [entry.name for entry in (await made.files.list(b"d", None, 10)).entries] == [b"f"]


async def test_a_wrong_type_says_what_is_there_and_what_is_needed() -> None:
    async with room() as made:
        await made.sh("mkfifo p; echo x >f")
        with pytest.raises(WrongType, match="'p' is a FIFO; a regular file is needed here"):
            await made.read(b"p")
        with pytest.raises(WrongType, match="'f' is a regular file; a directory is needed here"):
            await made.files.list(b"f", None, 10)
        with pytest.raises(WrongType, match="'/workspace' is a directory; a regular file is needed here"):
            await made.read(b"/workspace")
