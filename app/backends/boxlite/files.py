"""The files of a box, by its own shell: what a path leads to is what it leads to for a command of the box.

Never by the server's download, which follows links on the server's machine, nor by its upload, which knows nothing of
the box's mounts and takes 2 MiB at a time. The images's own programs answer; what they say is bounded and read
strictly, and a box that lies, lies about its own files.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.backends.boxlite.dialogue import Dialogue
from app.backends.boxlite.dialogues import Dialogues
from app.backends.boxlite.file_facts import absolute, facts_of, nonsense, record_of, records, wrong_type
from app.backends.boxlite.file_scripts import (
    CLEAN_WRITE,
    DELETE,
    LIST,
    MAKE_DIRECTORY,
    OPEN,
    PAGE_BYTES,
    PIECE_BYTES,
    STAT,
    WRITE,
)
from app.core.errors import BackendFailure, CapacityExceeded, Conflict, InvalidRequest, NotFound
from app.core.files import (
    DEFAULT_MODE,
    Check,
    DirectoryEntry,
    FileKind,
    FileStat,
    Listing,
    OpenFile,
    shown,
)

NAMES_BYTES = 16 * 1024 * 1024  # of all names of one directory: each page reads them all
RECORD_BYTES = 8192  # of one entry of a page, target included
ROUNDS = 8  # how often a file may change between a check and the rename


class BoxliteFiles:
    def __init__(self, dialogues: Dialogues) -> None:
        self._dialogues = dialogues

    async def stat(self, path: bytes) -> FileStat:
        async with self._dialogues.begin(STAT, absolute(path)) as dialogue:
            return _there(await dialogue.line(), path)

    @asynccontextmanager
    async def open(self, path: bytes) -> AsyncIterator[OpenFile]:
        async with self._dialogues.begin(OPEN, absolute(path)) as dialogue:
            _only(FileKind.FILE, _there(await dialogue.line(), path), path)
            word, _, facts = (await dialogue.line()).partition(b" ")
            if word != b"open":
                raise nonsense()
            yield _Held(dialogue, _only(FileKind.FILE, facts_of(facts), path))

    async def write(
        self, path: bytes, content: AsyncIterator[bytes], *, mode: int = DEFAULT_MODE, check: Check | None = None
    ) -> bool:
        whole = _named(path)
        options = (f".bulkhead-{secrets.token_hex(8)}", f"{mode:o}")
        async with self._dialogues.begin(WRITE, whole, *options, clean=CLEAN_WRITE) as dialogue:
            line = await dialogue.line()
            _checked(line, path, check)
            await dialogue.say("go")
            size, digest = await dialogue.feed(content)
            said = await dialogue.line(dialogue.seconds_for(size))
            if said != b"sum " + digest.encode():
                raise BackendFailure("the content arrived in the box with another digest than it was sent with")
            for _ in range(ROUNDS):
                await dialogue.say(line.decode() if check is not None else "any")
                word, _, line = (await dialogue.line()).partition(b" ")
                if word == b"done":
                    return line == b"none"
                if word != b"again":
                    raise nonsense()
                _checked(line, path, check)
        raise Conflict(f"{shown(path)} is changed by others again and again")

    async def list(self, path: bytes, after: bytes | None, limit: int) -> Listing:
        token = secrets.token_hex(16)
        async with self._dialogues.begin(LIST, absolute(path), token) as dialogue:
            _only(FileKind.DIRECTORY, _there(await dialogue.line(), path), path)
            names = await _first_names(dialogue, after, limit + 1)
            chosen = names[:limit]
            entries = await _entries(dialogue, token.encode(), chosen) if chosen else []
        return Listing(entries, more=len(names) > limit)

    async def make_directory(self, path: bytes) -> bool:
        whole = absolute(path).rstrip(b"/") or b"/"
        async with self._dialogues.begin(MAKE_DIRECTORY, whole) as dialogue:
            line = await dialogue.line()
            if line == b"made":
                return True
            if line != b"there":
                _only(FileKind.DIRECTORY, _there(line, path), path)
            return False

    async def delete(self, path: bytes, *, recursive: bool) -> None:
        whole = _named(path.rstrip(b"/") or path)
        async with self._dialogues.begin(DELETE, whole, "recursive" if recursive else "") as dialogue:
            if await dialogue.line() != b"gone":
                raise nonsense()


class _Held:
    def __init__(self, dialogue: Dialogue, stat: FileStat) -> None:
        self._dialogue, self.stat = dialogue, stat

    async def read(self, begin: int, size: int) -> AsyncIterator[bytes]:
        if size == 0:
            return
        skip = begin // PAGE_BYTES
        count = -(-(begin + size) // PAGE_BYTES) - skip
        before, left = begin - skip * PAGE_BYTES, size
        await self._dialogue.say(f"{skip} {count}")
        async for piece in self._dialogue.stream(count * PAGE_BYTES):
            wanted = piece[before : before + left]
            before = max(0, before - len(piece))
            left -= len(wanted)
            if wanted:
                yield wanted
        if left:
            raise BackendFailure("the file has become shorter while it was read")


def _there(line: bytes, path: bytes) -> FileStat:
    """Raises NotFound."""
    if line == b"none":
        raise NotFound("file", shown(path))
    word, _, facts = line.partition(b" ")
    if word != b"is":
        raise nonsense()
    return facts_of(facts)


def _only(kind: FileKind, stat: FileStat, path: bytes) -> FileStat:
    """Raises WrongType."""
    if stat.kind is not kind:
        raise wrong_type(path, stat.kind, f"a {kind}")
    return stat


def _checked(line: bytes, path: bytes, check: Check | None) -> None:
    stat = None if line == b"none" else _only(FileKind.FILE, _there(line, path), path)
    if check is not None:
        check(stat)


def _named(path: bytes) -> bytes:
    """The last part is a name."""
    whole = absolute(path)
    if whole.rpartition(b"/")[2] in {b"", b".", b".."}:
        raise InvalidRequest.at("query/path", "must end with a name")
    return whole


async def _first_names(dialogue: Dialogue, after: bytes | None, count: int) -> list[bytes]:
    """In order, behind `after`; of what find(1) prints, whole paths with a NUL behind each."""
    found: list[bytes] = []
    rest, total = b"", 0
    async for piece in dialogue.stream(NAMES_BYTES + PIECE_BYTES):
        *paths, rest = (rest + piece).split(b"\0")
        names = (path.rpartition(b"/")[2] for path in paths)
        found = sorted([*found, *(name for name in names if after is None or name > after)])[:count]
        total += len(piece)
        if total > NAMES_BYTES:
            raise CapacityExceeded("bytes of names in one directory", NAMES_BYTES)
    if rest:
        raise nonsense()
    return found


async def _entries(dialogue: Dialogue, token: bytes, names: list[bytes]) -> list[DirectoryEntry]:
    """What has gone meanwhile is left out."""
    facts = {}
    for record in records(await _asked(dialogue, names), token + b" "):
        name, stat = record_of(record)
        facts[name] = stat
    links = [name for name in names if name in facts and facts[name].kind is FileKind.SYMLINK]
    targets = list(records(await _asked(dialogue, links), token)) if links else []
    if len(targets) != len(links) or not facts.keys() <= set(names):
        raise nonsense()
    target_of = dict(zip(links, targets, strict=True))
    return [DirectoryEntry(name, facts[name], target_of.get(name)) for name in names if name in facts]


async def _asked(dialogue: Dialogue, names: list[bytes]) -> bytes:
    question = b"".join(b"./%b\0" % name for name in names)
    await dialogue.ask(question)
    return b"".join([piece async for piece in dialogue.stream(RECORD_BYTES * len(names))])
