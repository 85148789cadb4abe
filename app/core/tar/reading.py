"""From bytes to entries. Any input is an archive or raises InvalidArchive."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import NoReturn

from app.core.chunks import ChunkReader
from app.core.errors import InvalidArchive
from app.core.files import ArchiveEntry, EntryKind, shown
from app.core.tar.header import BLOCK, KINDS, SECOND, ZEROS, Header, parse_records, parse_time, text
from app.core.timeslices import TimeSlices

LONGEST_EXTENSION = 64 * 1024  # bytes of a long name or of pax records
_INT64 = 2**63
_REST = 1024 * 1024  # of what follows an archive, looked at in one piece
_SIZE = re.compile(rb"\d{1,19}")
_REFUSED = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}

# What files of other formats begin with.
_OTHERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\3\4": "zip",
}
_MAGIC = max(map(len, _OTHERS))


async def entries(chunks: AsyncIterator[bytes]) -> AsyncIterator[ArchiveEntry | bytes]:
    """Yields each entry, and after the entry of a file its content in pieces of any size. Reads `chunks` to the end.
    Names are as they are written, so they must go through `checked_names` before anything is made of them. Raises
    InvalidArchive."""
    reader = _Reader(chunks)
    slices = TimeSlices.of_loop()
    while (entry := await reader.next()) is not None:
        if slices.over:
            await slices.next()
        yield entry
        left = entry.size
        while left:
            piece = await reader.piece(left)
            left -= len(piece)
            yield piece
        await reader.take(-entry.size % BLOCK)
    await reader.finish()


class _Reader:
    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._bytes = ChunkReader(chunks)
        self._general: dict[bytes, bytes] = {}  # pax records for everything that follows
        self._last = b""  # the name that was read last, for people
        self._start = b""  # of the archive, until its first header is known to be one
        self._begun = False

    def _refuse(self, detail: str) -> NoReturn:
        raise InvalidArchive(shown(self._last), detail)

    def _refuse_format(self, detail: str) -> NoReturn:
        """Refuses bytes that are not tar, and names their format if their beginning shows it."""
        form = next((form for magic, form in _OTHERS.items() if self._start.startswith(magic)), None)
        if form is None or self._begun:
            self._refuse(detail)
        self._refuse(f"this is {form}; send an uncompressed tar archive")

    # --- bytes

    async def piece(self, most: int) -> bytes:
        """Returns 1 to `most` bytes."""
        piece = await self._bytes.piece(most)
        if not piece:
            self._refuse_end()
        return piece

    async def take(self, size: int) -> bytes:
        """Returns exactly that many bytes, which must be few."""
        data = await self._bytes.exactly(size)
        if len(self._start) < _MAGIC:
            self._start += data[:_MAGIC]
        if len(data) < size:
            self._refuse_end()
        return data

    def _refuse_end(self) -> NoReturn:
        self._refuse_format(f"the archive ends early, after {self._bytes.taken} bytes")

    # --- entries

    async def next(self) -> ArchiveEntry | None:
        """Returns None for the first of the two blocks of zeros at the end."""
        special: dict[bytes, bytes] = {}  # what is said beforehand about one entry
        while True:
            at = self._bytes.taken
            block = await self.take(BLOCK)
            if block == ZEROS and not special:
                return None
            try:
                header = Header.of(block)
            except ValueError:
                self._refuse_format(f"there is no tar header at byte {at}")
            self._begun = True
            try:
                if header.code in b"xX":
                    special |= parse_records(await self._extension(header.size))
                elif header.code == b"g":
                    self._general |= parse_records(await self._extension(header.size))
                elif header.code in b"LK":
                    key = b"path" if header.code == b"L" else b"linkpath"
                    special[key] = text(await self._extension(header.size))
                else:
                    return self._entry(header, self._general | special)
            except ValueError as error:
                self._refuse(str(error))

    async def _extension(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_EXTENSION:
            raise ValueError(
                f"the entry has {size} bytes of names and attributes; at most {LONGEST_EXTENSION} are allowed"
            )
        data = await self.take(size)
        await self.take(-size % BLOCK)
        return data

    def _entry(self, header: Header, special: dict[bytes, bytes]) -> ArchiveEntry:
        name = self._last = special.get(b"path") or header.name
        if not name:
            raise ValueError("the entry has no name")
        kind = KINDS.get(header.code)
        if kind is None:
            found = _REFUSED.get(header.code)
            raise ValueError(
                f"the entry is {found}, which is not allowed"
                if found
                else f"the entry has the unknown type {header.code!r}"
            )
        if kind is EntryKind.FILE and name.endswith(b"/"):  # as it was before there was a type for it
            kind = EntryKind.DIRECTORY
        size = header.size
        if given := special.get(b"size"):
            size = int(given) if _SIZE.fullmatch(given) else -1
        if not 0 <= size < _INT64:
            raise ValueError("the size is out of range")
        modified_ns = header.modified * SECOND
        if given := special.get(b"mtime"):
            modified_ns = parse_time(given)
        if not -_INT64 <= modified_ns < _INT64:
            raise ValueError("the time is out of range")
        mode = header.mode & 0o7777
        if kind is EntryKind.FILE:
            return ArchiveEntry(kind, name, mode, modified_ns, size)
        if kind is EntryKind.DIRECTORY:  # whatever its size says, no content follows
            return ArchiveEntry(kind, name, mode, modified_ns)
        if size:
            raise ValueError("the link has a size, and programs read what follows such a link in different ways")
        return ArchiveEntry(kind, name, mode, modified_ns, target=special.get(b"linkpath") or header.target)

    async def finish(self) -> None:
        """Checks the other block of zeros, and that only zeros follow. Most programs would silently read only the first
        of two archives in a row."""
        if await self.take(BLOCK) != ZEROS:
            self._refuse("the end of the archive is incomplete: it must have two blocks of zeros")
        while rest := await self._bytes.piece(_REST):
            if rest.count(0) != len(rest):
                self._refuse("other bytes follow the end of the archive")
