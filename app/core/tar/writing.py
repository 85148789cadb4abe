"""From entries to bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from app.core.archive import clean, require_target
from app.core.errors import BackendFailure
from app.core.files import MODE_BITS, ArchiveEntry, EntryKind, shown
from app.core.tar.header import BLOCK, FIELD, LARGEST, SECOND, TYPES, ZEROS, Header, record, time_text
from app.core.timeslices import TimeSlices

PIECE = 64 * 1024  # small entries are joined to at least this


async def archive(items: AsyncIterator[ArchiveEntry | bytes]) -> AsyncIterator[bytes]:
    """Yields pieces of any size. Raises BackendFailure for names that are not clean, and when a file has more or fewer
    bytes than its entry says, as a sandbox is not trusted."""
    waiting: list[bytes] = []
    held = left = padding = 0
    slices = TimeSlices.of_loop()
    async for item in items:
        if slices.over:
            await slices.next()
        if isinstance(item, bytes):
            piece = item
            left -= len(item)
            if left < 0:
                raise BackendFailure("a file of the tree has more bytes than its entry says")
        else:
            _require_all(left)
            piece = _head(item)
            left, padding = item.size, -item.size % BLOCK
        waiting.append(piece)
        held += len(piece)
        if left == 0 and padding:
            waiting.append(bytes(padding))
            held, padding = held + padding, 0
        if held >= PIECE:
            yield b"".join(waiting)  # what is alone there is not copied
            waiting.clear()
            held = 0
    _require_all(left)
    yield b"".join([*waiting, ZEROS, ZEROS])


def _require_all(left: int) -> None:
    if left:
        raise BackendFailure(f"a file of the tree lacks {left} bytes that its entry says it has")


def _head(entry: ArchiveEntry) -> bytes:
    """All blocks before the content. Never setuid: root may unpack what a sandbox made."""
    if not _is_clean(entry):
        raise BackendFailure(f"the tree has an entry {shown(entry.name)!r} that is impossible")
    name, size, modified_ns = entry.name, entry.size, entry.modified_ns
    if entry.kind is EntryKind.DIRECTORY:
        name = (name or b".") + b"/"
    records = [(key, value) for key, value in ((b"path", name), (b"linkpath", entry.target)) if not _fits(value)]
    if not all(_is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    if size >= LARGEST:
        records.append((b"size", b"%d" % size))
        size = 0
    seconds, part = divmod(modified_ns, SECOND)
    if part or not 0 <= seconds < LARGEST:
        records.append((b"mtime", time_text(modified_ns)))
        seconds = min(max(seconds, 0), LARGEST - 1)
    block = Header(TYPES[entry.kind], name, entry.mode & MODE_BITS, size, seconds, entry.target).block()
    if not records:
        return block
    data = b"".join(record(key, value) for key, value in records)
    return Header(b"x", b"././@PaxHeader", size=len(data)).block() + data + bytes(-len(data) % BLOCK) + block


def _is_clean(entry: ArchiveEntry) -> bool:
    try:
        if entry.kind is EntryKind.SYMLINK:
            require_target(entry.target)
        elif entry.kind is EntryKind.HARD_LINK and (clean(entry.target) or None) != entry.target:
            return False
        return clean(entry.name) == entry.name and (entry.name != b"" or entry.kind is EntryKind.DIRECTORY)
    except ValueError:
        return False


def _fits(name: bytes) -> bool:
    """Into the field of a header, and means there the same to every program: ASCII. So does what is no UTF-8: a pax
    header could not say it without `hdrcharset`, which few programs know."""
    return len(name) <= FIELD and (name.isascii() or not _is_utf8(name))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
