"""NullFiles: the contract of `app/core/files.py` in memory, with the paths, links, modes and quota of a real one.

There are `/workspace`, `/tmp`, `/usr` (read-only) and `/dev/null`. A test steers it: `special` and `link` put what no
client can make; `truncate` changes a file in place; a `Gate` in `gate` holds the next operation, one in `piece_gate`
each piece of a read; `error` is raised by every operation, `piece_error` after the first piece of a read. While an
operation runs, `backend.alive` has `<sandbox>/files`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from app.core.errors import (
    AccessDenied,
    BackendFailure,
    BulkheadError,
    Conflict,
    DiskFull,
    NotFound,
    WrongType,
)
from app.core.files import (
    DEFAULT_MODE,
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
from tests.null_tree import Node, Place, Tree, directory, walk

if TYPE_CHECKING:
    from tests.null_backend import Gate, NullSandbox

PIECE = 1024 * 1024
PACKED = {
    FileKind.FILE: EntryKind.FILE,
    FileKind.DIRECTORY: EntryKind.DIRECTORY,
    FileKind.SYMLINK: EntryKind.SYMLINK,
}

Places = list[Place]


class NullFiles:
    def __init__(self, room: NullSandbox) -> None:
        self.tree = Tree()
        self.limit = room.spec.limits.disk_mib * 1024 * 1024
        self.gate: Gate | None = None
        self.piece_gate: Gate | None = None
        self.error: BulkheadError | None = None
        self.piece_error: BulkheadError | None = None
        self._room = room
        self._staged = 0  # bytes of operations that have not taken effect

    # --- what tests do to it

    def special(self, path: bytes, kind: FileKind) -> None:
        self.tree.find(path).put(Node(kind, 0o644))

    def link(self, path: bytes, target: bytes) -> None:
        self.tree.find(path, follow=False).put(Node(FileKind.SYMLINK, 0o777, target=target))

    def truncate(self, path: bytes, size: int) -> None:
        node = self.tree.at(path)
        node.content = node.content[:size]

    @property
    def used(self) -> int:
        """Bytes; what is about to be written counts."""
        nodes = {node.inode: node for _, node in walk(b"", self.tree.root)}
        return self._staged + sum(len(node.content) for node in nodes.values())

    # --- the contract

    async def stat(self, path: bytes) -> FileStat:
        async with self._operation():
            return self.tree.at(path).stat

    @asynccontextmanager
    async def open(self, path: bytes) -> AsyncIterator[OpenFile]:
        async with self._operation():
            node = _file(self.tree.at(path), path)
            if not node.mode & 0o400:
                raise AccessDenied(f"{shown(path)} cannot be read")
            yield _Open(self, node)

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int | None = None, check: Check | None = None
    ) -> bool:
        async with self._operation():
            with _made() as made:
                place = self._writable(path, made)
                _check(place, check)
                staged = bytearray()
                with self._staging() as claim:
                    async for piece in content:
                        claim(len(piece))
                        staged += piece
                        await asyncio.sleep(0)
                    self._room.check_alive()
                    place = self._writable(path, made)
                    _check(place, check)
                    kept = DEFAULT_MODE if place.node is None else place.node.mode
                    place.put(Node(FileKind.FILE, (kept if mode is None else mode) & 0o777, staged))
                made.clear()
            return place.node is None

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        async with self._operation():
            node = self.tree.at(path)
            if not node.is_directory:
                raise WrongType(node.kind, f"{shown(path)} is no directory, but {node.kind}")
            if not node.mode & 0o400:
                raise AccessDenied(f"{shown(path)} cannot be read")
            names = sorted(name for name in node.children if after is None or name > after)
            chosen = [(name, node.children[name]) for name in names[:limit]]
            entries = [
                DirectoryEntry(name, found.stat, found.target if found.kind is FileKind.SYMLINK else None)
                for name, found in chosen
            ]
            return Listing(entries, len(names) > limit)

    async def make_directory(self, path: bytes) -> bool:
        async with self._operation():
            with _made() as made:
                place = self.tree.find(path.rstrip(b"/") or path, make=made)
                if place.node is None:
                    place.put(directory())
                elif not place.node.is_directory:
                    raise WrongType(place.node.kind, f"{shown(path)} is no directory, but {place.node.kind}")
                made.clear()
            return place.node is None

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        async with self._operation():
            require_name(path)
            place = self.tree.find(path, follow=False)
            if place.node is None:
                raise NotFound("file", shown(path))
            if place.node.fixed or not place.name:
                raise AccessDenied(f"{shown(path)} cannot be deleted")
            if place.node.children and not recursive:
                raise Conflict(f"{shown(path)} is not empty")
            place.remove()

    @asynccontextmanager
    async def pack(self, path: bytes) -> AsyncIterator[AsyncIterator[ArchiveEntry | bytes]]:
        async with self._operation():
            node = self.tree.at(path)
            if node.is_directory:
                found = [(name, below) for name, below in walk(b"", node) if below.kind in PACKED]
            else:
                found = [(path.rsplit(b"/", 1)[-1], _file(node, path))]
            yield self._packed(found)

    async def unpack(self, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
        async with self._operation():
            with _made() as made, self._staging() as claim:
                place = self.tree.find(path.rstrip(b"/") or path, make=made)
                if place.node is not None and not place.node.is_directory:
                    raise WrongType(place.node.kind, f"{shown(path)} is no directory, but {place.node.kind}")
                tree = directory()
                await self._build(tree, content, claim)
                self._room.check_alive()
                target = place.node or directory()
                moves = list(self._moves(target, tree))  # all of them are looked at before the first is made
                place.check_change()
                for parent, name, node in moves:
                    parent.children[name] = node
                    parent.touch()
                if place.node is None:
                    place.put(target)
                made.clear()

    # --- parts of it

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[None]:
        self._room.check_alive()
        name = f"{self._room.id}/files"
        self._room.backend.add(name)
        try:
            await self._room.backend.at(self.gate, self.error)
            self._room.check_alive()
            yield
        finally:
            self._room.backend.remove(name)

    async def between(self) -> None:
        """Between two pieces of a read."""
        await self._room.backend.at(self.piece_gate, self.piece_error)
        self._room.check_alive()

    def _writable(self, path: bytes, made: Places) -> Place:
        if path.endswith(b"/"):
            raise WrongType(FileKind.DIRECTORY, f"{shown(path)} names a directory")
        place = self.tree.find(path, make=made)
        if place.node is not None:
            _file(place.node, path)
        place.check_change()
        return place

    @contextmanager
    def _staging(self) -> Iterator[Callable[[int], None]]:
        """Room for what has not taken effect, given back at the end; DiskFull when there is none."""
        mine = 0

        def claim(size: int) -> None:
            nonlocal mine
            if self.used + size > self.limit:
                raise DiskFull(self.limit)
            mine += size
            self._staged += size

        try:
            yield claim
        finally:
            self._staged -= mine

    async def _packed(self, found: Sequence[tuple[bytes, Node]]) -> AsyncIterator[ArchiveEntry | bytes]:
        seen: dict[int, bytes] = {}
        for name, node in found:
            first = seen.setdefault(node.inode, name)
            if first != name:
                yield ArchiveEntry(EntryKind.HARD_LINK, name, node.mode, node.modified_ns, target=first)
                continue
            yield ArchiveEntry(PACKED[node.kind], name, node.mode, node.modified_ns, len(node.content), node.target)
            async for piece in _Open(self, node).read(0, len(node.content)):
                yield piece

    async def _build(
        self, tree: Node, content: AsyncIterator[ArchiveEntry | bytes], claim: Callable[[int], None]
    ) -> None:
        at: Node | None = None
        async for item in content:
            if isinstance(item, bytes):
                assert at is not None, "bytes before any entry"
                claim(len(item))
                at.content += item
            elif item.name:
                at = _add(tree, item)
            else:
                tree.mode = item.mode
            await asyncio.sleep(0)

    def _moves(self, target: Node, tree: Node) -> Iterator[tuple[Node, bytes, Node]]:
        for name, node in tree.children.items():
            there = target.children.get(name)
            if there is None:
                yield target, name, node
            elif node.is_directory and there.is_directory:
                there.mode = node.mode
                yield from self._moves(there, node)
            elif node.is_directory or there.is_directory:
                raise WrongType(there.kind, f"{shown(name)} is {there.kind}")
            else:
                yield target, name, node


class _Open:
    def __init__(self, files: NullFiles, node: Node) -> None:
        self._files, self._node = files, node
        self.stat = node.stat

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        for at in range(begin, begin + size, PIECE):
            if at > begin:
                await self._files.between()
            wanted = min(PIECE, begin + size - at)
            piece = bytes(memoryview(self._node.content)[at : at + wanted])
            if len(piece) < wanted:
                raise BackendFailure("the file has become shorter")
            yield piece
            await asyncio.sleep(0)


def _file(node: Node, path: bytes) -> Node:
    if node.kind is not FileKind.FILE:
        raise WrongType(node.kind, f"{shown(path)} is no regular file, but {node.kind}")
    return node


def _check(place: Place, check: Check | None) -> None:
    if check is not None:
        check(None if place.node is None else place.node.stat)


@contextmanager
def _made() -> Iterator[list[Place]]:
    """Directories that go again when what they were made for fails."""
    made: list[Place] = []
    try:
        yield made
    finally:
        for place in reversed(made):
            if not place.parent.children[place.name].children:
                place.remove()


def _add(tree: Node, entry: ArchiveEntry) -> Node:
    *parents, name = entry.name.split(b"/")
    at = tree
    for parent in parents:
        at = at.children.setdefault(parent, directory())
    if entry.kind is EntryKind.HARD_LINK:
        node = _below(tree, entry.target)
    elif entry.kind is EntryKind.DIRECTORY:
        node = at.children.get(name) or directory()
        node.mode, node.modified_ns = entry.mode, entry.modified_ns
    else:
        kind = FileKind.FILE if entry.kind is EntryKind.FILE else FileKind.SYMLINK
        node = Node(kind, entry.mode, bytearray(), entry.target, modified_ns=entry.modified_ns)
    at.children[name] = node
    return node


def _below(tree: Node, name: bytes) -> Node:
    for part in name.split(b"/"):
        tree = tree.children[part]
    return tree
