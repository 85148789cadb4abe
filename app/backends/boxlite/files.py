"""The files of a box, reached through its own shell. A path leads to what it leads to for a command of the box.

The server's download is not used, as it follows links on the server's machine. Its upload is not used either: it does
not know the box's mounts and takes 2 MiB at a time. The image's own programs answer. Their answers are bounded and
parsed strictly. A box that lies only lies about its own files.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from app.backends.boxlite.file_facts import absolute, existing, facts_of, malformed, name_of_ours, only
from app.backends.boxlite.file_scripts import CLEAN_WRITE, DELETE, MAKE_DIRECTORY, OPEN, PAGE_BYTES, STAT, TREE, WRITE
from app.backends.boxlite.script_runner import ScriptRunner
from app.backends.boxlite.script_session import ScriptSession
from app.backends.boxlite.tree import BoxTree, packed
from app.backends.boxlite.unpacking import unpack
from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BackendTimeout,
    BackendUnavailable,
    Conflict,
    WrongType,
)
from app.core.files import (
    ArchiveEntry,
    Check,
    DirectoryEntry,
    EntryKind,
    FileKind,
    FileStat,
    Listing,
    OpenFile,
    require_name,
    shown,
)

ATTEMPTS = 3  # in a row, to read a piece of a file
ROUNDS = 8  # how often a file may change between a check and the rename


class BoxliteFiles:
    def __init__(self, scripts: ScriptRunner) -> None:
        self._scripts = scripts
        self._renaming = asyncio.Lock()  # between two clients of ours a condition holds; see the script

    async def stat(self, path: bytes) -> FileStat:
        async with self._scripts.begin(STAT, absolute(path)) as session:
            return existing(await session.line(), path)

    @asynccontextmanager
    async def open(self, path: bytes) -> AsyncIterator[OpenFile]:
        async with self._opened(path) as held:
            yield _Reading(held, lambda: self._opened(path))

    @asynccontextmanager
    async def _opened(self, path: bytes) -> AsyncIterator[_Held]:
        async with self._scripts.begin(OPEN, absolute(path)) as session:
            only(FileKind.FILE, existing(await session.line(), path), path)
            word, _, facts = (await session.line()).partition(b" ")
            if word != b"open":
                raise malformed()
            yield _Held(session, only(FileKind.FILE, facts_of(facts), path))

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int | None = None, check: Check | None = None
    ) -> bool:
        whole = absolute(path)
        if whole.rpartition(b"/")[2] in {b"", b".", b".."}:
            raise WrongType(FileKind.DIRECTORY.value, f"{shown(path)} names a directory")
        options = (name_of_ours(), "" if mode is None else f"{mode:o}")
        async with self._scripts.begin(WRITE, whole, *options, clean=CLEAN_WRITE) as session:
            line = await session.line()
            _checked(line, path, check)
            await session.say("go")
            size, digest = await session.feed(content)
            said = await session.line(session.seconds_for(size))
            if said != b"sum " + digest.encode():
                raise BackendFailure("the content was damaged on its way into the box: its digest is wrong")
            for _ in range(ROUNDS):
                async with self._renaming:
                    await session.say(line.decode() if check is not None else "any")
                    word, _, line = (await session.line()).partition(b" ")
                if word == b"done":
                    return line == b"none"
                if word != b"again":
                    raise malformed()
                _checked(line, path, check)
        raise Conflict(f"{shown(path)} is changed by others all the time")

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        token = secrets.token_hex(16)
        async with self._scripts.begin(TREE, absolute(path), token, "1") as session:
            only(FileKind.DIRECTORY, existing(await session.line(), path), path)
            tree = BoxTree(session, token)
            names = await tree.first_names(after, limit + 1)
            nodes = await tree.nodes(names[:limit])
            targets = await tree.targets(nodes)
        entries = [DirectoryEntry(node.name, node.stat, targets.get(node.name)) for node in nodes]
        return Listing(entries, more=len(names) > limit)

    async def make_directory(self, path: bytes) -> bool:
        whole = absolute(path).rstrip(b"/") or b"/"
        async with self._scripts.begin(MAKE_DIRECTORY, whole) as session:
            line = await session.line()
            if line == b"made":
                return True
            if line != b"there":
                only(FileKind.DIRECTORY, existing(line, path), path)
            return False

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        if not path.strip(b"/"):
            raise AccessDenied("the root of a sandbox cannot be deleted")
        require_name(path)
        async with self._scripts.begin(DELETE, absolute(path), "recursive" if recursive else "") as session:
            if await session.line() != b"gone":
                raise malformed()

    @asynccontextmanager
    async def pack(self, path: bytes) -> AsyncIterator[AsyncIterator[ArchiveEntry | bytes]]:
        token = secrets.token_hex(16)
        async with self._scripts.begin(TREE, absolute(path), token, "") as session:
            root = existing(await session.line(), path)
            if root.kind is FileKind.DIRECTORY:
                tree = BoxTree(session, token)
                yield packed(tree, root, await tree.survey())
                return
        async with self.open(path) as file:
            yield _alone(file, path.rpartition(b"/")[2])

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        await unpack(self._scripts, path, content)


async def _alone(file: OpenFile, name: bytes) -> AsyncIterator[ArchiveEntry | bytes]:
    stat = file.stat
    yield ArchiveEntry(EntryKind.FILE, name, stat.mode, stat.modified_ns, stat.size)
    async for piece in file.read(0, stat.size):
        yield piece


class _Reading:
    """Of a file that is held open. What the server or its connection loses on the way is asked for once more, from the
    same file, if the path still leads there."""

    def __init__(self, held: _Held, again: Callable[[], AbstractAsyncContextManager[_Held]]) -> None:
        self._held, self._again, self.stat = held, again, held.stat

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        end, held, failures = begin + size, self._held, 0
        async with AsyncExitStack() as again:
            while True:
                before = begin
                try:
                    async for piece in held.read(begin, end - begin):
                        begin += len(piece)
                        yield piece
                except (BackendUnavailable, BackendTimeout):
                    failures = failures + 1 if begin == before else 1
                    if failures == ATTEMPTS:
                        raise
                else:
                    return
                await again.aclose()
                held = await again.enter_async_context(self._again())
                if held.stat != self.stat:
                    raise BackendFailure("the connection broke, and the file was replaced meanwhile")


class _Held:
    def __init__(self, session: ScriptSession, stat: FileStat) -> None:
        self._session, self.stat = session, stat

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        if size == 0:
            return
        skip = begin // PAGE_BYTES
        count = -(-(begin + size) // PAGE_BYTES) - skip
        before, left = begin - skip * PAGE_BYTES, size
        await self._session.say(f"{skip} {count}")
        async for piece in self._session.stream(count * PAGE_BYTES, self._session.piece_seconds):
            wanted = piece[before : before + left]
            before = max(0, before - len(piece))
            left -= len(wanted)
            if wanted:
                yield wanted
        if left:
            raise BackendFailure("the file became shorter while it was read")


def _checked(line: bytes, path: bytes, check: Check | None) -> None:
    stat = None if line == b"none" else only(FileKind.FILE, existing(line, path), path)
    if check is not None:
        check(stat)
