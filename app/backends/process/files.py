"""The files of a process sandbox. A file agent inside carries out each operation
(`app/launcher/sandbox/file_agent.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from app.backends.process.agent import Failed, FileAgentClient, OutOfMemory
from app.backends.process.trees import Entries, put_entries
from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BulkheadError,
    CapacityExceeded,
    Conflict,
    DiskFull,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    WrongType,
)
from app.core.files import (
    ArchiveEntry,
    Check,
    FileKind,
    FileStat,
    Listing,
    require_name,
    shown,
)
from app.core.models import Storage
from app.launcher.protocol import ProtocolError, Reader, Writer
from app.launcher.protocol.files import (
    ABSENT,
    ANYTHING,
    COMMIT,
    DELETE,
    DONE,
    FOUND,
    GO,
    HARD_LINK,
    KEEP_MODE,
    KINDS,
    LIST,
    MAKE_DIRECTORY,
    MEASURE,
    NODE,
    NOTHING,
    PACK,
    READ,
    SEND,
    STAT,
    THE_SAME,
    UNPACK,
    USED,
    WRITE,
    FileRecord,
    request,
)

_TREE_SECONDS = 120.0  # deleting 1,000,000 files of a tmpfs takes about 10 s
_WAIT_SECONDS = 10.0
MOST_AT_ONCE = 16  # each is a process of the sandbox


def stat_of(node: FileRecord) -> FileStat:
    """Raises ProtocolError."""
    if node.kind == HARD_LINK:
        raise ProtocolError("a hard link is no kind of file")
    return FileStat(FileKind(KINDS[node.kind]), node.size, node.mode, node.modified_ns, node.inode)


@dataclass(frozen=True, slots=True)
class FileRoom:
    """Where the files of a sandbox are, and how many bytes they may have."""

    storage: Storage
    disk_bytes: int

    def out_of_memory(self) -> BulkheadError:
        """Where files are memory, they may be what has used it up."""
        if self.storage is Storage.DISK:
            return _scarce(os.strerror(errno.ENOMEM))
        detail = "the sandbox's memory is full, and files are part of it; delete files or end something that runs in it"
        return DiskFull(self.disk_bytes, detail)


@contextlib.contextmanager
def translated(room: FileRoom) -> Iterator[None]:
    """Turns the failure of an agent into an error of the core."""
    try:
        yield
    except Failed as failed:
        raise _error(failed, room.disk_bytes) from failed
    except OutOfMemory as error:
        raise room.out_of_memory() from error
    except ProtocolError as error:
        raise BackendFailure("the file agent does not speak its protocol") from error


_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_TAKEN = {errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP}
_CHANGED = {errno.ESTALE, errno.EEXIST}
_SCARCE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE}
_WRONG_KIND = {errno.ENOTDIR: FileKind.FILE, errno.EISDIR: FileKind.DIRECTORY}


def _error(failed: Failed, disk_bytes: int) -> BulkheadError:
    path, sentence = shown(failed.path), os.strerror(failed.errno)
    found = FileKind(KINDS[failed.kind]) if failed.kind < HARD_LINK else _WRONG_KIND.get(failed.errno)
    wanted = FileKind.DIRECTORY if failed.errno == errno.ENOTDIR else FileKind.FILE
    what = f"{path!r}: {sentence}"
    if found is not None:
        return WrongType(found.value, f"{path!r} is {found.noun}; {wanted.noun} is needed here")
    errors: list[tuple[bool, Callable[[], BulkheadError]]] = [
        (failed.errno == errno.ENOENT, lambda: NotFound("file", path)),
        (failed.errno == errno.EBUSY, lambda: AccessDenied(f"{path!r} is a part of the sandbox and cannot be deleted")),
        (failed.errno in _DENIED, lambda: AccessDenied(what)),
        (failed.errno in {errno.ENOSPC, errno.EDQUOT}, lambda: DiskFull(disk_bytes)),
        (failed.errno in _NOT_TAKEN, lambda: InvalidRequest.at("query/path", what)),
        (failed.errno == errno.ENOTEMPTY, lambda: Conflict(f"{what}; recursive=true deletes all that is in it")),
        (failed.errno in _CHANGED, lambda: PreconditionFailed(f"{path!r} was changed by somebody else meanwhile")),
        (failed.errno in _SCARCE, lambda: _scarce(sentence)),
    ]
    return next((make() for applies, make in errors if applies), BackendFailure(what))


def _scarce(sentence: str) -> CapacityExceeded:
    detail = f"the sandbox has no room for this operation on files: {sentence}; end something that runs in it"
    return CapacityExceeded("memory, processes or descriptors", holder="sandbox", detail=detail)


@dataclass(frozen=True, slots=True)
class _Opened:
    stat: FileStat
    agent: FileAgentClient

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        self.agent.tell(Writer(SEND).u64(begin).u64(size))
        left = size
        async for piece in self.agent.data.pieces(size):
            left -= len(piece)
            yield piece
        if left:
            raise BackendFailure("the file became shorter while it was read")


class ProcessFiles:
    """`start` begins an agent with a request. At most 16 operations run in a sandbox at once. Others wait for a
    while."""

    def __init__(self, start: Callable[[Writer], FileAgentClient], room: FileRoom) -> None:
        self._start, self._room = start, room
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    @contextlib.asynccontextmanager
    async def _agent(self, asked: Writer) -> AsyncIterator[FileAgentClient]:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError:
            raise CapacityExceeded("operations on files at one time", MOST_AT_ONCE, "sandbox") from None
        try:
            agent = self._start(asked)
            undone = True
            try:
                with translated(self._room):
                    yield agent
                undone = False
            finally:
                await agent.close(undone=undone)
        finally:
            self._places.release()

    # --- one file

    async def stat(self, path: bytes) -> FileStat:
        async with self._agent(request(STAT, path)) as agent:
            _, source = await agent.hear(FOUND)
            return stat_of(FileRecord.read(source))

    @contextlib.asynccontextmanager
    async def open(self, path: bytes) -> AsyncIterator[_Opened]:
        async with self._agent(request(READ, path)) as agent:
            _, source = await agent.hear(FOUND)
            opened = _Opened(stat_of(FileRecord.read(source)), agent)
            agent.data.grow()
            yield opened

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int | None = None, check: Check | None = None
    ) -> bool:
        async with self._agent(request(WRITE, path).u32(KEEP_MODE if mode is None else mode)) as agent:
            await self._look(agent, check)
            agent.tell(Writer(GO))
            agent.data.grow()
            async for piece in content:
                if not await agent.data.put(piece):
                    break  # it cannot go on, and says why
            await agent.data.flush()
            agent.data.close()
            found = await self._look(agent, check)
            agent.tell(_commit(found, checked=check is not None))
            _, answer = await agent.hear(DONE)
            return bool(answer.u8())

    async def _look(self, agent: FileAgentClient, check: Check | None) -> FileRecord | None:
        kind, source = await agent.hear(FOUND, ABSENT)
        found = FileRecord.read(source) if kind == FOUND else None
        if check is not None:
            check(stat_of(found) if found is not None else None)
        return found

    async def used(self) -> int:
        """Bytes of all files in the sandbox together, as the file system of /workspace reports them."""
        async with self._agent(request(MEASURE, b".")) as agent:
            _, source = await agent.hear(USED)
            return source.u64()

    # --- directories and trees

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        async with self._agent(request(LIST, path).blob(after or b"").u32(limit)) as agent:
            return await Entries(agent).listing(limit)

    async def make_directory(self, path: bytes) -> bool:
        return bool((await self._do(request(MAKE_DIRECTORY, path))).u8())

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        require_name(path)
        await self._do(request(DELETE, path).u8(recursive))

    async def _do(self, asked: Writer) -> Reader:
        async with self._agent(asked) as agent:
            return (await agent.hear(DONE, seconds=_TREE_SECONDS))[1]

    @contextlib.asynccontextmanager
    async def pack(self, path: bytes) -> AsyncIterator[AsyncIterator[ArchiveEntry | bytes]]:
        async with self._agent(request(PACK, path)) as agent:
            await agent.hear(DONE, seconds=_TREE_SECONDS)
            agent.tell(Writer(GO))
            agent.data.grow()
            yield Entries(agent).tree()

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        async with self._agent(request(UNPACK, path)) as agent:
            agent.data.grow()
            await put_entries(agent.data, content)
            await agent.hear(DONE, seconds=_TREE_SECONDS)


def _commit(found: FileRecord | None, *, checked: bool) -> Writer:
    if not checked:
        return Writer(COMMIT).u8(ANYTHING)
    if found is None:
        return Writer(COMMIT).u8(NOTHING)
    record = Writer(COMMIT).u8(THE_SAME)
    record.data += NODE.pack(*found.fields())
    return record
