"""Writes tar streams: the one writer of headers, in two forms that differ in how they express long names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import Enum

from app.core.archive import clean, require_target
from app.core.errors import BackendFailure
from app.core.files import MODE_BITS, ArchiveEntry, EntryKind, shown
from app.core.tar.header import BLOCK, FIELD, LARGEST, SECOND, TYPES, ZEROS, Header, record, time_text
from app.core.timeslices import TimeSlices

PIECE = 64 * 1024  # small entries are joined to at least this
_LONG_NAME = b"././@LongLink"


class TarForm(Enum):
    """PAX expresses everything. GNU is for busybox, which ignores pax headers, long names among them. Its times are
    whole seconds, and a file must have less than LARGEST bytes."""

    PAX = "pax"
    GNU = "gnu"


async def archive(items: AsyncIterator[ArchiveEntry | bytes], form: TarForm = TarForm.PAX) -> AsyncIterator[bytes]:
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
            piece = _head(item, form)
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


def _head(entry: ArchiveEntry, form: TarForm) -> bytes:
    """Returns all blocks before the content. They never have setuid, as root may unpack what a sandbox made."""
    if not _is_clean(entry):
        raise BackendFailure(f"the tree has an entry {shown(entry.name)!r} that is impossible")
    name = entry.name
    if entry.kind is EntryKind.DIRECTORY:
        name = (name or b".") + b"/"
    if form is TarForm.GNU and entry.size >= LARGEST:
        raise BackendFailure(f"{shown(entry.name)!r} is too large for this form of an archive")
    before = _long(b"L", name) + _long(b"K", entry.target) if form is TarForm.GNU else _pax(entry, name)
    size = entry.size if entry.size < LARGEST else 0
    seconds = min(max(entry.modified_ns // SECOND, 0), LARGEST - 1)
    return before + Header(TYPES[entry.kind], name, entry.mode & MODE_BITS, size, seconds, entry.target).block()


def _long(code: bytes, name: bytes) -> bytes:
    return _extension(code, _LONG_NAME, name + b"\0") if len(name) > FIELD else b""


def _pax(entry: ArchiveEntry, name: bytes) -> bytes:
    """What the header itself has no room for, or b""."""
    records = [(key, value) for key, value in ((b"path", name), (b"linkpath", entry.target)) if not _fits(value)]
    if not all(_is_utf8(value) for _, value in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    if entry.size >= LARGEST:
        records.append((b"size", b"%d" % entry.size))
    seconds, part = divmod(entry.modified_ns, SECOND)
    if part or not 0 <= seconds < LARGEST:
        records.append((b"mtime", time_text(entry.modified_ns)))
    return _extension(b"x", b"././@PaxHeader", b"".join(record(*pair) for pair in records)) if records else b""


def _extension(code: bytes, name: bytes, data: bytes) -> bytes:
    return Header(code, name, size=len(data)).block() + data + bytes(-len(data) % BLOCK)


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
    """Whether a name fits into the field of a header and means the same there to every program: it is ASCII. A name
    that is not UTF-8 also goes there, as a pax header could not express it without `hdrcharset`, which few programs
    know."""
    return len(name) <= FIELD and (name.isascii() or not _is_utf8(name))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
