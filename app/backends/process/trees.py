"""Sequences of entries on a file agent's pipe: listings and whole trees, as the agent packs them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.backends.process.agent import FileAgentClient
from app.backends.process.transfer import Transfer
from app.core.chunks import ChunkReader
from app.core.errors import BackendFailure
from app.core.files import ArchiveEntry, DirectoryEntry, EntryKind, FileKind, FileStat, Listing
from app.core.timeslices import TimeSlices
from app.launcher.protocol import ProtocolError
from app.launcher.protocol.files import (
    DIRECTORY,
    END,
    FILE,
    HARD_LINK,
    HEAD,
    KINDS,
    SYMLINK,
    FileRecord,
    checked,
    end_of_entries,
    pack_head,
)

_KIND_OF = {
    EntryKind.FILE: FILE,
    EntryKind.DIRECTORY: DIRECTORY,
    EntryKind.SYMLINK: SYMLINK,
    EntryKind.HARD_LINK: HARD_LINK,
}
_ENTRY_OF = {kind: entry for entry, kind in _KIND_OF.items()}


class Entries:
    """The entries that an agent sends. If its data end before the entries, the agent says why, or it is a failure."""

    def __init__(self, agent: FileAgentClient) -> None:
        self._agent, self._data = agent, ChunkReader(agent.data)
        self.number = 0  # what the end carried

    async def _exactly(self, size: int) -> bytes:
        data = await self._data.exactly(size)
        if len(data) < size:
            await self._agent.hear()  # raises
            raise BackendFailure("the entries end early: a file became shorter while it was read")
        return data

    async def _next(self) -> tuple[FileRecord, bytes, bytes] | None:
        """(what it is, name, target), or None at the end."""
        kind, size, mode, modified_ns, inode, name_size, target_size = HEAD.unpack(await self._exactly(HEAD.size))
        if kind == END:
            self.number = size
            return None
        rest = await self._exactly(name_size + target_size)
        return checked(kind, size, mode, modified_ns, inode), rest[:name_size], rest[name_size:]

    async def listing(self, limit: int) -> Listing:
        """Returns a listing. Raises ProtocolError for more entries than were asked for."""
        entries: list[DirectoryEntry] = []
        slices = TimeSlices.of_loop()
        while (entry := await self._next()) is not None:
            if slices.over:
                await slices.next()
            node, name, target = entry
            if len(entries) == limit or node.kind == HARD_LINK or b"/" in name or not name:
                raise ProtocolError("not an entry of a listing")
            stat = FileStat(FileKind(KINDS[node.kind]), node.size, node.mode, node.modified_ns, node.inode)
            entries.append(DirectoryEntry(name, stat, target if node.kind == SYMLINK else None))
        return Listing(entries, more=bool(self.number))

    async def tree(self) -> AsyncIterator[ArchiveEntry | bytes]:
        while (entry := await self._next()) is not None:
            node, name, target = entry
            if node.kind not in _ENTRY_OF:
                raise ProtocolError("not an entry of a tree")
            size = node.size if node.kind == FILE else 0
            yield ArchiveEntry(_ENTRY_OF[node.kind], name, node.mode & 0o777, node.modified_ns, size, target)
            left = size
            while left:
                piece = await self._data.piece(left)
                if not piece:
                    raise BackendFailure("the entries end early: a file became shorter while it was read")
                left -= len(piece)
                yield piece


async def put_entries(data: Transfer, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
    """Writes entries. Returns early when nobody reads any more, and the agent then says why."""
    async for item in content:
        if not await data.put(_packed(item) if isinstance(item, ArchiveEntry) else item):
            return
    if await data.put(end_of_entries()):
        await data.flush()
    data.close()


def _packed(entry: ArchiveEntry) -> bytes:
    node = FileRecord(_KIND_OF[entry.kind], entry.size, entry.mode, entry.modified_ns, 0)
    return pack_head(node, entry.name, entry.target)
