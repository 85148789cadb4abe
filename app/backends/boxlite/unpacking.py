"""A tree into a box: the box's own tar unpacks a tar stream in a folder of its own, and then the tree is moved.

The stream has GNU's form, as busybox ignores pax headers, long names among them. So times are whole seconds.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

from app.backends.boxlite.file_facts import absolute, existing, facts_of, malformed, name_of_ours, only
from app.backends.boxlite.file_scripts import CLEAN_UNPACK, UNPACK
from app.backends.boxlite.script_runner import ScriptRunner
from app.backends.boxlite.script_session import ScriptSession
from app.core.errors import BackendFailure, PayloadTooLarge, WrongType
from app.core.files import ArchiveEntry, EntryKind, FileKind, shown
from app.core.tar import TarForm, archive
from app.core.tar.header import LARGEST

NAMES_AT_ONCE = 256
PATH_BYTES = 4096
_OWN = 0o700  # what a folder must allow while it is filled
_IMPLIED = 0o755  # a directory of which the archive has no entry


async def unpack(scripts: ScriptRunner, path: bytes, content: AsyncIterator[ArchiveEntry | bytes]) -> None:
    whole = absolute(path).rstrip(b"/") or b"/"
    hold = name_of_ours()
    async with scripts.begin(UNPACK, whole, hold, clean=CLEAN_UNPACK) as session:
        line = await session.line()
        if line != b"none":
            only(FileKind.DIRECTORY, existing(line, path), path)
        await session.say("go")
        prepared = _Prepared()
        size, digest = await session.feed(archive(prepared.of(content), TarForm.GNU))
        seconds = session.seconds_for(size, prepared.entries)
        if await session.line(seconds) != b"sum " + digest.encode():
            raise BackendFailure("the archive was damaged on its way into the box: its digest is wrong")
        await session.say("go")
        said = await session.line(seconds)
        if said.startswith(b"clash "):
            await _clash(session, said)
        for mode, names in prepared.modes.items():
            for begin in range(0, len(names), NAMES_AT_ONCE):
                some = names[begin : begin + NAMES_AT_ONCE]
                await session.ask(b"".join(b"./%b\0" % name for name in some), f"{mode:o}")
        await session.say("0 0")
        if (said, await session.line(seconds)) != (b"checked", b"done"):
            raise malformed()


async def _clash(session: ScriptSession, said: bytes) -> None:
    found = facts_of(said.partition(b" ")[2])
    where = b"".join([piece async for piece in session.stream(PATH_BYTES * 2)])
    raise WrongType(found.kind.value, f"{shown(where)} is {found.kind.noun}, and the archive has another type there")


class _Prepared:
    """Entries for a tar that unpacks them as they come: each has its directories before it, which no umask of the box
    then makes, and a directory gets its mode when nothing comes into it any more."""

    def __init__(self) -> None:
        self.modes: dict[int, list[bytes]] = {}  # of directories
        self.entries = 0
        self._made: set[bytes] = set()

    async def of(self, content: AsyncIterator[ArchiveEntry | bytes]) -> AsyncIterator[ArchiveEntry | bytes]:
        async for item in content:
            if isinstance(item, bytes):
                yield item
                continue
            self.entries += 1
            if item.size >= LARGEST:
                what = f"the entry {shown(item.name)!r}"
                raise PayloadTooLarge(LARGEST - 1, what, "send it on its own, outside the archive")
            for entry in self._with_parents(item):
                yield entry

    def _with_parents(self, entry: ArchiveEntry) -> Iterator[ArchiveEntry]:
        parts = entry.name.split(b"/")
        for count in range(1, len(parts)):
            parent = b"/".join(parts[:count])
            if parent not in self._made:
                yield self._directory(parent, _IMPLIED, time.time_ns())
        if entry.kind is not EntryKind.DIRECTORY:
            yield entry
        elif entry.name:
            self.modes.setdefault(entry.mode, []).append(entry.name)
            yield self._directory(entry.name, entry.mode | _OWN, entry.modified_ns)

    def _directory(self, name: bytes, mode: int, modified_ns: int) -> ArchiveEntry:
        self._made.add(name)
        return ArchiveEntry(EntryKind.DIRECTORY, name, mode, modified_ns)
