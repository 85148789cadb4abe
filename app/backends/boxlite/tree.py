"""Directories of a box, asked of the script TREE: all names first, then the wanted facts of some."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from app.backends.boxlite.file_facts import TreeNode, is_ours, malformed, node_of, records
from app.backends.boxlite.file_scripts import PIECE_BYTES
from app.backends.boxlite.script_session import ScriptSession
from app.core.errors import BackendFailure, BoundExceeded
from app.core.files import ArchiveEntry, EntryKind, FileKind, FileStat
from app.core.timeslices import TimeSlices

NAMES_BYTES = 16 * 1024 * 1024  # of all names of one directory, or one tree: each page reads them all
MOST_ENTRIES = 100_000  # of a tree
_PARTS = "ask for parts of the tree one by one"
QUESTION_BYTES = 64 * 1024  # names in one question: less than what xargs gives to one program
FILES_AT_ONCE = 256  # whose contents come in one answer
RECORD_BYTES = 8192  # of what is said about one name
PACKED = {
    FileKind.FILE: EntryKind.FILE,
    FileKind.DIRECTORY: EntryKind.DIRECTORY,
    FileKind.SYMLINK: EntryKind.SYMLINK,
}


class BoxTree:
    """`token` is a word that no name of the tree contains, unless its owner wants to."""

    def __init__(self, session: ScriptSession, token: str) -> None:
        self._session, self._token = session, token.encode()

    async def first_names(self, after: bytes | None, count: int) -> list[bytes]:
        """The first names behind `after`, in the order of their bytes."""
        found: list[bytes] = []
        async for names in self._names():
            found = sorted([*found, *(name for name in names if after is None or name > after)])[:count]
        return found

    async def survey(self) -> list[tuple[TreeNode, bytes | None]]:
        """Returns everything that can be packed, parents before their content, with the targets of links. Raises
        AccessDenied for what could not be read later, when it would be too late to say why."""
        names: list[bytes] = []
        async for some in self._names():
            names += some
            if len(names) > MOST_ENTRIES:
                raise BoundExceeded("entries in one archive", MOST_ENTRIES, _PARTS)
        nodes = [node for node in await self.nodes(names) if node.stat.kind in PACKED]
        for batch in _batches([node.name for node in nodes if node.stat.kind is FileKind.FILE]):
            await self._answer("readable", batch, 0)
        nodes.sort(key=lambda node: node.name.split(b"/"))
        targets = await self.targets(nodes)
        return [(node, targets.get(node.name)) for node in nodes]

    async def _names(self) -> AsyncIterator[list[bytes]]:
        rest, total = b"", 0
        async for piece in self._session.stream(NAMES_BYTES + PIECE_BYTES):
            total += len(piece)
            if total > NAMES_BYTES:
                raise BoundExceeded("bytes of names in one directory or archive", NAMES_BYTES, _PARTS)
            *paths, rest = (rest + piece).split(b"\0")
            yield [name for name in map(_below, paths) if not is_ours(name)]
        if rest:
            raise malformed()

    async def nodes(self, names: Sequence[bytes]) -> list[TreeNode]:
        """The facts of some names. Files that disappeared meanwhile are left out."""
        found = {}
        slices = TimeSlices.of_loop()
        for batch in _batches(names):
            for record in records(await self._answer("facts", batch), self._token + b" "):
                if slices.over:
                    await slices.next()
                node = node_of(record)
                found[node.name] = node
        if not found.keys() <= set(names):
            raise malformed()
        return [found[name] for name in names if name in found]

    async def targets(self, nodes: Sequence[TreeNode]) -> dict[bytes, bytes]:
        """The targets of the links among them, as they are written. Empty for a link that disappeared meanwhile."""
        found: dict[bytes, bytes] = {}
        for batch in _batches([node.name for node in nodes if node.stat.kind is FileKind.SYMLINK]):
            answers = list(records(await self._answer("targets", batch), self._token))
            if len(answers) != len(batch):
                raise malformed()
            found.update(zip(batch, answers, strict=True))
        return found

    async def _answer(self, request: str, names: Sequence[bytes], limit: int = RECORD_BYTES) -> bytes:
        await self._session.ask(b"".join(b"./%b\0" % name for name in names), request)
        return b"".join([piece async for piece in self._session.stream(limit * len(names))])

    async def contents(self, files: Sequence[TreeNode]) -> AsyncIterator[TreeNode | bytes]:
        """Yields each file that is still there, with its bytes behind it. Raises BackendFailure for a file that became
        shorter, or that cannot be read any more."""
        await self._session.ask(b"".join(b"%d ./%b\0" % (file.stat.size, file.name) for file in files), "contents")
        limit = sum(file.stat.size + 1 + len(self._token) for file in files)
        source = _Source(self._session.stream(limit))
        for file in files:
            if await source.take(1) == b"+":
                yield file
                left = file.stat.size
                while left:
                    piece = await source.some(left)
                    left -= len(piece)
                    yield piece
            if await source.take(len(self._token)) != self._token:
                raise BackendFailure("a file became shorter while it was read")
        await source.finish()


class _Source:
    """A stream as it is wanted: so many bytes, or what there is."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces, self._piece = pieces, b""

    async def some(self, most: int) -> bytes:
        while not self._piece:
            try:
                self._piece = await anext(self._pieces)
            except StopAsyncIteration:
                raise BackendFailure("a file became shorter while it was read") from None
        found, self._piece = self._piece[:most], self._piece[most:]
        return found

    async def take(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            found += await self.some(size - len(found))
        return found

    async def finish(self) -> None:
        if self._piece or [piece async for piece in self._pieces]:
            raise malformed()


async def packed(
    tree: BoxTree, root: FileStat, found: Sequence[tuple[TreeNode, bytes | None]]
) -> AsyncIterator[ArchiveEntry | bytes]:
    """Packs a tree. Files that disappeared since the survey are left out."""
    yield ArchiveEntry(EntryKind.DIRECTORY, b"", root.mode, root.modified_ns)
    first_names: dict[tuple[int, int], bytes] = {}  # of files that have several
    for begin in range(0, len(found), FILES_AT_ONCE):
        some = found[begin : begin + FILES_AT_ONCE]
        firsts = {
            node.name: first_names.setdefault((node.device, node.stat.inode), node.name)
            for node, _ in some
            if node.stat.kind is FileKind.FILE and node.links > 1
        }
        files = [
            node for node, _ in some if node.stat.kind is FileKind.FILE and firsts.get(node.name) in {None, node.name}
        ]
        contents = tree.contents(files)
        item = await anext(contents, None) if files else None
        for node, target in some:
            first = firsts.get(node.name, node.name)
            if node.stat.kind is not FileKind.FILE:
                if target != b"":
                    yield _entry(PACKED[node.stat.kind], node, target or b"")
            elif first != node.name:
                yield _entry(EntryKind.HARD_LINK, node, first)
            elif item is node:
                yield _entry(EntryKind.FILE, node)
                while isinstance(item := await anext(contents, None), bytes):
                    yield item


def _entry(kind: EntryKind, node: TreeNode, target: bytes = b"") -> ArchiveEntry:
    stat = node.stat
    return ArchiveEntry(
        kind, node.name, stat.mode, stat.modified_ns, stat.size if kind is EntryKind.FILE else 0, target
    )


def _below(path: bytes) -> bytes:
    if not path.startswith(b"./") or len(path) < 3:
        raise malformed()
    return path[2:]


def _batches(names: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for name in names:
        if size + len(name) > QUESTION_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += len(name) + 8
    if batch:
        yield batch
